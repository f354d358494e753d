"""Hit calls against brute force, on awkward designs, and on real plates."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tcell_drugseq.config import HitConfig, InputError, SimConfig
from tcell_drugseq.hits import (
    COLUMNS,
    compound_hits,
    compound_p_values,
    control_distances,
    next_layout,
    retest_list,
    well_p_values,
)
from tcell_drugseq.simulate import compound_names, simulate_screen

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def screen(n_plates=2, n_controls=4, names=("a", "b", "c"), dims=4, seed=0):
    """Noise: `n_controls` DMSO wells and each compound once on every plate."""
    rows = [(f"P{p}", "DMSO" if i < 0 else names[i]) for p in range(n_plates) for i in range(-n_controls, len(names))]
    obs = pd.DataFrame(rows, columns=["plate", "compound"])
    obs["is_control"] = obs["compound"] == "DMSO"
    obs.index = [f"w{i:03d}" for i in range(len(obs))]
    return np.random.default_rng(seed).standard_normal((len(obs), dims)), obs


def brute_force_p(z: np.ndarray, obs: pd.DataFrame, compound: str) -> float:
    """The definition, set by set, without any of the library's algebra."""

    def t(chosen: tuple) -> float:
        weight = np.zeros(len(obs))
        for i in chosen:
            near = np.flatnonzero(obs["is_control"] & (obs["plate"] == obs["plate"].iloc[i]))
            rest = np.setdiff1d(near, chosen)
            weight[i] += 1
            weight[rest] -= 1 / len(rest)
        return float(((weight @ z) ** 2).sum() / (weight**2).sum())

    own = tuple(np.flatnonzero(obs["compound"] == compound))
    sets = list(combinations([*np.flatnonzero(obs["is_control"]), *own], len(own)))
    return float(np.mean([t(s) >= t(own) * (1 - 1e-9) for s in sets]))


@pytest.mark.parametrize("n_plates", [1, 2, 3])
def test_exact_p_is_that_of_brute_force(n_plates: int):
    z, obs = screen(n_plates)
    z[obs["compound"] == "a"] += 1.5
    found = compound_p_values(z, obs)
    for compound in "abc":
        assert found.loc[compound, "p"] == pytest.approx(brute_force_p(z, obs, compound))


def test_two_wells_on_one_plate():
    z, obs = screen(2, n_controls=5, names=("a", "a", "b"))
    found = compound_p_values(z, obs)
    assert found.loc["a", "wells"] == 4
    assert found.loc["a", "p"] == pytest.approx(brute_force_p(z, obs, "a"))


def test_drawn_sets_come_near_the_enumerated_ones():
    z, obs = screen(3, n_controls=6)
    z[obs["compound"] == "a", 0] += 0.8
    exact = compound_p_values(z, obs)["p"]
    drawn = compound_p_values(z, obs, HitConfig(hit_draws=500))["p"]
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
    assert hits.loc["a", "p"] == 1 / 41 and "no replicate" in hits.loc["a", "why_not"]
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


def test_noise_gives_no_hits_and_a_planted_screen_gives_the_planted_ones():
    from sklearn.decomposition import PCA

    cfg = SimConfig(n_genes=200)
    noise, planted = (simulate_screen(replace(cfg, strength=s)) for s in (0.0, 2.0))
    calls = [compound_hits(PCA(32).fit_transform(s.screen.X), s.screen.obs) for s in (noise, planted)]
    assert not calls[0]["hit"].any()
    called = calls[1][calls[1]["hit"]]["compound"]
    assert len(called) > 20 and called.isin(planted.compounds.query("active")["compound"]).mean() > 0.8
