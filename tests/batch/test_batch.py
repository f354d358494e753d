"""Sets of experiments on the command line: what is shown, checked, skipped, compared, and what a failure leaves."""

import json
import os
import pty
import shutil
import subprocess
import sys
import termios
from contextlib import suppress

import nbformat
import pandas as pd
import pytest
from shared_runs import call

from tcell_drugseq.base.defaults import SimConfig
from tcell_drugseq.base.files import write_yaml
from tcell_drugseq.data.simulate import simulate_screen, write_simulation

BRIEF = {"epochs": 2, "d_model": 16, "folds": 2, "n_members": 1, "hit_draws": 500}
BRIEF |= {"hit_bootstrap": 100, "baselines": False, "check_importance": False, "biology": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small screen without counts, and one with a label that is none."""
    root = tmp_path_factory.mktemp("screens")
    small = SimConfig(n_plates=1, n_compounds=20, n_controls=12, n_genes=120)
    write_simulation(simulate_screen(small), root / "good")
    (root / "good" / "counts_mat.csv").unlink()
    shutil.copytree(root / "good", root / "broken")
    labels = (root / "good" / "labels_cls.csv").read_text()
    (root / "broken" / "labels_cls.csv").write_text(labels.replace("\n1\n", "\nmaybe\n", 1))
    return root


@pytest.fixture(scope="module")
def night(fork, data):
    """A set of which one experiment can't be run, after its first call and after two more; two differ in the seed."""
    own = {"plain": {"seed": 1}, "broken": {"seed": 1, "data_dir": str(data / "broken")}, "other": {"seed": 2}}
    shared = {"data_dir": str(data / "good"), **BRIEF}
    write_yaml({"shared": shared, "experiments": own, "grid": {"epochs": [2]}}, data / "night.yaml")
    arguments = ["batch", data / "night.yaml", "--reports_dir", data / "reports", "--jobs", "2"]
    first = call(*arguments)
    index = (data / "reports" / "index.html").read_text(encoding="utf-8")
    times = {p: p.stat().st_mtime_ns for p in (data / "reports").rglob("*.csv")}
    second = fork(*arguments)
    assert times == {p: p.stat().st_mtime_ns for p in (data / "reports").rglob("*.csv")}
    shutil.copy(data / "good" / "labels_cls.csv", data / "broken")
    return first, index, second, fork(*arguments), data / "reports"


def test_one_failure_stops_no_other(night):
    first, index, _, _, reports = night
    assert first.returncode == 1
    assert "3 of 4 experiments are done" in first.stdout
    said = first.stderr.splitlines()
    assert said[-2] == "1 failed:" and said[-1].startswith("  broken-epochs2: labels_cls.csv: data row")
    assert "found 'maybe', expected 0 or 1" in said[-1]
    for name in ("plain-epochs2", "other-epochs2", "night-comparison"):
        assert (reports / name / "report.html").exists() and f'href="{name}/report.html"' in index
    assert 'href="broken-epochs2.failed/report.html"' in index


SLOW = """
import time
from tcell_drugseq.base.progress import note_progress, note_training
note_progress(stage="training", trainings={})
note_training("fold 1", 3, 9)
time.sleep(3)
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_a_line_with_stage_and_epoch(tmp_path, terminal):
    cells = [nbformat.v4.new_code_cell(source) for source in ('name = "x"\nseed = 1', SLOW)]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "slow.ipynb")
    write_yaml({"notebook": str(tmp_path / "slow.ipynb"), "experiments": {"slow": {}}}, tmp_path / "set.yaml")
    arguments = ["batch", tmp_path / "set.yaml", "--reports_dir", tmp_path / "reports"]
    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(theirs, (24, 120))
    process = subprocess.Popen([sys.executable, "-m", "tcell_drugseq", *map(str, arguments)], stderr=theirs)
    os.close(theirs)
    said = b""
    with suppress(OSError):  # how a terminal says that nobody writes to it any more
        while more := os.read(ours, 10_000):
            said += more
    os.close(ours)
    said = said.decode().replace("\r\n", "\n")
    assert process.wait(60) == 0, said
    assert "slow: training, fold 1 (epoch 3 of 9)" in said
    assert "\n[1/1] slow: " in said.replace("\r", "\n")
    assert ("\r" in said) == terminal


def test_a_second_call_skips_what_is_done_and_tries_the_rest(night):
    _, _, second, third, reports = night
    assert second.returncode == 1 and second.stderr.count("done before") == 3  # the comparison, too
    assert third.returncode == 0 and third.stderr.count("done before") == 2
    assert (reports / "broken-epochs2" / "report.html").exists() and not (reports / "broken-epochs2.failed").exists()


def test_the_comparison_takes_in_what_came_later(night):
    found = json.loads((night[-1] / "night-comparison" / "metrics.json").read_text())
    assert found["run"] == 2 and found["set"] == "night"
    params = (night[-1] / "night-comparison" / "params.yaml").read_text()
    assert "broken-epochs2" in params and "plain-epochs2" in params


def test_other_data_or_parameters_are_run_again_when_allowed(fork, night, data, tmp_path):
    reports = tmp_path / "reports"
    shutil.copytree(night[-1] / "plain-epochs2", reports / "plain-epochs2")
    write_yaml({"data_dir": str(data / "good"), **BRIEF, "seed": 2}, tmp_path / "plain-epochs2.yaml")
    refused = fork("batch", tmp_path / "plain-epochs2.yaml", "--reports_dir", reports)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "holds a report (other parameters: seed)" in refused.stderr and "--overwrite replaces it" in refused.stderr
    done = fork("batch", tmp_path / "plain-epochs2.yaml", "--reports_dir", reports, "--overwrite")
    assert done.returncode == 0, done.stderr
    before, now = (json.loads((reports / "plain-epochs2" / f).read_text()) for f in ("previous.json", "metrics.json"))
    assert (before["run"], now["run"]) == (1, 2)
    assert before["validation"] != now["validation"] and before["hash"] == now["hash"]
    asked = fork("batch", tmp_path / "plain-epochs2.yaml", "--reports_dir", reports, "--dry_run")
    assert asked.returncode == 0 and "done" in asked.stdout


def test_a_dry_run_shows_everything_and_makes_nothing(fork, data, tmp_path):
    grid = {"seed": [1, 2], "use_zscore": [True, False], "encoder": ["induced"]}
    write_yaml({"shared": {"data_dir": str(data / "good")}, "grid": grid}, tmp_path / "many.yaml")
    done = fork("batch", tmp_path / "many.yaml", "--dry_run", "--reports_dir", tmp_path / "reports")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and "use_zscore" in lines[0] and "encoder" not in lines[0]
    assert "many-seed2-use_zscorefalse-encoderinduced" in done.stdout and "there is no report" in lines[1]
    assert not (tmp_path / "reports").exists()


WRONG = {
    "unknown parameter": ("grid: {epoch: [3]}", "grid: unknown parameter 'epoch'", "did you mean 'epochs'?"),
    "impossible value": ("grid: {batch_size: [32, 0]}", "many-batch_size0: batch_size: found 0", "expected at least 1"),
    "no data": ("shared: {data_dir: nowhere}\nexperiments: {a: {}}", "many.yaml: a: data_dir", "nowhere"),
    "script": ("experiments: {'<script>alert(1)</script>': {}}", "found '<script>alert(1)</script>'", "letters"),
    "upwards": ("experiments: {'../../up': {}}", "found '../../up'", "expected letters, digits"),
    "absolute": ("experiments: {/up: {}}", "found '/up'", "expected letters, digits"),
    "long": ("experiments: {" + "x" * 300 + ": {}}", "experiment name: found", "at most 100"),
    "formula": ("experiments: {'=1+1': {}}", "found '=1+1'", "expected letters, digits"),
    "newline": ('experiments: {"a\\nb": {}}', r"found 'a\nb'", "expected letters, digits"),
    "quotes": ("""experiments: {'a"b': {}}""", "found 'a\"b'", "expected letters, digits"),
    "twins": ("experiments: {Plain: {}, plain: {}}", "found a second experiment called 'Plain'", "names its report"),
    "not a set": ("shared: {}\nepochs: 3", "found 'epochs' beside the parts of a set", "expected shared"),
    "no list": ("grid: {seed: 3}", "grid: seed: found 3", "expected a list of values"),
    "no YAML": ("grid: {seed: [", "many.yaml", "YAML"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line_before_anything_runs(fork, case, data, tmp_path):
    text, found, expected = WRONG[case]
    text += "" if "shared" in text or case == "no YAML" else f"\nshared: {{data_dir: '{data / 'good'}'}}"
    (tmp_path / "many.yaml").write_text(text, encoding="utf-8")
    done = (call if case == "no data" else fork)("batch", "many.yaml", "--reports_dir", "reports", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert found in done.stderr and expected in done.stderr, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["many.yaml"]


def test_a_scheduler_that_is_none_is_one_line(fork, data, tmp_path):
    write_yaml({"data_dir": str(data / "good")}, tmp_path / "one.yaml")
    done = fork("batch", tmp_path / "one.yaml", "--reports_dir", tmp_path / "reports", "--scheduler", "slrum")
    assert done.returncode == 2 and "scheduler: found 'slrum'" in done.stderr and done.stderr.count("\n") == 1


def test_seeds_become_an_ensemble(night):
    """What was mended since has the seed of another, so it is none of the members."""
    reports = night[-1]
    folder = reports / "night-comparison" / "results"
    wells = pd.read_csv(folder / "ensemble_predictions.csv", keep_default_na=False).set_index("well_id")
    tables = [reports / f"{name}-epochs2" / "results" / "well_predictions_results.csv" for name in ("plain", "other")]
    singles = [pd.read_csv(table, keep_default_na=False) for table in tables]
    predicted = pd.concat([s.set_index("well_id")["pred_Tscore"] for s in singles], axis=1).loc[wells.index]
    assert (wells["pred_Tscore"] - predicted.mean(axis=1)).abs().max() < 1e-6
    assert (wells["sd_Tscore"] - predicted.std(axis=1, ddof=1)).abs().max() < 1e-6
    ranks = pd.read_csv(folder / "ensemble_ranking.csv", keep_default_na=False)
    assert len(ranks) and {"mean_rank", "lowest", "highest"} <= set(ranks)
