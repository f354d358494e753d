"""Files as laboratories have them: each shape becomes the right screen, or is refused by one line that says why.

A row of a table is one shape: what it is, how its files are made, and what has to be read from them or said.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from count_files import write_mtx
from scipy import sparse
from scipy.io import mmwrite

from tcell_drugseq.base.defaults import DataConfig
from tcell_drugseq.base.settings import InputError
from tcell_drugseq.counts.matrices import read_counts
from tcell_drugseq.counts.plate_map import join_wells, read_plate_map
from tcell_drugseq.data.reading import find_problems, read_screen, write_bundle

GENES = ["IL2", "IFNG", "MT-CO1", "RPL3", "ACTB", "GAPDH"]
PLATES = ("P1", "P2")
AT = [f"{row}{column:02d}" for row in "ABCD" for column in range(1, 7)]  # 24 wells of each plate
PLATE, WELL = [plate for plate in PLATES for _ in AT], AT * len(PLATES)


def table(ids: list[str] | None = None) -> pd.DataFrame:
    """48 wells x 6 genes, every well of another depth."""
    rng = np.random.default_rng(5)
    ids = [f"{p}_{w}" for p, w in zip(PLATE, WELL, strict=True)] if ids is None else ids
    counts = rng.poisson(rng.uniform(2, 60, (len(ids), 1)) * rng.uniform(0.2, 3, len(GENES)))
    return pd.DataFrame(counts, index=ids, columns=GENES)


def plates(**columns: list) -> pd.DataFrame:
    """Every fourth well is DMSO, six compounds have six wells each."""
    compounds = ["DMSO" if i % 4 == 0 else f"drug {i % 4 + 3 * (i % 2)}" for i in range(48)]
    return pd.DataFrame({"well": table().index, "compound": compounds} | columns)


def screened(folder: Path, counts: pd.DataFrame, wells: pd.DataFrame, pattern: str = "") -> AnnData:
    """Both through their files, joined."""
    counts.to_csv(folder / "counts.csv")
    wells.to_csv(folder / "map.csv", index=False)
    raw, read = read_counts(folder / "counts.csv"), read_plate_map(folder / "map.csv")
    return join_wells(raw, read, ("counts.csv", "map.csv"), pattern)


def expressed(obs: pd.DataFrame) -> AnnData:
    """Expression, a label and these columns."""
    x = np.random.default_rng(2).normal(size=(len(obs), 5)).astype(np.float32)
    obs = obs.assign(compound=plates()["compound"].to_numpy(), label=[0, 1] * (len(obs) // 2))
    return AnnData(x, obs=obs, var=pd.DataFrame(index=GENES[:5]))


# Where a well is

FIRST = [f"{w}_{p}" for p, w in zip(PLATE, WELL, strict=True)]  # A01_P1, and P1 could be a well
LOTS = [f"{w}_lot{p[1]}" for p, w in zip(PLATE, WELL, strict=True)]
PATTERN = "(?P<row>[A-P])(?P<column>[0-9]+)_(?P<plate>.+)"
IDS: dict[str, tuple[list[str], dict[str, list], str, str]] = {  # ids, more columns, pattern, text of the error
    "plate first": ([f"{p}_{w}" for p, w in zip(PLATE, WELL, strict=True)], {}, "", ""),
    "well first, plate no well": (LOTS, {}, "", ""),
    "well first": (FIRST, {}, "", "found 'A01_P1', which reads as plate 'A01', well P1 or as plate 'P1', well A1"),
    "well first, pattern": (FIRST, {}, PATTERN, ""),
    "well first, plate in the map": (FIRST, {"plate": PLATE}, "", ""),
    "well first, plates of other names": (FIRST, {"plate": [f"{p}x" for p in PLATE]}, "", ""),
    "plate of the map contradicts": (
        [f"{p}x_{w}" for p, w in zip(PLATE, WELL, strict=True)],
        {"plate": [f"L{i % 2}" for i in range(48)]},
        "",
        "found 'P1x_A01', which reads as plate 'P1x', well A1, beside plate 'L0'",
    ),
    "samples numbered": ([f"s{i}_{w}" for i, w in enumerate(WELL)], {}, "", "48 plates of at most 1 wells"),
}


@pytest.mark.parametrize("kind", ["map", "h5ad", "bundle"])
@pytest.mark.parametrize("shape", IDS)
def test_where_a_well_is(shape: str, kind: str, tmp_path: Path):
    ids, columns, pattern, error = IDS[shape]
    if kind == "bundle" and columns:
        pytest.skip("a bundle has no column of plates")

    def read() -> pd.DataFrame:
        if kind == "map":
            return screened(tmp_path, table(ids), plates(well=ids, **columns), pattern).obs
        if kind == "h5ad":
            expressed(pd.DataFrame(columns, index=ids)).write_h5ad(tmp_path / "sent.h5ad")
        else:
            write_bundle(expressed(pd.DataFrame(columns, index=ids)), tmp_path / "sent")
        return read_screen(DataConfig(str(next(tmp_path.iterdir())), well_pattern=pattern)).obs

    if error:
        with pytest.raises(InputError) as raised:
            read()
        assert error in str(raised.value)
        return
    obs = read()
    assert obs["row"].tolist() == [w[0] for w in WELL] and obs["column"].tolist() == [int(w[1:]) for w in WELL]
    assert len(set(zip(obs["plate"], PLATE, strict=True))) == 2


POSITIONS = {
    "well_position": {"plate": PLATE, "well_position": WELL},
    "position": {"plate": PLATE, "position": [w.lower() for w in WELL]},
    "Well": {"plate": PLATE, "Well": [f"{w[0]}{int(w[1:])}" for w in WELL]},
    "row and col": {"plate": PLATE, "row": [w[0] for w in WELL], "col": [int(w[1:]) for w in WELL]},
    "JUMP": {"plate": PLATE, "Metadata_Well": WELL},
    "by a setting": {"plate": PLATE, "where it was": WELL},
}


@pytest.mark.parametrize("shape", POSITIONS)
def test_positions_of_an_h5ad(shape: str, tmp_path: Path):
    columns = POSITIONS[shape]
    cfg = DataConfig(str(tmp_path / "screen.h5ad"))
    expressed(pd.DataFrame(columns, index=[f"AACC{i}" for i in range(48)])).write_h5ad(cfg.data_dir)
    position = "where it was" if "where it was" in columns else ""
    obs = read_screen(DataConfig(cfg.data_dir, position=position)).obs
    assert obs["row"].tolist() == [w[0] for w in WELL] and obs["column"].tolist() == [int(w[1:]) for w in WELL]
    assert obs["plate"].tolist() == PLATE
    found = find_problems(DataConfig(cfg.data_dir, position="compound"))
    assert "compound" in found["where"].iloc[0] or "compound" in found["found"].iloc[0]


# Which matrix


def solo(folder: Path) -> Path:
    """A folder of STARsolo with three matrices: the usual one, twice as deep ones, and estimates."""
    raw = write_mtx(table(), folder / "raw")
    for name, factor in (("umiDedup-NoDedup.mtx", 2), ("UniqueAndMult-EM.mtx", 1.5)):
        mmwrite(raw / name, sparse.coo_matrix(table().T.to_numpy() * factor))
    return raw


def held(folder: Path, x: object, layer: object = None, raw: object = None, **var: list) -> Path:
    """An `.h5ad` with these matrices; genes of `raw` may be more than those of X."""
    first = pd.DataFrame(var, index=var.pop("names", GENES))[: x.shape[1]]
    adata = AnnData(x, obs=pd.DataFrame(index=table().index), var=first)
    if layer is not None:
        adata.layers["counts"] = layer
    if raw is not None:
        adata.raw = AnnData(raw, obs=adata.obs.copy(), var=pd.DataFrame(index=GENES))
    adata.write_h5ad(folder / "counts.h5ad")
    return folder / "counts.h5ad"


C = table().to_numpy(dtype=np.float32)
SCALED = np.round(C / C.sum(axis=1, keepdims=True) * 1e6)
MATRICES = {  # how it is made, the setting `matrix`, how often the counts are read or text of the error
    "the usual one": (solo, "", 1),
    "another by its path": (lambda f: solo(f) / "umiDedup-NoDedup.mtx", "", 2),
    "another by the setting": (solo, "umiDedup-NoDedup.mtx", 2),
    "estimates": (solo, "UniqueAndMult-EM.mtx", "they look normalised or estimated"),
    "a path to nothing": (lambda f: solo(f) / "umiDedup-Exact.mtx", "", "umiDedup-Exact.mtx: found no such file"),
    "a setting of nothing": (
        solo,
        "umiDedup-Exact.mtx",
        "found no file 'umiDedup-Exact.mtx', expected one of 'UniqueAnd",
    ),
    "decimals as counts": (lambda f: held(f, C, C * 0.5), "", "counts.h5ad: layers['counts']: found"),
    "decimals as counts, settled": (lambda f: held(f, C, C * 0.5), "X", 1),
    "negative counts": (lambda f: held(f, C, -C), "", "values are no counts)"),
    "counts with a gap": (lambda f: held(f, C, np.where(C == C.max(), np.nan, C)), "", "found nan"),
    "logs, and counts": (lambda f: held(f, np.log1p(C), C), "", 1),
    "few genes in X": (lambda f: held(f, C[:, :3], raw=C), "", 1),
    "few logs in X": (lambda f: held(f, np.log1p(C[:, :3]), raw=C), "", 1),
    "two that differ": (lambda f: held(f, C * 2, raw=C), "", "whole numbers in X and in raw.X that are not the same"),
    "two that differ, settled": (lambda f: held(f, C * 2, raw=C), "raw.X", 1),
    "counts per million": (lambda f: held(f, SCALED), "", "values scaled to one total and rounded"),
    "no such matrix": (lambda f: held(f, C), "spliced", "setting 'matrix': found 'spliced', expected one of 'X'"),
}


@pytest.mark.parametrize("shape", MATRICES)
def test_which_matrix(shape: str, tmp_path: Path):
    make, matrix, expected = MATRICES[shape]
    if isinstance(expected, str):
        with pytest.raises(InputError) as raised:
            read_counts(make(tmp_path), matrix=matrix)
        assert expected in str(raised.value)
        return
    path = make(tmp_path)
    counts = read_counts(path, matrix=matrix)
    assert (counts.X.toarray() == C * expected).all() and counts.var_names.tolist() == GENES
    assert expected == 1 or "umiDedup-NoDedup.mtx" in counts.uns["source"]["name"]


def test_genes_without_a_symbol_keep_their_id(tmp_path: Path):
    ids = [f"ENSG{i:011d}" for i in range(6)]
    path = held(tmp_path, C, names=ids, gene_name=[*GENES[:4], np.nan, ""])
    assert read_counts(path).var_names.tolist() == [*GENES[:4], *ids[4:]]


# What stands among the genes

LINES = {  # names of more lines, and the words with which they are left out
    "HTSeq": (["__no_feature", "__ambiguous", "__alignment_not_unique"], "lines of the counting program (3)"),
    "STAR": (["N_unmapped", "N_noFeature"], "lines of the counting program (2)"),
    "spike-ins": (["ERCC-00002", "ERCC-00171"], "spike-ins (2)"),
    "totals": (["Total"], "totals (1)"),
    "Seurat": (["nCount_RNA", "nFeature_RNA", "percent.mt"], "measures of quality (3)"),
    "scanpy": (["n_genes_by_counts", "pct_counts_mt", "log1p_total_counts"], "measures of quality (3)"),
    "pandas": (["Unnamed: 0"], "an index that was saved (1)"),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", LINES)
def test_what_is_no_gene_is_left_out_and_said(shape: str, turned: bool, tmp_path: Path):
    names, words = LINES[shape]
    more = table().assign(**{name: table().sum(axis=1) * (0.37 if "p" == name[0] else 1) for name in names})
    (more.T if turned else more).to_csv(tmp_path / "counts.csv")
    counts = read_counts(tmp_path / "counts.csv")
    assert (counts.X.toarray() == C).all() and counts.var_names.tolist() == GENES
    assert words in " ".join(counts.uns["notes"]) and repr(names[0]) in " ".join(counts.uns["notes"])
    assert shape != "spike-ins" or (counts.obs["spike_umis"] == 2 * table().sum(axis=1)).all()


def test_a_total_under_another_name_is_refused(tmp_path: Path):
    table().assign(Alles=table().sum(axis=1)).to_csv(tmp_path / "counts.csv")
    with pytest.raises(InputError, match=r"counts.csv: gene 'Alles': found the sum of all others"):
        read_counts(tmp_path / "counts.csv")
    table().T.assign(Summe=table().sum(axis=0)).to_csv(tmp_path / "counts.csv")
    with pytest.raises(InputError, match=r"counts.csv: well 'Summe': found the sum of all others"):
        read_counts(tmp_path / "counts.csv")


def test_a_blank_behind_a_symbol_is_no_part_of_it(tmp_path: Path):
    table().rename(columns={"IL2": "IL2 "}).to_csv(tmp_path / "counts.csv")
    counts = read_counts(tmp_path / "counts.csv")
    assert counts.var_names.tolist() == GENES and "'IL2 '" in " ".join(counts.uns["notes"])
    table().rename(columns={"IL2": "IFNG "}).to_csv(tmp_path / "counts.csv")
    with pytest.raises(InputError, match="'IFNG' more than once"):
        read_counts(tmp_path / "counts.csv")
