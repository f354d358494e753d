"""Comparison of models: brute force on copies of the drawn wells, and screens that lack something."""

import csv
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tcell_drugseq.base.defaults import SimConfig, TrainConfig
from tcell_drugseq.data.matrix import LABEL, target_values
from tcell_drugseq.data.simulate import simulate_screen
from tcell_drugseq.evidence.baselines import fit_baselines
from tcell_drugseq.evidence.compare import (
    COLUMNS,
    compare_models,
    intraclass_correlation,
    jackknife_interval,
    label_draws,
    leave_out,
    replicate_ceiling,
    score_draws,
)
from tcell_drugseq.evidence.metrics import evaluate, label_metrics, score_metrics, training_means
from tcell_drugseq.training.folds import make_folds, well_groups

SMALL = SimConfig(n_plates=1, n_compounds=60, n_controls=24, n_genes=100)


@pytest.fixture(scope="module")
def screen():
    return simulate_screen(SMALL).screen


def guesses(screen, seed=0, **spread):
    """Stand-ins for models: what was measured plus noise, coarse enough for ties."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, sd in (spread or {"ensemble": 0.5, "ridge": 1.0}).items():
        columns = {}
        for column, y in target_values(screen).items():
            noisy = np.nan_to_num(y) + sd * rng.normal(size=len(y))
            columns[column] = 1 / (1 + np.exp(-noisy)) if column == LABEL else noisy
        found[name] = pd.DataFrame(columns, index=screen.obs_names).round(1)
    return found


def copied(code, n, rng):
    """(n, N) how often each well is there if groups are drawn with replacement."""
    groups = code.max() + 1
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=n)[:, code]


def without(screen, *columns):
    bare = screen.copy()
    bare.obs = bare.obs.drop(columns=list(columns))
    return bare


def rows_of(table, **wanted):
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table.set_index("model")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("decimals", (0, 1, 12))
def test_draws_of_scores_are_those_of_copied_wells(seed, decimals):
    rng = np.random.default_rng(seed)
    code = np.sort(rng.integers(0, 40, 150))
    code = np.unique(code, return_inverse=True)[1]
    plate = rng.permutation(np.repeat(["P1", "P2", "P3"], 50))
    y = (rng.normal(size=150) * 3 + 5 * (plate == "P2")).round(decimals)
    p = np.array([y + rng.normal(size=150), 100 - y, rng.normal(size=150), 10 + 1e-3 * y]).round(max(decimals, 4))
    weights = copied(code, 8, rng)
    drawn = score_draws(y, p, weights, plate)
    for b, w in enumerate(weights):
        at = np.repeat(np.arange(150), w)
        for m in range(len(p)):
            expected = score_metrics(y[at], p[m][at], plate[at])
            assert set(drawn) == set(expected) - {"n"}
            for metric, values in drawn.items():
                assert values[m, b] == pytest.approx(expected[metric], rel=1e-9, abs=1e-9, nan_ok=True), metric


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("decimals", (1, 2, 12))
@pytest.mark.parametrize("n", (25, 150, 430))
def test_draws_of_the_label_are_those_of_copied_wells(seed, decimals, n):
    rng = np.random.default_rng(seed)
    code = np.unique(rng.integers(0, n // 3, n), return_inverse=True)[1]
    truth = rng.random(n)
    label = (rng.random(n) < truth).astype(float)
    p = np.array([truth, 1 - truth, np.full(n, 0.3), rng.random(n)]).round(decimals)
    weights = copied(code, 8, rng)
    drawn = label_draws(label, p, weights)
    for b, w in enumerate(weights):
        at = np.repeat(np.arange(n), w)
        for m in range(len(p)):
            expected = label_metrics(label[at], p[m][at])
            for metric, values in drawn.items():
                assert values[m, b] == pytest.approx(expected[metric], rel=1e-9, abs=1e-9, nan_ok=True), metric


def test_draws_of_a_ceiling_are_those_of_copied_compounds():
    rng = np.random.default_rng(0)
    code = np.repeat(np.arange(12), rng.integers(2, 5, 12))
    y = rng.normal(size=12)[code] + rng.normal(size=len(code))
    weights = copied(code, 20, rng)
    counts = weights[:, np.unique(code, return_index=True)[1]]
    for found, drawn in zip(intraclass_correlation(y, code, counts), counts, strict=True):
        copies = [y[code == c] for c in np.repeat(np.arange(12), drawn)]
        anew = np.repeat(np.arange(len(copies)), [len(v) for v in copies])
        assert found == pytest.approx(intraclass_correlation(np.concatenate(copies), anew), abs=1e-9)


def test_values_are_those_of_the_metrics_and_intervals_hold_them(screen):
    predictions = guesses(screen)
    table = compare_models(screen, predictions)
    assert list(table.columns) == list(COLUMNS)
    plate = screen.obs["plate"].to_numpy()
    for column, y in target_values(screen).items():
        for model, said in predictions.items():
            p = said[column].to_numpy()
            name = "label" if column == LABEL else column.removeprefix("pred_")
            expected = label_metrics(y, p) if column == LABEL else score_metrics(y, p, plate)
            mine = table[(table["model"] == model) & (table["target"] == name)].set_index("metric")
            assert len(mine) == (4 if column == LABEL else 5)
            for metric, value in mine["value"].items():
                assert value == pytest.approx(expected[metric], abs=1e-9)
    assert (table["low"] < table["high"]).all()
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()


@pytest.mark.parametrize(("n", "r"), [(10, 4), (20, 2), (50, 2)])
def test_intervals_cover_what_more_compounds_would_show(n, r):
    """Percentiles of a bootstrap covered 0.83 (R2) and 0.90 (Pearson) with ten compounds."""
    rng, slope, hits, trials = np.random.default_rng(n), 0.8, {"R2": 0, "Pearson": 0, "Brier": 0, "AUROC": 0}, 300

    def drawn(n, r):
        code = np.repeat(np.arange(n), r)
        truth = rng.normal(size=n)[code] + 0.5 * rng.normal(size=n * r)
        said = slope * (truth + 0.5 * rng.normal(size=n)[code] + 0.5 * rng.normal(size=n * r))
        return code, truth, said, (truth + 0.5 * rng.normal(size=n * r) > 0).astype(float), 1 / (1 + np.exp(-2 * said))

    def figures(truth, said, label, p, weights):
        return score_draws(truth, said[None], weights) | label_draws(label, p[None], weights)

    _, *many = drawn(50_000, 2)
    true = figures(*many, np.ones((1, 100_000), int))
    for _ in range(trials):
        code, *some = drawn(n, r)
        found = figures(*some, np.vstack([np.ones((1, n * r), int), *leave_out(code)]))
        for metric in hits:
            low, high = jackknife_interval(found[metric][:, 0], found[metric][:, 1:], metric)[0]
            hits[metric] += bool(low <= true[metric][0, 0] <= high)
    share = {metric: k / trials for metric, k in hits.items()}
    assert all(0.91 < s < 0.99 for s in share.values()), share


@pytest.mark.parametrize("split", ("compound", "plate", "batch", "random"))
@pytest.mark.parametrize("folds", (0, 2, 5))
def test_constants_score_chance_whatever_the_folds(split, folds):
    """With one well left out the mean of the others had an AUROC of 0.01 and a correlation of -0.98."""
    screen = simulate_screen(SimConfig(n_plates=2, n_compounds=60, n_controls=16, n_genes=100)).screen
    cut = make_folds(screen, TrainConfig(split=split, folds=folds))
    bases = training_means(screen, cut)
    tables = {m: pd.DataFrame(0.4, screen.obs_names, list(bases)) for m in ("constant", "mean", "silent", "knows")}
    for column, y in target_values(screen).items():
        tables["mean"][column] = bases[column].mean
        tables["knows"][column] = 0.5 * (y + bases[column].mean)
        for fold in cut:
            tables["silent"].loc[fold.test, column] = y[fold.train].mean()
    found = compare_models(screen, tables, bases=bases).query("model != 'replicates'").set_index("metric")
    knows, nothing = found[found["model"] == "knows"], found[found["model"] != "knows"]
    assert (nothing.loc["AUROC", "value"] == 0.5).all() and (knows.loc["AUROC", "value"] == 1).all()
    ranked = [m for m in found.index.unique() if "Pearson" in m or "Spearman" in m]
    assert nothing.loc[ranked, "value"].isna().all() and np.allclose(knows.loc[ranked, "value"], 1)
    assert np.allclose(nothing[nothing["model"] == "mean"].loc["R2", "value"], 0, atol=1e-12)
    assert (knows.loc["R2", "value"] > 0.7).all()
    for model, table in tables.items():  # the metrics of a run are the same figures
        alone = evaluate(screen, table, np.full(screen.n_obs, "oof"), model, bases).set_index(["target", "metric"])[
            "value"
        ]
        for metric, row in found[found["model"] == model].iterrows():
            assert alone[row["target"], metric] == pytest.approx(row["value"], abs=1e-9, nan_ok=True)


def test_differences_are_paired(screen):
    predictions = guesses(screen, ensemble=0.5, other=1.0)
    predictions["same"] = predictions["ensemble"]
    table = compare_models(screen, predictions)
    same = table[table["model"] == "same"]
    assert (same[["difference", "difference_low", "difference_high"]].abs() < 1e-12).all(axis=None)
    r2 = rows_of(table, target="Tscore", metric="R2")
    assert r2["difference"]["other"] == pytest.approx(r2["value"]["ensemble"] - r2["value"]["other"])
    assert r2["difference_low"]["other"] > 0
    assert rows_of(table, target="label", metric="Brier")["difference"]["other"] < 0  # an error: less is better
    assert table[table["model"] == "ensemble"]["difference"].isna().all()


def test_more_models_change_no_interval(screen):
    predictions = guesses(screen, ensemble=0.5, ridge=1.0, knn=2.0)
    table = compare_models(screen, predictions)
    fewer = compare_models(screen, {m: predictions[m] for m in ("ensemble", "knn")})
    kept = table[table["model"].isin(fewer["model"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, fewer)


def test_larger_groups_give_wider_intervals(screen):
    predictions = guesses(screen)
    alone = compare_models(screen, predictions, groups=well_groups(screen, "random"))
    by_row = compare_models(screen, predictions, groups=screen.obs["row"].astype(str).to_numpy())
    assert not alone["low"].equals(by_row["low"])
    np.testing.assert_array_equal(alone["value"], by_row["value"])


def test_gaps_leave_the_others_on_common_wells(screen):
    gaps = screen.copy()
    gaps.obsm["scores"] = screen.obsm["scores"].copy()
    gaps.obsm["scores"].iloc[::3, 0] = np.nan
    predictions = guesses(gaps, ensemble=0.5, ridge=1.0)
    predictions["ridge"].iloc[1::3, 0] = np.nan
    predictions["empty"] = predictions["ridge"] * np.nan
    table = compare_models(gaps, predictions)
    name = gaps.obsm["scores"].columns[0]
    asked = np.arange(gaps.n_obs) % 3 == 2
    y, p = gaps.obsm["scores"].iloc[asked, 0], predictions["ensemble"].iloc[asked, 0]
    expected = score_metrics(y.to_numpy(), p.to_numpy(), gaps.obs["plate"].to_numpy()[asked])["R2"]
    assert rows_of(table, target=name, metric="R2")["value"]["ensemble"] == pytest.approx(expected)
    assert "empty" not in set(table["model"])


def test_a_target_that_the_model_does_not_have_has_no_difference(screen):
    predictions = guesses(screen)
    predictions["ensemble"] = predictions["ensemble"].drop(columns=["pred_activation", LABEL])
    table = compare_models(screen, predictions)
    for target in ("activation", "label"):
        mine = table[table["target"] == target]
        assert set(mine["model"]) == {"ridge", "replicates"}
        assert mine["value"].notna().all() and mine["difference"].isna().all()


def test_one_class_only(screen):
    ones = screen.copy()
    ones.obs["label"] = 1
    label = compare_models(ones, guesses(ones)).query("target == 'label'").set_index(["model", "metric"])
    assert label.loc["ensemble"]["value"][["AUROC", "AUPRC"]].isna().all()
    assert label.loc["ensemble"].loc["Brier", ["value", "low", "high"]].notna().all()
    assert label["value"]["replicates"].isna().all()


def test_one_class_in_a_fold(screen):
    folds = make_folds(screen, TrainConfig(folds=2))
    ones = screen.obs["label"].to_numpy() == 1
    folds[0] = replace(folds[0], train=folds[0].train & ones, val=folds[0].val & ones)
    baselines = fit_baselines(screen, folds, lambda fold: screen.X)
    table = compare_models(screen, {"ensemble": baselines["ridge"]} | baselines)
    assert table.query("metric == 'AUROC'")["value"].notna().all()


def test_few_wells_of_one_class_give_no_interval(screen):
    rare = screen.copy()
    rare.obs["label"] = (np.arange(screen.n_obs) == 0).astype(int)
    auroc = rows_of(compare_models(rare, guesses(rare)), target="label", metric="AUROC")
    assert np.isfinite(auroc["value"]["ridge"]) and np.isnan(auroc["low"]["ridge"])


@pytest.mark.parametrize("drop", ((), ("row", "column"), ("plate", "batch", "row", "column"), ("label",)))
def test_screens_that_lack_something(screen, drop):
    bare = without(screen, *drop)
    table = compare_models(bare, guesses(bare))
    assert table["metric"].str.contains("within plate").any() == ("plate" not in drop)
    assert ("label" in set(table["target"])) == ("label" not in drop)
    assert table["value"].notna().all()


def test_a_score_alone(screen):
    bare = without(screen, "label", "activation_old")
    bare.obsm["scores"] = screen.obsm["scores"][["Tscore"]]
    table = compare_models(bare, guesses(bare))
    assert set(table["target"]) == {"Tscore"}


def test_no_controls(screen):
    treated = screen[~screen.obs["is_control"]].copy()
    table = compare_models(treated, guesses(treated))
    assert {"ensemble", "ridge", "replicates"} == set(table["model"])


def test_one_compound_has_figures_but_no_interval(screen):
    one = screen[~screen.obs["is_control"]].copy()
    one.obs["compound"] = "alone"
    table = compare_models(one, guesses(one))
    assert set(table["model"]) == {"ensemble", "ridge"}  # nothing to tell compounds by
    assert table["value"].notna().all()
    assert table[["low", "high", "difference_low", "difference_high"]].isna().all(axis=None)


def test_no_replicates(screen):
    single = screen[~screen.obs["compound"].duplicated()].copy()
    assert len(replicate_ceiling(single)) == 0
    assert "replicates" not in set(compare_models(single, guesses(single))["model"])


def test_the_ceiling_of_wells_that_were_asked(screen):
    predictions = guesses(screen)
    asked = screen.obs["compound"].isin(screen.obs["compound"].unique()[:20]).to_numpy()
    for table in predictions.values():
        table[~asked] = np.nan
    whole, part = replicate_ceiling(screen, None), replicate_ceiling(screen, predictions["ensemble"])
    some = replicate_ceiling(screen[asked].copy(), None)
    np.testing.assert_allclose(part["value"], some["value"])
    assert not np.allclose(part["value"], whole["value"])
    assert whole["difference"].isna().all() and part["difference"].notna().all()


def test_a_ceiling_of_perfect_and_of_no_agreement(screen):
    agreed, apart = screen.copy(), screen.copy()
    names = screen.obs["compound"].astype(str)
    mean = screen.obsm["scores"].groupby(names.to_numpy()).transform("mean").set_index(screen.obs_names)
    agreed.obsm["scores"] = mean
    assert replicate_ceiling(agreed, None).query("metric == 'R2'")["value"][:3].min() > 0.999
    rng = np.random.default_rng(1)
    noise = pd.DataFrame(rng.normal(size=mean.shape), screen.obs_names, mean.columns)
    apart.obsm["scores"] = noise
    none = replicate_ceiling(apart, None).query("metric == 'R2'")[:3]
    assert (none["value"].abs() < 0.45).all() and (none["low"] < 0).all()


def test_the_order_of_wells_does_not_matter_for_values(screen):
    predictions = guesses(screen)
    turn = np.random.default_rng(0).permutation(screen.n_obs)
    turned = compare_models(screen[turn].copy(), {m: t.iloc[turn] for m, t in predictions.items()})
    straight = compare_models(screen, predictions)
    np.testing.assert_allclose(turned["value"], straight["value"], atol=1e-9)
    np.testing.assert_allclose(turned["difference"], straight["difference"], atol=1e-9)


def test_names_that_break_tables(screen, tmp_path):
    odd = ["NA", "nan", "None", "1,3-Propanediol", '"quoted"', "NADH+", "β-alanine", " padded "]
    strange = screen.copy()
    names = [n for n in screen.obs["compound"].astype(str).unique() if n != "DMSO"]
    swap = dict(zip(names, [name for name in odd if name not in names], strict=False))
    strange.obs["compound"] = screen.obs["compound"].astype(str).replace(swap)
    strange.obsm["scores"] = screen.obsm["scores"].set_axis(["a,b", "NA", 'say "x"'], axis=1)
    table = compare_models(strange, guesses(strange))
    np.testing.assert_allclose(table["value"], compare_models(screen, guesses(screen))["value"], atol=1e-9)
    table.to_csv(tmp_path / "baselines.csv", index=False)
    with open(tmp_path / "baselines.csv", newline="", encoding="utf-8") as file:
        targets = {row["target"] for row in csv.DictReader(file)}
    assert {"a,b", "NA", 'say "x"'} <= targets
