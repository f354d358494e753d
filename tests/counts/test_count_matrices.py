"""Counts in every form read alike; each bad MatrixMarket folder, `.h5` or `.h5ad` is one InputError that says where."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from conftest import real
from count_files import GENES, RAW, WELLS, content, cut, edit, small, write_10x, write_mtx
from scipy import sparse
from scipy.io import mmwrite

from tcell_drugseq.base.defaults import SimConfig
from tcell_drugseq.base.settings import InputError
from tcell_drugseq.counts.matrices import read_counts
from tcell_drugseq.data.simulate import simulate_screen


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


def mtx(change: Callable[[Path], object], packed: bool = False) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        change(write_mtx(small(), folder / "raw", packed))
        return folder / "raw"

    return make


def h5ad(x: object, genes: list[str] = GENES, wells: list[str] = WELLS) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # names that are not unique
            AnnData(x, obs=pd.DataFrame(index=wells), var=pd.DataFrame(index=genes)).write_h5ad(folder / "counts.h5ad")
        return folder / "counts.h5ad"

    return make


def cut_10x(folder: Path) -> Path:
    cut(write_10x(small(), folder / "counts.h5"), 0.5)
    return folder / "counts.h5"


PLAIN = small().to_numpy(dtype=np.float32)
BAD = {
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
    "no h5ad": (
        content("counts.h5ad", b"gene,A01\n"),
        ["counts.h5ad: found no readable AnnData", "expected a whole AnnData"],
    ),
    "cut 10x": (cut_10x, ["counts.h5: found no readable 10x .h5", "expected a whole 10x .h5"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_matrices_are_one_clear_error(case: str, tmp_path: Path):
    make, parts = BAD[case]
    with pytest.raises(InputError) as error:
        read_counts(make(tmp_path))
    for part in parts:
        assert part in str(error.value)
