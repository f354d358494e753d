"""Sets of experiments that no one could run, and what lies beside them in another shape than it should."""

import json

import nbformat
import pytest

from tcell_drugseq.base.settings import InputError
from tcell_drugseq.batch.sets import read_sets
from tcell_drugseq.report.done import RECORD, why_not_done


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Read a set of this text, which lies beside a small screen."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/expr_mat.csv").write_text("IL2\n1\n")
    monkeypatch.chdir(tmp_path)

    def ask(text):
        (tmp_path / "night.yaml").write_text(text)
        return read_sets(["night.yaml"])

    return ask


LONG = "[" + ", ".join(map(str, range(1_001))) + "]"
REFUSED = {
    "a million": (f"grid: {{seed: &s {LONG}, hit_seed: *s}}", "found 1,002,001 experiments, expected at most 10,000"),
    "two spellings": ("grid: {lr: [0.001, 1e-3]}", "grid: lr: found 0.001 and '1e-3', which are one value"),
    "number and text": ('grid: {lr: [0.001, "0.001"]}', "grid: lr: found 0.001 and '0.001', which are one value"),
    "whole and not": ("grid: {lr: [1, 1.0]}", "grid: lr: found 1 and 1.0, which are one value"),
    "twice": ("grid: {seed: [1, 1]}", "grid: seed: found 1 and 1, which are one value"),
    "list twice": ("grid: {scores: [[a], [a]]}", "which are one value"),
    "not a number": ("grid: {lr: [.nan]}", "lr: found nan (float), expected a number"),
    "octal": ("grid: {seed: [0614]}", "seed: found '0614' (str), expected a whole number"),
    "sexagesimal": ("shared: {epochs: 1:30, data_dir: mine}", "epochs: found '1:30' (str), expected a whole number"),
    "beyond NumPy": ("grid: {seed: [4294967296]}\nshared: {data_dir: mine}", "seed: found 4294967296"),
    "word": ("experiments: {yes: {}}", "found True, expected the name of an experiment; put it in quotes"),
    "nothing": ("experiments: {~: {}}", "found None, expected the name of an experiment"),
    "number": ("grid: {1: [2]}", "unknown parameter 1"),
    "both": ("experiments: {a: {seed: 1, lr: 0.1}}\ngrid: {lr: [1], seed: [3]}", "lr, seed: found in its own"),
    "own": ("experiments: {a: 3}", "experiments: a: found 3, expected parameters with values"),
    "notebook of numbers": ("notebook: [1]", "notebook: found [1] (list), expected a text"),
    "notebook with NUL": ('notebook: "a\\0"', "expected a text"),
    "no such home": ("data_dir: ~nosuch/x", "found no file or folder ~nosuch/x"),
    "long name": ("data_dir: " + "x" * 300, "File name too long"),
    "surrogate": ('data_dir: "\\ud800"', "expected a text"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_set_is_refused_in_one_line(read, name):
    text, message = REFUSED[name]
    with pytest.raises(InputError) as e:
        read(text)
    assert message in str(e.value) and str(e.value).startswith("night.yaml: ") and "\n" not in str(e.value)


def test_values_that_differ_are_experiments_of_their_own(read):
    found = read(
        "shared: {data_dir: mine}\ngrid: {lr: [0.001, 1e-4], seed: [1, 2]}\nexperiments: {614: {}, 2020-01-01: {}}"
    )
    assert len({e.name for e in found}) == 8
    assert {e.params["lr"] for e in found} == {0.001, 0.0001}


def cell(**changes):
    kept = {"cell_type": "code", "source": "seed = 1", "metadata": {"tags": ["parameters"]}, "outputs": []}
    return {k: v for k, v in (kept | {"execution_count": None} | changes).items() if v is not ...}


def book(*cells):
    return json.dumps({"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [*cells]}).encode()


BOOKS = {
    "missing": (None, "no such notebook"),
    "empty": (b"", "not readable as a notebook"),
    "binary": (bytes(range(256)), "not readable as a notebook"),
    "truncated": (book(cell())[:-20], "not readable as a notebook"),
    "list": (b"[]", "not readable as a notebook"),
    "number": (b"3", "not readable as a notebook"),
    "null": (b"null", "not readable as a notebook"),
    "nothing": (b"{}", "not readable as a notebook"),
    "deep": (b"[" * 100_000, "not readable as a notebook"),
    "future": (b'{"nbformat": 99, "cells": []}', "not readable as a notebook"),
    "version of text": (b'{"nbformat": "4", "cells": []}', "not readable as a notebook"),
    "cells of text": (
        b'{"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": "x"}',
        "not readable as a notebook",
    ),
    "cell of number": (book(3), "not readable as a notebook"),
    "no source": (book(cell(source=...)), "not readable as a notebook"),
    "source of number": (book(cell(source=3)), "not readable as a notebook"),
    "no metadata": (book(cell(metadata=...)), "not readable as a notebook"),
    "tags of number": (book(cell(metadata={"tags": 3})), "not readable as a notebook"),
    "no parameters": (book(cell(metadata={})), "found 0 cells tagged `parameters`"),
    "parameters twice": (book(cell(), cell()), "found 2 cells tagged `parameters`"),
    "no Python": (book(cell(source="seed = ")), "is no Python"),
    "NUL": (book(cell(source="seed = '\0'")), "is no Python"),
    "parentheses": (book(cell(source="seed = " + "(" * 5_000)), "is no Python"),
    "computed": (book(cell(source="seed = 1 + n")), "found `seed = 1 + n` among the parameters"),
    "import": (book(cell(source="import os")), "among the parameters"),
    "two at once": (book(cell(source="a, b = 1, 2")), "among the parameters"),
    "list as a key": (book(cell(source="seed = {[]: 1}")), "among the parameters"),
}


@pytest.mark.parametrize("name", BOOKS)
def test_what_is_no_notebook_is_refused_in_one_line(read, tmp_path, name, capfd):
    content, message = BOOKS[name]
    if content is not None:
        (tmp_path / "other.ipynb").write_bytes(content)
    with pytest.raises(InputError) as e:
        read("notebook: other.ipynb\nshared: {seed: 1}")
    assert message in str(e.value) and str(e.value).startswith("other.ipynb: ") and "\n" not in str(e.value)
    assert "".join(capfd.readouterr()) == ""


def test_a_folder_is_no_notebook(read):
    with pytest.raises(InputError, match=r"mine: found a folder, expected a regular file"):
        read("notebook: mine\nshared: {}")


def test_a_notebook_with_a_default_of_another_kind_takes_that_kind(read, tmp_path):
    defaults = {"a": None, "b": {"x": 1}, "c": [1, 2]}
    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("\n".join(f"{k} = {v!r}" for k, v in defaults.items()))]
    )
    nb.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nb, tmp_path / "other.ipynb")
    for name in defaults:
        with pytest.raises(InputError, match=f"{name}: found 3 "):
            read(f"notebook: other.ipynb\nshared: {{{name}: 3}}")


RECORDS = ["", "{", "null", "3", '"x"', "[]", "[1, 2]", "{}", "[" * 100_000, "9" * 5_000, "\0"]
PARTS = [None, 3, "x", [], [1], [[1]], [{}], True]


@pytest.mark.parametrize("text", RECORDS)
def test_a_record_of_another_shape_means_not_done(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    assert f"{tmp_path / RECORD} " in why_not_done(tmp_path, {"parameters": {}, "inputs": {}, "code": "1"})


@pytest.mark.parametrize("part", ["parameters", "inputs", "files", "code"])
@pytest.mark.parametrize("value", PARTS, ids=repr)
def test_a_record_with_a_part_of_another_shape_means_not_done(tmp_path, part, value):
    whole = {"parameters": {}, "inputs": {}, "code": "1", "files": {}}
    (tmp_path / RECORD).write_text(json.dumps(whole))
    assert why_not_done(tmp_path, whole) == ""
    (tmp_path / RECORD).write_text(json.dumps(whole | {part: value}))
    assert why_not_done(tmp_path, whole) != ""
