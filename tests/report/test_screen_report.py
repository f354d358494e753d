"""The report of a screen made of counts: what it says, what it names, what it leaves behind where it can't be made."""

import ast
import html
import json
import re
from pathlib import Path

import anndata
import nbformat
import pytest
from conftest import HOSTILE, ROOT, real

from tcell_drugseq.base.defaults import DataConfig, ScreenConfig, SimConfig
from tcell_drugseq.base.settings import InputError, coerce, leaves, with_leaves
from tcell_drugseq.data.reading import read_screen
from tcell_drugseq.data.simulate import simulate_screen
from tcell_drugseq.report.experiment import run_report
from tcell_drugseq.report.notebooks import read_notebook_parameters

NOTEBOOK = ROOT / "nbs" / "analysis" / "00_screen.ipynb"
EMPTY, SHALLOW = 5, 20  # numbers of the spoilt wells
LOST = 30  # a compound whose wells are all spoilt


def write_inputs(folder: Path) -> dict[str, str]:
    """Counts and plate map of a small simulated screen; some wells spoilt, some names hostile."""
    cfg = SimConfig(n_batches=1, n_plates=2, n_compounds=60, n_controls=24, n_genes=1200, depth=20_000)
    screen = simulate_screen(cfg).screen
    counts = screen.to_df(layer="counts").astype(int)
    compound = screen.obs["compound"].astype(str)
    treated = [name for name in compound.unique() if name != "DMSO"]
    compound = compound.replace(dict(zip(treated, HOSTILE["compounds"], strict=False)))
    counts.iloc[EMPTY] = 0
    counts.iloc[SHALLOW] //= 100
    counts[(compound == treated[LOST]).to_numpy()] = 0
    counts.T.to_csv(folder / "counts.csv", index_label="gene")
    screen.obs[["plate", "batch"]].assign(compound=compound).rename_axis("well").to_csv(folder / "map.csv")
    return {"counts": str(folder / "counts.csv"), "plate_map": str(folder / "map.csv")}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def report(inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    params = inputs | {"label": "Tscore>1", "positive": list(HOSTILE["compounds"])}
    return run_report("screened", params, tmp_path_factory.mktemp("made") / "reports", notebook=NOTEBOOK)


def page_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def words_of(page: str) -> str:
    """What a reader reads: no tags, no pictures."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", page[page.index("<main") :])).split())


def answer_of(page: str) -> str:
    return words_of("<main>" + page[page.index('id="Answer"') :])


def cell_sources(kind: str = "code") -> list[str]:
    return [c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == kind]


def test_parameters_cell_agrees_with_config():
    found = read_notebook_parameters(NOTEBOOK)
    wanted = {"name": "screen", "counts": "", "plate_map": "", "out_dir": "results"} | leaves(ScreenConfig())
    assert list(found) == list(wanted)
    for setting, value in wanted.items():
        given = tuple(found[setting]) if isinstance(value, tuple) else found[setting]
        assert coerce(setting, given, value) == value


def test_every_parameter_says_what_it_is():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    (cell,) = (c for c in cells if "parameters" in c.metadata.get("tags", []))
    assert [line for line in cell.source.splitlines() if line and "  # " not in line] == []


def test_notebook_defines_nothing_long_and_keeps_no_output():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(c.get("outputs") for c in cells)
    for source in cell_sources():
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.FunctionDef) or node.end_lineno - node.lineno < 5
    assert cells[0].cell_type == "markdown" and cells[0].source.splitlines()[0].endswith("?")


def test_report_is_complete_and_listed(report: Path):
    assert {p.name for p in report.iterdir()} == {
        "done.json",
        "metrics.json",
        "params.yaml",
        "report.html",
        "report.ipynb",
        "results",
        "run.log",
    }
    screen = anndata.read_h5ad(report / "results" / "screen.h5ad")
    found = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
    assert (found["wells"], found["genes"]) == screen.shape
    assert found["compounds"] == 59 and found["control_wells"] == 24 and found["hash"] == screen.uns["source"]["hash"]
    assert "screened/report.html" in (report.parent / "index.html").read_text(encoding="utf-8")
    assert [p.name for p in report.parent.iterdir() if p.name.startswith(".")] == []


def test_pages_are_in_order(report: Path):
    page = page_of(report)
    headings = re.findall(r'<h2 id="([^"]*)"', page)
    assert headings == ["Quality-of-the-wells", "Scores", "Clusters-and-label", "Answer"]
    assert "Traceback" not in page and "build_screen(" not in page


def test_report_says_the_numbers_of_the_screen(report: Path):
    screen = anndata.read_h5ad(report / "results" / "screen.h5ad")
    obs, words = screen.obs, words_of(page_of(report))
    n_all = len(screen.uns["qc"])
    assert f"{screen.n_obs} of {n_all} wells of counts.csv were kept" in words and screen.n_obs == n_all - 4
    for name, values in screen.obsm["scores"].items():
        rho = values.corr(obs["umis"], method="spearman")
        assert f"Spearman {rho:.2f} between {name} and log UMIs" in words
    sizes = obs["cluster"].value_counts()
    for cluster, size in sizes.items():
        controls = int(obs.loc[obs["cluster"] == cluster, "is_control"].sum())
        assert f"{cluster} {size} {controls} {round(100 * controls / size)} " in words
    for note in screen.uns["notes"]:
        assert " ".join(note.split()) in words


def test_wells_and_compounds_that_went_are_named_with_their_reasons(report: Path):
    screen = anndata.read_h5ad(report / "results" / "screen.h5ad")
    words, dropped = words_of(page_of(report)), screen.uns["qc_dropped"]
    qc = screen.uns["qc"]
    assert set(dropped["well"]) == set(qc.index) - set(screen.obs_names)
    assert sorted(dropped["rule"]) == ["empty", "empty", "empty", "min_umis"]
    for row in dropped.itertuples():
        compound = " ".join(str(qc.loc[row.well, "compound"]).split())
        assert f"{row.well} {compound} {row.rule} {row.sentence}" in words
    lost = set(qc["compound"].astype(str)) - set(screen.obs["compound"].astype(str))
    assert len(lost) == 1 and f"Compounds with no well left (1): {lost.pop()!r}" in words


def test_the_answer_says_how_to_go_on_and_a_run_can(report: Path):
    screen = anndata.read_h5ad(report / "results" / "screen.h5ad")
    answer = answer_of(page_of(report))
    assert f"{screen.n_obs} of {len(screen.uns['qc'])} wells can be used" in answer
    assert f"{screen.obs['cluster'].nunique()} clusters" in answer
    assert f"The label Tscore>1 is 1 in {screen.obs['label'].sum()} wells" in answer
    of_positives = screen.uns["qc_findings"].query("check.str.contains('hacked')")
    good, cases = int((of_positives["status"] == "pass").sum()), len(of_positives)
    assert cases >= 2 and f"Positive controls pass by Z' in {good} of {cases} cases" in answer
    (data_dir,) = re.findall(r"data_dir: (\S+)", answer)
    assert Path(data_dir) == report / "results" / "screen.h5ad"
    again = read_screen(DataConfig(data_dir))
    assert again.obs["label"].tolist() == screen.obs["label"].tolist()
    assert list(again.obsm["scores"]) == ["Tscore", "CytoTRACE", "Pseudotime"]


def test_hostile_names_are_shown_but_escaped(report: Path):
    page = page_of(report)
    for name in HOSTILE["compounds"]:
        assert name not in page
        assert name in html.unescape(page)


BAD = {
    "no counts": ({"counts": ""}, "^counts: found an empty name, expected the name of a file"),
    "no plate map": ({"plate_map": " "}, "^plate_map: found an empty name, expected the name of a file"),
    "setting": ({"norm": "sqrt"}, "norm: found 'sqrt', expected one of log, acosh"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_one_line_and_leaves_no_folder(
    case: str, inputs: dict[str, str], tmp_path: Path, in_process: None
):
    change, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        run_report("bad", inputs | change, tmp_path / "reports", notebook=NOTEBOOK)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "reports").glob("*"))


def test_text_among_the_counts_is_named(inputs: dict[str, str], tmp_path: Path):
    lines = Path(inputs["counts"]).read_text(encoding="utf-8").splitlines()
    gene, _, rest = lines[3].split(",", 2)
    lines[3] = f"{gene},high,{rest}"
    (tmp_path / "spoilt.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=f"spoilt.csv.*{gene}.*found 'high'"):
        run_report("bad", inputs | {"counts": str(tmp_path / "spoilt.csv")}, tmp_path / "reports", notebook=NOTEBOOK)
    assert list((tmp_path / "reports").iterdir()) == []


def test_wells_without_positions_or_plates_and_another_control(tmp_path: Path):
    """The bulk T cells: no plates, no positions, four donors."""
    counts = real("tcell_activation_rade2023_bulk.h5ad")
    obs = anndata.read_h5ad(counts).obs.rename(columns={"Condition": "compound"}).rename_axis("well")
    obs[["compound", "donor", "hours", "activated"]].to_csv(tmp_path / "map.csv")
    params = {"counts": str(counts), "plate_map": str(tmp_path / "map.csv"), "control": "ctr", "root": "hours=0.0"}
    params |= {"pseudotime_by": "donor", "label": "activated=1"}
    folder = run_report("rade", params, tmp_path / "reports", notebook=NOTEBOOK)
    words, answer = words_of(page_of(folder)), answer_of(page_of(folder))
    assert "The positions of the wells are not known" in words and "No well breaks a rule." in words
    assert "44 of 44 wells can be used" in answer and "from one plate" not in answer
    assert "pseudotime of donor D4 begins at well" in words and "within each donor" in words
    go_on = dict(re.findall(r"(data_dir|control): (\S+)", answer))
    screen = read_screen(with_leaves(DataConfig(), go_on))
    assert screen.obs["is_control"].sum() == 20 and screen.obs["label"].sum() == 20
