"""Files that are no files, and HDF5 that reaches outside or is broken inside: one line before anything is read."""

import ast
import os
import socket
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from conftest import NAMES, ROOT
from scipy import sparse

from tcell_drugseq.base.defaults import DataConfig
from tcell_drugseq.base.files import read_bytes, read_yaml
from tcell_drugseq.base.settings import InputError
from tcell_drugseq.batch.executors import scheduler_address
from tcell_drugseq.counts.gene_sets import read_gmt
from tcell_drugseq.counts.matrices import read_counts
from tcell_drugseq.counts.plate_map import read_plate_map
from tcell_drugseq.data.reading import read_bundle, read_h5ad, read_screen, write_bundle
from tcell_drugseq.model.checkpoint import load_model
from tcell_drugseq.report.done import hash_inputs
from tcell_drugseq.report.notebooks import read_notebook_parameters


def screen(x: object = None, n: int = 24) -> AnnData:
    obs = pd.DataFrame({"compound": (NAMES + ["DMSO"] * n)[:n], "label": [0, 1] * (n // 2)})
    obs.index = [f"{'AB'[i // 12]}{1 + i % 12:02d}" for i in range(n)]
    x = np.random.default_rng(0).integers(0, 30, (n, 5)).astype(np.float32) if x is None else x
    return AnnData(x, obs=obs, var=pd.DataFrame(index=["IL2", "IFNG", "MT-CO1", "RPL3", "ACTB"]))


# What is no file


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def plug(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def circle(path: Path) -> None:
    path.symlink_to(path)


KINDS = {fifo: "a FIFO", device: "a device", folder: "a folder", plug: "a socket", circle: "Too many levels"}
READERS: dict[str, Callable] = {
    "params.yaml": read_yaml,
    "sets.gmt": read_gmt,
    "map.csv": read_plate_map,
    "counts.csv": read_counts,
    "counts.h5ad": read_counts,
    "counts.h5": read_counts,
    "plate.h5ad": lambda path: read_screen(DataConfig(data_dir=str(path))),
    "model.pt": load_model,
    "scheduler.json": lambda path: scheduler_address(str(path)),
    "report.ipynb": read_notebook_parameters,
    "data.h5ad": lambda path: hash_inputs({"data_dir": str(path)}),
}
FOLDERS = ("counts.csv", "counts.h5ad", "counts.h5", "plate.h5ad", "data.h5ad")  # where a folder is another format


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_at_once(name: str, kind: Callable, tmp_path: Path, monkeypatch):
    if kind is folder and name in FOLDERS:
        pytest.skip("a folder is read as one")
    monkeypatch.chdir(tmp_path)
    kind(tmp_path / name)
    with pytest.raises(InputError) as error:
        READERS[name](tmp_path / name)
    assert name in str(error.value) and KINDS[kind] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["expr_mat.csv", "meta_id.csv", "labels_cls.csv"])
def test_a_bundle_waits_for_no_fifo(name: str, tmp_path: Path):
    write_bundle(screen(), tmp_path / "bundle")
    (tmp_path / "bundle" / name).unlink()
    fifo(tmp_path / "bundle" / name)
    with pytest.raises(InputError, match=f"{name}: found a FIFO, expected a regular file"):
        read_bundle(tmp_path / "bundle")


def test_every_module_reads_files_by_the_one_function():
    assert read_bytes(Path(__file__)).startswith(b'"""Files')
    own = {"base/files.py", "data/simulate.py", "report/experiment.py"}  # the function; assets; a log of our own
    for path in sorted((ROOT / "tcell_drugseq").rglob("*.py")):
        used = {n.attr for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Attribute)}
        if str(path.relative_to(ROOT / "tcell_drugseq")) not in own:
            assert not used & {"read_text", "read_bytes", "read_10x_mtx"}, path


@pytest.mark.parametrize("long", ["n" * 300, "n" * 300 + "/x"])
def test_a_long_name_is_one_line(long: str, fork, tmp_path: Path):
    screen().write_h5ad(tmp_path / "plate.h5ad")
    write_bundle(screen(), tmp_path / "bundle")
    (tmp_path / "params.yaml").write_text("data_dir: plate.h5ad\n")
    (tmp_path / "circle").symlink_to("circle")
    asked = [
        f"validate {long}",
        f"audit --data_dir {long} --out_dir out",
        f"audit --data_dir plate.h5ad --out_dir {long}",
    ]
    asked += [
        f"screen {long} map.csv out",
        f"screen counts.csv map.csv {long}",
        f"simulate {long}",
        f"run --config {long}",
    ]
    asked += [f"run --data_dir {long} --out_dir out", f"run --data_dir plate.h5ad --out_dir {long}", f"report {long}"]
    asked += [f"predict --data_dir plate.h5ad --model_path {long} --out_dir out", f"batch {long}"]
    asked += [f"report params.yaml --reports_dir {long}", f"report params.yaml --notebook {long}"]
    asked += ["run --data_dir circle --out_dir out", "simulate circle", "screen counts.csv map.csv circle"]
    before = sorted(tmp_path.iterdir())
    for command in asked:
        done = fork(*command.split(), cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr, (command[:60], done.stderr)
        assert len((done.stderr or done.stdout.partition("\n")[2]).strip().splitlines()) == 1, (command, done.stderr)
        assert sorted(tmp_path.iterdir()) == before, command


# What an HDF5 file holds


def of_other_file(name: str) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = h5py.ExternalLink("secret.h5", "/key")

    return change


def outside(file: h5py.File) -> None:
    file["uns"].create_dataset("key", shape=(4,), dtype="u1", external=[("secret.h5", 0, 4)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="u1")
    layout[:] = h5py.VirtualSource("secret.h5", "key", shape=(4,))
    file["uns"].create_virtual_dataset("key", layout)


def by_a_link_in_the_file(file: h5py.File) -> None:
    file["a"] = h5py.SoftLink("/z/key")
    file["z"] = h5py.ExternalLink("secret.h5", "/")


def in_itself(file: h5py.File) -> None:
    file["uns/again"] = file["uns"]


def link_in_itself(file: h5py.File) -> None:
    file["uns/again"] = h5py.SoftLink("/uns")


def nested(file: h5py.File) -> None:
    group = file["uns"]
    for _ in range(5000):
        group = group.create_group("g")


OUTSIDE = {
    "link": (of_other_file("uns/key"), "uns/key: found a link to 'secret.h5'"),
    "link to the indices": (of_other_file("X/indices"), "X/indices: found a link to 'secret.h5'"),
    "link by link": (by_a_link_in_the_file, "z: found a link to 'secret.h5'"),
    "external values": (outside, "uns/key: found values that are in other files"),
    "virtual": (virtual, "uns/key: found values that are in other files"),
    "in itself": (in_itself, "uns: found a group of two names"),
    "link in itself": (link_in_itself, "uns/again: found a second name of"),
    "nested": (nested, "too deep"),
}


@pytest.mark.parametrize("case", OUTSIDE)
@pytest.mark.parametrize("read", [read_h5ad, read_counts])
def test_a_file_names_no_other_file(case: str, read: Callable, tmp_path: Path):
    change, said = OUTSIDE[case]
    screen(sparse.csr_matrix(screen().X)).write_h5ad(path := tmp_path / "plate.h5ad")
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(InputError) as error:
        read(path)
    assert f"plate.h5ad: {said}" in str(error.value) or said == "too deep" in str(error.value)


def test_a_link_within_the_file_is_followed(tmp_path: Path):
    screen(sparse.csr_matrix(screen().X)).write_h5ad(path := tmp_path / "plate.h5ad")
    with h5py.File(path, "r+") as file:
        file["layers/counts"] = h5py.SoftLink("/X")
    assert (read_h5ad(path).layers["counts"] == screen().X).all()


def values(name: str, i: int, value: int) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        group[name][i] = value

    return change


def retyped(name: str, kind: str) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        held = group[name][:]
        del group[name]
        group[name] = held.astype(kind)

    return change


def shorter(name: str) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        held = group[name][:-1]
        del group[name]
        group[name] = held

    return change


BROKEN = {
    "far": (values("indices", 0, 10**9), "index 1000000000"),
    "the next well": (values("indices", 2, 24), "index 24"),
    "negative": (values("indices", 0, -3), "index -3"),
    "falling": (values("indptr", 1, 10**6), "an indptr in disorder"),
    "not from 0": (values("indptr", 0, 1), "an indptr in disorder"),
    "no end": (values("indptr", -1, 2), "an indptr in disorder"),
    "fractional": (retyped("indices", "f8"), "indices of float64"),
    "texts": (retyped("data", "S4"), "values of |S4"),
    "few values": (shorter("data"), "values"),
    "few indices": (shorter("indices"), "values"),
    "few rows": (shorter("indptr"), "in indptr"),
}
PLACES = ("X", "layers/counts", "raw/X", "obsp/near", "varm/load", "uns/kept")


def every_sparse(path: Path) -> None:
    adata = screen(sparse.csr_matrix(screen().X))
    adata.layers["counts"] = sparse.csc_matrix(adata.X)
    adata.raw = adata.copy()
    adata.obsp["near"] = sparse.csr_matrix(np.ones((24, 24)))
    adata.varm["load"] = sparse.csr_matrix(np.ones((5, 5)))
    adata.uns["kept"] = sparse.csr_matrix(np.ones((5, 5)))
    adata.write_h5ad(path)


@pytest.mark.parametrize("case", BROKEN)
def test_every_sparse_matrix_is_whole(case: str, tmp_path: Path):
    change, said = BROKEN[case]
    every_sparse(path := tmp_path / "plate.h5ad")
    assert read_h5ad(path).n_obs == read_counts(path).n_obs == 24
    whole = path.read_bytes()
    for place in PLACES:
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            change(file[place])
        for read in (read_h5ad, read_counts):
            with pytest.raises(InputError) as error:
                read(path)
            assert str(error.value).startswith(f"plate.h5ad: {place}: found ") and said in str(error.value)


# What a screen holds


@pytest.mark.parametrize("value", [1e39, 3e9, np.inf, np.nan, -1, 0.5])
def test_a_layer_of_counts_holds_counts(value: float, tmp_path: Path):
    adata = screen()
    adata.layers["counts"] = adata.X.astype(float)
    adata.layers["counts"][3, 2] = value
    adata.write_h5ad(path := tmp_path / "plate.h5ad")
    with pytest.raises(InputError, match=r"layer 'counts', well 'A04', gene 'MT-CO1': found .*, expected raw counts"):
        read_h5ad(path)


def test_controls_alone_are_no_screen(tmp_path: Path):
    adata = screen()
    adata.obs["compound"] = "DMSO"
    adata.write_h5ad(path := tmp_path / "plate.h5ad")
    with pytest.raises(InputError, match="'DMSO' in all 24 wells, expected a compound to compare with the control"):
        read_h5ad(path)
    assert read_h5ad(path, need_targets=False).n_obs == 24  # which may well be predicted


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_scores_may_be_any_matrix(form: Callable, tmp_path: Path):
    adata = screen()
    scores = np.random.default_rng(1).normal(size=(24, 2)) * (np.arange(24)[:, None] % 3 > 0)
    adata.obsm["scores"], adata.uns["score_names"] = form(scores), ["Tscore", "mine"]
    adata.write_h5ad(path := tmp_path / "plate.h5ad")
    read = read_h5ad(path).obsm["scores"]
    assert list(read) == ["Tscore", "mine"] and (read.to_numpy() == scores).all()
    adata.uns["score_names"] = ["Tscore"]
    adata.write_h5ad(path)
    with pytest.raises(InputError, match="names in uns"):
        read_h5ad(path)


@pytest.mark.parametrize("kind", ["boolean", "Int64", "string"])
@pytest.mark.parametrize("part", ["label", "plate", "dose", "cluster", "compound", "scores", "note"])
def test_a_gap_is_a_gap_in_every_type_of_column(part: str, kind: str, tmp_path: Path):
    adata, value = screen(), {"boolean": True, "string": "1"}.get(kind, 1)
    adata.obs["mine"] = pd.array([value, None] * 12, kind)
    adata.write_h5ad(path := tmp_path / "plate.h5ad")
    if part == "note":
        read_h5ad(path).write_h5ad(tmp_path / "again.h5ad")
        assert "<NA>" not in read_h5ad(tmp_path / "again.h5ad").obs["mine"].astype(str).tolist()
        return
    cfg = DataConfig(**{part: ("mine",) if part == "scores" else "mine"})
    with pytest.raises(InputError) as error:
        read_h5ad(path, cfg)
    assert "mine" in str(error.value) and "<NA>" not in str(error.value)
