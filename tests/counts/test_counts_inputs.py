"""Counts and plate maps in every form read alike; every kind of bad one is one InputError that says what and where."""

import csv
import gzip
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from conftest import NAMES, real
from scipy import sparse
from scipy.io import mmwrite

from tcell_drugseq.base.defaults import SimConfig
from tcell_drugseq.base.settings import InputError
from tcell_drugseq.counts.matrices import check_symbols, read_counts
from tcell_drugseq.counts.plate_map import join_wells, read_plate_map
from tcell_drugseq.data.simulate import simulate_screen

GENES = ["IL2", "IFNG", "MT-CO1", "RPL3", "ACTB"]
WELLS = [f"P1_{row}{column:02d}" for row in "ABC" for column in range(1, 5)]


def small() -> pd.DataFrame:
    """12 wells x 5 genes."""
    counts = np.random.default_rng(3).integers(0, 50, (len(WELLS), len(GENES)))
    return pd.DataFrame(counts, index=WELLS, columns=GENES)


def write_mtx(table: pd.DataFrame, folder: Path, packed: bool = False) -> Path:
    """As Cell Ranger or STARsolo do, features x barcodes."""
    folder.mkdir(parents=True)
    matrix = io.BytesIO()
    mmwrite(matrix, sparse.coo_matrix(table.T.to_numpy()))
    features = [f"ENSG{i:011d}\t{gene}\tGene Expression" for i, gene in enumerate(table.columns)]
    files = {"matrix.mtx": matrix.getvalue().decode(), "barcodes.tsv": "\n".join(table.index) + "\n"}
    files["features.tsv"] = "\n".join(features) + "\n"
    for name, text in files.items():
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return folder


def write_10x(table: pd.DataFrame, path: Path) -> Path:
    """The `.h5` of Cell Ranger 3 and later."""
    x = sparse.csr_matrix(table.to_numpy().astype(np.int32))
    with h5py.File(path, "w") as f:
        group = f.create_group("matrix")
        group["barcodes"] = np.array(table.index, dtype="S")
        group["data"], group["indices"], group["indptr"] = x.data, x.indices.astype(np.int64), x.indptr.astype(np.int64)
        group["shape"] = np.array(x.shape[::-1], dtype=np.int32)
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(x.shape[1])], dtype="S")
        features["name"] = np.array(table.columns, dtype="S")
        features["feature_type"] = features["genome"] = np.array(["Gene Expression"] * x.shape[1], dtype="S")
    return path


def written(table: pd.DataFrame, folder: Path) -> dict[str, Path]:
    """One screen in every form."""
    names = ("wells.csv", "genes.csv", "wells.tsv.gz", "semicolons.csv.gz", "r.tsv")
    paths = {name: folder / name for name in names}
    table.to_csv(paths["wells.csv"])
    table.T.to_csv(paths["genes.csv"], index_label="gene", lineterminator="\r\n", encoding="utf-8-sig")
    table.to_csv(paths["wells.tsv.gz"], sep="\t")
    table.T.to_csv(paths["semicolons.csv.gz"], sep=";")
    rows = [f"{well}\t" + "\t".join(map(str, row)) for well, row in zip(table.index, table.to_numpy(), strict=True)]
    paths["r.tsv"].write_text("\n".join(["\t".join(table.columns), *rows]) + "\n")  # R leaves out the corner
    paths["folder"] = write_mtx(table, folder / "Solo.out" / "Gene" / "raw")
    paths["packed folder"] = write_mtx(table, folder / "filtered_feature_bc_matrix", packed=True)
    paths["matrix.mtx"] = paths["folder"] / "matrix.mtx"
    logs = np.log1p(table.to_numpy(dtype=np.float32))
    var, obs = pd.DataFrame(index=table.columns), pd.DataFrame(index=table.index)
    for name, x in (("X", sparse.csc_matrix(table.to_numpy(dtype=np.float64))), ("layer", logs), ("raw", logs)):
        adata = AnnData(x, obs=obs.copy(), var=var.copy())
        if name == "layer":
            adata.layers["counts"] = table.to_numpy(dtype=np.int32)
        if name == "raw":
            adata.raw = AnnData(sparse.csr_matrix(table.to_numpy(dtype=np.float32)), obs=obs.copy(), var=var.copy())
        paths[f"{name}.h5ad"] = folder / f"{name}.h5ad"
        adata.write_h5ad(paths[f"{name}.h5ad"])
    paths["10x.h5"] = write_10x(table, folder / "10x.h5")
    return paths


def test_every_form_reads_to_the_same_counts(tmp_path: Path):
    screen = simulate_screen(SimConfig(n_plates=1, n_compounds=30, n_controls=10, n_genes=200)).screen
    table = pd.DataFrame(screen.layers["counts"].astype(int), index=screen.obs_names, columns=screen.var_names)
    paths = written(table, tmp_path)
    assert len(paths) == 12
    for name, path in paths.items():
        counts = read_counts(path)
        assert counts.obs_names.tolist() == table.index.tolist(), name
        assert counts.var_names.tolist() == table.columns.tolist(), name
        assert counts.X.dtype == np.float32 and counts.X.format == "csr", name
        assert (counts.X.toarray() == table.to_numpy()).all(), name
        assert any(" by " in note and "known genes" in note for note in counts.uns["notes"]), name
        assert counts.uns["source"]["format"] and counts.uns["source"]["name"] in str(path), name
    counts.write_h5ad(tmp_path / "again.h5ad")
    assert list(read_h5ad(tmp_path / "again.h5ad").uns["notes"]) == counts.uns["notes"]
    assert "layers['counts']" in read_counts(paths["layer.h5ad"]).uns["notes"][0]
    assert "raw.X" in read_counts(paths["raw.h5ad"]).uns["notes"][0]


def test_names_not_shape_tell_genes_from_wells(tmp_path: Path):
    genes = ["C3", "F8", "C5", "F3", "F5", "F7", "F12", "IL2", "novel1", "novel2", "novel3", "novel4"]
    square = pd.DataFrame(np.arange(144).reshape(12, 12), index=WELLS, columns=genes)
    for name, table in (("a.csv", square), ("b.csv", square.T)):
        table.to_csv(tmp_path / name)
        assert (read_counts(tmp_path / name).to_df() == square).all(axis=None)
    unnamed = small().set_axis([f"s{i}" for i in range(12)]).set_axis([f"g{i}" for i in range(5)], axis=1)
    unnamed.to_csv(tmp_path / "c.csv")
    with pytest.raises(InputError, match="`orientation`: wells_by_genes or genes_by_wells"):
        read_counts(tmp_path / "c.csv")
    unnamed.set_axis([*GENES[:1], *unnamed.columns[1:]], axis=1).to_csv(tmp_path / "d.csv")
    assert read_counts(tmp_path / "d.csv", "wells_by_genes").shape == (12, 5)


def test_symbols_of_several_ids_are_summed_and_antibodies_left_out(tmp_path: Path):
    folder = write_mtx(small(), tmp_path / "raw")
    lines = (folder / "features.tsv").read_text().replace("\tIFNG\t", "\tIL2\t").splitlines()
    lines[4] = lines[4].replace("Gene Expression", "Antibody Capture")
    (folder / "features.tsv").write_text("\n".join(lines))
    counts = read_counts(folder)
    assert counts.var_names.tolist() == ["IL2", "MT-CO1", "RPL3"]
    assert (counts[:, "IL2"].X.toarray()[:, 0] == small()[["IL2", "IFNG"]].sum(axis=1)).all()
    assert "Antibody Capture" in " ".join(counts.uns["notes"]) and "counts summed (1): 'IL2'" in counts.uns["notes"][-1]


def test_symbols_of_an_h5ad_may_stand_in_var(tmp_path: Path):
    var = pd.DataFrame({"gene_name": GENES}, index=[f"ENSG{i:011d}.3" for i in range(5)])
    AnnData(small().to_numpy(dtype=np.float32), obs=pd.DataFrame(index=WELLS), var=var).write_h5ad(tmp_path / "x.h5ad")
    counts = read_counts(tmp_path / "x.h5ad")
    assert counts.var_names.tolist() == GENES and "var column 'gene_name'" in " ".join(counts.uns["notes"])


@pytest.mark.parametrize(
    ("name", "shape"), [("tcell_activation_rade2023_bulk", (44, 22045)), ("macpie_mini_mac", (308, 500))]
)
def test_real_counts(name: str, shape: tuple[int, int]):
    path = real(f"{name}.h5ad")
    counts, stored = read_counts(path), read_h5ad(path)
    assert counts.shape == shape and abs(counts.X - stored.X).max() == 0
    assert list(counts.obs) == list(stored.obs)


def test_real_logarithms_are_no_counts():
    path = real("l1000_ljp005_a375_24h.h5ad")
    with pytest.raises(
        InputError, match=r"l1000_ljp005_a375_24h.h5ad: well '.*', gene 'PSME1': found .* look normalised"
    ):
        read_counts(path)


def table(
    change: Callable[[pd.DataFrame], pd.DataFrame], name: str = "counts.csv", **options
) -> Callable[[Path], Path]:
    """A table of genes x wells after a change of wells x genes."""

    def make(folder: Path) -> Path:
        change(small().astype(object)).T.to_csv(folder / name, **options)
        return folder / name

    return make


def cell(value: object, well: str = "P1_A02", gene: str = "IFNG") -> Callable[[Path], Path]:
    return table(lambda t: t.where((t.index.to_numpy()[:, None] != well) | (t.columns != gene), value))


def content(name: str, raw: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(raw)
        return folder / name

    return make


def mtx(change: Callable[[Path], object], packed: bool = False) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        change(write_mtx(small(), folder / "raw", packed))
        return folder / "raw"

    return make


def edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new, 1))


def h5ad(x: object, genes: list[str] = GENES, wells: list[str] = WELLS) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # names that are not unique
            AnnData(x, obs=pd.DataFrame(index=wells), var=pd.DataFrame(index=genes)).write_h5ad(folder / "counts.h5ad")
        return folder / "counts.h5ad"

    return make


def cut(path: Path, share: float = 0.7) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def cut_table(folder: Path) -> Path:
    path = table(lambda t: t, "counts.csv.gz")(folder)
    cut(path)
    return path


def cut_10x(folder: Path) -> Path:
    cut(write_10x(small(), folder / "counts.h5"), 0.5)
    return folder / "counts.h5"


PLAIN = small().to_numpy(dtype=np.float32)
RAW = "expected raw counts: whole numbers, zero or more"
SYMBOLS = "expected human gene symbols"
BAD_COUNTS = {
    "normalised": (cell(3.17), ["counts.csv: well 'P1_A02', gene 'IFNG': found 3.17 (1 of", "look normalised", RAW]),
    "negative": (cell(-3), ["counts.csv: well 'P1_A02', gene 'IFNG': found -3 (1 of", "are negative", RAW]),
    "empty cell": (cell(""), ["counts.csv: row 'IFNG', column 'P1_A02': found ''", "expected a count"]),
    "NaN": (cell("nan"), ["counts.csv: row 'IFNG', column 'P1_A02': found 'nan'", "expected a count"]),
    "infinite": (cell("inf"), ["counts.csv: row 'IFNG', column 'P1_A02': found 'inf'", "expected a count"]),
    "text": (cell("1,234"), ["counts.csv: row 'IFNG', column 'P1_A02': found '1,234'", "expected a count"]),
    "true": (table(lambda t: t.assign(IFNG=True)), ["counts.csv: row 'IFNG', column 'P1_A01': found 'True' (12 cells"]),
    "all zero": (table(lambda t: t * 0), ["counts.csv: found no count other than zero", RAW]),
    "twin genes": (
        table(lambda t: t.set_axis(["IL2", "IL2", *GENES[2:]], axis=1)),
        ["counts.csv: gene names: found 'IL2' more than once, expected each gene once"],
    ),
    "twin wells": (
        table(lambda t: t.set_axis([*WELLS[:11], WELLS[0]])),
        ["counts.csv: well names: found 'P1_A01' more than once, expected each well once"],
    ),
    "nameless gene": (
        table(lambda t: t.set_axis(["IL2", "", *GENES[2:]], axis=1)),
        ["counts.csv: gene 2 of 5: found an empty name, expected the name of a gene"],
    ),
    "cut gzip": (cut_table, ["counts.csv.gz: found a gzip archive that is cut short", "expected a whole one"]),
    "damaged gzip": (
        content("counts.csv.gz", gzip.compress(small().to_csv().encode() * 50)[:40] + b"\0" * 400),
        ["counts.csv.gz: found a gzip archive that is cut short or damaged", "expected a whole one"],
    ),
    "false gzip": (
        content("counts.csv.gz", b"\x1f\x8b\x01" + bytes(20)),
        ["counts.csv.gz: found a gzip archive", "expected a whole"],
    ),
    "empty": (content("counts.csv", b""), ["counts.csv: found an empty file, expected a header and rows"]),
    "empty gzip": (content("counts.tsv.gz", gzip.compress(b"")), ["counts.tsv.gz: found an empty file", "expected"]),
    "header only": (
        content("counts.csv", b"gene,A01,A02\n"),
        ["counts.csv: found a header and no rows", "expected one"],
    ),
    "one column": (
        content("counts.csv", b"gene\nIL2\n"),
        ["counts.csv: header: found one column only ('gene')", "comma"],
    ),
    "long row": (
        content("counts.csv", b"gene,A01,A02\nIL2,1,2\nIFNG,1,2,3\n"),
        ["counts.csv: data row 2 ('IFNG'", "found 4 fields", "expected 3"],
    ),
    "all rows long": (
        content("counts.csv", b"gene,A01,A02\nIL2,1,2,3,4\nIFNG,1,2,3,4\n"),
        ["counts.csv: data row 1 ('IL2'", "found 5 fields", "expected 3"],
    ),
    "short row": (
        content("counts.csv", b"gene,A01,A02\nIL2,1,2\nIFNG,1\n"),
        ["counts.csv: data row 2 ('IFNG'", "found 2 fields", "expected 3"],
    ),
    "open quote": (
        content("counts.csv", b'gene,A01\nIL2,1\n"IFNG,1\n'),
        ["counts.csv: line 3: found broken", "a table"],
    ),
    "workbook": (
        content("counts.csv", b"PK\x03\x04abc"),
        ["counts.csv: found a zip archive or .xlsx", "expected text"],
    ),
    "UTF-16": (
        content("counts.csv", "g,A1\nIL2,1".encode("utf-16")),
        ["counts.csv: found UTF-16 text", "expected text"],
    ),
    "Latin-1": (content("counts.csv", b"g,A1\nIL2\xb5,1\n"), ["counts.csv: line 2: found byte 0xb5", "expected text"]),
    "absent": (lambda folder: folder / "counts.csv", ["counts.csv: found no such file or folder", "expected a count"]),
    "unknown type": (content("counts.rds", b"x"), ["counts.rds: found a file of type '.rds'", "expected CSV, TSV"]),
    "Ensembl": (
        table(lambda t: t.set_axis([f"ENSG{i:011d}" for i in range(5)], axis=1)),
        ["counts.csv: found Ensembl ids instead of symbols: 'ENSG00000000000'", "(5 of 5 names)", SYMBOLS],
    ),
    "Ensembl with versions": (
        table(lambda t: t.set_axis([f"ENSG{i:011d}.12" for i in range(5)], axis=1)),
        ["counts.csv: found Ensembl ids instead of symbols: 'ENSG00000000000.12'", SYMBOLS],
    ),
    "mouse": (
        table(lambda t: t.set_axis(["Il2", "Ifng", "mt-Co1", "Rpl3", "Actb"], axis=1)),
        ["counts.csv: found symbols of mouse or rat, or not in capitals: 'Il2'", SYMBOLS],
    ),
    "strangers": (
        table(lambda t: t.set_axis(["7157", "207", "5290", "7422", "1956"], axis=1)),
        ["counts.csv: found no known human symbol among 5 names: '7157'", SYMBOLS],
    ),
    "undecidable": (
        table(lambda t: t.set_axis(range(12)).set_axis(list("vwxyz"), axis=1)),
        ["counts.csv: found no way to tell genes from wells", "expected the setting `orientation`"],
    ),
    "no matrix": (
        mtx(lambda folder: (folder / "matrix.mtx").unlink()),
        ["raw: found no matrix.mtx, expected one matrix.mtx"],
    ),
    "no barcodes": (
        mtx(lambda folder: (folder / "barcodes.tsv").unlink()),
        ["raw: found no barcodes.tsv, expected one barcodes.tsv"],
    ),
    "no features": (
        mtx(lambda folder: (folder / "features.tsv.gz").unlink(), packed=True),
        ["raw: found no features.tsv or genes.tsv, expected one features.tsv"],
    ),
    "two matrices": (
        mtx(lambda folder: (folder / "matrix.mtx.gz").write_bytes(b"")),
        ["raw: found 'matrix.mtx', 'matrix.mtx.gz', expected one matrix.mtx"],
    ),
    "folder above": (
        lambda folder: mtx(lambda _: None)(folder).parent,
        ["found no matrix.mtx", "expected one matrix.mtx", "not in 'raw' below it"],
    ),
    "fewer barcodes": (
        mtx(edit("barcodes.tsv", "P1_A01\n", "")),
        ["raw/matrix.mtx: found 5 x 12, expected 5 x 11, as raw/features.tsv and raw/barcodes.tsv have lines"],
    ),
    "more features": (
        mtx(edit("features.tsv", "ENSG", "ENSG9\tX\tGene Expression\nENSG")),
        ["raw/matrix.mtx: found 5 x 12, expected 6 x 12"],
    ),
    "turned matrix": (
        mtx(lambda folder: mmwrite(folder / "matrix.mtx", sparse.coo_matrix(small().to_numpy()))),
        ["raw/matrix.mtx: found 12 x 5; it looks transposed, expected 5 x 12"],
    ),
    "cut matrix": (
        mtx(lambda folder: cut(folder / "matrix.mtx")),
        ["raw/matrix.mtx: found no whole MatrixMarket file", "expected features x barcodes"],
    ),
    "cut packed matrix": (
        mtx(lambda folder: cut(folder / "matrix.mtx.gz"), packed=True),
        ["matrix.mtx.gz: found a gzip archive that is cut short", "expected a whole one"],
    ),
    "fractions in a matrix": (
        mtx(lambda folder: mmwrite(folder / "matrix.mtx", sparse.coo_matrix(small().T.to_numpy() + 0.5))),
        ["raw: well 'P1_A01', gene 'IL2': found", "(60 of 60 values", "look normalised", RAW],
    ),
    "pattern matrix": (
        mtx(lambda folder: mmwrite(folder / "matrix.mtx", sparse.coo_matrix(small().T.to_numpy()), field="pattern")),
        ["raw/matrix.mtx: found values of kind 'pattern', expected counts"],
    ),
    "ids only": (
        mtx(lambda folder: (folder / "features.tsv").write_text("\n".join(f"ENSG{i:011d}" for i in range(5)))),
        ["raw: found Ensembl ids", "expected human gene symbols in the second column of raw/features.tsv"],
    ),
    "ragged features": (
        mtx(edit("features.tsv", "\tIFNG\tGene Expression", "\tIFNG")),
        ["raw/features.tsv: line 2: found another number of columns", "expected 3"],
    ),
    "log h5ad": (h5ad(np.log1p(PLAIN)), ["counts.h5ad: well 'P1_A01', gene 'IL2': found", "look normalised", RAW]),
    "NaN h5ad": (
        h5ad(np.where(PLAIN == PLAIN.max(), np.nan, PLAIN).astype(np.float32)),
        ["counts.h5ad: well", "gene", "found nan", "are no finite numbers", RAW],
    ),
    "negative h5ad": (h5ad(sparse.csr_matrix(-PLAIN)), ["counts.h5ad: well 'P1_A01', gene 'IL2': found -", RAW]),
    "twin h5ad": (
        h5ad(PLAIN, ["IL2", "IL2", *GENES[2:]]),
        ["counts.h5ad: gene names: found 'IL2' more than once, expected each gene once"],
    ),
    "Ensembl h5ad": (
        h5ad(PLAIN, [f"ENSG{i:011d}" for i in range(5)]),
        ["counts.h5ad: found Ensembl ids", "expected human gene symbols as var_names or in a column of var"],
    ),
    "no h5ad": (content("counts.h5ad", b"gene,A01\n"), ["counts.h5ad: found no readable AnnData", "expected AnnData"]),
    "cut 10x": (cut_10x, ["counts.h5: found no readable 10x .h5", "expected 10x .h5"]),
}


@pytest.mark.parametrize("case", BAD_COUNTS)
def test_bad_counts_are_one_clear_error(case: str, tmp_path: Path):
    make, parts = BAD_COUNTS[case]
    with pytest.raises(InputError) as error:
        read_counts(make(tmp_path))
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("orientation", ["wells_by_genes", "genes_by_wells"])
def test_a_setting_against_the_names_is_an_error(orientation: str, tmp_path: Path):
    other = {"wells_by_genes": "genes_by_wells", "genes_by_wells": "wells_by_genes"}[orientation]
    (small() if orientation == "wells_by_genes" else small().T).to_csv(tmp_path / "counts.csv")
    assert read_counts(tmp_path / "counts.csv", orientation).shape == (12, 5)
    with pytest.raises(InputError, match=f"counts.csv: found a matrix that is {orientation} .*expected {other}"):
        read_counts(tmp_path / "counts.csv", other)
    with pytest.raises(InputError, match="orientation: found 'rows', expected auto"):
        read_counts(tmp_path / "counts.csv", "rows")


def test_names_a_spreadsheet_has_spoilt_are_kept_and_said():
    notes = check_symbols(["IL2", "1-Mar", "Sep-02", "NA", "ENSG00000278869"], "counts.csv")
    assert [note.split(": ")[0] for note in notes] == ["counts.csv"] * 3
    for part in ("'1-Mar', 'Sep-02'", "'NA'", "'ENSG00000278869'"):
        assert any(part in note for note in notes)


COMPOUNDS = [*NAMES[:10], "DMSO", "DMSO"]


def long_map(path: Path, wells: list[str] = WELLS, compounds: list[str] = COMPOUNDS, sep: str = ",", **more) -> Path:
    pd.DataFrame({"well": wells, "compound": compounds, **more}).to_csv(path, sep=sep, index=False)
    return path


def grids(*blocks: tuple[str, dict[str, str]], size: int = 96, sep: str = ",") -> str:
    """Blocks as plate software writes them."""
    rows, columns = ("ABCDEFGH", range(1, 13)) if size == 96 else ("ABCDEFGHIJKLMNOP", range(1, 25))
    out = io.StringIO()
    writer = csv.writer(out, delimiter=sep)
    for name, cells in blocks:
        writer.writerows([[name], ["", *columns]])
        writer.writerows([[row, *(cells.get(f"{row}{column}", "") for column in columns)] for row in rows])
        writer.writerow([])
    return out.getvalue()


@pytest.mark.parametrize("sep", [",", "\t", ";"])
@pytest.mark.parametrize("size", [96, 384])
def test_hostile_names_survive_both_forms(sep: str, size: int, tmp_path: Path):
    last = {96: "H12", 384: "P24"}[size]
    ids = [*(f"A{i}" for i in range(1, 13)), last]
    names = [*NAMES, "DMSO"]
    wells = [f"{well[0]}{int(well[1:]):02d}" for well in ids]
    long_map(tmp_path / "long.txt", wells, names, sep, dose=["100 nM"] * 12 + [""])
    doses = dict.fromkeys(ids[:-1], "0.1")
    cells = dict(zip(ids, names, strict=True))
    text = grids(("Treatment", cells), ("Dose [µM]", doses), size=size, sep=sep)
    (tmp_path / "grid.txt.gz").write_bytes(gzip.compress(text.encode()))
    for path in (tmp_path / "long.txt", tmp_path / "grid.txt.gz"):
        plate_map = read_plate_map(path).loc[wells]
        assert plate_map["compound"].tolist() == names
        assert plate_map["dose"].tolist() == [0.1] * 12 + [0.0] and set(plate_map["unit"]) == {"uM"}
        assert plate_map["is_control"].tolist() == [False] * 12 + [True]
    assert len(read_plate_map(tmp_path / "grid.txt.gz")) == size


def test_grids_of_several_plates(tmp_path: Path):
    plates = ["Plate: P1\n" + grids(("Compound", {"A1": "DMSO", "B7": "x"}), ("Donor", {"A1": "D1", "B7": "D1"}))]
    plates += ["Plate: P2\n" + grids(("Compound", {"A1": "y"}), ("Donor", {"A1": "D2"}))]
    (tmp_path / "map.csv").write_text("Exported 2024-05-01\n\n" + "\n".join(plates))
    plate_map = read_plate_map(tmp_path / "map.csv")
    assert len(plate_map) == 192 and plate_map.loc["P2_A01", ["compound", "plate", "Donor"]].tolist() == [
        "y",
        "P2",
        "D2",
    ]
    counts = AnnData(np.ones((3, 1), np.float32), obs=pd.DataFrame(index=["P1_A1", "P1_B7", "P2_A1"]))
    joined = join_wells(counts, plate_map)
    assert joined.obs["compound"].tolist() == ["DMSO", "x", "y"]
    assert joined.obs["Donor"].tolist() == ["D1", "D1", "D2"]
    assert joined.obs["column"].tolist() == [1, 7, 1] and joined.obs["row"].tolist() == ["A", "B", "A"]


def test_a_simulated_screen_comes_back_from_counts_and_map(tmp_path: Path):
    cfg = SimConfig(n_plates=2, n_compounds=20, n_controls=8, n_genes=120, n_doses=3, n_replicates=1)
    screen = simulate_screen(cfg).screen
    table = pd.DataFrame(screen.layers["counts"].astype(int), index=screen.obs_names, columns=screen.var_names)
    table.T.to_csv(tmp_path / "counts.csv")
    screen.obs[["compound", "dose"]].rename_axis("well").sample(frac=1, random_state=1).to_csv(tmp_path / "map.csv")
    joined = join_wells(read_counts(tmp_path / "counts.csv"), read_plate_map(tmp_path / "map.csv"))
    for name in ("compound", "is_control", "plate", "batch", "row", "column", "dose"):
        expected = screen.obs[name].fillna(0) if name == "dose" else screen.obs[name]
        assert joined.obs[name].tolist() == expected.tolist(), name
    assert (joined.X.toarray() == screen.layers["counts"]).all()
    joined.write_h5ad(tmp_path / "joined.h5ad")


WAYS = {
    "zero-padding": (["A1", "A2", "A3"], {"well": ["A03", "A02", "A01"]}, "zero-padding"),
    "inside ids": (["P1_A1", "P1_A2", "P1_A3"], {"well": ["P1_A03", "P1_A02", "P1_A01"]}, "zero-padding"),
    "case": (["p1_a01", "p1_a02", "p1_a03"], {"well": ["P1_A03", "P1_A02", "P1_A01"]}, "without regard to case"),
    "plate": (["P1_A01", "P1_A02", "P1_A03"], {"well": ["A03", "A02", "A01"], "plate": ["P1"] * 3}, "plate and well"),
    "position": (["x:A01", "x:A02", "x:A03"], {"well": ["A3", "A2", "A1"]}, "by position alone"),
    "barcode": (["GT-1", "CA-1", "AC-1"], {"well": ["A3", "A2", "A1"], "barcode": ["AC", "CA", "GT"]}, "barcodes"),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_assumed_about_well_ids_is_said(way: str, tmp_path: Path):
    wells, columns, words = WAYS[way]
    pd.DataFrame({"compound": ["third", "x", "DMSO"], **columns}).to_csv(tmp_path / "map.csv", index=False)
    counts = AnnData(np.arange(3, dtype=np.float32)[:, None], obs=pd.DataFrame(index=wells))
    joined = join_wells(counts, read_plate_map(tmp_path / "map.csv"), ("counts.csv", "map.csv"))
    assert joined.obs["compound"].tolist() == ["DMSO", "x", "third"] and joined.X.ravel().tolist() == [0, 1, 2]
    assert joined.obs["row"].tolist() == ["A"] * 3 and joined.obs["column"].tolist() == [1, 2, 3]
    note = joined.uns["notes"][-1]
    assert note.startswith("counts.csv and map.csv: ") and words in note and repr(wells[0]) in note


def test_exact_ids_need_no_assumption(tmp_path: Path):
    plate_map = read_plate_map(long_map(tmp_path / "map.csv"))
    counts = AnnData(small().to_numpy(dtype=np.float32), obs=pd.DataFrame(index=WELLS))
    assert join_wells(counts, plate_map).uns["notes"] == plate_map.attrs["notes"]


def write_map(rows: list[str]) -> Callable[[Path], Path]:
    return content("map.csv", "\n".join(rows).encode())


def with_rows(*rows: str, header: str = "well,compound,dose") -> Callable[[Path], Path]:
    return write_map([header, "A01,DMSO,", *rows])


GRID = grids(("Compound", {"A1": "DMSO", "A2": "x"}))
BAD_MAPS = {
    "no control": (
        with_rows("A02,b,", "A03,b,", header="well,drug,dose"),
        "Medium",
        ["map.csv: compound: found no well of 'Medium'; most frequent: 'b' (2), 'DMSO' (1)", "expected control wells"],
    ),
    "another spelling": (
        with_rows("A02,dmso ,"),
        "DMSO",
        ["map.csv: compound: found 'dmso ' beside the control 'DMSO'", "expected one spelling"],
    ),
    "twin wells": (
        with_rows("A01,x,1"),
        "DMSO",
        ["map.csv: wells: found 'A01' more than once, expected each well once"],
    ),
    "twins by padding": (with_rows("A1,x,1"), "DMSO", ["map.csv: wells: found 'A01', 'A1' more than once", "expected"]),
    "no well": (
        with_rows(",x,1"),
        "DMSO",
        ["map.csv: data row 2 (header not counted): found no well id", "expected a"],
    ),
    "no wells": (
        content("map.csv", b"sample,compound\n1,DMSO\n"),
        "DMSO",
        ["map.csv: found neither a column of wells nor a grid; first line 'sample,compound'", "expected a table"],
    ),
    "no compounds": (
        content("map.csv", b"well,dose\nA1,3\n"),
        "DMSO",
        ["map.csv: columns: found 'well', 'dose'", "drug"],
    ),
    "two compounds": (
        content("map.csv", b"well,drug,treatment\nA1,DMSO,x\n"),
        "DMSO",
        ["map.csv: columns: found 'drug', 'treatment', which all mean compound", "expected one of them"],
    ),
    "bare comma": (
        with_rows("A02,1,3-Propanediol,1"),
        "DMSO",
        ["map.csv: data row 2 (header not counted): found 4 fields, expected 3", "double quotes"],
    ),
    "open quote": (
        with_rows('A02,"x,1'),
        "DMSO",
        ["map.csv: found broken fields or quotes in line 3", "expected a table"],
    ),
    "header only": (
        content("map.csv", b"well,compound\n"),
        "DMSO",
        ["map.csv: found a header and no rows", "expected"],
    ),
    "nameless column": (
        content("map.csv", b"well,compound,\nA1,DMSO,5\n"),
        "DMSO",
        ["map.csv: column 3: found no name, expected a name for each column"],
    ),
    "twin columns": (
        content("map.csv", b"well,compound,x,x\nA1,DMSO,5,6\n"),
        "DMSO",
        ["map.csv: header: found 'x' more than once, expected each column once"],
    ),
    "dose text": (with_rows("A02,x,high"), "DMSO", ["map.csv: well 'A02', dose: found 'high', expected a number"]),
    "dose comma": (with_rows('A02,x,"0,5"'), "DMSO", ["map.csv: well 'A02', dose: found '0,5', expected a number"]),
    "dose negative": (with_rows("A02,x,-5"), "DMSO", ["map.csv: well 'A02', dose: found '-5', expected a number"]),
    "dose units": (
        with_rows("A02,x,5 uM", "A03,x,5 mg/ml"),
        "DMSO",
        ["map.csv: dose: found units that can't be compared within 'x', expected one kind of unit"],
    ),
    "dose and unit": (
        content("map.csv", b"well,compound,dose,unit\nA01,DMSO,,\nA02,x,5 nM,uM\n"),
        "DMSO",
        ["map.csv: well 'A02', dose: found '5 nM' beside the unit 'uM', expected one unit"],
    ),
    "control column": (
        content("map.csv", b"well,compound,is_control\nA01,DMSO,yes\nA02,x,yes\n"),
        "DMSO",
        ["map.csv: well 'A02', is_control: found 'yes' for 'x' (1 such wells)", "expected 'DMSO' to be the control"],
    ),
    "position": (
        content("map.csv", b"row,column,compound\nA,1,DMSO\nZ,1,x\n"),
        "DMSO",
        ["map.csv: row and column: found 'A1', 'Z1', expected rows A to P and columns 1 to 24"],
    ),
    "position against id": (
        content("map.csv", b"well,row,column,compound\nA1,A,1,DMSO\nB1,C,1,x\n"),
        "DMSO",
        ["map.csv: well 'B1': found row and column C01, expected the position that the well id names"],
    ),
    "torn grid": (
        content("map.csv", GRID.replace("\nC,", "\nD,", 1).encode()),
        "DMSO",
        ["map.csv: line 5: found 'D', expected row C of the grid whose header is line 2"],
    ),
    "short grid": (
        content("map.csv", GRID[: GRID.index("\nG,")].encode()),
        "DMSO",
        ["map.csv: line 9: found nothing, expected row G"],
    ),
    "wide grid": (
        content("map.csv", GRID.replace("B,,,,,,,,,,,,", "B,,,,,,,,,,,,,x").encode()),
        "DMSO",
        ["map.csv: line 4, row B: found more than 12 cells, expected 12"],
    ),
    "odd header": (
        content("map.csv", (GRID + GRID.replace("10,11,12", "10,11,13")).encode()),
        "DMSO",
        ["map.csv: line 13: found 12 cells outside a grid, expected a header 1 to 12 or 1 to 24"],
    ),
    "twin blocks": (
        content("map.csv", (GRID + GRID).encode()),
        "DMSO",
        ["map.csv: line 13: found a second block 'compound' of one plate, expected each once"],
    ),
    "plateless block": (
        content("map.csv", (GRID + "Plate: P1\n" + GRID).encode()),
        "DMSO",
        ["map.csv: block 'Compound': found no plate, expected one of 'P1'"],
    ),
    "two sizes": (
        content("map.csv", (GRID + grids(("Dose", {}), size=384)).encode()),
        "DMSO",
        ["map.csv: found blocks of 96 and of 384 wells, expected one size"],
    ),
    "empty": (content("map.csv", b" \n"), "DMSO", ["map.csv: found an empty file", "expected a header and rows"]),
    "absent": (lambda folder: folder / "map.csv", "DMSO", ["map.csv: found No such file", "expected a readable file"]),
    "workbook": (
        content("map.csv", b"PK\x03\x04abc"),
        "DMSO",
        ["map.csv: found a zip archive or .xlsx", "expected text"],
    ),
    "cut gzip": (
        content("map.csv", gzip.compress(GRID.encode())[:-9]),
        "DMSO",
        ["map.csv: found a gzip archive that is cut short", "expected a whole one"],
    ),
}


@pytest.mark.parametrize("case", BAD_MAPS)
def test_bad_plate_maps_are_one_clear_error(case: str, tmp_path: Path):
    make, control, parts = BAD_MAPS[case]
    with pytest.raises(InputError) as error:
        read_plate_map(make(tmp_path), control)
    for part in parts:
        assert part in str(error.value)


SAME = "expected the same wells in both, or the compound `empty`"
BAD_JOINS = {
    "not in the map": (WELLS, WELLS[:11], ["'P1_C04' (1 of 12) in counts.csv and not in map.csv", SAME]),
    "not in the counts": (WELLS[1:], WELLS, ["'P1_A01' (1 of 12) in map.csv and not in counts.csv", SAME]),
    "both": (WELLS[1:], WELLS[:11], ["'P1_C04' (1 of 11) in counts.csv", "'P1_A01' (1 of 11) in map.csv", SAME]),
    "another plate": (
        [well.replace("P1", "P2") for well in WELLS],
        WELLS,
        ["'P2_A01', 'P2_A02', 'P2_A03', 'P2_A04', 'P2_B01', and 7 more (12 of 12) in counts.csv", SAME],
    ),
    "twins in counts": (
        ["P1_A1", *WELLS],
        WELLS,
        ["counts.csv: wells: found 'P1_A1', 'P1_A01' more than once", "once"],
    ),
}


@pytest.mark.parametrize("case", BAD_JOINS)
def test_wells_of_one_side_only_are_named(case: str, tmp_path: Path):
    there, mapped, parts = BAD_JOINS[case]
    plate_map = read_plate_map(long_map(tmp_path / "map.csv", mapped, ["DMSO"] * len(mapped)))
    counts = AnnData(np.ones((len(there), 1), np.float32), obs=pd.DataFrame(index=there))
    with pytest.raises(InputError) as error:
        join_wells(counts, plate_map, ("counts.csv", "map.csv"))
    for part in parts:
        assert part in str(error.value)


def test_wells_that_the_map_calls_empty_may_be_in_one_or_both(tmp_path: Path):
    compounds = ["DMSO"] * 9 + ["", "Empty", "empty"]
    plate_map = read_plate_map(long_map(tmp_path / "map.csv", compounds=compounds))
    counts = AnnData(np.ones((11, 1), np.float32), obs=pd.DataFrame(index=WELLS[:11]))
    joined = join_wells(counts, plate_map)
    assert joined.obs_names.tolist() == WELLS[:9]
    assert joined.uns["notes"][-1] == "counts: wells left out, empty in plate map (2): 'P1_C02', 'P1_C03'"
