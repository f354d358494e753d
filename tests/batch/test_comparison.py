"""Finished experiments beside each other: what is read, refused, counted, averaged, and what the page says of it."""

import ast
import html
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import HOSTILE, NAMES, ROOT
from scipy.stats import kendalltau
from sklearn.metrics import r2_score, roc_auc_score

from tcell_drugseq.base.defaults import RunConfig, SimConfig
from tcell_drugseq.base.files import write_yaml
from tcell_drugseq.base.settings import InputError, with_leaves
from tcell_drugseq.base.tables import write_csv
from tcell_drugseq.batch.comparison import (
    changes_since,
    differing_settings,
    ensemble,
    find_ensembles,
    metrics_beside,
    rank_agreement,
    stable_hits,
    write_ensemble,
)
from tcell_drugseq.batch.finished import find_experiments, read_experiments
from tcell_drugseq.data.reading import write_bundle
from tcell_drugseq.data.simulate import simulate_screen
from tcell_drugseq.pipeline import run
from tcell_drugseq.report.done import write_record
from tcell_drugseq.report.experiment import run_report
from tcell_drugseq.report.notebooks import read_notebook_parameters

NOTEBOOK = ROOT / "nbs" / "analysis" / "20_compare.ipynb"
SCRIPTS = HOSTILE["compounds"][:2]
COMPOUNDS = [*NAMES, *SCRIPTS, "calm"]
GENES = [HOSTILE["gene"], "NA", "MYC", "IL2RA", "JUNB", "001"]
ALWAYS = ("NA", HOSTILE["compounds"][0])  # called by every experiment


def write_experiment(folder: Path, seed: int, called: tuple[str, ...] = ALWAYS, **settings: object) -> Path:
    """A finished report, as far as it is compared: two wells of each compound and four of the control."""
    rng, out, n = np.random.default_rng(seed), folder / "results", len(COMPOUNDS)
    out.mkdir(parents=True)
    truth = np.linspace(4, 0.5, n)
    hits = pd.DataFrame({"compound": COMPOUNDS, "distance": truth + rng.normal(0, 0.4, n), "q": 0.1})
    hits = hits.assign(hit=hits["compound"].isin(called)).sort_values("distance", ascending=False)
    hits.insert(0, "rank", range(1, n + 1))
    names = [*np.repeat(COMPOUNDS, 2), *["DMSO"] * 4]
    wells = pd.DataFrame({"well_id": [f"W{i}" for i in range(len(names))], "metabolite": names})
    measured = np.r_[np.repeat(truth, 2), np.zeros(4)] - 1.5
    wells["label_cls"], wells["Tscore_z"] = (measured > 0).astype(int), measured
    wells[f"pred_{HOSTILE['score']}"] = wells["pred_Tscore"] = measured / 2 + rng.normal(0, 0.5, len(names))
    wells["pred_logit"] = wells["pred_Tscore"] * 2
    wells["pred_label_prob"] = 1 / (1 + np.exp(-wells["pred_logit"]))
    wells[HOSTILE["score"]], wells["split"], wells["fold"] = measured, "oof", np.arange(len(names)) // 2 % 3 + 1
    means = {"mean_Tscore": measured, f"mean_{HOSTILE['score']}": measured, "mean_label_prob": wells["label_cls"]}
    folds = [{"fold": k, **{c: np.mean(y[wells["fold"] != k]) for c, y in means.items()}} for k in (3, 1, 2)]
    genes = pd.DataFrame({"Gene": GENES, "GradInputImportance": rng.random(6), "Target": HOSTILE["score"]})
    lines = [("ensemble", 0.6), ("ridge", 0.5), ("mean", 0.0), ("shuffled", 0.7), ("replicates", 0.9)]
    targets = (("Tscore", "R2"), (HOSTILE["score"], "R2"), ("label", "AUROC"))
    rows = [(m, t, k, v, v - 0.1, v + 0.1, 0.6 - v, -0.1, 0.2) for m, v in lines for t, k in targets]
    kept = ["model", "target", "metric", "value", "low", "high", "difference", "difference_low", "difference_high"]
    tables = {"hits": hits, "well_predictions_results": wells, "gene_importance_gradinput": genes}
    tables |= {"folds": pd.DataFrame(folds)}
    for name, table in (tables | {"baselines": pd.DataFrame(rows, columns=kept)}).items():
        write_csv(table, out / f"{name}.csv")
    about = {"data": {"hash": "abc"}, "versions": {"tcell_drugseq": "1.0"}}
    own = {
        "data_dir": "/somewhere/secret",
        "num_threads": seed,
        "seed": seed,
        "use_zscore": True,
        "lr": 0.003,
    } | settings
    write_yaml(about | {"settings": own}, out / "run.yaml")
    figures = {"ensemble": {t: {k: 0.6} for t, k in targets}, "mean": {}}
    said = {"hash": "abc", "wells": len(names), "compounds": n, "genes": 6, "hits": list(called), "split": "oof"}
    verdict = [{"claim": "hits", "status": "claim", "because": "a test"}]
    said |= {"validation": figures, "verdict": verdict, "top_genes": GENES[:2], "simulated": True}
    (folder / "metrics.json").write_text(json.dumps(said), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of one setting, one of another, and a report without hits."""
    folder = tmp_path_factory.mktemp("made") / "reports"
    for seed in (1, 2, 10):
        write_experiment(folder / f"z{seed}", seed, (*ALWAYS, "calm", HOSTILE["compounds"][1]) if seed == 2 else ALWAYS)
    raw = write_experiment(folder / "raw1", 1, use_zscore=False)
    old = json.loads((raw / "metrics.json").read_text()) | {"hash": "old", "hits": [HOSTILE["compounds"][1], "NA"]}
    old["validation"]["ensemble"]["Tscore"]["R2"] = 0.35
    (raw / "previous.json").write_text(json.dumps(old), encoding="utf-8")
    (folder / "screened").mkdir()
    (folder / "screened" / "metrics.json").write_text("{}", encoding="utf-8")
    (folder / "z9.failed").mkdir()
    (folder / "z9.failed" / "metrics.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def page(reports: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("compared") / "reports"
    return run_report("compare", {"reports_dir": str(reports), "top": 5}, made, notebook=NOTEBOOK)


def words_of(text: str) -> str:
    """What a reader reads: no tags, no pictures."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", text[text.index("<main") :])).split())


def test_what_is_found_and_read(reports: Path):
    folders, others = find_experiments(reports)
    assert [p.name for p in folders] == ["raw1", "z1", "z2", "z10"] and others == ["screened"]
    read = read_experiments(folders)
    assert set(read["z1"].hits["compound"]) == set(COMPOUNDS)
    assert set(read["z1"].genes["gene"]) == set(GENES)
    table = differing_settings(read).set_index("experiment")
    assert list(table) == ["seed", "use_zscore"] and table.loc["raw1", "use_zscore"] == "false"
    beside = metrics_beside(read)
    assert len(beside) == 12 and set(beside["simpler"]) == {"ridge"}


def cut_row(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    path.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")


DAMAGES = {
    "absent": ("results/hits.csv", Path.unlink, "results/hits.csv: found no file"),
    "a row less": ("results/hits.csv", cut_row, "results/hits.csv: found 14 compounds, expected 15"),
    "wells lost": ("results/well_predictions_results.csv", cut_row, "found 33 wells, expected 34"),
    "genes lost": ("results/gene_importance_gradinput.csv", cut_row, "found 5 genes, expected 6"),
    "half a row": (
        "results/baselines.csv",
        lambda p: p.write_text(p.read_text(encoding="utf-8")[:-60], encoding="utf-8"),
        "data row 15 .* fields, expected 9",
    ),
    "no number": (
        "results/hits.csv",
        lambda p: p.write_text(p.read_text(encoding="utf-8").replace(",0.1,", ",low,", 1), encoding="utf-8"),
        "data row 1 .*column q: found 'low', expected a number",
    ),
    "no text": ("results/hits.csv", lambda p: p.write_bytes(b"compound\xff"), "byte 0xff, not UTF-8"),
    "summary": ("metrics.json", lambda p: p.write_text("{"), "metrics.json: found no JSON"),
    "settings": ("results/run.yaml", lambda p: p.write_text("data: {}\n"), "results/run.yaml: found no 'hash'"),
    "other data": (
        "results/run.yaml",
        lambda p: p.write_text(p.read_text().replace("hash: abc", "hash: xyz")),
        "found data of hash xyz, expected data of hash abc",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_report_is_named_in_one_line(case: str, tmp_path: Path):
    file, damage, message = DAMAGES[case]
    folder = write_experiment(tmp_path / "spoilt", 3)
    damage(folder / file)
    with pytest.raises(InputError, match=message) as error:
        read_experiments([folder])
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_as_the_record_says_is_named(tmp_path: Path):
    folder = write_experiment(tmp_path / "kept", 3)
    write_record(folder, {})
    assert list(read_experiments([folder])) == ["kept"]
    file = folder / "results" / "baselines.csv"
    file.write_text(file.read_text(encoding="utf-8").replace("0.7", "0.8", 1), encoding="utf-8")
    with pytest.raises(InputError, match=r"results/baselines[.]csv: found another file than the report wrote"):
        read_experiments([folder])


def test_kendall_and_shared_top_of_a_case_done_by_hand(reports: Path):
    read = read_experiments([reports / "z1", reports / "z2"])
    a, b = (e.hits.set_index("compound")["distance"] for e in read.values())
    a[:], b[:] = np.nan, np.nan
    a.loc[["NA", "001", "nan", " x "]], b.loc[["NA", "001", "nan", " x "]] = [4, 3, 2, 1], [4, 3, 1, 1]
    for e, values in zip(read.values(), (a, b), strict=True):
        e.hits["distance"] = values.to_numpy()
    (row,) = rank_agreement(read, top=2).itertuples()
    assert row.tau == kendalltau([4, 3, 2, 1], [4, 3, 1, 1]).statistic == pytest.approx(5 / np.sqrt(6 * 5))
    assert (row.n, row.shared, row.chance, row.differ_in) == (4, 2, 1.0, "seed")


def test_hits_that_stay_are_counted(reports: Path):
    read = read_experiments(find_experiments(reports)[0])
    read["z10"].hits.loc[read["z10"].hits["compound"] == "calm", "distance"] = np.nan
    counted = stable_hits(read).set_index("compound")
    assert set(counted.index[:2]) == set(ALWAYS) and (counted.loc[list(ALWAYS), "called"] == 4).all()
    assert counted.loc["calm", ["measured", "called", "share"]].tolist() == [3, 1, 1 / 3]
    assert counted.loc["β-alanine", "called"] == 0


def test_the_ensemble_is_the_mean_of_its_members(reports: Path, tmp_path: Path):
    read = read_experiments(find_experiments(reports)[0])
    assert find_ensembles(read) == [["z1", "z2", "z10"]]
    both = ensemble(read, ["z1", "z2", "z10"])
    probabilities = np.array([read[n].wells["pred_label_prob"] for n in both.members])
    scores = np.array([read[n].wells["pred_Tscore"] for n in both.members])
    assert np.allclose(both.wells["pred_label_prob"], probabilities.mean(axis=0), rtol=0, atol=1e-15)
    assert np.allclose(both.wells["sd_Tscore"], scores.std(axis=0, ddof=1))
    assert "pred_logit" not in both.wells
    found = both.scores.set_index("target")
    truth = both.wells[["Tscore_z", "label_cls"]].to_numpy().T
    fold = both.wells.index.to_numpy() // 2 % 3
    known = {c: np.array([y[fold != k].mean() for k in fold]) for c, y in zip(("Tscore", "label"), truth, strict=True)}
    best, *_ = sorted(1 - ((truth[0] - s) ** 2).sum() / ((truth[0] - known["Tscore"]) ** 2).sum() for s in scores)[::-1]
    assert found.loc["Tscore", "single_high"] == pytest.approx(best) != max(r2_score(truth[0], s) for s in scores)
    error = ((truth[0] - scores.mean(axis=0)) ** 2).sum() / ((truth[0] - known["Tscore"]) ** 2).sum()
    assert found.loc["Tscore", "mean_prediction"] == pytest.approx(1 - error)
    added = probabilities.mean(axis=0) - known["label"]
    assert found.loc["label", "mean_prediction"] == pytest.approx(roc_auc_score(truth[1], added))
    ranks = pd.concat([read[n].hits.set_index("compound")["rank"] for n in both.members], axis=1)
    mine = both.compounds.set_index("compound")
    assert np.allclose(mine["mean_rank"], ranks.mean(axis=1)[mine.index])
    assert np.allclose(mine[["low", "high"]], ranks.agg(["min", "max"], axis=1).loc[mine.index])
    write_ensemble([both], tmp_path)
    written = pd.read_csv(tmp_path / "ensemble_ranking.csv", keep_default_na=False, dtype={"compound": str})
    assert written["compound"].tolist() == both.compounds["compound"].tolist()


def test_what_is_no_ensemble(reports: Path, tmp_path: Path):
    same = write_experiment(tmp_path / "again", 1)
    other = write_experiment(tmp_path / "other", 5, lr=0.1)
    read = read_experiments([reports / "z1", same, other, reports / "raw1"])
    assert find_ensembles(read) == []


def test_changes_since_the_last_run(reports: Path):
    (raw,) = read_experiments([reports / "raw1"]).values()
    changes = changes_since(raw.previous, raw.summary)
    status = changes["facts"].set_index("what")["status"]
    assert status["data (hash)"] == "warn" and status["wells"] == "pass"
    assert (changes["gained"], changes["lost"]) == ([HOSTILE["compounds"][0]], [HOSTILE["compounds"][1]])
    metrics = changes["metrics"].set_index(["target", "metric"])
    assert metrics.loc[("Tscore", "R2"), ["before", "after"]].tolist() == [0.35, 0.6]


def test_the_page_is_complete(page: Path, reports: Path):
    text = (page / "report.html").read_text(encoding="utf-8")
    headings = re.findall(r'<h2 id="([^"]*)"', text)
    assert headings == [
        "What-differs",
        "Metrics",
        "Do-compounds-rank-alike?",
        "Do-genes-rank-alike?",
        "Hits-across-experiments",
        "Ensembles",
        "What-changed-since-the-last-run",
        "Answer",
    ]
    words = words_of(text)
    read = read_experiments(find_experiments(reports)[0])
    tau = rank_agreement(read, top=5)["tau"]
    assert f"median tau {tau.median():.2f}" in words
    assert "Skipped, because they have no hits to compare: screened." in words
    assert "Called by any: 4 of 15 compounds; by all 4: 2 (" in words
    score = ensemble(read, ["z1", "z2", "z10"]).scores.set_index("target").loc["label"]
    said = f"label {score.mean_prediction:.2f} ({score.single_low:.2f} to {score.single_high:.2f})"
    assert said in words
    assert "not of the biology" in words and "data (hash) old abc" in words
    assert text.count("<figure>") == 5 and "Traceback" not in text and "secret" not in text
    assert {p.name for p in (page / "results").iterdir()} == {
        "changes.csv",
        "compound_agreement.csv",
        "differing_settings.csv",
        "ensemble_predictions.csv",
        "ensemble_ranking.csv",
        "ensemble_scores.csv",
        "gene_agreement.csv",
        "metrics.json",
        "metrics_beside.csv",
        "stable_hits.csv",
    }
    assert find_experiments(page.parent) == ([], ["compare"])


def test_hostile_names_are_shown_but_escaped(page: Path):
    text = (page / "report.html").read_text(encoding="utf-8")
    for name in (*SCRIPTS, HOSTILE["score"]):
        assert name not in text
        assert name in html.unescape(text)
    counted = pd.read_csv(page / "results" / "stable_hits.csv", keep_default_na=False, dtype={"compound": str})
    assert set(counted["compound"]) == set(COMPOUNDS)


BAD = {
    "one only": ({"experiments": ["z1"]}, "found 1 finished reports with hits, expected at least 2"),
    "no report": ({"experiments": ["z1", "nowhere"]}, "nowhere: metrics.json: found no file"),
    "top": ({"top": 0}, "top: found 0, expected at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_compared_is_one_line_and_leaves_no_folder(case: str, reports: Path, tmp_path: Path, request):
    change, message = BAD[case]
    if case != "no report":  # a kernel of its own for one
        request.getfixturevalue("in_process")
    with pytest.raises(InputError, match=message) as error:
        run_report("bad", {"reports_dir": str(reports)} | change, tmp_path / "out", notebook=NOTEBOOK)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_notebook_defines_nothing_long_and_says_what_its_parameters_are():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(c.get("outputs") for c in cells)
    assert cells[0].cell_type == "markdown" and cells[0].source.splitlines()[0].endswith("?")
    for cell in (c for c in cells if c.cell_type == "code"):
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef) or node.end_lineno - node.lineno < 5
    (tagged,) = (c for c in cells if "parameters" in c.metadata.get("tags", []))
    assert [line for line in tagged.source.splitlines() if line and "  # " not in line] == []
    assert list(read_notebook_parameters(NOTEBOOK)) == ["name", "experiments", "reports_dir", "top", "out_dir"]


def test_real_runs_of_two_seeds(tmp_path: Path):
    """What a run writes is what is read here, and the figures are those of the run itself."""
    screen = simulate_screen(SimConfig(n_plates=1, n_compounds=20, n_controls=12, n_genes=120)).screen
    names = screen.obs["compound"].astype(str)
    calm = [name for name in names.unique() if name != "DMSO"]
    screen.obs["compound"] = names.replace(dict(zip(calm, (*HOSTILE["compounds"], *NAMES), strict=False)))
    write_bundle(screen, tmp_path / "data")
    brief = {"epochs": 1, "n_members": 1, "d_model": 8, "folds": 2, "hit_draws": 200, "hit_bootstrap": 100}
    brief |= {"biology": False, "check_importance": False, "baselines": False, "num_threads": 1}
    for seed in (1, 2):
        folder = tmp_path / "reports" / f"seed{seed}"
        own = brief | {"data_dir": str(tmp_path / "data"), "seed": seed, "out_dir": str(folder / "results")}
        run(with_leaves(RunConfig(), own))
        (folder / "metrics.json").write_text((folder / "results" / "metrics.json").read_text(encoding="utf-8"))
    read = read_experiments(find_experiments(tmp_path / "reports")[0])
    assert set(read["seed1"].hits["compound"]) == set(screen.obs["compound"]) - {"DMSO"}
    (members,) = find_ensembles(read)
    both = ensemble(read, members)
    single = both.scores.set_index("target")
    assert set(single.index) == set(metrics_beside(read)["target"])
    of_runs = metrics_beside(read).groupby("target")["value"].agg(["mean", "min", "max"])
    own = single[["single_mean", "single_low", "single_high"]]
    assert np.allclose(own, of_runs.loc[own.index], rtol=0, atol=1e-8)  # the file has single precision
    assert any(r2_score(e.wells["Tscore_z"], e.wells["pred_Tscore"]) not in own for e in read.values())  # not pooled
    (tmp_path / "reports" / "seed1" / "results" / "folds.csv").unlink()  # as if from before the means were kept
    earlier = ensemble(read_experiments(find_experiments(tmp_path / "reports")[0]), members)
    assert earlier.scores.empty and len(earlier.wells) == screen.n_obs
    assert rank_agreement(read)["n"].tolist() == [screen.obs["compound"].nunique() - 1]
