"""The registry of a run's files against a run: every file and column is described, and nothing stale is left."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tcell_drugseq.base.defaults import RunConfig, SimConfig
from tcell_drugseq.base.folders import MARK
from tcell_drugseq.base.results import ENTRIES, OUTPUTS, data_dictionary, describe_column, outputs_table, owned_files
from tcell_drugseq.base.settings import with_leaves
from tcell_drugseq.data.matrix import Z_NAMES
from tcell_drugseq.data.simulate import simulate_screen, write_simulation
from tcell_drugseq.pipeline import run
from tcell_drugseq.report.exports import check_out_dir

ROOT = Path(__file__).resolve().parents[2]
BRIEF = {"epochs": 2, "d_model": 16, "folds": 2, "n_members": 1, "hit_draws": 500}
BRIEF |= {"set_permutations": 100, "biology_top": 4, "num_threads": 1}
BRIEF |= {"strata": ["donor"], "positive": ["PMA/ionomycin"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Results and folder of one small training on a screen that has everything: doses, donors, references, hits."""
    root = tmp_path_factory.mktemp("results")
    small = SimConfig(n_plates=2, n_compounds=12, n_controls=12, n_genes=120, n_doses=4, strength=5, n_donors=2)
    small = replace(small, n_references=1)
    write_simulation(simulate_screen(small), root / "data")
    scores = root / "data" / "scores_3_z.csv"
    head, rest = scores.read_text(encoding="utf-8").split("\n", 1)
    scores.write_text(f"{head.replace('CytoTRACE', 'Exhaustion')}\n{rest}", encoding="utf-8")
    cfg = with_leaves(
        RunConfig(), {**BRIEF, "data_dir": str(root / "data"), "out_dir": str(root / "run")}, where="small"
    )
    return run(cfg), root / "run", cfg


def tables(folder):
    """Every CSV of a folder with its columns."""
    return {p.name: list(pd.read_csv(p, nrows=0)) for p in sorted(folder.glob("*.csv"))}


def test_every_file_is_registered_and_every_registered_file_is_written(trained):
    _, folder, _ = trained
    found = sorted(folder.iterdir())
    owners = {p.name: [o.file for o in OUTPUTS if p.match(o.file)] for p in found}
    assert {name: files for name, files in owners.items() if len(files) != 1} == {}
    assert {o.file for o in OUTPUTS} - {files[0] for files in owners.values()} == set()


def test_every_column_is_described_by_one_entry(trained):
    results, folder, _ = trained
    registered = {o.file: o.columns for o in OUTPUTS}
    scores = set(results.obsm["scores"])
    assert "Exhaustion" in scores and scores & set(Z_NAMES)
    for file, columns in tables(folder).items():
        used = {column: describe_column(file, column) for column in columns}
        assert [column for column, entry in used.items() if entry is None] == [], file
        assert [c.name for c in registered[file] if c not in used.values()] == [], file
        for column, entry in used.items():
            exact = [c for c in registered[file] if c.name == column]
            families = [c for c in registered[file] if c.name != column and c.covers(column)]
            named = {c.name for c in families} - {"<score>"}  # which covers any text
            assert len(exact) == 1 or (not exact and len(named or families) == 1), (file, column)
            if entry.name == "<score>":
                assert column in scores - set(Z_NAMES), (file, column)


def test_columns_stand_in_the_order_of_their_entries(trained):
    _, folder, _ = trained
    for o in OUTPUTS:
        if o.columns and o.file != "history_loss_detailed.csv":  # train and val by turns
            found = [describe_column(o.file, column) for column in tables(folder)[o.file]]
            assert list(dict.fromkeys(found)) == list(o.columns), o.file


def test_no_key_of_uns_is_misspelt(trained):
    results, folder, _ = trained
    keys = {o.key for o in OUTPUTS if o.key}
    assert set(results.uns) - keys - set(ENTRIES) == set()
    assert keys - set(results.uns) == set()  # a training on this screen makes every table
    screened = {"notes", "qc_limits", "qc_dropped", "set_aside"}  # of `screen`, or where wells are set aside
    assert set(ENTRIES) - set(results.uns) == screened
    assert {o.file for o in OUTPUTS if o.key} <= set(tables(folder))


def test_the_dictionary_of_a_folder_is_the_registry(trained):
    _, folder, _ = trained
    found = pd.read_csv(folder / "data_dictionary.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(found, data_dictionary())


def test_overwrite_removes_a_stale_file_of_every_name(trained, tmp_path):
    _, folder, cfg = trained
    stale = [o.file.replace("*", "9") for o in OUTPUTS]
    for name in stale:
        (tmp_path / name).write_text("stale", encoding="utf-8")
        with pytest.raises(Exception, match="already holds a run"):
            check_out_dir(tmp_path)
        (tmp_path / name).unlink()
    for name in [*stale, "notes.txt"]:
        (tmp_path / name).write_text("stale", encoding="utf-8")
    applied = {"skip_train": True, "model_path": str(folder / "model.pt"), "out_dir": str(tmp_path), "overwrite": True}
    applied |= {"baselines": False, "check_importance": False, "biology": False}
    run(with_leaves(cfg, applied, where="applied"))
    left = {p.name for p in tmp_path.iterdir() if p.read_bytes() == b"stale"}
    assert left == {"notes.txt"}
    there = {p.name for p in tmp_path.iterdir()}
    assert "hits.csv" in there and not there & {"baselines.csv", "model.pt", "model_fold9.pt"}


def test_the_mark_is_left_to_the_folder():
    assert MARK not in owned_files() and MARK in {o.file for o in OUTPUTS}


def test_the_readme_shows_the_registered_outputs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = "<!-- outputs: made by tcell_drugseq.base.results.outputs_table() -->", "<!-- end of outputs -->"
    assert text.count(begin) == text.count(end) == 1
    assert text.split(begin)[1].split(end)[0].strip() == outputs_table()
