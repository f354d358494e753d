"""Biology out of a screen: gene sets, differential expression and signatures, on planted truth and on real counts."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from conftest import real
from scipy.sparse import csr_matrix
from sklearn.metrics import adjusted_rand_score

from tcell_drugseq.base.defaults import (
    BiologyConfig,
    CompareConfig,
    DataConfig,
    HitConfig,
    ImportanceConfig,
    ModelConfig,
    RunConfig,
    SimConfig,
    TrainConfig,
)
from tcell_drugseq.biology.differential import beside_model, differential_expression
from tcell_drugseq.biology.enrichment import compound_signatures, enrich, enrich_hits, enrich_importance
from tcell_drugseq.biology.figures import plot_enrichment, plot_hit_enrichment, plot_signatures, plot_volcano
from tcell_drugseq.biology.signatures import cluster_signatures, gene_replication
from tcell_drugseq.counts.gene_sets import known_gene_sets
from tcell_drugseq.data.simulate import simulate_screen, write_simulation
from tcell_drugseq.pipeline import run

HOSTILE = ["<script>alert('x')</script>", r"cost $\frac$ & $6", "NA", 'a "quoted", β', "two\nlines"]


def programs(sim) -> dict[str, list[str]]:
    marker = sim.genes[sim.genes["marker"]]
    return {name: list(of["gene"]) for name, of in marker.groupby("program")}


@pytest.fixture(scope="module")
def planted():
    """A screen of two wells per compound, and the truth about compounds that do something."""
    sim = simulate_screen(SimConfig(n_genes=1200, seed=11))
    return sim, sim.compounds.set_index("compound")


@pytest.fixture(scope="module")
def few():
    """The same with few wells and genes, for what does not ask how much is found."""
    sim = simulate_screen(SimConfig(n_plates=1, n_compounds=80, n_controls=32, n_genes=300, seed=11))
    return sim, sim.compounds.set_index("compound")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run on a small screen with strong compounds, and the same read back from disk."""
    root = tmp_path_factory.mktemp("biology")
    sim = simulate_screen(SimConfig(n_plates=1, n_compounds=80, n_controls=32, n_genes=500, strength=2.0, seed=3))
    write_simulation(sim, root / "data")
    cfg = RunConfig(
        data=DataConfig(data_dir=str(root / "data")),
        model=ModelConfig(n_members=2),
        train=TrainConfig(folds=3, num_threads=1),
        hits=HitConfig(hit_draws=2000, hit_bootstrap=200),
        importance=ImportanceConfig(check_importance=False),
        compare=CompareConfig(baselines=False),
        biology=BiologyConfig(biology=False),
        out_dir=str(root / "out"),
    )
    return sim, run(cfg), read_h5ad(root / "out" / "results.h5ad")


def test_planted_programs_of_compounds(planted):
    sim, truth = planted
    strong = truth[truth["strength"] > 3].nlargest(20, "strength")
    found = enrich_hits(sim.screen, programs(sim), list(strong.index))
    rank = found.groupby("compound").cumcount() + 1
    found = found.assign(rank=rank).merge(strong.reset_index()[["compound", "program", "direction"]])
    main = found[found["set"] == found["program"]]
    print(main[["compound", "program", "rank", "nes", "q_genes", "q"]].to_string())
    assert (np.sign(main["nes"]) == main["direction"]).all()
    assert (main["q_genes"] < 0.05).mean() > 0.9 and main["rank"].median() <= 2
    assert (main["q"] < 0.05).mean() > 0.5


def test_compounds_without_effect_are_not_enriched():
    sim = simulate_screen(SimConfig(n_genes=600, n_compounds=120, n_plates=2, strength=0.0, seed=12))
    quiet = list(sim.compounds["compound"][:60])
    found = enrich_hits(sim.screen, programs(sim), quiet, permutations=200)
    over_wells = (found["p"] < 0.05).groupby(found["compound"]).mean()
    assert over_wells.mean() < 0.05 + 3 * over_wells.sem()
    assert (found["q"] < 0.05).mean() < 0.02
    assert (found["p_genes"] < 0.05).mean() > 0.25  # why the p over genes can't be claimed


def test_planted_programs_in_the_model(finished):
    sim, results, again = finished
    table = enrich_importance(results, programs(sim))
    print(table[["set", "nes", "p", "q"]].to_string())
    assert results.uns["importance_target"] == table["target"][0]
    activation = table.set_index("set").loc["activation"]
    assert activation["nes"] > 0 and activation["q"] < 0.05 and "activation" in set(table["set"][:3])
    assert table.set_index("set").loc["naive", "nes"] < 0
    pd.testing.assert_frame_equal(enrich_importance(again, programs(sim)), table)


def test_hits_of_a_run(finished):
    sim, results, again = finished
    hits = results.uns["hits"].query("hit")["compound"].tolist()
    assert hits
    table = enrich_hits(results, programs(sim), permutations=200)
    assert table["compound"].drop_duplicates().tolist() == hits
    again = enrich_hits(again, programs(sim), permutations=200)
    pd.testing.assert_frame_equal(again, table, rtol=1e-4)


def test_differential_expression_keeps_its_rate(planted):
    sim, truth = planted
    strong = list(truth["strength"].nlargest(8).index)
    quiet = list(truth.index[~truth["active"]][:16])
    de = differential_expression(sim.screen, strong + quiet)
    gene = sim.genes.set_index("gene").loc[de["gene"]]
    effect = truth.filter(like="effect_").rename(columns=lambda c: c.removeprefix("effect_")).assign(**{"": 0.0})
    change = [effect.at[c, p] for c, p in zip(de["compound"], gene["program"], strict=True)] * gene[
        "loading"
    ].to_numpy()
    called = (de["q"] < 0.05) & de["compound"].isin(strong)
    wrong = (change == 0) | (np.sign(change) != np.sign(de["log2fc"]))
    print(f"{called.sum()} called in {len(strong)} compounds, {wrong[called].mean():.1%} wrong")
    assert called.sum() > 20 and wrong[called].mean() < 0.15
    calls = (de["q"] < 0.05).groupby(de["compound"]).sum()[quiet]
    assert calls.median() == 0 and calls.mean() < 0.01 * sim.screen.n_vars
    assert de["log2fc"][called].corr(pd.Series(change, de.index)[called]) > 0.7


def test_model_and_counts_name_the_same_genes(finished):
    sim, results, _ = finished
    results.layers["counts"] = sim.screen[results.obs_names, results.var_names].layers["counts"]  # a bundle has none
    truth = sim.compounds.set_index("compound")
    movers = truth.index[truth["effect_activation"].abs() > 3][:12]
    beside = beside_model(differential_expression(results, list(movers)), results.var["effect_per_sd"]).set_index(
        "compound"
    )
    signs = np.sign(beside["spearman"]) == np.sign(truth["effect_activation"][beside.index])
    assert signs.mean() > 0.8 and beside["overlap"].sum() > 1.5 * beside["expected"].sum()


def test_mechanisms_come_back_as_clusters(planted):
    sim, truth = planted
    strong = truth.index[truth["strength"] > 3]
    found = cluster_signatures(compound_signatures(sim.screen, list(strong)), gene_replication(sim.screen))
    mechanism = truth["mechanism"][found.table["compound"]]
    ari = adjusted_rand_score(mechanism, found.table["cluster"])
    print(f"{len(strong)} compounds, {found.table['cluster'].nunique()} clusters, ARI {ari:.2f}")
    assert ari > 0.5


def test_sparse_is_the_same_as_dense(few):
    sim, truth = few
    names = list(truth["strength"].nlargest(2).index)
    sparse = sim.screen.copy()
    sparse.X, sparse.layers["counts"] = csr_matrix(sparse.X), csr_matrix(sparse.layers["counts"].astype(np.float32))
    np.testing.assert_allclose(compound_signatures(sparse, names), compound_signatures(sim.screen, names), atol=1e-6)
    pd.testing.assert_frame_equal(differential_expression(sparse, names), differential_expression(sim.screen, names))


def test_libraries_stay_silent(few, capfd: pytest.CaptureFixture):
    sim, truth = few
    values = pd.Series(np.random.default_rng(0).integers(0, 4, sim.screen.n_vars), sim.screen.var_names)
    enrich(values, {"least": list(values.nsmallest(60).index)})
    differential_expression(sim.screen, [truth["strength"].idxmax()])
    assert capfd.readouterr() == ("", "")


def test_figures_of_hostile_names(few, tmp_path: Path):
    sim, truth = few
    strong = list(truth["strength"].nlargest(5).index)
    screen = sim.screen.copy()
    screen.obs["compound"] = screen.obs["compound"].astype(str).replace(dict(zip(strong, HOSTILE, strict=True)))
    genes = {screen.var_names[0]: "$\\frac{", screen.var_names[1]: "<img src=x onerror=alert(1)>"}
    screen.var_names = [genes.get(g, g) for g in screen.var_names]
    sets = dict(zip([*HOSTILE, *(f"set {i}" for i in range(5))], programs(sim).values(), strict=True))
    table, de = enrich_hits(screen, sets, HOSTILE), differential_expression(screen, HOSTILE)
    assert list(dict.fromkeys(table["compound"])) == HOSTILE
    clusters = cluster_signatures(compound_signatures(screen, HOSTILE), gene_replication(screen))
    figures = [plot_hit_enrichment(table), plot_signatures(clusters)]
    for name in HOSTILE:
        figures += [plot_volcano(de, name), plot_enrichment(table[table["compound"] == name])]
    for figure in figures:
        figure.savefig(tmp_path / "figure.png", dpi=50)


@pytest.fixture(scope="module")
def activated() -> AnnData:
    """Pan-T cells of four donors, 24 h, activated beside untreated; genes with 50 reads or more on average."""
    cells = read_h5ad(real("tcell_activation_rade2023_bulk.h5ad"))
    cells = cells[cells.obs["hours"] == 24].copy()
    counts = cells.X.toarray().astype(float)
    kept = counts.mean(axis=0) >= 50
    cells = cells[:, kept].copy()
    cells.layers["counts"] = counts[:, kept]
    cells.X = np.log1p(counts[:, kept] / counts.sum(axis=1, keepdims=True) * 1e4)
    cells.obs["compound"] = np.where(cells.obs["activated"].astype(bool), "CD3/CD28", "untreated")
    cells.obs["is_control"] = cells.obs["compound"] == "untreated"
    return cells


def activation_tops(table: pd.DataFrame) -> None:
    shown = table.reset_index(drop=True).rename_axis("rank")[["set", "size", "nes", "p", "q"]]
    print(shown.head(8).to_string())
    rank = int(shown.index[shown["set"] == "T_CELL_ACTIVATION"][0]) + 1
    found = shown.set_index("set")
    assert rank <= 3 and found.loc["T_CELL_ACTIVATION", "q"] < 1e-6 and found.loc["T_CELL_ACTIVATION", "nes"] > 0
    assert found.loc["T_CELL_RECEPTOR_RESPONSE", "q"] < 0.001 and found.loc["NAIVE_MEMORY", "nes"] < 0


def test_activation_tops_real_differential_expression(activated: AnnData):
    de = differential_expression(activated, ["CD3/CD28"], block="donor")
    assert set(de["against"]) == {"donor"}
    known = de[de["p"].notna()].set_index("gene")
    for gene in ("IL2RA", "TNFRSF9", "MKI67", "MYC"):
        assert known.loc[gene, "log2fc"] > 1 and known.loc[gene, "q"] < 0.01, gene
    activation_tops(enrich(known["log2fc"] / known["se"], known_gene_sets()))


def test_activation_tops_real_signature(activated: AnnData):
    table = enrich_hits(activated, known_gene_sets(), ["CD3/CD28"])
    by_genes = table.drop(columns=["p", "q"]).rename(columns={"p_genes": "p", "q_genes": "q"})
    activation_tops(by_genes.sort_values("p"))
    exact, smallest = 1 / 70, table["smallest_p"].iloc[0]  # four against four; the tail reaches down to a third
    assert smallest == pytest.approx(exact / 3)
    assert smallest <= table.set_index("set").loc["T_CELL_ACTIVATION", "p"] <= exact
