"""Count matrices as files, in the forms that labs and pipelines write."""

import csv
import gzip
import io
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.io import mmwrite

GENES = ["IL2", "IFNG", "MT-CO1", "RPL3", "ACTB"]
WELLS = [f"P1_{row}{column:02d}" for row in "ABC" for column in range(1, 5)]
RAW = "expected raw counts: whole numbers, zero or more"
SYMBOLS = "expected human gene symbols"


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


def content(name: str, raw: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(raw)
        return folder / name

    return make


def edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new, 1))


def cut(path: Path, share: float = 0.7) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


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
