"""What has to hold of the repository itself: chapters, faces, imports, links, generated files."""

import ast
import functools
import importlib
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from types import ModuleType

import pytest

import tcell_drugseq

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tcell_drugseq"
NOTEBOOKS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
GENERATED = [p for p in sorted(PACKAGE.rglob("*.py")) if p.name not in ("__main__.py", "_modidx.py")]
CHAPTERS = [p.name.split("_", 1)[1] for p in sorted((ROOT / "nbs").glob("[0-9][0-9]_*")) if p.is_dir()]


def cells(notebook, kind=None):
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if kind in (None, cell["cell_type"])]


def text_of(cell):
    return "".join(cell["source"])


def exported_to(notebook):
    """The module that a notebook writes, None where it writes none."""
    for cell in cells(notebook, "code"):
        if found := re.match(r"#\|\s*default_exp\s+(\S+)", text_of(cell)):
            return found[1]
    return None


BOOKS = {module: path for path in NOTEBOOKS if (module := exported_to(path))}
ORDER = [module for module in BOOKS if not module.endswith("__init__")]  # as the numbers of folders and notebooks say


def path_of(module):
    return PACKAGE / (module.replace(".", "/") + ".py")


def module_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def chapter_of(module):
    return module.split(".")[0] if module.split(".")[0] in CHAPTERS else ""


@functools.cache
def imports(path):
    """(module, name) of everything that a module takes from this package, at its top, in functions, for types."""
    here, found = module_of(path).split(".")[:-1], []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = here[: len(here) - node.level + 1]
        elif (node.module or "").split(".")[0] == "tcell_drugseq":
            base = []
        else:
            continue
        named = (node.module or "").removeprefix("tcell_drugseq").split(".")
        module = ".".join([*base, *filter(None, named)])
        for alias in node.names:  # `from . import design` names a module
            inner = f"{module}.{alias.name}".strip(".")
            found.append((inner, "") if inner in ORDER else (module, alias.name))
    return found


def test_one_version():
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    assert tcell_drugseq.__version__ == ini["DEFAULT"]["version"]
    assert f"\nversion: {ini['DEFAULT']['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.parametrize("notebook", [*(ROOT / "nbs" / "analysis").glob("*.ipynb")], ids=lambda p: p.name)
def test_analysis_notebooks_have_one_parameters_cell(notebook):
    tags = [tag for cell in cells(notebook) for tag in cell["metadata"].get("tags", [])]
    assert tags.count("parameters") == 1, "without its tag papermill would let the defaults win"


def test_no_output_names_this_machine():
    for notebook in NOTEBOOKS:
        text = notebook.read_text(encoding="utf-8")
        for place in (str(ROOT), "/home/", "/root/", "/Users/", "/tmp/"):
            assert place not in text, (notebook.name, place)


def test_library_never_imports_development_tools():
    for path in GENERATED:
        names = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
        assert not {n.split(".")[0] for n in names} & {"nbdev", "fastcore", "execnb", "pytest"}, path


def test_five_words_come_first_and_in_order():
    assert CHAPTERS[1:6] == ["data", "model", "training", "latent", "importance"]
    assert (ROOT / "nbs" / "00_base").is_dir()


def test_every_module_has_its_notebook():
    """nbdev never deletes a module whose notebook has moved; a stale one would still be imported."""
    assert {module_of(path) for path in GENERATED} == set(BOOKS)
    for module, notebook in BOOKS.items():
        folder = "" if notebook.parent.name == "nbs" else notebook.parent.name.split("_", 1)[1]
        name = notebook.stem.split("_", 1)[1]
        assert module in (f"{folder}.{name}".strip("."), f"{folder}.__init__".strip(".")), notebook
        assert f"File to edit: {'../' * module.count('.')}../nbs/" in path_of(module).read_text(encoding="utf-8")


def test_no_module_is_called_like_its_chapter():
    assert not [m for m in ORDER if "." in m and re.fullmatch(rf"{chapter_of(m)}\d*", m.split(".")[1])]


def test_modules_import_downwards_only():
    for module in ORDER:
        for other, name in imports(path_of(module)):
            if other == "" and name == "__version__":
                continue
            assert other in ORDER, f"{module} imports {name} from {other or 'the package'}, not from its module"
            assert ORDER.index(other) < ORDER.index(module), f"{module} imports {other}"


def test_what_is_shared_is_public():
    for module in ORDER:
        taken = [(other, name) for other, name in imports(path_of(module)) if name.startswith("_")]
        assert all(name == "__version__" for _, name in taken), (module, taken)


def face(package):
    """Names that a face shows, by module: as it loads them, and as a checker reads them."""
    place = PACKAGE.joinpath(*filter(None, [package])) / "__init__.py"
    loaded, typed = {}, {}
    for node in ast.walk(ast.parse(place.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "submod_attrs":
            loaded = {f"{package}.{m}".strip("."): set(names) for m, names in ast.literal_eval(node.value).items()}
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tcell_drugseq."):
            assert all(alias.asname == alias.name for alias in node.names), "shown to checkers by `name as name`"
            typed.setdefault(node.module.removeprefix("tcell_drugseq."), set()).update(a.name for a in node.names)
    return loaded, typed


@pytest.mark.parametrize("package", ["", *CHAPTERS])
def test_a_face_shows_what_it_says(package):
    loaded, typed = face(package)
    assert loaded and loaded == typed
    shown = importlib.import_module(f"tcell_drugseq.{package}".strip("."))
    modules = {m.split(".", 1)[-1] for m in ORDER if (chapter_of(m) == package if package else "." not in m)}
    modules |= set() if package else set(CHAPTERS)
    names = set().union(*loaded.values())
    assert not names & modules, "a function would hide the module of its name"
    assert set(dir(shown)) == names | modules
    for module, some in loaded.items():
        for name in some:
            home = importlib.import_module(f"tcell_drugseq.{module}")
            assert getattr(shown, name) is getattr(home, name)


def test_what_a_face_does_not_show_is_private_to_its_chapter():
    shown = {chapter: face(chapter)[0] for chapter in CHAPTERS}
    for module in ORDER:
        for other, name in imports(path_of(module)):
            if (chapter := chapter_of(other)) and chapter != chapter_of(module):
                assert not name or name in shown[chapter].get(other, ()), f"{module} takes {name} from {other}"


def test_the_package_offers_little_and_loads_nothing():
    heavy = {"torch", "pandas", "anndata", "scanpy"}
    code = f"import sys, tcell_drugseq as td; print(len(dir(td)), {heavy} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    n, loaded = said.split(" ", 1)
    assert int(n) - len(CHAPTERS) <= 40 and loaded.strip() == "set()"
    assert 6 <= len(tcell_drugseq.__doc__.splitlines()) <= 12


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_picture_of_a_chapter_is_its_imports(chapter):
    arrows = {(chapter_of(m) or m, chapter_of(other)) for m in ORDER for other, _ in imports(path_of(m))}
    arrows = {(a, b) for a, b in arrows if b and a != b}
    wanted = {(b, a) for a, b in arrows if chapter in (a, b)}
    prose = "\n".join(text_of(cell) for cell in cells(BOOKS[f"{chapter}.__init__"], "markdown"))
    drawn = {(a, b) for a, b in re.findall(r"^ +(\w+) --> (\w+)$", prose, re.M)}
    assert drawn == wanted


def test_links_of_the_prose_lead_somewhere():
    for notebook in NOTEBOOKS:
        for cell in cells(notebook, "markdown"):
            for link in re.findall(r"\]\(([^)#\s]+)\)", text_of(cell)):
                if not link.startswith(("http", "attachment:", "data:")):
                    assert (notebook.parent / link).exists(), (notebook.name, link)
            for name in re.findall(r"`((?:\d\d_\w+/)?\d\d_\w+)`", text_of(cell)):
                found = [*(ROOT / "nbs").glob(f"{name}*"), *notebook.parent.glob(f"{name}*")]
                assert found or (ROOT / "nbs" / "bench" / f"{name}.ipynb").exists(), (notebook.name, name)
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for name in re.findall(r"`(nbs/[\w/]+(?:\.ipynb)?)`", text) + re.findall(r"\]\((?!http)([^)#\s]+)\)", text):
            assert [*ROOT.glob(f"{name}*")] or [*(ROOT / page).parent.glob(name)], (page, name)


@pytest.mark.parametrize("script", [".ci/run", "Makefile"])
def test_what_a_script_names_is_there(script):
    """Neither is run by a test, so a file that has moved would go unseen until the last line of CI."""
    named = re.findall(r"(?<![\w/.])(?:tests|nbs|reports/\w+\.yaml|data/README)[\w./-]*", (ROOT / script).read_text())
    assert named
    for name in named:
        assert (ROOT / name).exists() or name == "reports/bench", (script, name)


def sources():
    """The code of every notebook, those of reports and benchmarks too, and of every file of tests."""
    for notebook in NOTEBOOKS:
        yield notebook.name, "\n".join(text_of(cell) for cell in cells(notebook, "code"))
    for path in sorted((ROOT / "tests").rglob("*.py")):
        yield path.name, path.read_text(encoding="utf-8")


def test_whoever_imports_the_package_finds_what_they_name():
    """A benchmark is not run by any test, so a name that has moved would go unseen there."""
    for file, code in sources():
        modules = {}
        for node in ast.walk(tree := ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("tcell_drugseq"):
                home = importlib.import_module(node.module)
                for alias in node.names:
                    assert alias.name == "*" or hasattr(home, alias.name), (file, node.module, alias.name)
                    found = getattr(home, alias.name, None)
                    if isinstance(found, ModuleType):
                        modules[alias.asname or alias.name] = found
        used = {
            (n.value.id, n.attr)
            for n in ast.walk(tree)
            if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
        }
        for name, attribute in sorted(used):
            if name in modules and name not in assigned(tree):
                assert hasattr(modules[name], attribute), (file, name, attribute)


def assigned(tree):
    """Names that are something else somewhere in the code."""
    stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return stored | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}


def test_digest_of_the_package_sees_every_module(tmp_path):
    """A batch would call old reports done if code could change unseen."""
    shutil.copytree(PACKAGE, tmp_path / "tcell_drugseq", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from tcell_drugseq.base.digests import package_digest; print(package_digest())"

    def digest():
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
        ).stdout

    seen = {digest()}
    for path in ("cli.py", "latent/hits.py", "base/__init__.py", "assets/genes.csv"):
        with (tmp_path / "tcell_drugseq" / path).open("a") as file:
            file.write("\n")
        seen.add(digest())
    assert len(seen) == 5


def test_generated_modules_are_marked_and_left_alone():
    paths = [str(path.relative_to(ROOT)) for path in GENERATED]
    marked = subprocess.run(
        ["git", "check-attr", "linguist-generated", *paths], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.splitlines()
    assert len(marked) == len(paths) and all(line.endswith(": set") for line in marked)
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or "ruff"
    read = subprocess.run([ruff, "check", "--show-files"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not [line for line in read.splitlines() if Path(line).is_relative_to(PACKAGE)]
    assert len([line for line in read.splitlines() if line.endswith(".ipynb")]) == len(NOTEBOOKS)


def test_types_are_part_of_the_package():
    assert (PACKAGE / "py.typed").exists()
