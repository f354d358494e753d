"""Reports whose files have another shape than a run writes: refused in one line, or not listed and why."""

import json
import shutil

import pytest
from shared_runs import tiny_run

from tcell_drugseq.base.files import read_yaml, write_yaml
from tcell_drugseq.base.settings import InputError
from tcell_drugseq.batch.comparison import changes_since
from tcell_drugseq.batch.finished import find_experiments, read_experiments
from tcell_drugseq.report.index import write_index

TEXTS = ["", "{", "null", "3", "[]", '"x"', "[" * 100_000, "9" * 5_000, "\0", "{}", '{"a":']
NASTY = [
    *(None, True, -1, 1.5, float("inf"), 10**400, "", "x", [], [1], [None], [["a"]], [{}], {}, {"a": 1}),
    *({"ensemble": 1}, {"ensemble": {"x": 1}}, {"ensemble": {"x": {"R2": "a"}}}, {"ensemble": []}),
    *([{"claim": "a", "status": []}], {"parameters": 1}, {"inputs": [1]}, {"code": None}),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a report without its pages."""
    root = tmp_path_factory.mktemp("finished")
    tiny_run(root / "data", root / "reports/one/results")
    about = {"experiment": "one", "date": "2026-01-01T00:00:00+00:00", "run": 1, "version": "1"}
    about |= json.loads((root / "reports/one/results/metrics.json").read_text())
    (root / "reports/one/metrics.json").write_text(json.dumps(about))
    return root / "reports/one"


@pytest.fixture
def one(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "reports/one")


def look(one):
    """Whatever reads a report: it says so in one line, or takes it."""
    write_index(one.parent)
    for read in (lambda: find_experiments(one.parent), lambda: read_experiments([one])):
        try:
            found = read()
        except InputError as e:
            assert str(one) in str(e) and "\n" not in str(e)
            return str(e)
    changes_since(found["one"].previous or {}, found["one"].summary)
    return ""


@pytest.mark.parametrize("file", ["metrics.json", "previous.json", "done.json", "results/run.yaml", "results/hits.csv"])
def test_a_file_of_anything_else(one, file):
    assert look(one) == ""
    for text in TEXTS:
        (one / file).write_text(text)
        assert look(one) or text == "{}"


@pytest.mark.parametrize("file", ["metrics.json", "previous.json"])
def test_a_summary_with_a_part_of_another_shape(one, file):
    whole = json.loads((one / "metrics.json").read_text())
    for part in ("validation", "hits", "made_of", "verdict", "changed", "date"):
        for value in NASTY:
            (one / file).write_text(json.dumps(whole | {part: value}))
            look(one)
    (one / file).write_text(json.dumps(whole | {"validation": {"ensemble": 1}}))
    assert f"{file}: validation: found {{'ensemble': 1}}, expected what a run writes there" in look(one)


@pytest.mark.parametrize("part", ["parameters", "inputs", "code", "files"])
def test_a_record_with_a_part_of_another_shape(one, part):
    for value in NASTY:
        (one / "done.json").write_text(
            json.dumps({"parameters": {}, "inputs": {}, "code": "1", "files": {}} | {part: value})
        )
        assert look(one) or isinstance(value, str if part == "code" else dict)


def test_settings_of_another_shape(one):
    whole = read_yaml(one / "results/run.yaml")
    for value in NASTY:
        for part in whole:
            write_yaml(whole | {part: value}, one / "results/run.yaml")
            look(one)
        for setting in ("model_path", "gene_sets", "skip_train", "seed"):
            changed = {"settings": whole["settings"] | {setting: value}, "trained": value}
            write_yaml(whole | changed, one / "results/run.yaml")
            look(one)
