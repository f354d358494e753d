"""Quality control of raw counts: planted bad wells go for the right reason, and real screens are judged as they are."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from conftest import real

from tcell_drugseq.base.defaults import ScreenConfig, SimConfig
from tcell_drugseq.base.settings import InputError
from tcell_drugseq.counts.figures import plot_qc, plot_qc_plates, plot_replicates
from tcell_drugseq.counts.normalise import centre_on_controls, fit_dispersion, normalise_counts, stabilise
from tcell_drugseq.counts.quality import (
    assay_quality,
    broken_rules,
    judge_screen,
    keep_wells,
    measure_wells,
    replicate_correlation,
    replicate_signal,
)
from tcell_drugseq.data.simulate import simulate_screen
from tcell_drugseq.training.genes import choose_genes

SMALL = SimConfig(n_plates=2, n_compounds=172, n_genes=600)


def as_counts(screen: AnnData, y: np.ndarray | None = None) -> AnnData:
    y = screen.layers["counts"] if y is None else y
    return AnnData(sp.csr_matrix(y.astype(np.float32)), obs=screen.obs.copy(), var=screen.var.copy())


@pytest.fixture(scope="module")
def clean() -> AnnData:
    return as_counts(simulate_screen(SMALL).screen)


@pytest.fixture(scope="module")
def mac_plate() -> AnnData:
    plate = anndata.read_h5ad(real("macpie_mini_mac.h5ad"))
    plate.obs = plate.obs.assign(is_control=plate.obs["is_control"].astype(bool), dose=plate.obs["Concentration_1"])
    return plate


@pytest.fixture(scope="module")
def t_cells() -> AnnData:
    """The bulk T cells as a screen: hours of activation are compounds, donors replicates, untreated cells controls."""
    cells = anndata.read_h5ad(real("tcell_activation_rade2023_bulk.h5ad"))
    hours = cells.obs["hours"].astype(str)
    kind = np.where(cells.obs["activated"] == 1, "activated " + hours + " h", "untreated " + hours + " h")
    control = (cells.obs["Condition"].astype(str) == "ctr").to_numpy()
    cells.obs = pd.DataFrame({"compound": kind, "is_control": control}, cells.obs_names)
    cells.obs.loc[control, "compound"] = "untreated"
    return cells


def empty(y: np.ndarray, mito: np.ndarray) -> np.ndarray:
    return 0 * y


def shallow(y: np.ndarray, mito: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).binomial(y, 600 / y.sum())


def dying(y: np.ndarray, mito: np.ndarray) -> np.ndarray:
    """Two thirds of the UMIs become mitochondrial, the depth stays."""
    rng = np.random.default_rng(0)
    share = y / y.sum()
    share[~mito] *= (1 / 3) / share[~mito].sum()
    share[mito] *= (2 / 3) / share[mito].sum()
    return rng.multinomial(y.sum(), share)


def few_genes(y: np.ndarray, mito: np.ndarray) -> np.ndarray:
    """All UMIs in 150 genes of which none stands out."""
    out = 0 * y
    out[np.flatnonzero(~mito)[:150]] = y.sum() // 150
    return out


def one_gene(y: np.ndarray, mito: np.ndarray) -> np.ndarray:
    """One gene takes nineteen in twenty UMIs of a well as deep as before."""
    out = np.random.default_rng(0).binomial(y, 0.05)
    out[np.flatnonzero(~mito)[0]] += y.sum() - out.sum()
    return out


def deep(y: np.ndarray, mito: np.ndarray) -> np.ndarray:
    return 12 * y


PLANTED = {
    "empty": empty,
    "min_umis": shallow,
    "max_mito": dying,
    "min_detected": few_genes,
    "max_top": one_gene,
    "outlier_mads": deep,
}


@pytest.mark.parametrize("at", [0, 150, 383])
@pytest.mark.parametrize("rule", PLANTED)
def test_a_planted_well_goes_for_its_reason_and_nothing_else_goes(clean: AnnData, rule: str, at: int):
    y = clean.X.toarray().astype(np.int64)
    y[at] = PLANTED[rule](y[at], clean.var_names.str.startswith("MT-"))
    kept, dropped = keep_wells(as_counts(clean, y))
    assert list(zip(dropped["well"], dropped["rule"], strict=True)) == [(clean.obs_names[at], rule)]
    assert kept.n_obs == clean.n_obs - 1 and clean.obs_names[at] not in kept.obs_names
    assert repr(clean.obs_names[at]) in dropped["sentence"].item()


def test_rules_can_be_switched_off(clean: AnnData):
    y = clean.X.toarray().astype(np.int64)
    for at, plant in enumerate(PLANTED.values()):
        y[at] = plant(y[at], clean.var_names.str.startswith("MT-"))
    off = ScreenConfig(min_umis=0, min_detected=0, max_mito=1, max_top=1, outlier_mads=0)
    counts = as_counts(clean, y)
    plate = clean.obs["plate"]
    assert broken_rules(measure_wells(counts), plate)["rule"].tolist() == list(PLANTED)
    assert broken_rules(measure_wells(counts), plate, off)["rule"].tolist() == ["empty"]


@pytest.mark.parametrize("seed", range(4))
def test_a_sound_screen_loses_no_well(seed: int):
    counts = as_counts(simulate_screen(SimConfig(n_plates=2, n_compounds=172, n_genes=600, seed=seed)).screen)
    assert keep_wells(counts, ScreenConfig(max_top=1))[1].empty


def test_measures_survive_a_file_and_names(clean: AnnData, tmp_path: Path):
    y = clean.X.toarray()
    y[3] = 0
    hostile = as_counts(clean, y)
    hostile.obs_names = ["=1+1", "NA", "<script>", "a,b $5", *hostile.obs_names[4:]]
    kept, dropped = keep_wells(hostile)
    assert dropped["well"].tolist() == ["a,b $5"]
    kept.write_h5ad(tmp_path / "kept.h5ad")
    again = anndata.read_h5ad(tmp_path / "kept.h5ad")
    pd.testing.assert_series_equal(again.uns["qc"]["umis"], kept.uns["qc"]["umis"], check_names=False)
    assert (again.uns["qc"]["rule"] != "").sum() == 1
    assert len(plot_qc(again).axes) == 4 and plot_qc_plates(again).axes


def test_half_a_screen_is_an_error(clean: AnnData):
    y = clean.X.toarray()
    control = clean.obs["is_control"].to_numpy()
    y[control] = 0
    with pytest.raises(InputError, match=rf"0 control wells left.*{control.sum()} by empty"):
        keep_wells(as_counts(clean, y))
    y = clean.X.toarray()
    y[(clean.obs["compound"] != clean.obs["compound"].iloc[0]) & ~control] = 0
    with pytest.raises(InputError, match="1 compounds left, expected at least 2"):
        keep_wells(as_counts(clean, y))


def test_z_prime_and_ssmd_by_hand():
    rng = np.random.default_rng(3)
    obs = pd.DataFrame({"compound": ["DMSO"] * 20 + ["PMA"] * 6 + ["x"] * 8})
    obs["is_control"] = obs["compound"] == "DMSO"
    obs["plate"] = np.arange(len(obs)) % 2
    values = rng.normal(0, 1, len(obs)) + 8 * (obs["compound"] == "PMA")
    found = assay_quality(values, obs, ["PMA"]).set_index("plate")
    for plate, part in obs.assign(v=values).groupby("plate"):
        p, n = (part.loc[part["compound"] == name, "v"].tolist() for name in ("PMA", "DMSO"))
        mean = [sum(v) / len(v) for v in (p, n)]
        var = [sum((x - m) ** 2 for x in v) / (len(v) - 1) for v, m in zip((p, n), mean, strict=True)]
        z_prime = ((mean[0] - 3 * var[0] ** 0.5) - (mean[1] + 3 * var[1] ** 0.5)) / (mean[0] - mean[1])
        row = found.loc[str(plate)]
        assert row["z_prime"] == pytest.approx(z_prime)
        assert row["ssmd"] == pytest.approx((mean[0] - mean[1]) / (var[0] + var[1]) ** 0.5)
        assert (row["positives"], row["negatives"]) == (3, 10)
    negative = assay_quality(-values, obs, ["PMA"]).set_index("plate")
    np.testing.assert_allclose(negative["z_prime"], found["z_prime"])
    np.testing.assert_allclose(negative["ssmd"], -found["ssmd"])


def test_replicates_of_noise_are_no_more_alike():
    """Seen by chance in 2 of 100 such screens (60 were drawn)."""
    found = []
    for seed in range(6):
        cfg = SimConfig(n_plates=2, n_compounds=172, n_genes=300, strength=0, seed=seed)
        found.append(judge_screen(as_counts(simulate_screen(cfg).screen)).set_index("check"))
    lost = [judged for judged in found if judged["status"]["replicates"] == "fail"]
    assert len(lost) >= 5
    for judged in lost:
        assert judged["meaning"]["the screen"].startswith("this screen carries next to nothing: AUROC")


def test_strong_compounds_stand_out():
    sim = simulate_screen(SMALL)
    found = replicate_correlation(as_counts(sim.screen)).set_index("compound")
    strong = sim.compounds.nlargest(8, "strength")["compound"]
    assert found.loc[strong, "p"].median() < 0.05 and found.loc[strong, "rank"].median() > 0.95


def test_a_plate_effect_is_no_replicate():
    """Replicates side by side on one plate, plates far apart, compounds that do nothing."""
    cfg = SimConfig(n_batches=1, n_plates=4, n_compounds=170, n_genes=400, strength=0, plate_effect=0.5)
    counts = as_counts(simulate_screen(cfg).screen)
    treated = np.flatnonzero(~counts.obs["is_control"])
    counts.obs["compound"] = counts.obs["compound"].astype(str)
    counts.obs.iloc[treated, counts.obs.columns.get_loc("compound")] = [f"c{i // 2}" for i in range(len(treated))]
    found = replicate_correlation(counts)
    assert found["rho"].mean() > -0.1 and 0.42 < found["rank"].mean() < 0.58


def test_a_sound_simulated_screen_carries_something(clean: AnnData):
    judged = judge_screen(clean).set_index("check")
    assert judged["status"]["the screen"] == "pass" and judged["status"]["replicates"] == "pass"
    assert "next to nothing" not in " ".join(judged["meaning"])


def test_the_cut_down_mac_plate_carries_next_to_nothing(mac_plate: AnnData):
    judged = judge_screen(mac_plate).set_index("check")
    last = judged.loc["the screen"]
    assert last["status"] == "fail" and last["meaning"].startswith("this screen carries next to nothing")
    assert "274 of 500 genes are zero everywhere" in last["meaning"]
    assert judged["status"]["median UMIs"] == judged["status"]["median genes"] == "fail"
    with pytest.raises(InputError, match=r"0 control wells left, expected at least 1 .*308 by min_umis"):
        keep_wells(mac_plate)
    lenient = judge_screen(mac_plate, ScreenConfig(min_umis=0, min_detected=0)).set_index("check")
    assert (
        lenient["status"]["median UMIs"] == lenient["status"]["the screen"] == "fail"
    )  # whoever lowers the rules doesn't make the plate better


def test_replicates_of_the_mac_plate_are_reported_as_they_are(mac_plate: AnnData):
    """Few as its counts are, the drugs that kill repeat; with compounds dealt anew nothing does."""
    assert replicate_signal(replicate_correlation(mac_plate)).seen
    dealt = mac_plate.copy()
    treated = np.flatnonzero(~mac_plate.obs["is_control"])
    order = np.random.default_rng(0).permutation(treated)
    for column in ("compound", "dose"):
        dealt.obs[column] = dealt.obs[column].astype(object)
        dealt.obs.iloc[treated, dealt.obs.columns.get_loc(column)] = mac_plate.obs[column].iloc[order].to_numpy()
    assert not replicate_signal(replicate_correlation(dealt)).seen


def test_bulk_t_cells_carry_something(t_cells: AnnData):
    kept, dropped = keep_wells(t_cells)
    assert dropped.empty and kept.n_obs == 44
    replicates = replicate_correlation(t_cells)
    judged = judge_screen(t_cells, replicates=replicates).set_index("check")
    assert judged["status"]["the screen"] == "pass" and judged["status"]["replicates"] == "pass"
    assert len(plot_replicates(replicates).axes) == 2
    with pytest.raises(InputError, match="found no row"):
        plot_qc_plates(kept)


def test_dispersion_of_bulk_t_cells_is_smaller_within_time_points(t_cells: AnnData):
    alone, within = fit_dispersion(t_cells), fit_dispersion(t_cells, t_cells.obs["compound"])
    assert 0 < within < 0.7 * alone
    x = normalise_counts(t_cells, ScreenConfig(norm="acosh")).X
    np.testing.assert_allclose(x, stabilise(t_cells, within).X, rtol=1e-5)


@pytest.mark.parametrize("norm", ["log", "acosh"])
def test_normalised_values_are_finite_and_deterministic(clean: AnnData, norm: str):
    first, again = (normalise_counts(clean, ScreenConfig(norm=norm, centre=True)) for _ in range(2))
    assert first.X.dtype == np.float32 and np.isfinite(first.X).all()
    np.testing.assert_array_equal(first.X, again.X)
    assert (first.layers["counts"] != clean.X).nnz == 0 and (clean.X.data % 1 == 0).all()


def test_a_plate_without_controls_is_not_centred(clean: AnnData):
    control = clean.obs["is_control"].to_numpy() & (clean.obs["plate"] != "tc2_A2").to_numpy()
    with pytest.raises(InputError, match="centre: plate tc2_A2 has 0 control wells, expected at least 3"):
        centre_on_controls(clean.X.toarray(), clean.obs["plate"], control)


@pytest.mark.parametrize("how", ["variable", "perturbed"])
def test_held_out_wells_do_not_choose_genes(clean: AnnData, how: str):
    x = normalise_counts(clean).X
    control, compound = clean.obs["is_control"].to_numpy(), clean.obs["compound"].to_numpy(str)
    teaches = np.random.default_rng(0).random(len(x)) < 0.6
    other, named = x.copy(), compound.copy()
    other[~teaches] = np.random.default_rng(1).normal(0, 50, other[~teaches].shape)
    named[~teaches] = "something else"
    chosen = choose_genes(x, 100, how, teaches, control, compound)
    np.testing.assert_array_equal(choose_genes(other, 100, how, teaches, control | ~teaches, named), chosen)
    assert chosen.sum() == 100
    assert (choose_genes(other, 100, how, None, control, compound) != chosen).any()  # they would have, unmasked
