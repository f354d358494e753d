"""Files as laboratories have them: each shape becomes the right screen, or is refused by one line that says why.

A row of a table is one shape: what it is, how its files are made, and what has to be read from them or said.
"""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from count_files import write_mtx
from scipy import sparse
from scipy.io import mmwrite

from tcell_drugseq.base.defaults import DataConfig
from tcell_drugseq.base.files import write_h5ad
from tcell_drugseq.base.settings import InputError
from tcell_drugseq.counts.joining import add_barcodes, join_wells
from tcell_drugseq.counts.matrices import read_counts
from tcell_drugseq.counts.plate_map import read_plate_map, set_aside
from tcell_drugseq.counts.quality import measure_wells
from tcell_drugseq.data.reading import find_problems, read_screen, screen_hash, write_bundle

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
    compounds = ["DMSO" if i % 4 == 0 else f"drug {(i - i // 4 - 1) % 6 + 1}" for i in range(48)]
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


IDS_OF = {"IL2": "ENSG00000109471", "IFNG": "ENSG00000111537", "MT-CO1": "ENSG00000198804", "RPL3": "ENSG00000100316"}
IDS_OF |= {"ACTB": "ENSG00000075624", "GAPDH": "ENSG00000111640"}


def by_ids(form: str, folder: Path, beside: list[str] | None = None) -> Path:
    """Counts by Ensembl ids with versions, as a table, a folder or an `.h5ad`; maybe with names beside them."""
    ids = [f"{IDS_OF[gene]}.{i + 3}" for i, gene in enumerate(GENES)]
    folder.mkdir(exist_ok=True)
    if form == "h5ad":
        return held(folder, C, names=ids, **({"gene_name": beside} if beside else {}))
    if form == "folder":
        raw = write_mtx(table(), folder / "raw")
        names = ids if beside is None else [f"{gene}\t{name}" for gene, name in zip(ids, beside, strict=True)]
        (raw / "features.tsv").write_text("\n".join([*names, ""]))
        return raw
    genes = table().T.set_axis(ids)
    if beside:
        genes.insert(0, "gene_name", beside)
    genes.to_csv(folder / "counts.csv", index_label="gene_id")
    return folder / "counts.csv"


@pytest.mark.parametrize("form", ["table", "folder", "h5ad"])
def test_ids_become_symbols_by_the_file_and_else_by_a_named_table(form: str, tmp_path: Path):
    shipped = read_counts(by_ids(form, tmp_path))
    assert shipped.var_names.tolist() == GENES and (shipped.X.toarray() == C).all()
    assert any("6 of 6 gene ids turned into symbols by GENCODE release" in note for note in shipped.uns["notes"])
    own = read_counts(by_ids(form, tmp_path / "own", [*GENES[:5], "OWN1"]))
    assert own.var_names.tolist() == [*GENES[:5], "OWN1"]
    assert not any("GENCODE" in note for note in own.uns["notes"])
    with pytest.raises(InputError, match="found Ensembl ids instead of symbols"):
        read_counts(by_ids(form, tmp_path / "off"), symbols=False)


@pytest.mark.parametrize("form", ["table", "folder", "h5ad"])
def test_blanks_about_symbols_are_said_in_every_form(form: str, tmp_path: Path):
    read = read_counts(by_ids(form, tmp_path / "own", ["IL2 ", *GENES[1:]]))
    assert read.var_names.tolist() == GENES
    assert any("blanks at an end are read without (1): 'IL2 '" in note for note in read.uns["notes"])


@pytest.mark.parametrize("words", ["TRUE FALSE", "Yes no", "1.0 0", "t F"])
def test_true_and_false_are_the_same_words_everywhere(words: str, tmp_path: Path):
    yes, no = words.split()
    wells = plates(is_control=[no if i % 4 else yes for i in range(48)], label=[yes, no] * 24)
    wells.to_csv(tmp_path / "map.csv", index=False)
    joined = join_wells(read_counts(tables(tmp_path)), read_plate_map(tmp_path / "map.csv"))
    assert joined.obs["is_control"].sum() == 12 and "control_type" not in joined.obs
    assert set_aside(joined.obs, ["label"], "map.csv", [])["label"].tolist() == [1, 0] * 24
    sent = expressed(pd.DataFrame(index=table().index))
    sent.obs["label"] = [yes, no] * 24
    sent.write_h5ad(tmp_path / "sent.h5ad")
    for label in ("label", f"label={yes}"):
        assert read_screen(DataConfig(str(tmp_path / "sent.h5ad"), label=label)).obs["label"].tolist() == [1, 0] * 24


def tables(folder: Path) -> Path:
    table().to_csv(folder / "counts.csv")
    return folder / "counts.csv"


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


# Doses and names of a plate map

TREATED = [i % 4 > 0 for i in range(48)]


def doses(cell: str, **more: str) -> dict[str, list]:
    """The cell in each treated well, and nothing beside DMSO."""
    return {name: [text if treated else "" for treated in TREATED] for name, text in {"dose": cell, **more}.items()}


def called(name: str, cell: str, **more: str) -> dict[str, list]:
    columns = doses(cell, **more)
    return {name: columns.pop("dose"), **columns}


MOLAR = {"dose": 0.1, "unit": "uM"}
MAPS = {  # more columns, settings, and what is read in a treated well or the text of the error
    "unit in the header": (called("dose_nM", "100"), {}, MOLAR),
    "unit in the cell": (doses("100 nM"), {}, MOLAR),
    "unit in a column": (doses("100", unit="nM"), {}, MOLAR),
    "unit thrice": (called("dose_nM", "100 nM", unit="nmol/L"), {}, MOLAR),
    "header against column": (
        called("dose_nM", "100", unit="uM"),
        {},
        "the unit 'uM' beside 'nM' in the column's name",
    ),
    "header against cell": (called("dose_nM", "100 uM"), {}, "'100 uM' beside the unit 'nM'"),
    "cell against column": (doses("100 nM", unit="uM"), {}, "'100 nM' beside the unit 'uM'"),
    "a unit of time": (doses("100", unit="h"), {}, "found the unit 'h', expected a unit of dose"),
    "time and dose": (doses("0.1", Unit="h", Unit_1="uM"), {}, "'Unit', 'Unit_1', which all mean unit"),
    "time and dose, settled": (doses("0.1", Unit="h", Unit_1="uM"), {"unit": "Unit_1"}, MOLAR),
    "macpie": (called("Concentration_1", "0.1", Unit_1="uM"), {}, MOLAR),
    "Echo": (called("Conc. (µM)", "0.1", **{"Destination Plate Barcode": "P1"}), {}, MOLAR),
    "R": (called("Dose..uM.", "0.1"), {}, MOLAR),
    "JUMP": (called("Metadata_mmoles_per_liter", "0.0001", Metadata_Plate="P1"), {}, MOLAR),
    "LINCS": (called("pert_dose", "0.1", pert_dose_unit="um"), {}, MOLAR),
    "D300": (called("Dispensed conc. [nM]", "100"), {}, MOLAR),
    "by a setting": (called("how much", "0.1"), {"dose": "how much"}, {"dose": 0.1}),
    "no such column": (
        doses("1"),
        {"dose": "Dosis"},
        "setting 'dose': found no column 'Dosis', expected one of 'well'",
    ),
    "logarithms": (called("log10_dose", "-1"), {}, "columns 'log10_dose' are kept as text: no dose"),
    "a thousand or one": (doses("1.000"), {}, "doses such as '1.000' are read as 1, not as thousands"),
    "three decimals": (doses("0.100", unit="uM"), {}, MOLAR),
}


@pytest.mark.parametrize("shape", MAPS)
def test_doses_and_columns_by_other_names(shape: str, tmp_path: Path):
    columns, settings, expected = MAPS[shape]
    plates(**columns).to_csv(tmp_path / "map.csv", index=False)

    def read() -> pd.DataFrame:
        return read_plate_map(tmp_path / "map.csv", columns=settings)

    if isinstance(expected, str) and "kept as text" not in expected and "not as" not in expected:
        with pytest.raises(InputError) as raised:
            read()
        assert expected in str(raised.value)
        return
    found = read()
    if isinstance(expected, str):
        assert expected in " ".join(found.attrs["notes"])
        return
    assert found["dose"].tolist() == [0.1 if treated else 0.0 for treated in TREATED]
    assert "unit" not in expected or found["unit"].unique().tolist() == ["uM"]
    names = [name for name in columns if name not in ("dose", "unit")]
    assert not names or any(repr(name) in note for note in found.attrs["notes"] for name in names)


SPELLINGS = {  # names of the first wells, the setting `rename`, text of the error or number of compounds
    "the control in capitals": (["dmso"], (), "as by the setting rename: dmso=DMSO"),
    "the control with its share": (["DMSO 0.1%"], (), "as by the setting rename: DMSO 0.1%=DMSO"),
    "the vehicle": (["vehicle (DMSO)"], (), "as by the setting rename: vehicle (DMSO)=DMSO"),
    "the vehicle, settled": (["vehicle (DMSO)"], ("vehicle (DMSO)=DMSO",), 7),
    "capitals": (["Drug 1"], (), 8),
    "blanks": (["drug1"], (), "as by the setting rename: drug1=drug 1"),
    "underscores": (["drug_1"], (), "as by the setting rename: drug_1=drug 1"),
    "no width": (["drug\u200b 1"], (), "which read as one name"),
    "merged": (["Drug 1"], ("Drug 1=drug 1",), 7),
    "its own": (["Drug 1"], ("Drug 1=Drug 1",), 8),
    "a name of no well": (["x"], ("y=z",), "no compound of the rule 'y=z'"),
    "untreated": (["none", "NA", "-"], (), 10),
}


@pytest.mark.parametrize("kind", ["map", "bundle", "h5ad"])
@pytest.mark.parametrize("shape", SPELLINGS)
def test_one_compound_has_one_name(shape: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    names, rename, expected = SPELLINGS[shape]
    compounds = names + plates()["compound"].tolist()[len(names) :]
    plates(compound=compounds).to_csv(tmp_path / "map.csv", index=False)
    screen = expressed(pd.DataFrame(index=table().index))
    screen.obs["compound"] = compounds
    place = tmp_path / ("screen.h5ad" if kind == "h5ad" else "bundle")
    screen.write_h5ad(place) if kind == "h5ad" else write_bundle(screen, place)

    def read() -> pd.DataFrame:
        if kind == "map":
            return read_plate_map(tmp_path / "map.csv", rename=rename)
        return read_screen(DataConfig(str(place), rename=rename)).obs

    if isinstance(expected, str):
        with pytest.raises(InputError) as raised:
            read()
        assert expected in str(raised.value)
        return
    obs = read()
    assert obs["compound"].nunique() == expected
    said = " ".join(obs.attrs["notes"]) if kind == "map" else caplog.text
    assert (shape == "untreated") == ("may mean none, with their wells: 'none' (1), 'NA' (1), '-' (1)" in said)
    assert (shape == "capitals") == ("if they are one, as by the setting rename: Drug 1=drug 1" in said)


def test_a_control_column_that_contradicts_the_names_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    screen = expressed(pd.DataFrame({"is_control": [i % 4 == 1 for i in range(48)]}, index=table().index))
    screen.write_h5ad(tmp_path / "screen.h5ad")
    assert read_screen(DataConfig(str(tmp_path / "screen.h5ad"))).obs["is_control"].tolist() == [
        i % 4 == 0 for i in range(48)
    ]
    assert "is_control is False for 'DMSO' (24 such wells)" in caplog.text


GAPS = {
    "boolean": pd.array([True, None] * 24, dtype="boolean"),
    "integer": pd.array([1, None] * 24, dtype="Int64"),
    "text": pd.array(["x", None] * 24, dtype="string"),
    "categories": pd.Categorical([True, None] * 24),
}


@pytest.mark.parametrize("kind", GAPS)
def test_columns_with_gaps_can_be_read_and_written(kind: str, tmp_path: Path):
    screen = expressed(pd.DataFrame({"more": GAPS[kind]}, index=table().index))
    screen.write_h5ad(tmp_path / "screen.h5ad")
    read = read_screen(DataConfig(str(tmp_path / "screen.h5ad")))
    write_h5ad(read, tmp_path / "again.h5ad")
    again = read_screen(DataConfig(str(tmp_path / "again.h5ad"))).obs["more"]
    assert again.tolist()[::2] == read.obs["more"].tolist()[::2]
    counts = AnnData(C, obs=screen.obs[["more"]], var=pd.DataFrame(index=GENES))
    counts.write_h5ad(tmp_path / "counts.h5ad")
    plates().to_csv(tmp_path / "map.csv", index=False)
    joined = join_wells(read_counts(tmp_path / "counts.h5ad"), read_plate_map(tmp_path / "map.csv"))
    write_h5ad(joined, tmp_path / "joined.h5ad")
    assert joined.obs["more"].isna().sum() == 24


# Forms of counts


def per_plate(write) -> object:
    """A folder with a table of each plate, whose wells are called A01 in both."""

    def make(folder: Path) -> Path:
        (folder / "plates").mkdir()
        for plate in PLATES:
            part = table()[[p == plate for p in PLATE]].set_axis(AT)
            write(part, folder / "plates" / f"{plate}_counts.csv")
        return folder / "plates"

    return make


def per_well(columns) -> object:
    """A folder with a file of each well, without headers."""

    def make(folder: Path) -> Path:
        (folder / "wells").mkdir()
        for well, counts in table().iterrows():
            lines = [[gene, *columns(n)] for gene, n in counts.items()]
            lines += [["N_unmapped", *columns(900)]] if len(lines[0]) == 4 else [["__no_feature", "900"]]
            text = "\n".join("\t".join(map(str, line)) for line in lines)
            (folder / "wells" / f"{well}_ReadsPerGene.out.tab").write_text(text + "\n")
        return folder / "wells"

    return make


def text(name: str, make) -> object:
    def write(folder: Path) -> Path:
        (folder / name).write_text(make(table().T))
        return folder / name

    return write


def feature_counts(genes: pd.DataFrame) -> str:
    for i, name in enumerate(("Chr", "Start", "End", "Strand", "Length")):
        genes.insert(i, name, ["chr1", "1", "2", "+", "500"][i])
    named = genes.rename(columns=lambda name: f"/out/{name}Aligned.sortedByCoord.out.bam" if "_" in name else name)
    return "# Program:featureCounts v2.0.3\n" + named.to_csv(sep="\t", index_label="Geneid")


def gct(genes: pd.DataFrame) -> str:
    genes.insert(0, "Description", "na")
    return f"#1.2\n{len(genes)}\t{genes.shape[1] - 1}\n" + genes.to_csv(sep="\t", index_label="Name")


def two_names(genes: pd.DataFrame) -> str:
    genes.insert(0, "gene_name", genes.index)
    return genes.set_axis([f"ENSG{i:011d}" for i in range(6)]).to_csv(index_label="gene_id")


def transposed(names: tuple[str, str, str]) -> object:
    """Wells x genes, as bustools and alevin-fry write them."""

    def make(folder: Path) -> Path:
        raw = folder / "quantified"
        raw.mkdir()
        mmwrite(raw / names[0], sparse.coo_matrix(table().to_numpy()))
        (raw / names[1]).write_text("\n".join(table().index) + "\n")
        (raw / names[2]).write_text("\n".join(GENES) + "\n")
        return raw

    return make


def with_header(folder: Path) -> Path:
    raw = write_mtx(table(), folder / "raw")
    (raw / "features.tsv").write_text("gene_id\tgene_name\ttype\n" + (raw / "features.tsv").read_text())
    return raw


def plate_folders(folder: Path) -> Path:
    for plate in PLATES:
        write_mtx(table()[[p == plate for p in PLATE]].set_axis(AT), folder / "run" / plate)
    return folder / "run"


def zarr(folder: Path) -> Path:
    AnnData(C, obs=pd.DataFrame(index=table().index), var=pd.DataFrame(index=GENES)).write_zarr(folder / "counts.zarr")
    return folder / "counts.zarr"


def parquet(folder: Path) -> Path:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table().to_parquet(folder / "counts.parquet")
    return folder / "counts.parquet"


def workbook(folder: Path) -> Path:
    pytest.importorskip("python_calamine")
    table().T.to_excel(folder / "counts.xlsx")
    return folder / "counts.xlsx"


FORMS = {  # how it is made, and a word of the notes
    "featureCounts": (text("counts.txt", feature_counts), "columns that are no counts"),
    "GCT": (text("counts.gct", gct), "'description'"),
    "two columns of names": (text("counts.csv", two_names), "'gene_name'"),
    "a table of each plate": (per_plate(lambda part, path: part.to_csv(path)), "2 plates are joined"),
    "a table of each plate, turned": (per_plate(lambda part, path: part.T.to_csv(path)), "2 plates are joined"),
    "a folder of each plate": (plate_folders, "2 plates are joined"),
    "HTSeq": (per_well(lambda n: [n]), "lines of the counting program (1)"),
    "STAR, first strand": (per_well(lambda n: [n + 1, n, n // 99]), "column 3 of ReadsPerGene is read"),
    "STAR, second strand": (per_well(lambda n: [n + 1, n // 99, n]), "column 4 of ReadsPerGene is read"),
    "STAR, no strands": (per_well(lambda n: [n, n // 2, n // 2]), "column 2 of ReadsPerGene is read"),
    "bustools": (
        transposed(("cells_x_genes.mtx", "cells_x_genes.barcodes.txt", "cells_x_genes.genes.txt")),
        "read as MatrixMarket folder",
    ),
    "alevin-fry": (
        transposed(("quants_mat.mtx", "quants_mat_rows.txt", "quants_mat_cols.txt")),
        "read as MatrixMarket folder",
    ),
    "a header of features": (with_header, "the first line is a header"),
    "zarr": (zarr, "counts are those of X"),
    "workbook": (workbook, "read as workbook"),
    "parquet": (parquet, "read as parquet"),
}


@pytest.mark.parametrize("shape", FORMS)
def test_forms_of_counts(shape: str, tmp_path: Path):
    make, words = FORMS[shape]
    counts = read_counts(make(tmp_path))
    assert counts.obs_names.tolist() == table().index.tolist() and counts.var_names.tolist() == GENES
    assert (counts.X.toarray() == C).all()
    assert words in " ".join(counts.uns["notes"])


REFUSED = {  # how it is made, and what is said
    "STAR, undecided": (
        per_well(lambda n: [n, 3 * n, n]),
        "wells: found 75% of the stranded reads on the first strand",
    ),
    "one well": (lambda f: per_well(lambda n: [n])(f) / "P1_A01_ReadsPerGene.out.tab", "the counts of one well"),
    "a broken parquet file": (
        lambda f: (f / "x.parquet").write_bytes(b"PAR1") and f / "x.parquet",
        "found no readable parquet file",
    ),
    "loom": (lambda f: (f / "x.loom").write_bytes(b"x") and f / "x.loom", "read it with scanpy.read_loom"),
    "a folder of something else": (lambda f: (f / "x.png").write_bytes(b"x") and f, "no matrix.mtx beside 'x.png'"),
    "a broken store": (lambda f: (f / "zarr.json").write_text("{") and f, "found no readable AnnData"),
}


@pytest.mark.parametrize("shape", REFUSED)
def test_forms_that_are_refused_by_name(shape: str, tmp_path: Path):
    make, words = REFUSED[shape]
    with pytest.raises(InputError) as raised:
        read_counts(make(tmp_path))
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_plates_with_the_same_barcodes_are_joined_by_plate_and_barcode(tmp_path: Path):
    bars = ["".join("ACGT"[i // 4**k % 4] for k in range(4)) for i in range(24)]
    for plate in PLATES:
        part = table()[[p == plate for p in PLATE]].set_axis([f"{bar}-1" for bar in bars])
        write_mtx(part, tmp_path / "run" / plate)
    plates(well=WELL, plate=PLATE, barcode=bars * 2).to_csv(tmp_path / "map.csv", index=False)
    joined = join_wells(read_counts(tmp_path / "run"), read_plate_map(tmp_path / "map.csv"))
    assert joined.obs_names.tolist() == table().index.tolist() and (joined.X.toarray() == C).all()
    assert joined.obs["compound"].tolist() == plates()["compound"].tolist() and joined.obs["plate"].tolist() == PLATE


def test_a_workbook_is_a_plate_map(tmp_path: Path):
    pytest.importorskip("python_calamine")
    wells = plates(**{"Conc. (µM)": [0.1 if treated else None for treated in TREATED]})
    wells.to_excel(tmp_path / "map.xlsx", index=False)
    found = read_plate_map(tmp_path / "map.xlsx")
    assert found["compound"].tolist() == wells["compound"].tolist() and found["dose"].tolist()[:2] == [0.0, 0.1]
    with pd.ExcelWriter(tmp_path / "two.xlsx") as book:
        wells.to_excel(book, sheet_name="1", index=False)
        pd.DataFrame({"Drug": ["as sent by the core"]}).to_excel(book, sheet_name="notes", index=False)
    with pytest.raises(InputError, match=r"two.xlsx, sheet 'notes': found neither a column of wells nor a grid"):
        read_plate_map(tmp_path / "two.xlsx")
    (tmp_path / "broken.xlsx").write_bytes((tmp_path / "map.xlsx").read_bytes()[:900])
    with pytest.raises(InputError, match=r"broken.xlsx: found no readable workbook"):
        read_plate_map(tmp_path / "broken.xlsx")


def test_sheets_are_plates(tmp_path: Path):
    pytest.importorskip("python_calamine")
    for name, frame in (("counts", table().set_axis(WELL)), ("map", plates(well=WELL))):
        with pd.ExcelWriter(tmp_path / f"{name}.xlsx") as book:
            for plate in PLATES:
                here = [p == plate for p in PLATE]
                frame[here].to_excel(book, sheet_name=plate, index=name == "counts")
    raw, plate_map = read_counts(tmp_path / "counts.xlsx"), read_plate_map(tmp_path / "map.xlsx")
    joined = join_wells(raw, plate_map)
    assert joined.obs_names.tolist() == table().index.tolist() and (joined.X.toarray() == C).all()
    assert joined.obs["compound"].tolist() == plates()["compound"].tolist() and joined.obs["plate"].tolist() == PLATE
    assert "in 2 sheets, which name the plates: 'P1', 'P2'" in plate_map.attrs["notes"][0]


@pytest.mark.parametrize("kit", ["of all plates", "of each plate", "sheets"])
def test_barcodes_in_a_file_of_their_own(kit: str, tmp_path: Path):
    bars = ["".join("ACGT"[i // 4**k % 4] for k in range(4)) for i in range(48)]
    bars = bars[:24] * 2 if kit == "of all plates" else bars
    frame = pd.DataFrame({"Barcode": bars, "Well": WELL, "Plate": PLATE})
    if kit == "sheets":
        pytest.importorskip("python_calamine")
        with pd.ExcelWriter(tmp_path / "kit.xlsx") as book:
            for plate, part in frame.groupby("Plate"):
                part.drop(columns="Plate").to_excel(book, sheet_name=plate, index=False)
    else:
        frame = frame[:24].drop(columns="Plate") if kit == "of all plates" else frame
        frame.to_csv(tmp_path / "kit.csv", index=False)
    named = [f"{p}_{bar}-1" if kit == "of all plates" else f"{bar}-1" for p, bar in zip(PLATE, bars, strict=True)]
    table().set_axis(named)[::-1].to_csv(tmp_path / "counts.csv")
    plates(well=WELL, plate=PLATE).to_csv(tmp_path / "map.csv", index=False)
    plate_map = add_barcodes(read_plate_map(tmp_path / "map.csv"), next(tmp_path.glob("kit.*")))
    joined = join_wells(read_counts(tmp_path / "counts.csv"), plate_map)
    assert joined.obs_names.tolist() == table().index.tolist()[::-1] and (joined.X.toarray() == C[::-1]).all()
    assert joined.obs["compound"].tolist() == plates()["compound"].tolist()[::-1]


# Bundles


def bundle(folder: Path) -> Path:
    write_bundle(expressed(pd.DataFrame(index=table().index)), folder / "bundle")
    return folder / "bundle"


def with_index(name: str):
    def change(folder: Path) -> None:
        frame = pd.read_csv(folder / name)
        frame.reset_index(names="Unnamed: 0").to_csv(folder / name, index=False)

    return change


def packed(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def scored(folder: Path) -> None:
    pd.DataFrame({"Tscore": range(48)}).to_csv(folder / "scores_3_z.csv", index=False)
    with_index("scores_3_z.csv")(folder)


def separated(separator: str, first: str = ""):
    """Every file with its wells and decimal commas, as Excel writes tables in half of Europe."""

    def change(folder: Path) -> None:
        wells = pd.read_csv(folder / "well_id.csv")["well_id"]
        for path in sorted(folder.glob("*.csv")):
            frame = pd.read_csv(path, dtype=None if path.name == "expr_mat.csv" else str)
            frame = frame if path.name == "well_id.csv" else frame.assign(well=wells)
            path.write_text(first + frame.to_csv(sep=separator, decimal=",", index=False))

    return change


def written(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


BUNDLES = {
    "packed": (packed, ""),
    "semicolons and decimal commas": (separated(";"), ""),
    "semicolons, said by Excel": (separated(";", "sep=;\n"), ""),
    "tabs and decimal commas": (separated("\t"), ""),
    "thousands or decimals": (
        written("scores_3_z.csv", "a;b\n" + "12;1\n1,234;5\n" * 24),
        "scores_3_z.csv: data row 2 (header not counted), column a: found '1,234', expected a finite number, with one",
    ),
    "two decimal signs": (
        written("scores_3_z.csv", "a;b\n" + "0,5;1\n0.7;5\n" * 24),
        "scores_3_z.csv: data row 1 (header not counted), column a: found '0,5', expected a finite number, with one",
    ),
    "a decimal comma or two columns": (
        written("dose.csv", "x\n" + "0,5\n" * 48),
        "dose.csv: data row 1 (header not counted): found 2 fields, expected 1 as in the header (a name with a comma",
    ),
    "an index among genes": (with_index("expr_mat.csv"), "expr_mat.csv: column 1: found 'Unnamed: 0', expected a gene"),
    "an index among scores": (scored, "scores_3_z.csv: header: found a score called 'Unnamed: 0'"),
    "packed and cut": (
        lambda f: (packed(f), (f / "meta_id.csv.gz").write_bytes((f / "meta_id.csv.gz").read_bytes()[:-9])),
        "meta_id.csv.gz: found a gzip archive that is cut short",
    ),
}


@pytest.mark.parametrize("shape", BUNDLES)
def test_bundles(shape: str, tmp_path: Path):
    change, error = BUNDLES[shape]
    folder = bundle(tmp_path)
    before = screen_hash(read_screen(DataConfig(str(folder))))
    change(folder)
    if not error:
        assert screen_hash(read_screen(DataConfig(str(folder)))) == before
        return
    with pytest.raises(InputError) as raised:
        read_screen(DataConfig(str(folder)))
    assert error in str(raised.value)


def test_what_was_understood_is_said_first(tmp_path: Path):
    understood = find_problems(DataConfig(str(bundle(tmp_path)))).attrs["understood"]
    assert understood[:4] == [
        "wells: 48, 'P1_A01' is A1",
        "plates: 2 plates of 24 wells each: 'P1', 'P2'",
        "control: 'DMSO', 12 wells",
        "compounds: 6, 6 wells each",
    ]
    assert "label (24 wells are 1)" in understood[-1]


def test_spike_ins_are_a_measure_of_their_own(tmp_path: Path):
    table().assign(**{"ERCC-00002": table().sum(axis=1)}).to_csv(tmp_path / "counts.csv")
    assert set(measure_wells(read_counts(tmp_path / "counts.csv"))["spike_share"]) == {0.5}


def test_a_count_that_float32_does_not_hold_is_refused(tmp_path: Path):
    counts = table()
    counts.iat[3, 2] = 2**24 + 1
    counts.to_csv(tmp_path / "counts.csv")
    with pytest.raises(InputError, match=r"well 'P1_A04', gene 'MT-CO1': found .* are 16777216 or more"):
        read_counts(tmp_path / "counts.csv")
