"""A target that expression does not carry is not made up: held-out R2 stays at that of the mean."""

import numpy as np
import pandas as pd
import pytest

from tcell_drugseq.base.defaults import RunConfig, SimConfig, TrainConfig
from tcell_drugseq.data.simulate import simulate_screen
from tcell_drugseq.model.checkpoint import predict_wells
from tcell_drugseq.training.crossfit import fit_fold, out_of_fold
from tcell_drugseq.training.folds import make_folds

CFG = RunConfig(train=TrainConfig(folds=4, num_threads=1))


@pytest.fixture(scope="module")
def predicted():
    """Out-of-fold predictions of one target that expression carries beside three that it does not, on 384 wells."""
    screen = simulate_screen(SimConfig(n_plates=2, n_compounds=172, n_controls=40, n_genes=400, seed=5)).screen
    rng = np.random.default_rng(5)
    scores = screen.obsm["scores"][["Tscore"]].copy()
    scores["heavy tails"] = rng.standard_t(2, screen.n_obs)
    scores["outliers"] = rng.standard_normal(screen.n_obs) + 30 * (rng.random(screen.n_obs) < 0.01)
    scores["skewed"] = rng.lognormal(0, 1.2, screen.n_obs)
    screen.obsm["scores"] = scores
    screen.obs["label"] = (rng.random(screen.n_obs) < 0.6).astype(int)
    del screen.obs["activation_old"]
    views = [fit_fold(screen, fold, CFG) for fold in make_folds(screen, CFG.train)]
    outs = {v.fold.number: predict_wells(v.model, v.x) for v in views}
    return screen, views, out_of_fold(views, outs, screen.obs_names)


def r2(measured: pd.Series, said: pd.Series) -> float:
    return float(1 - ((measured - said) ** 2).sum() / ((measured - measured.mean()) ** 2).sum())


@pytest.mark.parametrize("target", ["heavy tails", "outliers", "skewed"])
def test_noise_is_answered_with_the_mean(predicted, target):
    screen, _, said = predicted
    assert r2(screen.obsm["scores"][target], said[f"pred_{target}"]) > -0.02


def test_a_target_beside_noise_is_still_predicted(predicted):
    screen, _, said = predicted
    assert r2(screen.obsm["scores"]["Tscore"], said["pred_Tscore"]) > 0.5


def test_a_label_of_chance_gets_its_share(predicted):
    screen, _, said = predicted
    brier = ((said["pred_label_prob"] - screen.obs["label"]) ** 2).mean()
    share = screen.obs["label"].mean()
    assert brier < 1.05 * share * (1 - share)


def test_silence_is_written_into_the_model(predicted):
    _, views, _ = predicted
    gains = np.array([v.model.score_gain.numpy() for v in views])
    assert gains[:, 0].min() > 0.5 and (gains[:, 1:] < 0.3).mean() > 0.8
