"""Clean inputs, mutated in one place, and what a command may do with them.

`make fuzz TRIALS=1000` tries so many and prints a table by kind; `test_fuzz.py` tries a few of each in every run of the
tests, with Hypothesis in the place of the dice, so that what fails is made small.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from tcell_drugseq.base.defaults import RunConfig, SimConfig
from tcell_drugseq.base.settings import leaves

LIMIT = 60  # seconds until a command hangs; each of these is done in one or two
NO_NUMBERS = (
    "",
    " ",
    "NA",
    "nan",
    "inf",
    "-inf",
    "1e39",
    "1e400",
    "0x10",
    "٣",
    "1_0",
    "=1+1",
    "TRUE",
    "<b>",
    "x" * 9999,
    "9" * 400,
)
NASTY_CELLS = [*NO_NUMBERS, "-1", "1,5", "\x00", "'", '"', '"a', "\r", "\u200b", "\ufeff", "1e-400", "-0"]
NASTY_VALUES = [
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1",
    "0",
    str(2**32),
    str(2**63),
    "9" * 400,
    "1e6",
    "x",
    "",
    " ",
    "true",
    "0.5",
]
NASTY_VALUES += ["-0.0", "1e-320", "[]", "{}", "null", "\u0663", "1_000", "0x1F", "1:30", "\x1b[31m"]


@dataclass(frozen=True)
class Trial:
    """One command, and how it may end."""

    args: list[str]
    may: str  # "refuse": only refuse; "answer": only answer; "either"


KINDS: dict[str, Callable[[random.Random, Path], Trial]] = {}  # name -> mutate the copy in a folder


def kind(name: str) -> Callable:
    def register(mutate: Callable) -> Callable:
        KINDS[name] = mutate
        return mutate

    return register


def clean_inputs(folder: Path) -> Path:
    """A bundle, the same as `.h5ad`, dense and sparse, raw counts with their plate map, and a model."""
    from scipy.sparse import csr_matrix

    from tcell_drugseq.base.settings import with_leaves
    from tcell_drugseq.data.reading import read_bundle
    from tcell_drugseq.data.simulate import simulate_screen, write_simulation
    from tcell_drugseq.pipeline import run

    small = SimConfig(n_batches=1, n_plates=1, n_compounds=30, n_controls=12, n_genes=120, n_replicates=2)
    write_simulation(simulate_screen(small), folder / "bundle")
    screen = read_bundle(folder / "bundle")
    screen.write_h5ad(folder / "dense.h5ad")
    screen.X = csr_matrix(np.where(screen.X > np.median(screen.X), screen.X, 0))
    screen.layers["counts"] = csr_matrix(screen.layers["counts"])
    screen.write_h5ad(folder / "sparse.h5ad")
    brief = {"epochs": 1, "d_model": 8, "folds": 2, "n_members": 1, "baselines": False, "biology": False}
    brief |= {"check_importance": False, "hit_draws": 200, "hit_bootstrap": 100}
    run(with_leaves(RunConfig(), brief | {"data_dir": str(folder / "bundle"), "out_dir": str(folder / "run")}))
    return folder


# Bundles

NUMBERS = ("expr_mat.csv", "scores_3_z.csv", "activation_score_old.csv", "counts_mat.csv")
TABLES = (*NUMBERS, "well_id.csv", "meta_id.csv", "labels_cls.csv", "cluster_id.csv")
OPTIONAL = ("activation_score_old.csv", "cluster_id.csv", "counts_mat.csv")


def table_of(rng: random.Random, folder: Path, names: tuple[str, ...] = TABLES) -> Path:
    return folder / "bundle" / rng.choice([name for name in names if (folder / "bundle" / name).exists()])


def validate(folder: Path, what: str = "bundle") -> list[str]:
    return ["validate", str(folder / what)]


@kind("bundle: a number that is none")
def _(rng, folder):
    path = table_of(rng, folder, NUMBERS)
    lines = path.read_text().splitlines()
    i = rng.randrange(1, len(lines))
    cells = lines[i].split(",")
    cells[rng.randrange(len(cells))] = rng.choice(NO_NUMBERS)
    lines[i] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n")
    return Trial(validate(folder), "refuse")


@kind("bundle: a name")
def _(rng, folder):
    path = table_of(rng, folder, ("meta_id.csv", "well_id.csv", "cluster_id.csv", "labels_cls.csv"))
    lines = path.read_text().splitlines()
    lines[rng.randrange(1, len(lines))] = rng.choice(NASTY_CELLS)
    path.write_text("\n".join(lines) + "\n")
    return Trial(validate(folder), "either")


@kind("bundle: rows and columns")
def _(rng, folder):
    path = table_of(rng, folder)
    lines = path.read_text().splitlines()
    i, how = rng.randrange(len(lines)), rng.choice(["without", "twice", "longer", "shorter", "blank"])
    if how == "without":
        del lines[i]
    elif how == "twice":
        lines.insert(i, lines[i])
    elif how == "longer":
        lines[i] += ",1"
    elif how == "shorter":
        lines[i] = lines[i].rpartition(",")[0] if "," in lines[i] else ""
    else:
        lines.insert(i, "")
    path.write_text("\n".join(lines) + "\n")
    return Trial(validate(folder), "refuse")


@kind("bundle: bytes")
def _(rng, folder):
    path = table_of(rng, folder)
    raw = bytearray(path.read_bytes())
    how = rng.choice(["cut", "flip", "utf16", "nul", "empty", "zip", "semicolons", "tabs"])
    if how == "cut":
        raw = raw[: rng.randrange(len(raw) // 2)]
    elif how == "flip":
        for _ in range(rng.randrange(1, 30)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
    elif how == "utf16":
        raw = raw.decode().encode("utf-16")
    elif how == "nul":
        raw[rng.randrange(len(raw))] = 0
    elif how == "empty":
        raw = b""
    elif how == "zip":
        raw = b"PK\x03\x04" + bytes(raw)
    else:
        raw = bytes(raw).replace(b",", b";" if how == "semicolons" else b"\t")
    path.write_bytes(bytes(raw))
    return Trial(validate(folder), "either" if how in ("flip", "semicolons", "tabs") else "refuse")


@kind("bundle: forms that are read")
def _(rng, folder):
    path = table_of(rng, folder)
    raw = path.read_bytes()

    def european(b: bytes) -> bytes:
        """With semicolons and decimal commas, where there are columns to separate."""
        header, _, rows = b.partition(b"\n")
        several = b"," in header and path.name in NUMBERS
        swapped = header.replace(b",", b";") + b"\n" + rows.replace(b",", b";").replace(b".", b",")
        return swapped if several else b

    how = [lambda b: b"\xef\xbb\xbf" + b, lambda b: b.replace(b"\n", b"\r\n"), lambda b: b.rstrip(b"\n"), european]
    path.write_bytes(rng.choice(how)(raw))
    return Trial(validate(folder), "answer")


@kind("bundle: not a file")
def _(rng, folder):
    path = table_of(rng, folder)
    path.unlink()
    how = rng.choice(["folder", "fifo", "loop", "nothing", "zero"])
    if how == "folder":
        path.mkdir()
    elif how == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to({"loop": path.name, "nothing": "gone.csv", "zero": "/dev/zero"}[how])
    return Trial(validate(folder), "refuse")


@kind("bundle: misnamed")
def _(rng, folder):
    path = table_of(rng, folder, OPTIONAL)
    stem = path.stem
    names = [
        stem.upper(),
        stem.title(),
        stem.replace("_", ""),
        stem.replace("_", "-"),
        stem[:-1],
        f"{stem}_v2",
        f" {stem}",
    ]
    path.rename(path.with_name(rng.choice(names) + rng.choice([".csv", ".CSV", ".csv.gz", ".tsv", ".txt"])))
    return Trial(validate(folder), "refuse")


@kind("bundle: two spellings")
def _(rng, folder):
    path = folder / "bundle" / "meta_id.csv"
    lines = path.read_text().splitlines()
    at = [i for i, name in enumerate(lines[1:], 1) if name == (rng.choice([n for n in lines[1:] if n != "DMSO"]))]
    if not at:
        return Trial(validate(folder), "answer")
    name = lines[at[0]]
    lines[at[0]] = rng.choice([f"{name} ", f" {name}", f"{name}\u200b", f"{name}\u00a0", f"\ufeff{name}"])
    path.write_text("\n".join(lines) + "\n")
    return Trial(validate(folder), "refuse")


@kind("bundle: one treatment")
def _(rng, folder):
    path = folder / "bundle" / "meta_id.csv"
    header, *names = path.read_text().splitlines()
    name = rng.choice(["DMSO", "dmso", "water", ""])
    path.write_text("\n".join([header, *[name] * len(names)]) + "\n")
    return Trial(validate(folder), "refuse")


# .h5ad


def h5ad(folder: Path, name: str) -> h5py.File:
    return h5py.File(folder / f"{name}.h5ad", "r+")


@kind("h5ad: a sparse matrix that does not hold")
def _(rng, folder):
    with h5ad(folder, "sparse") as f:
        group = f[rng.choice(["X", "layers/counts"])]
        _n, m = map(int, group.attrs["shape"])
        part = rng.choice(["indices", "indptr", "data"])
        values = group[part][:]
        i = rng.randrange(len(values))
        if part == "indices":
            values[i] = rng.choice([m, m + rng.randrange(50), -1, 2**31 - 1])
        elif part == "indptr":
            values[i] = rng.choice([-1, len(group["data"]) + 1 + rng.randrange(50), 2**31 - 1])
        else:
            values = values[: rng.randrange(len(values))]
            del group[part]
            group[part] = values
        if part != "data":
            group[part][...] = values
    return Trial(validate(folder, "sparse.h5ad"), "refuse")


@kind("h5ad: values")
def _(rng, folder):
    with h5ad(folder, "dense") as f:
        x = f["X"]
        x[rng.randrange(x.shape[0]), rng.randrange(x.shape[1])] = rng.choice([np.nan, np.inf, -np.inf])
    return Trial(validate(folder, "dense.h5ad"), "refuse")


@kind("h5ad: entries")
def _(rng, folder):
    name = rng.choice(["dense", "sparse"])
    with h5ad(folder, name) as f:
        found = []
        f.visit(found.append)
        at = rng.choice(found)
        how = rng.choice(["without", "other", "attribute", "short"])
        if how == "attribute" and len(f[at].attrs):
            key = rng.choice(sorted(f[at].attrs))
            f[at].attrs[key] = rng.choice(["", "nonsense", 7, "99.0.0"])
        elif how == "short" and isinstance(f[at], h5py.Dataset) and f[at].ndim:
            values = f[at][: max(0, len(f[at]) - 1)]
            attrs = dict(f[at].attrs)
            del f[at]
            f[at] = values
            f[at].attrs.update(attrs)
        else:
            del f[at]
            if how == "other":
                f[at] = rng.choice([0, "text", np.zeros((2, 2, 2))])
    return Trial(validate(folder, f"{name}.h5ad"), "either")


@kind("h5ad: bytes")
def _(rng, folder):
    path = folder / f"{rng.choice(['dense', 'sparse'])}.h5ad"
    raw = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        raw = raw[: rng.randrange(len(raw))]
        may = "refuse"
    else:
        for _ in range(rng.randrange(1, 200)):
            raw[rng.randrange(min(len(raw), rng.choice([2000, 20_000, len(raw)])))] = rng.randrange(256)
        may = "either"
    path.write_bytes(raw)
    return Trial(validate(folder, path.name), may)


@kind("h5ad: what lies elsewhere")
def _(rng, folder):
    shutil.copy(folder / "dense.h5ad", folder / "other.h5ad")
    with h5ad(folder, "dense") as f:
        at, how = rng.choice(["X", "obs/compound", "layers/counts", "var"]), rng.choice(["external", "virtual", "raw"])
        if how == "external" or at != "X":
            del f[at]
            f[at] = h5py.ExternalLink("other.h5ad", f"/{at}")
        else:
            shape, attrs = f["X"].shape, dict(f["X"].attrs)
            del f["X"]
            if how == "virtual":
                layout = h5py.VirtualLayout(shape, "f4")
                layout[:] = h5py.VirtualSource(str(folder / "other.h5ad"), "X", shape)
                f.create_virtual_dataset("X", layout)
            else:
                (folder / "raw.bin").write_bytes(bytes(shape[0] * shape[1] * 4))
                outside = [(str(folder / "raw.bin"), 0, h5py.h5f.UNLIMITED)]
                f.create_dataset("X", shape, "f4", external=outside)
            f["X"].attrs.update(attrs)
    return Trial(validate(folder, "dense.h5ad"), "refuse")


@kind("h5ad: obs with a gap")
def _(rng, folder):
    from anndata import read_h5ad

    screen = read_h5ad(folder / "dense.h5ad")
    column, dtype = rng.choice([("label", "boolean"), ("label", "Int64"), ("compound", "string")])
    values = screen.obs[column].astype(dtype)
    values.iloc[rng.randrange(len(values))] = pd.NA
    screen.obs[column] = values
    screen.write_h5ad(folder / "dense.h5ad")
    return Trial(validate(folder, "dense.h5ad"), "refuse" if column in ("label", "compound") else "either")


# Settings


@kind("settings: a flag")
def _(rng, folder):
    name, _default = rng.choice([(n, d) for n, d in leaves(RunConfig()).items() if not isinstance(d, bool)])
    return Trial([*validate(folder), f"--{name}={rng.choice(NASTY_VALUES)}"], "either")


@kind("settings: what no number is")
def _(rng, folder):
    numbers = [n for n, d in leaves(RunConfig()).items() if type(d) in (int, float)]
    return Trial(
        [*validate(folder), f"--{rng.choice(numbers)}={rng.choice(['nan', 'inf', '-inf', '1e400', 'x', ''])}"], "refuse"
    )


@kind("settings: simulate")
def _(rng, folder):
    signed = ("row_effect", "column_effect")  # the others can't be below zero
    numbers = [n for n, d in leaves(SimConfig()).items() if type(d) in (int, float) and n not in signed]
    value = rng.choice(["nan", "inf", "-inf", "1e400", "x", "", "-1", str(2**63), "9" * 400])
    return Trial(["simulate", str(folder / "made"), f"--{rng.choice(numbers)}={value}"], "refuse")


@kind("yaml: a setting")
def _(rng, folder):
    name, value = rng.choice(sorted(leaves(RunConfig()))), rng.choice(NASTY_VALUES)
    (folder / "one.yaml").write_text(f"{name}: {value}\n", encoding="utf-8")
    return Trial([*validate(folder), "--config", str(folder / "one.yaml")], "either")


@kind("yaml: shape")
def _(rng, folder):
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{c}: &{c} [{','.join([f'*{b}'] * 9)}]\n" for b, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    shapes = [
        "epochs: 3\nepochs: 4\n",
        bomb,
        "[" * 5000,
        "a: " + "{a: " * 3000,
        "- 1\n- 2\n",
        "3\n",
        "null\n",
        "",
        "\t: x\n",
    ]
    shapes += [
        "!!python/object/apply:os.system ['true']\n",
        "epochs: !!int x\n",
        "? [a]\n: 1\n",
        "\x00",
        "a" * 2_000_000,
    ]
    shapes += [
        "epochs: &a [*a]\n",
        "1: 2\n",
        "epochs: 2020-01-01\n",
        "%YAML 9.9\n---\na: 1\n",
        "a: 1\n---\nb: 2\n",
    ]
    (folder / "one.yaml").write_text(rng.choice(shapes), encoding="utf-8")
    return Trial([*validate(folder), "--config", str(folder / "one.yaml")], "refuse")


@kind("yaml: random text")
def _(rng, folder):
    signs = "abe:-[]{}&*!|>'\"%@`#,? \n\t019.~<=\u00e9\u2028"
    (folder / "one.yaml").write_text("".join(rng.choice(signs) for _ in range(rng.randrange(1, 200))), encoding="utf-8")
    return Trial([*validate(folder), "--config", str(folder / "one.yaml")], "either")


@kind("sets of experiments")
def _(rng, folder):
    data = f"data_dir: {folder / 'bundle'}"
    sets = {
        "twice": f"shared: {{{data}}}\nexperiments:\n  a: {{epochs: 2}}\n  a: {{epochs: 3}}\n",
        "grid": f"shared: {{{data}}}\ngrid:\n"
        + "".join(f"  {n}: {list(range(1, 101))}\n" for n in ("epochs", "seed", "folds", "patience")),
        "one number twice": f"shared: {{{data}}}\ngrid: {{lr: [0.001, 1.0e-3]}}\n",
        "no notebook": f"shared: {{{data}}}\nnotebook: one.yaml\n",
        "a folder": f"shared: {{{data}}}\nnotebook: {folder}\n",
        "a binary": f"shared: {{{data}}}\nnotebook: {folder / 'dense.h5ad'}\n",
        "other json": f"shared: {{{data}}}\nnotebook: {folder / 'run' / 'metrics.json'}\n",
        "a list": f"shared: [{data}]\nexperiments: [1, 2]\n",
        "a path": f"shared: {{{data}}}\nexperiments: {{../x: {{}}}}\n",
    }
    (folder / "one.yaml").write_text(sets[rng.choice(sorted(sets))], encoding="utf-8")
    return Trial(["batch", str(folder / "one.yaml"), "--dry_run", "--reports_dir", str(folder / "reports")], "refuse")


@kind("records of a finished experiment")
def _(rng, folder):
    made = folder / "reports" / "one"
    made.mkdir(parents=True)
    shapes = [
        [],
        3,
        None,
        "x",
        {"files": 3},
        {"files": {"a": 1}},
        {"made_of": []},
        {"files": [None]},
        {"parameters": "x", "files": {}},
    ]
    text = rng.choice([*map(json.dumps, shapes), "{", "", "\x00\x01", "[" * 5000])
    (made / rng.choice(["done.json", "progress.json", "run.yaml"])).write_text(text)
    (made / "report.html").write_text("<p>")
    (folder / "one.yaml").write_text(f"data_dir: {folder / 'bundle'}\n", encoding="utf-8")
    return Trial(["batch", str(folder / "one.yaml"), "--dry_run", "--reports_dir", str(folder / "reports")], "answer")


# Models


@kind("model: fields")
def _(rng, folder):
    import torch

    path = folder / "run" / "model.pt"
    saved = torch.load(path, weights_only=True)
    odd = [
        None,
        0,
        -1,
        3.5,
        "x",
        [],
        {},
        [1],
        {"a": 1},
        10**9,
        True,
        float("nan"),
        torch.zeros(2),
        [""],
        ["IL2", "IL2"],
    ]
    where = rng.choice(["top", "model", "state"])
    if where == "top":
        key = rng.choice(["format", "model", "genes", "scores", "state"])
        saved[key] = rng.choice([o for o in odd if not (key == "scores" and o == [])])
    elif where == "model":
        numbers = [k for k, v in saved["model"].items() if type(v) is int]
        saved["model"][rng.choice(numbers)] = rng.choice(
            [o for o in odd if not hasattr(o, "shape") and o not in (0, 1, True)]
        )
    else:
        key = rng.choice(sorted(saved["state"]))
        value = saved["state"][key]
        saved["state"][key] = rng.choice(
            [torch.full_like(value, torch.nan), value.double()[None], torch.zeros(2, 9), None, 3, "x"]
        )
    torch.save(saved, path)
    return Trial(predict(folder), "refuse")


@kind("model: bytes")
def _(rng, folder):
    path = folder / "run" / "model.pt"
    raw = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        raw = raw[: rng.randrange(len(raw))]
    else:
        for _ in range(rng.randrange(1, 9)):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)
    return Trial(predict(folder), "either")


def predict(folder: Path) -> list[str]:
    args = ["predict", "--model_path", str(folder / "run" / "model.pt"), "--data_dir", str(folder / "bundle")]
    brief = ["--no_baselines", "--no_check_importance", "--no_biology", "--hit_draws", "200"]
    return [*args, *brief, "--hit_bootstrap", "100", "--out_dir", str(folder / "predicted")]


# Counts and plate maps


def screen(folder: Path) -> list[str]:
    raw = folder / "bundle" / "raw"
    return [
        "screen",
        *(str(next(raw.glob(f"{name}*"))) for name in ("counts", "plate_map")),
        str(folder / "screened"),
        "--min_umis=1",
        "--min_detected=1",
    ]


@kind("counts: a cell")
def _(rng, folder):
    path = next((folder / "bundle" / "raw").glob("counts*"))
    table = pd.read_csv(path, index_col=0, dtype=str, keep_default_na=False)
    table.iat[rng.randrange(len(table)), rng.randrange(table.shape[1])] = rng.choice(
        ["x", "-1", "0.5", "1e39", "1e400", "nan", "inf", "", "0x1"]
    )
    table.to_csv(path)
    return Trial(screen(folder), "refuse")


@kind("counts: all alike")
def _(rng, folder):
    path = next((folder / "bundle" / "raw").glob("counts*"))
    table = pd.read_csv(path, index_col=0)
    table[:] = rng.choice([0, 1, 7])
    table.to_csv(path)
    return Trial(screen(folder), "refuse")


@kind("plate map: a cell")
def _(rng, folder):
    path = next((folder / "bundle" / "raw").glob("plate_map*"))
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.iat[rng.randrange(len(table)), rng.randrange(table.shape[1])] = rng.choice(NASTY_CELLS)
    table.to_csv(path, index=False)
    return Trial([*screen(folder), f"--min_wells={10**6}"], "either")


@kind("plate map: bytes")
def _(rng, folder):
    path = next((folder / "bundle" / "raw").glob("plate_map*"))
    raw = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 40)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    path.write_bytes(raw)
    return Trial([*screen(folder), f"--min_wells={10**6}"], "either")


def shapes(folder: Path, form: str) -> Path:
    """The counts in another form."""
    from anndata import AnnData
    from scipy.io import mmwrite
    from scipy.sparse import coo_matrix, csr_matrix

    table = pd.read_csv(next((folder / "bundle" / "raw").glob("counts*")), index_col=0)
    made = folder / "shape"
    made.mkdir()
    if form == "mtx":
        mmwrite(made / "matrix.mtx", coo_matrix(table.T.to_numpy()))
        (made / "barcodes.tsv").write_text("\n".join(table.index) + "\n")
        (made / "features.tsv").write_text("\n".join(f"ENSG{i:011d}\t{g}" for i, g in enumerate(table)) + "\n")
        return made
    if form == "h5ad":
        obs, var = pd.DataFrame(index=table.index), pd.DataFrame(index=table.columns)
        AnnData(csr_matrix(table.to_numpy(dtype=np.float32)), obs=obs, var=var).write_h5ad(made / "counts.h5ad")
        return made / "counts.h5ad"
    if form == "folder of tables":
        for i in range(2):
            table[i::2].T.to_csv(made / f"P{i}_counts.csv")
        return made
    if form == "folder of wells":
        for well, counts in table.iterrows():
            counts.to_csv(made / f"{well}_htseq.txt", sep="\t", header=False)
        return made
    lines = "# Program:featureCounts\n" + table.T.to_csv(sep="\t", index_label="Geneid")
    (made / "counts.txt").write_text(lines)
    return made / "counts.txt"


@kind("counts: forms")
def _(rng, folder):
    path = shapes(folder, rng.choice(["mtx", "h5ad", "folder of wells", "featureCounts"]))
    asked = screen(folder)
    asked[1] = str(path)
    return Trial([*asked, "--max_top=1", "--max_mito=1"], "answer")


@kind("counts: bytes of other forms")
def _(rng, folder):
    path = shapes(folder, rng.choice(["mtx", "h5ad", "folder of tables", "folder of wells", "featureCounts"]))
    asked = screen(folder)
    asked[1] = str(path)
    spoilt = rng.choice(sorted(path.iterdir())) if path.is_dir() else path
    raw, how = bytearray(spoilt.read_bytes()), rng.choice(["cut", "flip", "empty", "nul", "gone", "lines"])
    if how == "cut":
        raw = raw[: rng.randrange(len(raw))]
    elif how == "flip":
        for _ in range(rng.randrange(1, 40)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
    elif how == "nul":
        raw[rng.randrange(len(raw))] = 0
    elif how == "lines":
        lines = bytes(raw).split(b"\n")
        rng.shuffle(lines)
        raw = b"\n".join(lines)
    spoilt.unlink() if how == "gone" else spoilt.write_bytes(b"" if how == "empty" else bytes(raw))
    return Trial([*asked, f"--min_wells={10**6}"], "refuse")


@kind("counts: what is no gene")
def _(rng, folder):
    path = next((folder / "bundle" / "raw").glob("counts*"))
    table = pd.read_csv(path, index_col=0)
    name = rng.choice(["__no_feature", "N_unmapped", "ERCC-00002", "Total", "nCount_RNA", "Unnamed: 0", "Alles"])
    table[name] = table.sum(axis=1)
    table.to_csv(path)
    return Trial([*screen(folder), "--max_top=1", "--max_mito=1"], "refuse" if name == "Alles" else "answer")


@kind("plate map: columns")
def _(rng, folder):
    path = next((folder / "bundle" / "raw").glob("plate_map*"))
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    odd = [
        "Unit",
        "dose_nM",
        "Conc. (µM)",
        "Treatment_1",
        "plate",
        "Destination Plate Barcode",
        "row",
        "col",
        "well",
        "",
    ]
    names = list(table)
    if rng.random() < 0.5:
        names[rng.randrange(len(names))] = rng.choice(odd)
        table.columns = names
    else:
        table.insert(rng.randrange(len(names)), rng.choice(odd), rng.choice(["P1", "uM", "A1", "h", "", "1.000"]), True)
    table.to_csv(path, index=False)
    return Trial([*screen(folder), f"--min_wells={10**6}"], "refuse")


@kind("paths")
def _(rng, folder):
    odd = [
        "x" * 300,
        "",
        " ",
        "\n",
        "~nobody/x",
        "/dev/null",
        "/dev/zero",
        str(folder / "bundle" / "meta_id.csv"),
        "/proc/self/mem",
        "../" * 2000,
    ]
    path = rng.choice(odd)
    commands = [
        ["validate", path],
        ["validate", "--config", path],
        ["audit", "--data_dir", path],
        ["batch", path, "--dry_run"],
    ]
    commands += [
        ["screen", path, path, str(folder / "screened")],
        ["predict", "--model_path", path, "--data_dir", str(folder / "bundle")],
        ["report", path],
    ]
    commands += [["simulate", path] if path not in ("", " ", "\n", "../" * 2000) else ["validate", path]]
    return Trial(rng.choice(commands), "refuse")


# What came out


def outcome(trial: Trial, done) -> str:
    """How a command ended: right, or in which way not."""
    said = done.stderr.strip()
    if done.returncode == -14:  # SIGALRM
        return "hang"
    if done.returncode < 0:
        return "crash"
    if "Traceback" in done.stderr or done.returncode not in (0, 2, 3):
        return "traceback"
    if done.returncode == 2:
        named = done.stdout.strip() or any(line.startswith(("error: ", "Error: ")) for line in said.splitlines())
        if not named:
            return "said nothing"
        return "refused wrongly" if trial.may == "answer" else "right"
    return "accepted wrongly" if trial.may == "refuse" else "right"


def try_one(name: str, rng: random.Random, clean: Path, fork: Callable) -> tuple[str, Trial, object]:
    """Mutate a copy of the clean inputs and give it to its command."""
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp) / "in"
        shutil.copytree(clean, folder)
        trial = KINDS[name](rng, folder)
        done = fork(*trial.args, cwd=tmp, limit=LIMIT)
        return outcome(trial, done), trial, done


def main() -> None:
    from shared_runs import forked

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose names contain this")
    asked = parser.parse_args()
    names = [name for name in KINDS if asked.only in name]
    counts = pd.DataFrame(0, names, ["tried"])
    with tempfile.TemporaryDirectory() as tmp, forked(Path(tmp) / "said") as fork:
        clean = clean_inputs(Path(tmp) / "clean")
        for i in range(asked.trials):
            name = names[i % len(names)]
            how, trial, done = try_one(name, random.Random(f"{asked.seed} {i}"), clean, fork)
            counts.loc[name, "tried"] += 1
            counts.loc[name, how] = counts.get(how, pd.Series(0.0, names)).fillna(0)[name] + 1
            if how != "right":
                last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
                print(f"{how}: {name}, trial {i}: {' '.join(trial.args)[:200]!r}: {last}", flush=True)
    table = counts.fillna(0).astype(int)
    print(pd.concat([table, table.sum().to_frame("all").T]).to_string())
    sys.exit(int(table["tried"].sum() != table.get("right", pd.Series(0)).sum()))


if __name__ == "__main__":
    main()
