"""Reports: what must be refused, what must be escaped, what must not be left behind."""

import json
import re
import shutil
import signal
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from conftest import HOSTILE

from tcell_drugseq.base.defaults import RunConfig
from tcell_drugseq.base.settings import InputError, coerce, leaves
from tcell_drugseq.data.reading import write_bundle
from tcell_drugseq.report.experiment import default_notebook, draw_again, run_report
from tcell_drugseq.report.notebooks import ReportError, check_parameters, read_notebook_parameters

LOADS = re.compile(
    r"""<(?:script|img|link|iframe|source|object)\b[^>]*\b(?:src|href|data)\s*=\s*["']?(?!data:)[^"'>]+"""
)


@pytest.fixture
def small_notebook(tmp_path):
    """A notebook that takes parameters and leaves a trace of having run."""

    def write(code="1 + 1"):
        cells = [
            nbformat.v4.new_code_cell(
                'name = "x"\nlr = 0.1\nepochs = 3  # a=b\nscores = []', metadata={"tags": ["parameters"]}
            ),
            nbformat.v4.new_code_cell(
                f"open({str(tmp_path / 'ran')!r}, 'a').write(f'{{name}} {{epochs!r}} {{lr!r}} {{scores!r}}')"
            ),
            nbformat.v4.new_code_cell(code),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "small.ipynb")
        return tmp_path / "small.ipynb"

    return write


def test_parameters_cell_agrees_with_config():
    found = read_notebook_parameters(default_notebook())
    wanted = {"name": "default"} | leaves(RunConfig())
    assert list(found) == list(wanted)
    for setting, value in wanted.items():
        given = tuple(found[setting]) if isinstance(value, tuple) else found[setting]
        assert coerce(setting, given, value) == value


def test_the_report_notebook_runs_as_it_is_committed(tmp_path):
    from nbclient import NotebookClient

    shutil.copy(default_notebook(), tmp_path)
    notebook = nbformat.read(tmp_path / default_notebook().name, as_version=4)
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}, timeout=600).execute()
    assert "simulated" in json.dumps(notebook.cells) and [p.name for p in tmp_path.iterdir()] == ["10_experiment.ipynb"]


def test_every_parameter_says_what_it_is():
    cells = nbformat.read(default_notebook(), as_version=4).cells
    (cell,) = (c for c in cells if "parameters" in c.metadata.get("tags", []))
    assert [line for line in cell.source.splitlines() if line and "  # " not in line] == []


def test_given_parameters_win_and_keep_their_type(tmp_path, small_notebook):
    params = {"lr": "1e-4", "epochs": 7, "scores": ["a", "b"]}
    folder = run_report("one", params, tmp_path / "reports", small_notebook())
    assert (tmp_path / "ran").read_text() == "one 7 0.0001 ['a', 'b']"
    assert sorted(p.name for p in folder.iterdir()) == [
        "done.json",
        "metrics.json",
        "params.yaml",
        "report.html",
        "report.ipynb",
        "run.log",
    ]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"epoch": 3}, "unknown parameter 'epoch'.*did you mean 'epochs'"),
        ({"epochs": "3"}, "expected a whole number"),
        ({"epochs": True}, "expected a whole number"),
        ({"scores": 3}, "expected a list"),
        ({"name": "two"}, "set by the report itself"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(tmp_path, small_notebook, params, message):
    with pytest.raises(InputError, match=message):
        run_report("one", params, tmp_path / "reports", small_notebook())
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "reports").exists()


def test_a_parameter_that_papermill_cannot_see_is_known():
    assert check_parameters(default_notebook(), {"label": "active"}) == {"label": "active"}


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 101, "index.html", "old.failed"])
def test_names_that_are_no_folder_names_are_refused(tmp_path, small_notebook, name):
    with pytest.raises(InputError, match="experiment name"):
        run_report(name, {}, tmp_path / "reports", small_notebook())


def test_a_report_is_not_overwritten_unasked(tmp_path, small_notebook):
    reports, notebook = tmp_path / "reports", small_notebook()
    run_report("one", {"epochs": 1}, reports, notebook)
    with pytest.raises(InputError, match="holds a report; choose another name"):
        run_report("one", {"epochs": 2}, reports, notebook)
    assert "epochs: 1" in (reports / "one" / "params.yaml").read_text()
    run_report("one", {"epochs": 2}, reports, notebook, overwrite=True)
    assert "epochs: 2" in (reports / "one" / "params.yaml").read_text()
    assert sorted(p.name for p in reports.iterdir()) == ["index.html", "one"]


def test_overwrite_spares_a_folder_that_is_no_report(tmp_path, small_notebook):
    (tmp_path / "reports" / "mine").mkdir(parents=True)
    with pytest.raises(InputError, match="is not a report"):
        run_report("mine", {}, tmp_path / "reports", small_notebook(), overwrite=True)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("1 / 0", ReportError, r"small.ipynb, cell \[4\]: ZeroDivisionError"),
        (
            "from tcell_drugseq.base.settings import InputError\nraise InputError('labels.csv: empty')",
            InputError,
            "^labels.csv: empty$",
        ),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", ReportError, "the kernel died"),
    ],
)
def test_a_failing_notebook_leaves_no_report(tmp_path, small_notebook, code, error, message):
    reports = tmp_path / "reports"
    run_report("one", {}, reports, small_notebook())
    before = (reports / "one" / "metrics.json").read_bytes()
    with pytest.raises(error, match=message):
        run_report("one", {}, reports, small_notebook(code), overwrite=True)
    assert (reports / "one" / "metrics.json").read_bytes() == before
    if error is InputError:
        assert sorted(p.name for p in reports.iterdir()) == ["index.html", "one"]
        return
    assert sorted(p.name for p in reports.iterdir()) == ["index.html", "one", "one.failed"]
    kept = {"error.json", "failed.ipynb", "params.yaml", "report.html", "run.log"}
    assert {p.name for p in (reports / "one.failed").iterdir()} == kept
    page = (reports / "one.failed" / "report.html").read_text()
    assert re.search(message, page) and "<h1>one failed</h1>" in page
    assert "one.failed/report.html" in (reports / "index.html").read_text()
    run_report("one", {}, reports, small_notebook(), overwrite=True)
    assert sorted(p.name for p in reports.iterdir()) == ["index.html", "one"]


def test_a_killed_report_keeps_the_state_of_its_training(tmp_path, small_notebook):
    partial = tmp_path / "reports" / ".one.partial"
    state = partial / ".results.partial" / "progress.pt"
    state.parent.mkdir(parents=True)
    state.write_text("epoch 7")
    for stale in ("metrics.json", ".results.partial.lock", "results/results.h5ad"):
        (partial / stale).parent.mkdir(exist_ok=True)
        (partial / stale).touch()
    interrupt = "import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores Ctrl-C
    with pytest.raises(KeyboardInterrupt):
        run_report("one", {}, tmp_path / "reports", small_notebook(interrupt))
    assert state.read_text() == "epoch 7"
    left = {".results.partial", "failed.ipynb", "params.yaml", "run.log"}
    assert {p.name for p in partial.iterdir()} == left
    run_report("one", {}, tmp_path / "reports", small_notebook(f"open({str(state)!r}).read()"))
    assert sorted(p.name for p in (tmp_path / "reports").iterdir()) == ["index.html", "one"]


def test_report_is_complete(hostile_report):
    names = {p.name for p in hostile_report.iterdir()}
    pages = {"report.html", "report.ipynb", "thumbnail.png"}
    assert names == pages | {"done.json", "metrics.json", "params.yaml", "results", "run.log"}
    assert (hostile_report / "results" / "results.h5ad").is_file()
    found = json.loads((hostile_report / "metrics.json").read_text())
    assert found["wells"] == 52 and found["compounds"] == 20 and found["validation"]["ensemble"]
    assert "hostile/report.html" in (hostile_report.parent / "index.html").read_text()


def test_report_says_how_the_wells_were_split(hostile_report):
    from anndata import read_h5ad

    text = (hostile_report / "report.html").read_text(encoding="utf-8")
    obs = read_h5ad(hostile_report / "results" / "results.h5ad").obs
    assert set(obs["split"]) == {"oof"} and set(obs["fold"]) == {1, 2}
    assert "Every metric, distance and prediction of this report is out of fold" in text
    assert "share no compound" in text


def test_report_opens_with_what_may_be_claimed(hostile_report):
    text = (hostile_report / "report.html").read_text(encoding="utf-8")
    found = json.loads((hostile_report / "metrics.json").read_text())
    assert [row["claim"] for row in found["verdict"]] == ["prediction", "ranking", "hits", "gene importance"]
    places = [text.index(part) for part in ("<h1", 'class="claimed', 'id="All-compounds"', '<details class="fold"')]
    assert places == sorted(places)
    folds = re.findall(r'<details class="fold" id="([^"]+)"', text)
    assert folds[0] == "What-may-be-claimed" and folds[-2:] == ["Files", "Glossary"]
    assert found["hash"] in text and "tcell_drugseq " in text


def test_links_lead_to_files_that_lie_beside_the_page(hostile_report):
    text = (hostile_report / "report.html").read_text(encoding="utf-8")
    links = [unquote(link) for link in re.findall(r'href="(results/[^"]+)"', text)]
    assert {"results/hits.csv", "results/results.xlsx", "results/retest_list.csv"} <= set(links)
    assert [link for link in links if not (hostile_report / link).is_file()] == []


def test_the_workbook_holds_names_as_they_are(hostile_report):
    from openpyxl import load_workbook

    book = load_workbook(hostile_report / "results" / "results.xlsx", read_only=True)
    assert {"sheets", "verdict", "hits", "data_dictionary"} <= set(book.sheetnames)
    cells = [row[1] for row in book["hits"].iter_rows(min_row=2)]
    assert set(HOSTILE["compounds"]) <= {cell.value for cell in cells}
    assert {cell.data_type for cell in cells} <= {"s", "inlineStr"}  # text, not formulas


def test_a_page_can_be_drawn_again_without_computing(hostile_report, tmp_path):
    shutil.copytree(hostile_report, tmp_path / "again")
    page = tmp_path / "again" / "report.html"
    before = page.read_text(encoding="utf-8")
    page.write_text("lost")
    assert draw_again(tmp_path / "again") == page
    after = page.read_text(encoding="utf-8")
    values = re.compile(r'<script [^>]*id="values"[^>]*>(.*?)</script>', re.S)
    assert json.loads(values.findall(after)[0]) == json.loads(values.findall(before)[0])
    headings = re.compile(r'<details class="fold" id="([^"]+)"')
    assert headings.findall(after) == headings.findall(before)
    with pytest.raises(InputError, match="expected a finished report"):
        draw_again(tmp_path)


def test_a_loaded_model_on_a_screen_without_controls(hostile_report, tmp_path):
    from anndata import AnnData, read_h5ad

    found = read_h5ad(hostile_report / "results" / "results.h5ad")
    wells = found[~found.obs["is_control"]][:16]
    write_bundle(AnnData(wells.X + 0.01, wells.obs[["compound"]], wells.var[[]]), tmp_path / "wells")
    assert {p.name for p in (tmp_path / "wells").iterdir()} == {"expr_mat.csv", "well_id.csv", "meta_id.csv"}
    model = str(hostile_report / "results" / "model.pt")
    params = {"data_dir": str(tmp_path / "wells"), "skip_train": True, "model_path": model, "num_threads": 1}
    params |= {"set_permutations": 100, "biology_top": 3}
    folder = run_report("loaded", params, tmp_path / "reports")
    summary = json.loads((folder / "metrics.json").read_text())
    assert (summary["split"], summary["validation_wells"], summary["control_wells"]) == ("new", 16, 0)
    assert summary["top_compounds"] == [] and summary["validation"] == {}
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "No hit may be claimed: no control well is known" in text and "without control wells" in text
    folds = re.findall(r'<details class="fold" id="([^"]+)"', text)
    assert not {"Distances", "Scores", "Label", "Doses", "For-the-laboratory", "Loss"} & set(folds)
    answer = text[text.index('id="Answer"') : text.index('id="Files"')]
    assert "Genes with the largest effect" in answer
    assert "Farthest" not in answer and "AUROC" not in answer


def test_report_loads_nothing_and_is_small(hostile_report):
    text = (hostile_report / "report.html").read_text(encoding="utf-8")
    assert LOADS.findall(text) == []
    assert len(text.encode()) <= 6_000_000


def test_report_shows_no_code_and_no_machine(hostile_report):
    text = (hostile_report / "report.html").read_text(encoding="utf-8")
    assert "with_leaves(" not in text and "Traceback" not in text
    assert str(Path(__file__).parents[2]) not in text


def test_no_table_has_a_cell_that_a_spreadsheet_runs(hostile_report):
    import csv

    tables = list((hostile_report / "results").glob("*.csv"))
    cells = {c for t in tables for row in csv.reader(t.open(encoding="utf-8", newline="")) for c in row}
    assert [c for c in cells if c.startswith(("=", "@"))] == []
    assert "'" + HOSTILE["compounds"][2] in cells


def test_hostile_names_are_shown_but_escaped(hostile_report):
    for page in (hostile_report / "report.html", hostile_report.parent / "index.html"):
        text = page.read_text(encoding="utf-8")
        assert "window.hacked" in text  # they are on the page
        for name in [*HOSTILE["compounds"], HOSTILE["gene"], HOSTILE["score"], HOSTILE["folder"]]:
            assert name not in text
