"""Plate correction: brute force, what it may not learn from, and what it refuses."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tcell_drugseq.base.defaults import (
    BiologyConfig,
    CorrectionConfig,
    DataConfig,
    HitConfig,
    ImportanceConfig,
    ModelConfig,
    RunConfig,
    SimConfig,
    TrainConfig,
)
from tcell_drugseq.base.settings import InputError
from tcell_drugseq.data.simulate import simulate_screen, write_simulation
from tcell_drugseq.pipeline import run
from tcell_drugseq.training import correction, crossfit
from tcell_drugseq.training.correction import (
    correct_plates,
    correction_effect,
    estimate_hit_rate,
    median_polish,
    shrink_centres,
    surface_weights,
)

METHODS = ("dmso", "median_polish", "bscore", "loess")
SMALL = SimConfig(n_plates=2, n_compounds=160, n_controls=64, n_genes=120)


@pytest.fixture(scope="module")
def sim():
    return simulate_screen(replace(SMALL, plate_effect=0.3, row_effect=3.0))


@pytest.fixture(scope="module")
def fit_on(sim):
    return np.random.default_rng(0).random(sim.screen.n_obs) < 0.8


def correct(screen, fit_on, method):
    return correct_plates(screen, fit_on, CorrectionConfig(method))


def without(screen, *columns):
    bare = screen.copy()
    bare.obs = bare.obs.drop(columns=list(columns))
    return bare


def test_median_polish_is_that_of_a_loop():
    rng = np.random.default_rng(1)
    kept = rng.random(96) < 0.8
    row, column = (a.ravel()[kept] for a in np.indices((8, 12)))
    y = rng.standard_normal((len(row), 3))
    polish = median_polish(y, row, column, (8, 12))
    left = y.copy()
    for _ in range(10):
        for code in (row, column):
            for k in np.unique(code):
                left[code == k] -= np.median(left[code == k], axis=0)
    np.testing.assert_allclose(polish.plate + polish.rows[row] + polish.columns[column], y - left, atol=1e-12)
    assert np.allclose(np.median(polish.rows, axis=0), 0) and np.allclose(np.median(polish.columns, axis=0), 0)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_learnt_from_held_out_wells(sim, fit_on, method):
    first = correct(sim.screen, fit_on, method)
    altered = sim.screen.copy()
    one = np.flatnonzero(~fit_on)[0]
    altered.X[one] += 100
    others = np.arange(altered.n_obs) != one
    again = correct(altered, fit_on, method)
    np.testing.assert_array_equal(again[others], first[others])
    assert (again[one] > first[one]).all()
    assert first.dtype == np.float32 and first.shape == sim.screen.shape and np.isfinite(first).all()


@pytest.mark.parametrize("method", METHODS)
def test_names_of_plates_and_order_of_wells_change_nothing(sim, fit_on, method):
    first = correct(sim.screen, fit_on, method)
    order = np.random.default_rng(2).permutation(sim.screen.n_obs)
    turned = sim.screen[order].copy()
    turned.obs["plate"] = pd.Categorical(turned.obs["plate"].astype(str))
    np.testing.assert_allclose(correct(turned, fit_on[order], method), first[order], atol=2e-3)


def test_plate_and_row_effects_shrink_and_compounds_survive(sim, fit_on):
    before = correction_effect(sim.screen, fit_on).set_index("what")["before"]
    for method in METHODS:
        after = correction_effect(sim.screen, fit_on, CorrectionConfig(method)).set_index("what")["after"]
        assert after["PCs 1-5 explained by plate"] < 0.6 * before["PCs 1-5 explained by plate"], method
        assert after["replicate correlation"] > before["replicate correlation"], method
    rows = {m: correction_effect(sim.screen, fit_on, CorrectionConfig(m)).set_index("what").iloc[1] for m in METHODS}
    assert rows["median_polish"]["after"] < 0.5 * rows["median_polish"]["before"]
    assert rows["loess"]["after"] < rows["dmso"]["after"]


def test_none_is_the_screen_itself(sim, fit_on):
    assert correct(sim.screen, fit_on, "none") is sim.screen.X
    table = correction_effect(sim.screen, fit_on)
    assert table["before"].equals(table["after"]) and list(table) == ["what", "wanted", "before", "after", "wells"]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_missing_is_named(sim, fit_on, method):
    with pytest.raises(InputError, match=f"correction {method}: found no plate"):
        correct(without(sim.screen, "plate"), fit_on, method)
    torn = sim.screen.copy()
    torn.obs["plate"] = torn.obs["plate"].where(np.arange(torn.n_obs) > 2)
    with pytest.raises(InputError, match="3 wells without plate, the first is 'tc1_A1_A01'"):
        correct(torn, fit_on, method)
    if method != "dmso":
        with pytest.raises(InputError, match="found no row"):
            correct(without(sim.screen, "row"), fit_on, method)
    left_out = fit_on & (sim.screen.obs["plate"] != "tc2_A1").to_numpy()
    with pytest.raises(InputError, match=r"tc2_A1 has 0 training .*leave whole plates out"):
        correct(sim.screen, left_out, method)


def test_control_wells_that_are_not_there(sim, fit_on):
    treated = fit_on & ~sim.screen.obs["is_control"].to_numpy()
    for method, message in (("dmso", "0 training control"), ("loess", "0 training control"), ("bscore", "expected 10")):
        with pytest.raises(InputError, match=message):
            correct(sim.screen, treated, method)
    correct(sim.screen, treated, "median_polish")
    with pytest.raises(InputError, match="expected at least 8"):
        few = simulate_screen(replace(SMALL, n_controls=20)).screen
        correct(few, np.ones(few.n_obs, bool), "loess")


def test_b_score_refuses_a_screen_full_of_hits():
    rates = {}
    for active in (0.0, 0.5):
        screen = simulate_screen(replace(SMALL, n_genes=300, active_fraction=active, strength=2.0)).screen
        every = np.ones(screen.n_obs, bool)
        rates[active] = estimate_hit_rate(screen, every)
        if active:
            with pytest.raises(InputError, match="of the treated training wells are hits"):
                correct(screen, every, "bscore")
        else:
            assert np.isfinite(correct(screen, every, "bscore")).all()
    assert rates[0.0] < 0.2 < rates[0.5]


def test_a_silent_gene_and_a_single_plate(sim):
    one = sim.screen[(sim.screen.obs["plate"] == "tc1_A1").to_numpy()].copy()
    one.X[:, 3] = 0
    for method in METHODS:
        fixed = correct(one, np.ones(one.n_obs, bool), method)
        assert np.isfinite(fixed).all() and np.allclose(fixed[:, 3], 0), method
    np.testing.assert_allclose(correct(one, np.ones(one.n_obs, bool), "dmso"), one.X, atol=1e-6)


def test_centres_of_noise_stay_and_clear_shifts_go():
    rng, plate = np.random.default_rng(3), np.repeat(np.arange(6), 5)
    noise = rng.standard_normal((30, 400))
    assert shrink_centres(noise, plate)[1].max() < 0.2
    assert shrink_centres(noise + 3 * rng.standard_normal((6, 400))[plate], plate)[1].min() > 0.95
    uneven = np.repeat(np.arange(6), [1, 2, 5, 5, 5, 12])
    factor = shrink_centres(noise + 0.5 * rng.standard_normal((6, 400))[uneven], uneven)[1]
    assert (np.diff(factor) >= -1e-12).all() and factor[0] < factor[-1]  # few controls: shrunk more


def test_surface_never_extrapolates():
    controls = np.array([[r, c] for r in range(8) for c in (0, 1)], float)
    weights = surface_weights(np.array([[3, 1], [3, 11]]), controls)
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-9)
    assert np.abs(weights).sum(axis=1).max() < 3


@pytest.mark.parametrize(("folds", "calls"), [(3, 5), (1, 2)])
def test_a_run_corrects_each_fold_once(folds, calls, tmp_path, monkeypatch):
    """Three folds, and all wells for the final model and for its predictions; one split, and its baselines."""
    fitted_on = []

    def counted(screen, fit_on, cfg):
        fitted_on.append(np.asarray(fit_on, bool).tobytes())
        return correct_plates(screen, fit_on, cfg)

    for module in (correction, crossfit):
        monkeypatch.setattr(module, "correct_plates", counted)
    write_simulation(
        simulate_screen(SimConfig(n_plates=2, n_compounds=40, n_controls=48, n_genes=100)), tmp_path / "in"
    )
    cfg = RunConfig(
        data=DataConfig(data_dir=str(tmp_path / "in")),
        model=ModelConfig(d_model=8, n_members=1),
        train=TrainConfig(epochs=1, folds=folds, num_threads=1),
        correct=CorrectionConfig("dmso"),
        hits=HitConfig(hit_draws=500, hit_bootstrap=100),
        importance=ImportanceConfig(check_importance=False),
        biology=BiologyConfig(biology=False),
        out_dir=str(tmp_path / "out"),
    )
    screen = run(cfg)
    assert len(fitted_on) == calls
    if folds == 1:
        assert len(set(fitted_on)) == calls
    else:
        part_of_wells = [f for f in fitted_on if not all(f)]
        assert len(part_of_wells) == len(set(part_of_wells)) == folds and len(fitted_on[0]) == screen.n_obs
