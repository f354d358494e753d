"""Importance checks against answers known by hand, on noise, and on awkward screens."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from tcell_drugseq.base.defaults import ModelConfig, RunConfig, SimConfig, TrainConfig
from tcell_drugseq.base.settings import InputError
from tcell_drugseq.data.simulate import simulate_screen
from tcell_drugseq.importance.attribution import dmso_baseline, integrated_gradients
from tcell_drugseq.importance.checks import (
    check_importance,
    compound_importance,
    deletion_curve,
    fold_agreement,
    shuffle_weights,
)
from tcell_drugseq.model.network import MultiTaskModel, Tasks, fit_buffers
from tcell_drugseq.training.crossfit import FoldModel, fit_fold
from tcell_drugseq.training.folds import Fold, make_folds

CHECKS = [
    "completeness",
    "integrated gradients",
    "random weights",
    "deletion",
    "folds: order",
    "folds: first genes",
    "ridge",
]
QUICK = RunConfig(model=ModelConfig(d_model=16), train=TrainConfig(epochs=4, folds=3, num_threads=1))
LOUD = replace(QUICK, train=replace(QUICK.train, shrink=False))  # never silent: names genes whatever it has learnt


@pytest.fixture(scope="module")
def screen() -> AnnData:
    torch.set_num_threads(1)
    return simulate_screen(SimConfig(n_plates=1, n_compounds=80, n_controls=24, n_genes=120)).screen


@pytest.fixture(scope="module")
def views(screen) -> list[FoldModel]:
    return [fit_fold(screen, fold, LOUD) for fold in make_folds(screen, LOUD.train)]


def linear_model(x: np.ndarray, weight: np.ndarray) -> MultiTaskModel:
    """A model whose members all predict `x @ weight` and nothing else: the head reads one component."""
    cfg = ModelConfig(n_members=3, d_model=8, n_heads=2, z_dim=2, n_components=1)
    model = MultiTaskModel([f"g{i}" for i in range(x.shape[1])], Tasks(("s",)), cfg).eval()
    fit_buffers(model, torch.tensor(x))
    with torch.no_grad():
        model.components[:, :, 0] = torch.tensor(weight * x.std(axis=0))
        model.score_head.weight.zero_()[:, 0] = 1
        model.score_head.bias.zero_()
    return model


def linear_view(y_is_gene: bool = True, n: int = 120, seed: int = 0) -> tuple[FoldModel, AnnData]:
    """A model that reads the first three of 60 genes, and wells in which they are the score, or nothing is."""
    rng = np.random.default_rng(seed)
    x = rng.normal(5, 1, (n, 60)).astype("float32")
    weight = np.zeros(60)
    weight[:3] = 1, -1, 0.5
    y = x @ weight if y_is_gene else rng.normal(size=n)
    obs = pd.DataFrame({"compound": [f"c{i // 2}" for i in range(n)], "is_control": np.arange(n) >= n - 10})
    screen = AnnData(x, obs=obs.set_index(obs.index.astype(str)), var=pd.DataFrame(index=[f"g{i}" for i in range(60)]))
    screen.obsm["scores"] = pd.DataFrame({"s": y - y.mean()}, index=screen.obs_names)
    train = np.arange(n) < n // 2
    val = (np.arange(n) >= n // 2) & (np.arange(n) < n // 2 + 10)
    return FoldModel(Fold(1, train, val, ~train & ~val), linear_model(x, weight), x), screen


def test_integrated_gradients_of_a_linear_model_are_known_by_hand():
    view, _ = linear_view()
    weight = np.zeros(60)
    weight[:3] = 1, -1, 0.5
    found, error = integrated_gradients(view.model, view.x, view.x[7], "s", steps=1)
    np.testing.assert_allclose(found, (view.x - view.x[7]) * weight, atol=1e-4)
    assert error < 1e-4


def test_deletion_of_a_linear_model():
    view, screen = linear_view()
    curve = deletion_curve([view], screen, "s", shares=(0.05,), draws=20)
    assert curve["genes"].tolist() == [0, 3]
    assert curve["importance"].tolist() == pytest.approx([1, 0], abs=0.15)  # all three that matter are gone
    assert curve["difference_low"][1] > 0.5 and curve["beaten"][1] == 1
    view, screen = linear_view(y_is_gene=False)
    assert (deletion_curve([view], screen, "s")["difference_low"] <= 0).all()


@pytest.mark.parametrize("target", ["auto", "activation", "logit", "Tscore", "latent:3"])
def test_every_target_is_checked(views, screen, target):
    table = check_importance(views, screen, target, wells=16)
    assert list(table) == ["check", "value", "threshold", "status", "meaning"]
    assert table["check"].tolist() == CHECKS
    assert table["value"].notna().all()
    assert set(table["status"]) <= {"pass", "warn", "fail"}
    assert not table["meaning"].str.endswith(".").any()
    assert table["meaning"].str.contains(r"\d").all()


def test_what_can_not_be_explained_is_an_error(views, screen):
    with pytest.raises(InputError, match="gi_target: found 'IL2'"):
        check_importance(views, screen, "IL2")


def test_checks_repeat_and_leave_models_alone(views, screen):
    before = {k: v.clone() for k, v in views[0].model.state_dict().items()}
    first, second = (check_importance(views, screen, "logit", wells=12) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    shuffled = shuffle_weights(views[0].model).encoder.read.value_slope
    assert not torch.equal(shuffled, before["encoder.read.value_slope"])
    assert torch.equal(shuffled.flatten().sort()[0], before["encoder.read.value_slope"].flatten().sort()[0])
    assert all(torch.equal(before[k], v) for k, v in views[0].model.state_dict().items())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_shuffled_targets_do_not_pass(screen, seed):
    order = np.random.default_rng(seed).permutation(screen.n_obs)
    noise = screen.copy()
    noise.obsm["scores"] = screen.obsm["scores"].iloc[order].set_axis(screen.obs_names)
    for column in ("label", "activation_old"):
        noise.obs[column] = screen.obs[column].to_numpy()[order]
    for cfg in (QUICK, LOUD):
        deaf = [fit_fold(noise, fold, cfg) for fold in make_folds(noise, cfg.train)]
        status = check_importance(deaf, noise, "logit").set_index("check")["status"]
        assert status["deletion"] == "fail"


@pytest.mark.parametrize(
    ("target", "gain"), [("activation", "act_gain"), ("logit", "logit_gain"), ("Tscore", "score_gain")]
)
def test_silent_models_name_no_gene(views, screen, target, gain):
    mute = [replace(v, model=copy.deepcopy(v.model)) for v in views]
    for v in mute:
        getattr(v.model, gain).zero_()
    table = check_importance(mute, screen, target, wells=12).set_index("check")
    assert table["meaning"].str.contains("silent").all() and not (table["status"] == "pass").any()
    assert table.loc["deletion", "status"] == "fail"
    assert compound_importance(mute, screen, target).empty
    some = compound_importance([mute[0], *views[1:]], screen, target)
    own = set(screen.obs["compound"][views[0].fold.test & ~screen.obs["is_control"].to_numpy()])
    assert len(some) and not own & set(some["Compound"])


def test_importance_that_needs_no_weights_fails():
    """With one component every model has the same order of genes, whatever its weights."""
    view, screen = linear_view()
    cfg = ModelConfig(n_members=1, d_model=8, n_heads=2, z_dim=1, n_components=1)
    model = MultiTaskModel(view.model.genes, Tasks(("s",)), cfg)
    fit_buffers(model, torch.tensor(view.x))
    line = check_importance([FoldModel(view.fold, model, view.x)], screen).set_index("check").loc["random weights"]
    assert line["value"] > 0.9 and line["status"] == "fail"


def test_a_screen_without_controls(views, screen):
    bare = screen.copy()
    bare.obs["is_control"] = False
    assert dmso_baseline(views[0], bare)[2] == "all wells, as there is no DMSO"
    table = check_importance(views, bare, "logit", wells=12).set_index("check")
    assert "no DMSO" in table.loc["completeness", "meaning"]
    compounds = compound_importance(views, bare, "logit", top=2)
    assert set(compounds["Against"]) == {"all wells"}
    assert np.isfinite(compounds["Effect"]).all()


def test_controls_that_were_trained_on_are_named(views, screen):
    seen = Fold(1, np.ones(screen.n_obs, bool), np.zeros(screen.n_obs, bool), views[0].fold.test)
    assert "training wells" in dmso_baseline(FoldModel(seen, views[0].model, views[0].x), screen)[2]


def test_one_fold_can_not_agree(views, screen):
    table = check_importance(views[:1], screen, "logit", wells=12).set_index("check")
    for check in ("folds: order", "folds: first genes"):
        assert np.isnan(table.loc[check, "value"]) and table.loc[check, "status"] == "warn"
        assert "can't be seen" in table.loc[check, "meaning"]


def test_two_wells(views, screen):
    test = np.zeros(screen.n_obs, bool)
    test[np.flatnonzero(views[0].fold.test & ~screen.obs["is_control"].to_numpy())[:2]] = True
    two = FoldModel(Fold(1, views[0].fold.train, views[0].fold.val, test), views[0].model, views[0].x)
    table = check_importance([two], screen, "logit")
    assert table["check"].tolist() == CHECKS
    assert table.set_index("check").loc["deletion", "status"] != "pass"
    found = compound_importance([two], screen, "logit", top=4)
    assert len(found) == 4 * screen.obs["compound"][test].nunique()


def test_a_score_with_gaps(views, screen):
    gaps = screen.copy()
    gaps.obsm["scores"] = screen.obsm["scores"].copy()
    gaps.obsm["scores"].iloc[::2] = np.nan
    table = check_importance(views, gaps, "Tscore", wells=16)
    assert table["value"].notna().all()


def test_plates_with_too_few_controls_lean_on_all(views, screen):
    found = compound_importance(views, screen, "logit", top=1, least=99)
    assert set(found["Against"]) == {"all DMSO"}
    without = screen.copy()
    del without.obs["plate"]
    pd.testing.assert_series_equal(
        compound_importance(views, without, "logit", top=1)["Effect"], found["Effect"], check_exact=False
    )


def test_no_more_genes_than_there_are(views, screen):
    found = compound_importance(views[:1], screen, "logit", top=500)
    assert found.groupby("Compound").size().unique().tolist() == [screen.n_vars]
    sums = found.groupby("Compound")["Effect"].sum()
    np.testing.assert_allclose(sums, found.groupby("Compound")["Shift"].first(), rtol=1e-4, atol=1e-6)


def test_agreement_by_hand():
    a = np.arange(40.0)
    swapped = a.copy()
    swapped[[38, 39]] = swapped[[39, 38]]
    tau, overlap, top = fold_agreement([a, swapped])
    assert tau == pytest.approx(1 - 4 / (40 * 39)) and overlap == 1 and top == 4


def test_compound_importance_of_a_linear_model_is_known_by_hand():
    view, screen = linear_view()
    screen.obs["plate"] = np.where(np.arange(screen.n_obs) // 2 % 2, "P1", "P2")
    found = compound_importance([view], screen, "s", top=3).set_index(["Compound", "Gene"])
    for compound in ("c40", "c49"):  # one on each plate
        wells = screen.obs["compound"] == compound
        control = screen.obs["is_control"] & (screen.obs["plate"] == screen.obs["plate"][wells].iloc[0])
        shift = view.x[wells].mean(axis=0) - view.x[control].mean(axis=0)
        for gene, weight in enumerate((1, -1, 0.5)):
            row = found.loc[(compound, f"g{gene}")]
            assert row["Effect"] == pytest.approx(weight * shift[gene], abs=1e-4)
            assert row["Expression"] == pytest.approx(shift[gene], abs=1e-4)
