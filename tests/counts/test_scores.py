"""Scores from counts against what is known: a real time course of activation, and planted activities."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from conftest import real
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from tcell_drugseq.base.defaults import ScreenConfig, SimConfig
from tcell_drugseq.base.settings import InputError
from tcell_drugseq.counts.gene_sets import known_gene_sets, measured, signature
from tcell_drugseq.counts.scores import checked_log, cluster_wells, label_wells, pseudotime, score_wells, t_score
from tcell_drugseq.data.simulate import Simulation, gene_table, simulate_screen

DONORS = ["D1", "D2", "D3", "D4"]


@pytest.fixture(scope="module")
def rade() -> AnnData:
    x = ad.read_h5ad(real("tcell_activation_rade2023_bulk.h5ad"))
    x.obs["is_control"] = (x.obs["activated"] == 0).to_numpy()
    x.obs["compound"] = x.obs["Condition"].astype(str)
    return x


@pytest.fixture(scope="module")
def sim() -> Simulation:
    return simulate_screen()


def of_time_course(score: pd.Series, obs: pd.DataFrame) -> tuple[list[float], float]:
    """Spearman with hours of each donor from the starting sample on; AUROC of activated against untreated."""
    course, later = (obs["activated"] == 1) | (obs["hours"] == 0), obs["hours"] > 0
    by_donor = [spearmanr(obs["hours"][w], score[w])[0] for w in (course & (obs["donor"] == d) for d in DONORS)]
    return by_donor, roc_auc_score(obs["activated"][later], score[later])


def test_time_course_is_ordered_and_separated(rade: AnnData):
    scored = score_wells(rade, ScreenConfig(root="Condition=ctr"))
    for name, ordered in {"Tscore": 0.8, "Pseudotime": 0.9}.items():
        by_donor, auroc = of_time_course(scored.obsm["scores"][name], rade.obs)
        print(name, dict(zip(DONORS, np.round(by_donor, 2), strict=True)), f"AUROC {auroc:.3f}")
        assert min(by_donor) > ordered and auroc > 0.95
    together = pd.crosstab(scored.obs["cluster"], rade.obs["activated"])
    assert (together.min(axis=1) == 0).all()  # no cluster mixes activated and other samples


def test_answer_to_the_receptor_separates_but_fades(rade: AnnData):
    log = checked_log(rade)
    score = t_score(log, "T_CELL_RECEPTOR_RESPONSE")
    by_donor, auroc = of_time_course(score, rade.obs)
    print("receptor", np.round(by_donor, 2), f"AUROC {auroc:.3f}")
    assert auroc > 0.95 and max(by_donor) < 0.5
    assert score[rade.obs["activated"] == 1].groupby(rade.obs["hours"]).mean().idxmax() == 6


def test_pseudotime_by_donor_begins_in_each(rade: AnnData):
    log, notes = checked_log(rade), []
    root = (rade.obs["hours"] == 0).to_numpy()
    time = pseudotime(log, root, by="donor", notes=notes)
    assert (time[root] == 0).all() and time.between(0, 1).all() and len(notes) == 4
    assert of_time_course(time, rade.obs)[1] > 0.9


def test_planted_programs_are_recovered(sim: Simulation):
    log = checked_log(sim.screen)
    pairs = {
        "T_CELL_ACTIVATION": "activation",
        "T_CELL_RECEPTOR_RESPONSE": "activation",
        "G2M_PHASE": "proliferation",
        "NAIVE_MEMORY": "naive",
        "CYTOTOXICITY": "cytotoxicity",
        "INTERFERON_I": "interferon",
        "GLYCOLYSIS": "glycolysis",
        "INTEGRATED_STRESS_RESPONSE": "stress",
    }
    r = {s: spearmanr(t_score(log, s), sim.wells[f"activity_{p}"])[0] for s, p in pairs.items()}
    print({name: round(float(value), 2) for name, value in r.items()})
    assert min(r.values()) > 0.5
    shuffled = np.random.default_rng(0).permutation(sim.wells["activity_activation"])
    assert abs(spearmanr(t_score(log), shuffled)[0]) < 0.1


def test_shipped_sets_are_not_the_simulators():
    planted = gene_table(2541).query("program != ''").groupby("program").gene.agg(set)
    for gene_set in known_gene_sets().values():
        assert all(set(gene_set.genes) != genes for genes in planted)
    mine = set(signature("T_CELL_ACTIVATION").genes)
    assert len(mine & planted["activation"]) < len(planted["activation"]) / 2


def test_pseudotime_from_the_middle_has_no_direction(sim: Simulation):
    log, activation = checked_log(sim.screen), sim.wells["activity_activation"]
    mechanism = sim.compounds.set_index("compound").reindex(sim.screen.obs["compound"])["mechanism"].to_numpy()
    middle = pseudotime(log, sim.screen.obs["is_control"].to_numpy(), by="batch")
    end = pseudotime(log, mechanism == "suppression", by="batch")
    print(f"from DMSO {spearmanr(middle, activation)[0]:.2f}, from the end {spearmanr(end, activation)[0]:.2f}")
    assert spearmanr(end, activation)[0] > 0.5
    assert spearmanr(middle[activation > 1], activation[activation > 1])[0] > 0
    assert spearmanr(middle[activation < -1], activation[activation < -1])[0] < 0


def test_pseudotime_crosses_a_gap_and_says_so():
    x = AnnData(np.random.default_rng(0).normal(size=(60, 50)).astype(np.float32))
    x.X[30:, :25] += 8
    notes = []
    time = pseudotime(x, np.arange(60) < 30, notes=notes)
    assert np.isfinite(time).all() and time[30:].min() > time[:30].max()
    assert "neighbours were needed to link all" in notes[0]


def test_tscore_ignores_the_order_of_wells_and_clusters_repeat(sim: Simulation):
    wells = sim.screen[:192].copy()
    turned = wells[np.random.default_rng(0).permutation(192)].copy()
    a, b = t_score(checked_log(wells)), t_score(checked_log(turned))
    assert np.allclose(a, b.reindex(a.index), atol=1e-5)
    assert adjusted_rand_score(cluster_wells(checked_log(wells)), cluster_wells(checked_log(wells))) == 1


def test_thresholds_are_in_sd_of_the_controls(sim: Simulation):
    scores = pd.DataFrame({"Tscore": t_score(checked_log(sim.screen))})
    controls = scores["Tscore"][sim.screen.obs["is_control"]]
    z = (scores["Tscore"] - controls.mean()) / controls.std()
    assert label_wells("Tscore>0.5", sim.screen.obs, scores).sum() == (z > 0.5).sum()
    assert label_wells("Tscore<-1", sim.screen.obs, scores).sum() == (z < -1).sum()


@pytest.mark.parametrize("label", ["Tscore>0.5", "batch=tc1", "cluster=0"])
def test_screen_with_scores_survives_the_disk(sim: Simulation, tmp_path: Path, label: str):
    x = AnnData(sim.screen.layers["counts"][::4], obs=sim.screen.obs[::4], var=sim.screen.var)
    scored = score_wells(x, ScreenConfig(label=label))
    scored.write_h5ad(tmp_path / "screen.h5ad")
    again = ad.read_h5ad(tmp_path / "screen.h5ad")
    assert again.obsm["scores"].equals(scored.obsm["scores"])
    assert again.obs["label"].tolist() == scored.obs["label"].tolist() and set(scored.obs["label"]) == {0, 1}
    assert list(again.uns["notes"]) == scored.uns["notes"]
    assert any("CytoTRACE: correlation with depth" in note for note in scored.uns["notes"])


def test_what_cannot_be_scored_is_refused(sim: Simulation):
    x = AnnData(sim.screen.layers["counts"][:96].astype(np.float32), obs=sim.screen.obs[:96], var=sim.screen.var)
    logged, mouse = x.copy(), x.copy()
    logged.X = np.log1p(logged.X)
    with pytest.raises(InputError, match=r"scores: well 'tc1_A1_A01'.*expected raw counts"):
        score_wells(logged)
    mouse.var_names = [gene.capitalize() for gene in mouse.var_names]
    with pytest.raises(InputError, match="mouse symbols"):
        score_wells(mouse)
    with pytest.raises(InputError, match="no 'NOTHING' in the gene sets of the package"):
        score_wells(x, ScreenConfig(signature="NOTHING"))
    with pytest.raises(InputError, match="no column 'donor'"):
        score_wells(x, ScreenConfig(pseudotime_by="donor"))


def test_l1000_measures_too_few_of_the_receptors_genes():
    x = ad.read_h5ad(real("l1000_ljp005_a375_24h.h5ad"))
    with pytest.raises(InputError, match="found 4 of its 66 genes among the 978 measured"):
        measured(signature("T_CELL_RECEPTOR_RESPONSE"), x.var_names)


def test_a_dead_plate_gives_no_clear_score():
    x = ad.read_h5ad(real("macpie_mini_mac.h5ad"))
    with pytest.raises(InputError, match=r"found \d of its 66 genes"):
        measured(signature("T_CELL_RECEPTOR_RESPONSE"), x.var_names)


def test_shallow_screen_says_that_cytotrace_is_depth():
    x = simulate_screen(SimConfig(depth=5_000, n_plates=1, n_compounds=80, n_controls=16)).screen
    scored = score_wells(x)
    note = next(note for note in scored.uns["notes"] if note.startswith("CytoTRACE"))
    assert float(note.split()[4]) > 0.4, note
