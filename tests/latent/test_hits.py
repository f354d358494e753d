"""Hit calls against brute force, on awkward designs, over folds, and the layout of the next plates."""

from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tcell_drugseq.audit.layout import audit_control_places, audit_same_place
from tcell_drugseq.base.defaults import HitConfig, SimConfig
from tcell_drugseq.base.settings import InputError
from tcell_drugseq.data.simulate import compound_names, simulate_screen
from tcell_drugseq.latent.hits import COLUMNS, compound_hits, fold_hits
from tcell_drugseq.latent.next_plates import layout_efficiency, next_layout, retest_list
from tcell_drugseq.latent.nulls import compound_p_values, smallest_p_values
from tcell_drugseq.latent.shifts import control_distances, fit_spread, moderate, well_p_values
from tcell_drugseq.training.folds import Fold


def screen(n_plates=2, n_controls=4, names=("a", "b", "c"), dims=4, seed=0):
    """Noise: `n_controls` DMSO wells and each compound once on every plate."""
    rows = [(f"P{p}", "DMSO" if i < 0 else names[i]) for p in range(n_plates) for i in range(-n_controls, len(names))]
    obs = pd.DataFrame(rows, columns=["plate", "compound"])
    obs["is_control"] = obs["compound"] == "DMSO"
    obs.index = [f"w{i:03d}" for i in range(len(obs))]
    return np.random.default_rng(seed).standard_normal((len(obs), dims)), obs


def brute_force_p(z: np.ndarray, obs: pd.DataFrame, compound: str) -> float:
    """The definition, set by set, without any of the library's algebra."""
    plate, control = obs["plate"].to_numpy(), obs["is_control"].to_numpy()
    own = tuple(np.flatnonzero(obs["compound"] == compound))
    pool = [*np.flatnonzero(control), *own]
    spread = fit_spread(z[control], np.array([plate[control] == p for p in np.unique(plate)], float))

    def t(chosen: tuple) -> float:
        total, variance = np.zeros(z.shape[1]), 0.0
        for p in np.unique(plate[list(chosen)]):
            mine = [i for i in chosen if plate[i] == p]
            rest = z[[i for i in pool if plate[i] == p and i not in chosen]]
            around = ((rest - rest.mean(axis=0)) ** 2).sum()
            total += (z[mine] - rest.mean(axis=0)).sum(axis=0) / np.sqrt(moderate(spread, around, np.array(len(rest))))
            variance += len(mine) + len(mine) ** 2 / len(rest)
        return float((total**2).sum() / variance)

    def pattern(chosen: tuple) -> list[int]:
        return sorted(np.unique(plate[list(chosen)], return_counts=True)[1])

    def leaves_a_centre(chosen: tuple) -> bool:
        return all(any(plate[i] == p for i in pool if i not in chosen) for p in plate[list(chosen)])

    sets = [s for s in combinations(pool, len(own)) if pattern(s) == pattern(own) and leaves_a_centre(s)]
    assert len(sets) == pytest.approx(1 / 3 / smallest_p_values(obs)[compound])
    return float(np.mean([t(s) >= t(own) * (1 - 1e-9) for s in sets]))


def assert_tail(p: float, exact: float, smallest: float):
    """The exact p, or no less than a third of it where at most three sets, its own among them, are as far out."""
    assert (p == pytest.approx(exact)) if exact > 10 * smallest else (exact / 3.001 <= p <= 1.001 * exact)


@pytest.mark.parametrize("n_plates", [1, 2, 3])
def test_exact_p_is_that_of_brute_force(n_plates: int):
    z, obs = screen(n_plates)
    z[obs["compound"] == "a"] += 1.5
    found = compound_p_values(z, obs)
    for compound in "abc":
        assert_tail(found.loc[compound, "p"], brute_force_p(z, obs, compound), found.loc[compound, "smallest_p"])


def test_two_wells_on_one_plate():
    z, obs = screen(2, n_controls=5, names=("a", "a", "b"))
    found = compound_p_values(z, obs)
    assert found.loc["a", "wells"] == 4
    assert_tail(found.loc["a", "p"], brute_force_p(z, obs, "a"), found.loc["a", "smallest_p"])


def test_drawn_sets_come_near_the_enumerated_ones():
    z, obs = screen(3, n_controls=6)
    z[obs["compound"] == "a", 0] += 0.8
    exact = compound_p_values(z, obs)["p"]
    drawn = compound_p_values(z, obs, HitConfig(hit_draws=300))["p"]
    assert not drawn.equals(exact) and np.allclose(drawn, exact, atol=0.08)


def test_ties_count_against_a_compound():
    z, obs = screen()
    assert (compound_p_values(np.zeros_like(z), obs)["p"] == 1).all()
    distances = pd.DataFrame({"distance": [1.0, 1.0, 3.0, 1.0, 3.0 * (1 + 1e-12)]})
    p = well_p_values(distances, pd.Series([True, True, True, False, False]))
    assert p.iloc[3] == 1 and p.iloc[4] == 0.5 and p.iloc[:3].isna().all()


def test_a_plates_shift_changes_nothing():
    z, obs = screen(3)
    shifted = z + obs["plate"].map({"P0": 0.0, "P1": 50.0, "P2": -20.0}).to_numpy()[:, None]
    pd.testing.assert_frame_equal(compound_p_values(shifted, obs), compound_p_values(z, obs))
    pd.testing.assert_frame_equal(control_distances(shifted, obs), control_distances(z, obs))


def test_order_of_wells_changes_nothing():
    z, obs = screen(3)
    order = np.random.default_rng(1).permutation(len(obs))
    for cfg in (HitConfig(), HitConfig(hit_draws=100)):
        first, second = compound_hits(z, obs, z[:, 0], cfg), compound_hits(z[order], obs.iloc[order], z[order, 0], cfg)
        pd.testing.assert_frame_equal(first, second)


def test_names_survive():
    names = compound_names(40)
    z, obs = screen(2, names=names)
    for frame in (obs, obs.assign(compound=obs["compound"].astype("category"))):
        hits = compound_hits(z, frame)
        assert sorted(hits["compound"]) == sorted(names) and "NA" in set(hits["compound"])
        assert set(retest_list(hits, frame)["compound"]) <= set(names)
    layout = next_layout(names, n_plates=2)
    assert set(layout["compound"]) == {*names, "DMSO"}


def no_claim(z: np.ndarray, obs: pd.DataFrame) -> pd.DataFrame:
    hits = compound_hits(z, obs, z[:, 0])
    assert list(hits) == list(COLUMNS) and not hits["hit"].any()
    retest_list(hits, obs)
    return hits


@pytest.mark.parametrize(
    ("n_controls", "words"), [(0, "no control well"), (1, "fewer than 3 controls"), (2, "fewer than 3 controls")]
)
def test_too_few_controls_on_a_plate(n_controls: int, words: str):
    z, obs = screen(3, n_controls)
    z[obs["compound"] == "a"] += 30
    assert no_claim(z, obs)["why_not"].str.contains(words).all()


def test_one_control_in_all():
    z, obs = screen(1, 1)
    hits = no_claim(z, obs)
    assert hits["p"].isna().all() and hits["why_not"].str.contains("one control well").all()


def test_no_replicates_and_unknown_plates():
    z, obs = screen(1, 40)
    z[obs["compound"] == "a"] += 30
    hits = no_claim(z, obs).set_index("compound")
    assert hits.loc["a", "p"] == pytest.approx(1 / 123) and "no replicate" in hits.loc["a", "why_not"]
    assert hits["agreement"].isna().all()
    z, obs = screen(2, 20)
    z[obs["compound"] == "a"] += 30
    assert compound_hits(z, obs).loc[0, ["compound", "hit"]].tolist() == ["a", True]
    assert no_claim(z, obs.drop(columns="plate"))["why_not"].str.contains("plates are not known").all()


def test_nothing_but_controls_and_one_compound():
    z, obs = screen(2, 20, names=())
    assert len(compound_hits(z, obs)) == 0
    z, obs = screen(2, 20, names=("a",))
    hits = compound_hits(z, obs)
    assert len(hits) == 1 and hits.loc[0, "q"] == hits.loc[0, "p"] and hits.loc[0, "rank"] == 1


def test_refuses_missing_latents():
    z, obs = screen()
    z[3] = np.nan
    with pytest.raises(InputError, match="1 wells with missing"):
        compound_hits(z, obs)


def compound_folds(obs: pd.DataFrame, n_folds: int = 2, train_controls: bool = False) -> list[Fold]:
    """Folds that keep compounds together; controls are dealt one by one."""
    control = obs["is_control"].to_numpy()
    group = pd.factorize(obs["compound"])[0] % n_folds
    group[control] = np.arange(control.sum()) % n_folds
    none = np.zeros(len(obs), bool)
    teaches = ~control | train_controls
    return [Fold(n + 1, teaches & (group != n), none, group == n) for n in range(n_folds)]


def plate_folds(obs: pd.DataFrame) -> list[Fold]:
    """Leave one plate out; no control is ever trained on."""
    none, control = np.zeros(len(obs), bool), obs["is_control"].to_numpy()
    at = [(obs["plate"] == p).to_numpy() for p in sorted(obs["plate"].unique())]
    return [Fold(n, ~test & ~control, none, test) for n, test in enumerate(at, start=1)]


def wide_screen(n_compounds: int = 24, n_controls: int = 12, **more) -> tuple[np.ndarray, pd.DataFrame]:
    more = {
        "seed": 1
    } | more  # of seed 0 replicates happen to scatter twice as far as controls, and the null is widened
    z, obs = screen(3, n_controls, [f"c{i:02d}" for i in range(n_compounds)], **more)
    for i in range(6):
        z[obs["compound"] == f"c{i:02d}", i % 4] += 2 + i
    return z, obs


def turn(dims: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dims, dims)))[0]


def test_one_fold_that_has_seen_nothing_is_compound_hits():
    z, obs = wide_screen()
    none = np.zeros(len(obs), bool)
    hits = fold_hits({1: z}, obs, [Fold(1, none, none, ~none)], {1: z[:, 0]})
    pd.testing.assert_frame_equal(hits, compound_hits(z, obs, z[:, 0]))
    assert hits["hit"].any()


def test_each_compound_is_judged_by_the_model_that_has_not_seen_it():
    z, obs = wide_screen()
    folds = compound_folds(obs)
    latents = {f.number: np.where(f.seen[:, None], 1e6, z) for f in folds}  # what was seen is far out
    hits = fold_hits(latents, obs, folds, {1: z[:, 0], 2: z[:, 0]}).set_index("compound")
    alone = compound_hits(z, obs, z[:, 0]).set_index("compound").loc[hits.index]
    unshared = ["rank_low", "rank_high", "low", "high", "direction", "treated_spread"]  # of other wells, or drawn anew
    pd.testing.assert_frame_equal(hits.drop(columns=unshared), alone.drop(columns=unshared))
    assert np.allclose(hits["low"], alone["low"], atol=0.3) and hits["hit"].sum() >= 3


@pytest.mark.parametrize("cut", [compound_folds, plate_folds])
def test_axes_and_scale_of_a_fold_change_nothing(cut):
    z, obs = wide_screen()
    folds = cut(obs)
    first = fold_hits({f.number: z for f in folds}, obs, folds, {f.number: z[:, 0] for f in folds})
    assert first["hit"].sum() >= 3
    for scale in (10.0, 1e-3):
        latents = {f.number: z for f in folds} | {2: scale * z}
        other = fold_hits(latents, obs, folds, {f.number: z[:, 0] for f in folds})
        pd.testing.assert_frame_equal(other, first)
    latents = {f.number: z @ turn(4, f.number) * f.number + f.number for f in folds}
    other = fold_hits(latents, obs, folds, {f.number: z[:, 0] for f in folds})
    pd.testing.assert_frame_equal(other, first)


def test_a_fold_whose_model_compresses_counts_no_less():
    z, obs = wide_screen()
    folds = compound_folds(obs)
    hits = fold_hits({1: z, 2: z / 50}, obs, folds)
    planted = hits["compound"].isin([f"c{i:02d}" for i in range(2, 6)])
    assert set(hits[planted]["rank"]) == {1, 2, 3, 4}  # two of either fold


def test_folds_that_cut_through_compounds_are_one_embedding():
    z, obs = wide_screen()
    folds = plate_folds(obs)
    hits = fold_hits({f.number: z for f in folds}, obs, folds, {f.number: z[:, 0] for f in folds})
    pd.testing.assert_frame_equal(hits, compound_hits(z, obs, z[:, 0]))


def test_controls_that_were_trained_on_are_no_null():
    z, obs = wide_screen()
    control = obs["is_control"].to_numpy()
    folds = compound_folds(obs, train_controls=True)
    seen = {f.number: np.where((f.seen & control)[:, None], 1e6, z) for f in folds}
    hits = fold_hits(seen, obs, folds)
    half = [compound_hits(z[~f.seen], obs[~f.seen]) for f in folds]
    alone = pd.concat(half).set_index("compound").loc[hits["compound"]].reset_index()
    assert np.allclose(hits["p"], alone["p"]) and np.allclose(hits["distance"], alone["distance"])
    few = [Fold(f.number, f.train | (control & (np.cumsum(control) > 2)), f.val, f.test) for f in folds]
    hits = fold_hits({f.number: z for f in few}, obs, few)
    assert not hits["hit"].any()
    words = {f"{n} of 36 control wells are new to the model of fold {k}, 3 are needed" for n, k in ((1, 1), (1, 2))}
    assert set(hits["why_not"]) == words
    all_seen = [Fold(f.number, f.train | control, f.val, f.test) for f in folds]
    hits = fold_hits({f.number: z for f in all_seen}, obs, all_seen)
    assert hits["p"].isna().all() and hits["why_not"].str.startswith("0 of 36 control wells are new").all()


def test_compounds_that_every_model_has_seen():
    z, obs = wide_screen()
    folds = [
        Fold(f.number, f.train | (obs["compound"] == "c03").to_numpy(), f.val, f.test) for f in compound_folds(obs)
    ]
    hits = fold_hits({1: z, 2: z}, obs, folds).set_index("compound")
    assert hits.loc["c03", "why_not"] == "every model has seen this compound" and not hits.loc["c03", "hit"]
    assert hits["p"].isna().sum() == 1 and hits.loc["c03", "rank"] == len(hits) == 24
    everything = [Fold(1, np.ones(len(obs), bool), np.zeros(len(obs), bool), np.ones(len(obs), bool))]
    hits = fold_hits({1: z}, obs, everything)
    assert len(hits) == 24 and not hits["hit"].any() and list(hits) == list(COLUMNS)


@pytest.mark.parametrize("cut", [compound_folds, plate_folds])
def test_awkward_screens_over_folds(cut):
    def judge(z, obs, n_folds=None):
        folds = cut(obs)
        hits = fold_hits({f.number: z for f in folds}, obs, folds, {f.number: z[:, 0] for f in folds})
        assert list(hits) == list(COLUMNS) and len(hits) == obs[~obs["is_control"]]["compound"].nunique()
        return hits

    z, obs = wide_screen(n_controls=1)
    hits = judge(z, obs)
    assert not hits["hit"].any() and hits["why_not"].str.contains("fewer than 3 controls").all()
    z, obs = wide_screen()
    once = ~obs.duplicated("compound") | obs["is_control"]
    hits = judge(z[once], obs[once])
    assert not hits["hit"].any() and hits["why_not"].str.contains("no replicate").all()
    lone = obs["is_control"] | (obs["compound"] == "c05")
    assert judge(z[lone], obs[lone])[["compound", "hit"]].to_numpy().tolist() == [["c05", True]]
    assert len(judge(z[obs["is_control"]], obs[obs["is_control"]])) == 0
    names = compound_names(30)
    z, obs = screen(3, 6, names)
    hits = judge(z, obs.assign(compound=obs["compound"].astype("category")))
    assert sorted(hits["compound"]) == sorted(names) and "NA" in set(hits["compound"])
    order = np.random.default_rng(1).permutation(len(obs))
    folds = cut(obs)
    mixed = [Fold(f.number, f.train[order], f.val[order], f.test[order]) for f in folds]
    told = {f.number: z[:, 0] for f in folds}, {f.number: z[order, 0] for f in folds}
    first = fold_hits({f.number: z for f in folds}, obs, folds, told[0])
    second = fold_hits({f.number: z[order] for f in folds}, obs.iloc[order], mixed, told[1])
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize("cut", [compound_folds, plate_folds])
def test_missing_latents_of_a_fold(cut):
    z, obs = wide_screen()
    folds = cut(obs)
    broken = z.copy()
    broken[np.flatnonzero(folds[1].test)[-1]] = np.nan
    with pytest.raises(InputError, match="wells with missing"):
        fold_hits({f.number: z for f in folds} | {2: broken}, obs, folds)


@pytest.mark.parametrize("plate_wells", [96, 384])
@pytest.mark.parametrize("seed", range(3))
def test_the_layout_audits_pass_on_the_next_layout(plate_wells: int, seed: int):
    n_controls = plate_wells // 12
    n_compounds = (plate_wells - n_controls) * 3 // 2
    layout = next_layout([f"c{i}" for i in range(n_compounds)], 3, plate_wells, n_controls, seed)
    obs = layout.assign(is_control=layout["compound"] == "DMSO").set_index("well")
    found = [f for audit in (audit_control_places, audit_same_place) for f in audit(SimpleNamespace(obs=obs))]
    assert {f.tested: f.status for f in found} == dict.fromkeys(
        ["columns", "rows", "blocks", "pairs of replicates"], "pass"
    )
    in_columns = obs.sort_values(["plate", "column"]).assign(is_control=False)
    in_columns.loc[in_columns.groupby("plate").head(n_controls).index, "is_control"] = True
    found = {f.tested: f.status for f in audit_control_places(SimpleNamespace(obs=in_columns))}
    assert (found["columns"], found["blocks"]) == ("fail", "fail")


@pytest.mark.parametrize(
    ("n_compounds", "n_plates", "n_controls", "n_replicates"), [(88, 2, 8, 2), (7, 4, 16, 3), (150, 4, 5, 2)]
)
def test_next_layout(n_compounds: int, n_plates: int, n_controls: int, n_replicates: int):
    layout = next_layout([f"c{i}" for i in range(n_compounds)], n_plates, 96, n_controls, 1, n_replicates)
    assert layout["well"].is_unique and len(layout) == n_compounds * n_replicates + n_plates * n_controls
    treated = layout[layout["compound"] != "DMSO"].assign(place=layout["row"] + layout["column"].astype(str))
    by = treated.groupby("compound")
    assert (by["plate"].nunique() == n_replicates).all() and (by["place"].nunique() == n_replicates).all()
    dmso = layout[layout["compound"] == "DMSO"].groupby("plate")
    assert (dmso["row"].nunique() == min(8, n_controls)).all()
    assert (dmso["column"].nunique() == min(12, n_controls)).all()


@pytest.mark.parametrize("seed", range(20))
def test_plates_of_the_next_layout_are_one_piece(seed: int):
    """Sixteen wells of eight compounds on eight plates leave no link to spare."""
    for n_compounds, n_plates, n_replicates in ((8, 8, 2), (12, 8, 2), (20, 6, 3), (40, 4, 2)):
        names = [f"c{i}" for i in range(n_compounds)]
        layout = next_layout(names, n_plates, 96, 8, seed, n_replicates)
        treated = layout[layout["compound"] != "DMSO"]
        assert np.ptp(treated["plate"].value_counts()) <= 1
        assert layout_efficiency(layout) > 0.3


def test_noise_gives_no_hits_and_a_planted_screen_gives_the_planted_ones():
    from sklearn.decomposition import PCA

    cfg = SimConfig(n_genes=200)
    noise, planted = (simulate_screen(replace(cfg, strength=s)) for s in (0.0, 2.0))
    calls = [compound_hits(PCA(32).fit_transform(s.screen.X), s.screen.obs) for s in (noise, planted)]
    assert not calls[0]["hit"].any()
    called = calls[1][calls[1]["hit"]]["compound"]
    assert len(called) > 20 and called.isin(planted.compounds.query("active")["compound"]).mean() > 0.8
