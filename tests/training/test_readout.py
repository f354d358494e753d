"""The ensemble is about as good as the best of its answers, whichever that is, and never needs many wells for it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from tcell_drugseq.base.defaults import RunConfig, TrainConfig
from tcell_drugseq.evidence.baselines import fit_baselines
from tcell_drugseq.model.checkpoint import load_model, predict_wells, save_model
from tcell_drugseq.training.crossfit import describe_readout, fit_fold, out_of_fold
from tcell_drugseq.training.folds import make_folds

CFG = RunConfig(train=TrainConfig(folds=3, num_threads=1))


def make_screen(n: int, seed: int) -> AnnData:
    """Ten programs in 200 genes; a target that is a line, one that is a product, six of nothing."""
    rng = np.random.default_rng(seed)
    programs = rng.normal(size=(n, 10))
    x = programs @ (rng.normal(size=(10, 200)) * (rng.random((10, 200)) < 0.2)) + 0.5 * rng.normal(size=(n, 200))
    scores = {"line": programs[:, 0] + programs[:, 1], "product": programs[:, 2] * programs[:, 3]}
    scores = {k: v + 0.4 * rng.normal(size=n) for k, v in scores.items()} | {
        f"nothing {k}": rng.normal(size=n) for k in range(6)
    }
    wells = [f"w{i}" for i in range(n)]
    obs = pd.DataFrame({"compound": [f"c{i // 2}" for i in range(n)], "is_control": False}, index=wells)
    screen = AnnData(x.astype(np.float32), obs=obs)
    screen.obsm["scores"] = pd.DataFrame(scores, index=wells)
    return screen


def r2(measured: pd.Series, said: pd.Series) -> float:
    return float(1 - ((measured - said) ** 2).sum() / ((measured - measured.mean()) ** 2).sum())


@pytest.fixture(scope="module")
def race():
    """R2 out of fold of the ensemble and of the baselines, with 60 and with 240 wells."""
    found = {}
    for n in (60, 240):
        screen = make_screen(n, seed=n)
        folds = make_folds(screen, CFG.train)
        views = [fit_fold(screen, fold, CFG) for fold in folds]
        outs = {v.fold.number: predict_wells(v.model, v.x) for v in views}
        said = fit_baselines(screen, folds, lambda fold, x=screen.X: np.asarray(x))
        said["ensemble"] = out_of_fold(views, outs, screen.obs_names)
        scores = screen.obsm["scores"]
        found[n] = pd.DataFrame({m: {s: r2(scores[s], t[f"pred_{s}"]) for s in scores} for m, t in said.items()})
        found[n, "views"] = views
    return found


@pytest.mark.parametrize("n", [60, 240])
def test_a_line_is_answered_as_ridge_regression_would(race, n):
    line = race[n].loc["line"]
    assert line["ridge"] > 0.5 and line["ensemble"] > line["ridge"] - 0.05


def test_a_product_is_answered_where_ridge_regression_has_nothing_to_say(race):
    product = race[240].loc["product"]
    assert product["ridge"] < 0.1 and product["ensemble"] > max(0.3, product["kernel"] - 0.1)


@pytest.mark.parametrize("n", [60, 240])
def test_nothing_is_answered_with_the_mean(race, n):
    """By two standard errors one such target in forty is taken for something; then it costs little."""
    nothing = race[n].filter(like="nothing", axis=0)
    apart = nothing["ensemble"] - nothing["mean"]
    assert apart.mean() > -0.02 and apart.min() > -0.1


def test_weights_are_told_and_models_return_from_disk(race, tmp_path):
    views = race[240, "views"]
    table = describe_readout(views).set_index(["target", "answer"])["weight"]
    assert table.groupby("target").sum().sub(1).abs().max() < 1e-4 and table.min() >= 0
    assert table["product"].filter(like="kernel").sum() > 0.5 > table["product", "ridge"]
    save_model(views[0].model, tmp_path / "model.pt")
    again, about = load_model(tmp_path / "model.pt")
    assert about["n_closed"] == again.n_closed > 0
    x = views[0].x[:20]
    np.testing.assert_array_equal(predict_wells(again, x).scores, predict_wells(views[0].model, x).scores)


def test_the_network_alone_is_what_it_was_without_closed_forms():
    screen = make_screen(60, seed=1)
    alone = replace(CFG, model=replace(CFG.model, closed_forms=False))
    fold = make_folds(screen, CFG.train)[0]
    with_forms, without = fit_fold(screen, fold, CFG).model, fit_fold(screen, fold, alone).model
    assert without.closed is None and with_forms.closed is not None
    for name, weight in without.named_parameters():
        assert (weight == with_forms.get_parameter(name)).all(), name
