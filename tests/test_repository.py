"""What has to hold of the repository itself."""

import ast
import json
from configparser import ConfigParser
from pathlib import Path

import pytest

import tcell_drugseq

ROOT = Path(__file__).parents[1]
NOTEBOOKS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
MODULES = sorted((ROOT / "tcell_drugseq").glob("*.py"))


def cells(notebook):
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def test_one_version():
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    assert tcell_drugseq.__version__ == ini["DEFAULT"]["version"]


@pytest.mark.parametrize("notebook", [*(ROOT / "nbs" / "analysis").glob("*.ipynb")], ids=lambda p: p.name)
def test_analysis_notebooks_have_one_parameters_cell(notebook):
    tags = [tag for cell in cells(notebook) for tag in cell["metadata"].get("tags", [])]
    assert tags.count("parameters") == 1, "without its tag papermill would let the defaults win"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.name)
def test_no_output_names_this_machine(notebook):
    text = notebook.read_text(encoding="utf-8")
    for place in (str(ROOT), "/home/", "/root/", "/Users/", "/tmp/"):
        assert place not in text


@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.name)
def test_library_never_imports_development_tools(module):
    names = []
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    assert not {n.split(".")[0] for n in names} & {"nbdev", "fastcore", "execnb", "pytest"}


@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.name)
def test_modules_import_downwards_only(module):
    index = (ROOT / "tcell_drugseq" / "_modidx.py").read_text(encoding="utf-8")
    order = [p.stem.split("_", 1)[1] for p in NOTEBOOKS if p.parent.name == "nbs"]
    if module.stem not in order:
        assert module.stem.startswith("_")
        return
    assert f"tcell_drugseq.{module.stem}" in index
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            assert order.index(node.module) < order.index(module.stem), node.module
