"""Dose-response curves: against SciPy, planted truth, awkward plates and a real one; doses of the simulator."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from conftest import real
from scipy.optimize import curve_fit
from scipy.stats import binom, f

from tcell_drugseq.base.defaults import DataConfig, SimConfig
from tcell_drugseq.base.settings import InputError
from tcell_drugseq.biology.dose import (
    COLUMNS,
    SHAPES,
    VERDICTS,
    curve_values,
    dose_response,
    dose_share,
    fit_curve,
)
from tcell_drugseq.biology.figures import plot_doses
from tcell_drugseq.data.reading import read_h5ad
from tcell_drugseq.data.simulate import simulate_screen, write_simulation

DOSES = 10 / 3 ** np.arange(6)


def wells(n_controls=20, n_replicates=2):
    return np.r_[np.zeros(n_controls), np.repeat(DOSES, n_replicates)]


def made_up(curves: dict[str, tuple], n_replicates=2, seed=0, plates=1) -> AnnData:
    """A value `y` with noise of SD 1: compound -> (log10 EC50, slope, full effect)."""
    rng = np.random.default_rng(seed)
    rows = [("DMSO", 0.0, 0.0)] * 24
    for name, (log_ec50, hill, full) in curves.items():
        rows += [(name, d, full * dose_share(d, log_ec50, hill)) for d in np.repeat(DOSES, n_replicates)]
    obs = pd.DataFrame(rows, columns=["compound", "dose", "y"])
    obs["y"] += rng.standard_normal(len(obs))
    obs["is_control"] = obs["compound"] == "DMSO"
    obs["plate"] = [f"P{i % plates}" for i in range(len(obs))]
    return AnnData(np.zeros((len(obs), 2), np.float32), obs=obs.set_axis([f"w{i:04d}" for i in range(len(obs))]))


@pytest.mark.parametrize("kind", ["value", "distance"])
@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_that_of_scipy(kind: str, seed: int):
    planted, x = (-0.3, 1.2, 2.0, 6.0), wells()
    y = curve_values(x, *planted, kind) + 0.3 * np.random.default_rng(seed).standard_normal(len(x))
    found = fit_curve(x, y, kind)
    bottom = found.bottom if kind == "distance" else 0.0  # what the variance of a distance grows from
    plain, _ = curve_fit(lambda d, *p: curve_values(d, *p, kind), x, y, p0=planted)
    sd = np.sqrt(1 - (plain[2] / curve_values(x, *plain, kind)) ** 2 / 2) if bottom else np.ones(len(x))
    theirs, _ = curve_fit(lambda d, *p: curve_values(d, *p, kind), x, y, p0=planted, sigma=sd)
    assert [np.log10(found.ec50), found.hill, found.bottom, found.top] == pytest.approx(theirs, rel=2e-3, abs=2e-3)
    rss = (((y - curve_values(x, *theirs, kind)) / sd) ** 2).sum()
    s2, free = rss / (len(x) - 4), len(x) - 4
    within = ((y - pd.Series(y).groupby(x).transform("mean")) / sd) ** 2
    treated, control = within[x > 0].sum() / len(DOSES), within[x == 0].sum() / 19
    if f.sf(treated / control, len(DOSES), 19) < 0.05:  # noisier than control wells: their own spread
        s2, free = treated, len(DOSES)
    limit = rss + s2 * f.ppf(0.95, 1, free)
    for end in (found.low, found.high):  # the profile by SciPy, with the EC50 held

        def held(d, hill, low, top, end=end):
            return curve_values(d, np.log10(end), hill, low, top, kind)

        p, _ = curve_fit(held, x, y, p0=theirs[1:], sigma=sd)
        assert (((y - held(x, *p)) / sd) ** 2).sum() == pytest.approx(limit, rel=5e-3)


def test_p_is_the_f_test():
    x = wells()
    y = np.random.default_rng(5).standard_normal(len(x)) + 2 * dose_share(x, 0.0, 1.0)
    found = fit_curve(x, y)
    rss = ((y - curve_values(x, np.log10(found.midpoint), found.hill, found.bottom, found.top)) ** 2).sum()
    gain = ((y - y.mean()) ** 2).sum() - rss
    assert found.p == pytest.approx(f.sf(gain / 3 / (rss / (len(x) - 4)), 3, len(x) - 4), rel=1e-6)


@pytest.mark.parametrize("kind", ["value", "distance"])
def test_intervals_hold_at_the_stated_rate(kind: str):
    rng, x, holds = np.random.default_rng(11), wells(24), []
    for _ in range(220):
        log_ec50, hill, full = rng.uniform(-1.8, 1.4), np.exp(rng.uniform(*np.log([0.7, 2.5]))), rng.uniform(5, 12)
        z = rng.standard_normal((len(x), 16 if kind == "distance" else 1))
        z[:, 0] += full * dose_share(x, log_ec50, hill)
        found = fit_curve(x, np.linalg.norm(z, axis=1) if kind == "distance" else z[:, 0], kind)
        if found.status != "flat":
            holds.append(found.low <= 10**log_ec50 <= found.high)
    assert len(holds) > 180
    assert binom.ppf(0.001, len(holds), 0.95) <= sum(holds), np.mean(holds)
    assert np.mean(holds) < 0.995  # an interval that always holds says nothing


def test_noise_is_flat_and_effects_are_not():
    null = {f"n{i}": (0.0, 1.0, 0.0) for i in range(150)}
    real = {f"c{i}": (-0.5 + 0.05 * i, 1.2, (-1) ** i * 9.0) for i in range(20)}
    table = dose_response(made_up(null | real), "y").set_index("compound")
    assert list(table.columns) == list(COLUMNS[1:]) and set(table["status"]) <= set(VERDICTS)
    assert (table.loc[list(real), "status"] != "flat").all()
    assert (table.loc[list(null), "status"] != "flat").sum() <= 4
    flat = table[table["status"] == "flat"]
    assert flat[["ec50", "ec50_low", "ec50_high", "hill"]].isna().all(axis=None)
    assert flat["verdict"].str.startswith("flat").all() and (flat["q"] >= 0.05).all()


def off_curve(name: str, size: float, d: np.ndarray) -> np.ndarray:
    return (
        size
        * {
            "plain": lambda: dose_share(d, -0.2, 1.5),
            "bell": lambda: 1.5 * dose_share(d, -0.6, 3) * (1 - dose_share(d, 0.4, 3)),
            "hormetic": lambda: 1.6 * dose_share(d, 0.4, 3) - 0.7 * dose_share(d, -0.9, 3),
            "steps": lambda: (dose_share(d, -1.1, 6) + dose_share(d, 0.8, 6)) / 2,
            "one dose": lambda: (np.isclose(d, DOSES[2])).astype(float),
            "irregular": lambda: np.isin(d, DOSES[1::2]).astype(float),
        }[name]()
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["plain", *SHAPES])
def test_a_response_that_is_no_curve_gets_its_shape_and_no_ec50(name: str, sign: int):
    rng, x = np.random.default_rng(17), wells(24, 3)
    for _ in range(5):
        found = fit_curve(x, 3 + sign * off_curve(name, 24, x) + rng.standard_normal(len(x)))
        if name == "plain":
            assert (found.status, found.fit) == ("ec50", "fits") and found.p_trend < 1e-4 and sign * found.trend > 0.5
            continue
        assert (found.status, found.fit) == (name, "does not fit") and found.p_fit < 0.01, found
        assert found.verdict.startswith(f"{name}: ") and "no EC50" in found.verdict
        assert np.isnan([found.ec50, found.low, found.high, found.hill, found.top, found.midpoint]).all()


def test_lack_of_fit_is_the_f_test_against_pure_error():
    rng, x = np.random.default_rng(23), wells(24, 3)
    y = off_curve("plain", 6, x) + rng.standard_normal(len(x))
    found = fit_curve(x, y)
    groups = pd.Series(y).groupby(x)
    within = (y - groups.transform("mean")) ** 2
    rss = ((y - curve_values(x, np.log10(found.midpoint), found.hill, found.bottom, found.top)) ** 2).sum()
    pure = max((within.sum() / (len(x) - 7), len(x) - 7), (within[x > 0].sum() / 12, 12))
    assert found.p_fit == pytest.approx(f.sf((rss - within.sum()) / 3 / pure[0], 3, pure[1]), rel=1e-6)
    assert found.spread == pytest.approx(np.sqrt(within[x > 0].sum() / 12 / (within[x == 0].sum() / 23)))


def test_plain_curves_are_rarely_refused():
    rng, x = np.random.default_rng(29), wells(24, 2)
    fits = []
    for times in (1, 2, 3):
        for _ in range(60):
            y = times * 8 * dose_share(x, rng.uniform(-1, 0.5), rng.uniform(0.8, 2.5))
            fits.append(fit_curve(x, y + rng.standard_normal(len(x)) * np.where(x > 0, times, 1)).fit)
    assert set(fits) <= {"fits", "does not fit"} and fits.count("does not fit") <= binom.ppf(0.999, len(fits), 0.03)


def test_one_well_per_dose_says_nothing_of_the_fit():
    x = wells(24, 1)
    y = off_curve("bell", 20, x) + np.random.default_rng(31).standard_normal(len(x))
    found = fit_curve(x, y)
    assert found.fit == "not tested: one well per dose" and np.isnan([found.p_fit, found.spread]).all()
    few = fit_curve(*zip(*[(0, 1), (0, 2), (1, 2), (1, 3), (3, 5), (3, 6), (9, 6), (9, 7)], strict=True), min_doses=3)
    assert few.fit == "not tested: too few doses"


@pytest.mark.parametrize("times", [1, 2, 3])
def test_intervals_hold_where_treated_wells_are_noisier(times: int):
    rng, x, holds = np.random.default_rng(37), wells(24, 2), []
    for _ in range(100):
        log_ec50 = rng.uniform(-1.2, 0.8)
        y = times * rng.uniform(6, 10) * dose_share(x, log_ec50, 1.2)
        found = fit_curve(x, y + rng.standard_normal(len(x)) * np.where(x > 0, times, 1))
        if np.isfinite(found.low):
            holds.append(found.low <= 10**log_ec50 <= found.high)
    assert len(holds) > 80 and sum(holds) >= binom.ppf(0.001, len(holds), 0.95), np.mean(holds)


def test_the_trend_is_that_of_jonckheere_and_terpstra():
    rng, x = np.random.default_rng(41), wells(12, 2)
    y = dose_share(x, 0.0, 1.0) + rng.standard_normal(len(x))

    def pairs(y):  # Jonckheere-Terpstra: pairs of wells at unlike doses that rise, less those that fall
        return (np.sign(y[:, None] - y) * (x[:, None] > x)).sum()

    null = [pairs(rng.permutation(y)) for _ in range(4000)]
    exact = np.mean(np.abs(null) >= abs(pairs(y)))
    assert fit_curve(x, y).p_trend == pytest.approx(exact, abs=0.03)


def test_treated_wells_of_dose_zero_are_named(caplog):
    screen = made_up({"a": (-0.4, 1.5, 12.0), 'NA, "β<script>"': (-0.4, 1.5, 12.0)})
    assert not caplog.records and dose_response(screen, "y")["wells"].eq(12).all() and not caplog.records
    other = screen.obs_names[screen.obs["compound"] == 'NA, "β<script>"'][:2]
    screen.obs.loc[other, "dose"] = 0
    table = dose_response(screen, "y").set_index("compound")
    assert table.loc['NA, "β<script>"', "wells"] == 10
    assert all(part in caplog.text for part in (*other, "β<script>", "2 treated wells")) and "'a'" not in caplog.text


def test_an_ec50_outside_the_doses_is_a_bound():
    curves = {"far": (1.9, 1.3, 300.0), "near": (-2.6, 1.3, 12.0), "middle": (-0.4, 1.5, 12.0)}
    table = dose_response(made_up(curves), "y").set_index("compound")
    assert table["status"].to_dict() == {"far": "above", "near": "below", "middle": "ec50"}
    assert table.loc["far", "verdict"].startswith("EC50 > 10 uM") and table.loc["near", "verdict"].startswith(
        "EC50 < 0.041"
    )
    assert table.loc[["far", "near"], "ec50"].isna().all()
    assert np.isinf(table.loc["far", "ec50_high"]) and table.loc["near", "ec50_low"] == 0
    assert table.loc["middle", "ec50_low"] < 10**-0.4 < table.loc["middle", "ec50_high"]


def test_a_unit_changes_nothing_but_the_unit():
    screen = made_up({"a": (-0.4, 1.5, 12.0)})
    nano = screen.copy()
    nano.obs["dose"] *= 1_000
    nano.obs["unit"] = np.where(nano.obs["is_control"], "", "nM")
    a, b = (dose_response(s, "y").loc[0] for s in (screen, nano))
    assert [b["ec50"], b["ec50_low"], b["ec50_high"]] == pytest.approx(
        [1e3 * a[c] for c in ("ec50", "ec50_low", "ec50_high")]
    )
    assert " nM " in b["verdict"] and b["p"] == pytest.approx(a["p"])


def test_order_of_wells_and_shifts_of_plates_do_not_matter():
    screen = made_up({"a": (-0.4, 1.5, 12.0), "b": (0.0, 1.0, 0.0)}, plates=2)
    table = dose_response(screen, "y")
    turned = screen[np.random.default_rng(0).permutation(screen.n_obs)].copy()
    pd.testing.assert_frame_equal(dose_response(turned, "y"), table, rtol=1e-4)
    shifted = screen.copy()
    shifted.obs["y"] += 50 * (shifted.obs["plate"] == "P1")
    moved = dose_response(shifted, "y")
    assert moved["ec50"].to_numpy() == pytest.approx(table["ec50"].to_numpy(), rel=1e-3, nan_ok=True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda o: o.drop(columns="dose"), "no obs column 'dose'"),
        (
            lambda o: o.assign(dose=np.where(o["is_control"], 0.0, 3.0)),
            "most doses of one compound: found 1, expected at least 4",
        ),
        (lambda o: o.assign(dose=-o["dose"]), "well w0024: found -10.0, expected an amount above 0"),
        (lambda o: o.assign(dose=o["dose"].astype(str) + " uM"), "well w0024: found '10.0 uM'"),
        (lambda o: o.assign(unit=np.where(o.index < "w0030", "uM", "nM")), "unit: found 'nM', 'uM', expected one unit"),
        (lambda o: o.assign(is_control=False), "found 0 control wells"),
        (lambda o: o.drop(columns="y"), "'y': found no such column"),
        (lambda o: o.assign(y="high"), "'y': found text ('high')"),
    ],
)
def test_bad_input_is_named(change, told: str):
    screen = made_up({"a": (0.0, 1.0, 9.0)})
    with pytest.raises(InputError) as error:
        dose_response(AnnData(screen.X, obs=change(screen.obs.copy())), "y")
    assert told in str(error.value)


def test_wells_without_a_dose_and_compounds_with_few_get_no_curve():
    screen = made_up({"a": (-0.4, 1.5, 12.0), "b": (-0.4, 1.5, 12.0), "$NA<b>": (0.0, 1.0, 0.0)})
    obs = screen.obs
    obs.loc[(obs["compound"] == "b") & (obs["dose"] > 0.2), "dose"] = np.nan
    table = dose_response(screen, "y").set_index("compound")
    assert table.loc["b", ["wells", "n_doses", "status"]].tolist() == [4, 2, "too few doses"]
    assert np.isnan(table.loc["b", "p"]) and table.index[-1] == "b"
    figure = plot_doses(table.reset_index(), screen, "y")
    assert len(figure.axes) == 3 and any(r"\$NA<b>" in ax.get_title() for ax in figure.axes)
    assert len(dose_response(screen, "y", min_doses=2)["p"].dropna()) == 3


def test_a_constant_and_no_noise_at_all():
    x = wells()
    assert fit_curve(x, np.full(len(x), 3.0)).status == "flat"
    assert fit_curve(x, np.zeros(len(x)), "distance").status == "flat"
    exact = fit_curve(x, curve_values(x, -0.4, 1.5, 1.0, 5.0))
    assert (
        exact.ec50 == pytest.approx(10**-0.4, rel=1e-3)
        and exact.low <= exact.ec50 * 1.01
        and exact.high >= exact.ec50 * 0.99
    )


def test_doses_of_the_simulator(tmp_path: Path):
    cfg = SimConfig(n_doses=4, n_compounds=20, n_plates=1, n_controls=16, n_genes=100, active_fraction=0.5)
    sim, one = (
        simulate_screen(cfg),
        simulate_screen(SimConfig(n_compounds=20, n_plates=1, n_controls=16, n_genes=100, active_fraction=0.5)),
    )
    treated = sim.screen.obs[~sim.screen.obs["is_control"]]
    assert treated.groupby(["compound", "dose"]).size().eq(2).all() and len(treated) == 160
    assert sorted(treated["dose"].unique(), reverse=True) == pytest.approx([10, 10 / 3, 10 / 9, 10 / 27])
    assert (sim.screen.obs.loc[sim.screen.obs["is_control"], "dose"] == 0).all()
    assert "dose" not in one.screen.obs and "ec50" not in one.compounds and "true_dose" not in one.wells
    pd.testing.assert_frame_equal(sim.compounds[one.compounds.columns], one.compounds)
    assert sim.compounds["ec50"].notna().equals(sim.compounds["active"])
    write_simulation(sim, tmp_path / "sim")
    truth = pd.read_csv(tmp_path / "sim" / "truth_wells.csv", index_col="well")
    assert truth.loc[sim.screen.obs_names, "true_dose"].to_numpy() == pytest.approx(sim.screen.obs["dose"].to_numpy())


def test_planted_ec50s_of_a_simulated_screen():
    held = curves = wrong = 0
    for seed in range(2):
        cfg = SimConfig(
            seed=seed, n_doses=6, n_compounds=60, n_plates=1, plate_wells=384, n_controls=48, n_genes=100,
            active_fraction=0.6, strength=2.0,
        )  # fmt: skip
        sim = simulate_screen(cfg)
        both = dose_response(sim.screen, "Tscore").merge(sim.compounds, on="compound", suffixes=("", "_true"))
        found = both[(both["effect_activation"].abs() > 0.01) & (both["status"] != "flat")]
        held += found["ec50_true"].between(found["ec50_low"], found["ec50_high"]).sum()
        curves += len(found)
        wrong += (both.loc[~both["active"], "status"] != "flat").sum()
    assert curves >= 20 and held >= binom.ppf(0.001, curves, 0.95) and wrong <= 0.15 * curves


def test_inhibitors_of_mek_and_braf_on_a_real_plate():
    screen = read_h5ad(real("l1000_ljp005_a375_24h.h5ad"), DataConfig(dose="dose_um", label="pert_type=trt_poscon"))
    table = dose_response(screen).set_index("compound")
    pathway = ["trametinib", "PD-0325901", "AZD-8330", "PD-184352", "vemurafenib", "PLX-4720"]
    assert len(table) == 59 and (table.loc[pathway, "status"] != "flat").all()
    assert (table.loc[pathway, "status"] != "above").all() and not (table.loc[pathway, "ec50"] > 3).any()
    flat = (table["status"] == "flat").sum()
    assert 5 < flat < 45, flat
