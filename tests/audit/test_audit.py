"""Audits: every fault of the simulator is seen, a clean screen is not accused, and no screen makes them crash."""

import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from conftest import real

from tcell_drugseq.audit import design, layout, mixups, names, rows, targets
from tcell_drugseq.audit.design import control_variances
from tcell_drugseq.audit.run import all_audits, audit_screen, explain_audit, run_audit, worst
from tcell_drugseq.audit.targets import held_out_r2
from tcell_drugseq.base.defaults import DataConfig, RunConfig, SimConfig
from tcell_drugseq.base.files import read_yaml
from tcell_drugseq.base.findings import AUDITS, audit, audits_of
from tcell_drugseq.base.settings import InputError, with_leaves
from tcell_drugseq.data.reading import read_h5ad, read_screen, write_bundle
from tcell_drugseq.data.simulate import simulate_screen

ROOT = Path(__file__).resolve().parents[2]
SMALL = SimConfig(n_plates=2, n_compounds=172, n_genes=300)


@pytest.fixture(scope="module")
def clean() -> AnnData:
    return simulate_screen(SMALL).screen


@pytest.fixture(scope="module")
def tiny() -> AnnData:
    """For what does not ask how much is seen."""
    return simulate_screen(SimConfig(n_plates=1, n_compounds=80, n_controls=32, n_genes=100)).screen


def run(module: ModuleType, screen: AnnData) -> pd.DataFrame:
    return pd.DataFrame([vars(f) for a in audits_of(vars(module)) for f in a.find(screen)])


def failed(table: pd.DataFrame) -> set[str]:
    return set(table.loc[table["status"] == "fail", "audit"])


def with_scores(screen: AnnData, **columns) -> AnnData:
    screen = screen.copy()
    screen.obsm["scores"] = screen.obsm["scores"].assign(**columns)
    return screen


def test_a_clean_screen_fails_nothing(clean: AnnData):
    table = audit_screen(clean)
    assert worst(table) == "warn"  # two replicates allow no lone hit, and that is said
    assert failed(table) == set()


@pytest.mark.parametrize("fault", ["threshold_label", "sum_activation"])
def test_faults_of_the_targets(fault: str):
    name = {"threshold_label": "label thresholds a score", "sum_activation": "target is a sum of the others"}[fault]
    assert failed(run(targets, simulate_screen(replace(SMALL, **{fault: True})).screen)) == {name}


LAYOUT_FAULTS = {
    "row_effect": (4.0, "position alone"),
    "column_effect": (4.0, "position alone"),
    "edge_effect": (3.0, "edge effects"),
    "edge_controls": (True, "DMSO placement"),
    "same_position": (True, "replicates in one place"),
}
MIXUPS = {"swap_plates": "plates exchanged", "rotate_plate": "plates turned", "shift_rows": "rows shifted"}


@pytest.mark.parametrize("fault", LAYOUT_FAULTS)
def test_faults_of_the_layout(fault: str):
    value, audit = LAYOUT_FAULTS[fault]
    assert audit in failed(run(layout, simulate_screen(replace(SMALL, **{fault: value})).screen))


@pytest.mark.parametrize("fault", MIXUPS)
def test_plates_that_were_mixed_up(fault: str):
    found = failed(run(mixups, simulate_screen(SimConfig(n_genes=600, **{fault: True})).screen))
    assert MIXUPS[fault] in found


@pytest.mark.parametrize("by", [1, 3, 12, 96])
@pytest.mark.parametrize("file", ["scores", "label", "counts"])
def test_rows_of_one_file_that_moved(file: str, by: int, clean: AnnData):
    screen, order = clean.copy(), np.roll(np.arange(clean.n_obs), by)
    if file == "scores":
        screen.obsm["scores"] = clean.obsm["scores"].iloc[order].set_axis(clean.obs_names)
    elif file == "counts":
        screen.layers["counts"] = clean.layers["counts"][order]
    else:
        screen.obs["label"] = clean.obs["label"].to_numpy()[order]
    found = run(rows, screen)
    assert failed(found) == {"counts of other wells" if file == "counts" else "rows moved"}
    assert found.loc[found["status"] == "fail", "tested"].str.contains(file).all()
    assert f" {by} row{'s' * (by > 1)} further up" in " ".join(found.loc[found["status"] == "fail", "meaning"])


def test_a_screen_of_noise_has_replicates_that_agree_like_strangers():
    noise = simulate_screen(replace(SMALL, strength=0.0, column_effect=4.0)).screen
    assert "replicates against strangers" in failed(run(layout, noise))


def test_all_pairs_of_score_columns_that_markers_can_tell_apart(clean: AnnData):
    for a, b in [("Tscore", "CytoTRACE"), ("Pseudotime", "CytoTRACE")]:
        swapped = clean.copy()
        swapped.obsm["scores"] = clean.obsm["scores"].rename(columns={a: b, b: a})
        assert "scores under the wrong name" in failed(run(names, swapped)), (a, b)


def test_scores_made_of_depth_and_of_expression(clean: AnnData):
    depth = np.log(clean.layers["counts"].sum(axis=1))
    noise = np.random.default_rng(0).normal(size=clean.n_obs)
    deep = with_scores(clean, CytoTRACE=depth + 0.2 * depth.std() * noise)
    assert "target follows depth" in failed(run(targets, deep))
    made = with_scores(clean, Pseudotime=clean.X[:, :30].mean(axis=1))
    assert "target is computed from X" in failed(run(targets, made))


def test_a_sum_of_few_genes_in_fewer_wells_than_genes():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 2000)) + rng.normal(size=(300, 3)) @ rng.normal(size=(3, 2000))
    y, groups = x[:, :10].sum(axis=1), np.arange(300) // 2
    assert held_out_r2(x, y, groups) > 0.99
    assert held_out_r2(x, y + 0.5 * y.std() * rng.normal(size=300), groups) < 0.9
    assert held_out_r2(x, rng.normal(size=300), groups) < 0.2


def test_control_variances_do_not_count_plate_shifts():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"is_control": np.arange(200) % 5 == 0, "plate": np.repeat(["P1", "P2", "P3", "P4"], 50)})
    x = np.zeros((200, 30))
    x[:, :3] = rng.normal(size=(200, 3)) * [9, 6, 3]
    shifted = x + np.repeat(rng.normal(0, 50, (4, 30)), 50, axis=0)
    found = control_variances(AnnData(shifted.astype(np.float32), obs=obs.set_index(obs.index.astype(str))))
    assert found == pytest.approx([81, 36, 9], rel=0.5) and len(found) == 3


AWKWARD = {
    "no place": lambda s: drop(s, "plate", "batch", "row", "column"),
    "no controls": lambda s: s[~s.obs["is_control"].to_numpy()],
    "only controls": lambda s: s[s.obs["is_control"].to_numpy()],
    "one control": lambda s: s[~s.obs["is_control"].to_numpy() | (np.cumsum(s.obs["is_control"]) == 1).to_numpy()],
    "no replicates": lambda s: s[s.obs["is_control"].to_numpy() | ~s.obs.duplicated("compound").to_numpy()],
    "two wells": lambda s: s[:2],
    "one well": lambda s: s[:1],
    "one gene": lambda s: s[:, :1],
    "no target": lambda s: drop(without_scores(s), "label", "cluster", "activation_old"),
    "constant targets": lambda s: with_scores(constant(s, label=1, activation_old=0.0), Tscore=2.0),
    "all scores missing": lambda s: with_scores(s, Tscore=np.nan, CytoTRACE=np.nan, Pseudotime=np.nan),
    "constant expression": lambda s: AnnData(np.ones_like(s.X), s.obs, s.var, obsm=dict(s.obsm)),
    "batches without plates": lambda s: drop(s, "plate"),
    "one plate": lambda s: s[(s.obs["plate"] == "tc1_A1").to_numpy()],
    "doses": lambda s: constant(s, dose=np.where(s.obs["is_control"], np.nan, 10.0 ** (np.arange(s.n_obs) % 13))),
    "words for doses": lambda s: constant(s, dose=np.where(s.obs["is_control"], "", "10 uM")),
    "categories": lambda s: constant(s, **{c: s.obs[c].astype("category") for c in ("compound", "plate", "cluster")}),
}


def drop(screen: AnnData, *columns: str) -> AnnData:
    screen = screen.copy()
    screen.obs = screen.obs.drop(columns=list(columns))
    return screen


def without_scores(screen: AnnData) -> AnnData:
    screen = screen.copy()
    del screen.obsm["scores"]
    return screen


def constant(screen: AnnData, **columns) -> AnnData:
    screen = screen.copy()
    screen.obs = screen.obs.assign(**columns)
    return screen


@pytest.mark.parametrize("name", AWKWARD)
def test_no_screen_crashes_an_audit(name: str, tiny: AnnData):
    screen = AWKWARD[name](tiny).copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        table = audit_screen(screen)
    assert len(table) > 0 and table["status"].isin(["pass", "warn", "fail"]).all()
    assert not (table["value"].isna() & (table["status"] == "pass")).any()
    assert all(table["meaning"].str.len() > 0) and len(explain_audit(table)) >= 1


def test_no_audit_changes_the_screen(tiny: AnnData):
    screen = tiny.copy()
    for one in all_audits():
        one.find(screen)
        assert np.array_equal(screen.X, tiny.X), one.name
        assert screen.obs.equals(tiny.obs) and screen.obsm["scores"].equals(tiny.obsm["scores"]), one.name


def test_order_of_wells_changes_no_verdict(clean: AnnData):
    shuffled = clean[np.random.default_rng(0).permutation(clean.n_obs)].copy()
    keys = ["audit", "tested", "status"]
    a, b = (run(design, s)[keys] for s in (clean, shuffled))
    pd.testing.assert_frame_equal(a, b)


def test_run_audit_writes_once(tmp_path: Path, tiny: AnnData):
    write_bundle(tiny, tmp_path / "data")
    cfg = with_leaves(RunConfig(), {"data_dir": str(tmp_path / "data"), "out_dir": str(tmp_path / "out")})
    table = run_audit(cfg)
    written = pd.read_csv(tmp_path / "out" / "audit.csv")
    assert written["status"].tolist() == table["status"].tolist()
    with pytest.raises(InputError, match="found an audit"):
        run_audit(cfg)
    assert len(run_audit(replace(cfg, overwrite=True))) == len(table)


def test_l1000_plate_whose_position_is_its_treatment():
    settings = read_yaml(ROOT / "reports" / "ljp005.yaml") | {"data_dir": str(real("l1000_ljp005_a375_24h.h5ad"))}
    table = audit_screen(read_screen(with_leaves(RunConfig(), settings).data))
    said = " ".join(explain_audit(table))
    assert worst(table) == "fail" and "treated or not" in said and "only other doses repeat them" in said


def test_l1000_plate_of_single_wells_can_call_nothing():
    """16 controls teach, because only controls have label 0: three or four of them are left for each null."""
    cfg = DataConfig(data_dir=str(real("l1000_cpc006.h5ad")), label="pert_type=TRT_CP")
    table = audit_screen(read_h5ad(cfg.data_dir, cfg)).set_index("audit")
    assert table.loc["smallest q", "status"] == "fail" and "p >= 0.083" in table.loc["smallest q", "meaning"]
    assert table.loc["power", "value"] == 0
    assert np.isnan(table.loc["target follows depth", "value"])  # log intensities have no depth
    assert not (table.loc["position alone"].set_index("tested")["status"].get("depth") == "fail")


def test_l1000_hairpins_stand_in_blocks():
    cfg = DataConfig(data_dir=str(real("l1000_kd_hairpins.h5ad")), label="pert_type=trt_sh", control="EMPTY_VECTOR")
    table = audit_screen(read_h5ad(cfg.data_dir, cfg)).set_index("audit")
    assert table.loc["replicates side by side", ["status", "value"]].tolist() == ["fail", 1.0]
    assert "compound and place can't be told apart" in table.loc["replicates side by side", "meaning"]
    assert "there is one plate" in table.loc["plates turned", "meaning"]


def test_mac_seq_plate_without_signal():
    cfg = DataConfig(data_dir=str(real("macpie_mini_mac.h5ad")), label="Sample_type=Positive_control", normalise=True)
    table = audit_screen(read_h5ad(cfg.data_dir, cfg))
    assert table["value"].isna().sum() > 3 and "no score" in " ".join(table["meaning"])


def test_running_a_notebook_moves_no_audit():
    """Its cells define audits of the package anew, which the registry must not take for new ones."""
    names, name = [a.name for a in all_audits()], "label thresholds a score"
    before, notebook = AUDITS[name], {"__name__": "__main__", "audit": audit}
    try:
        exec(f"@audit({name!r})\ndef audit_thresholds(screen, seed=614):\n    return []\n", notebook)
        assert [a.name for a in all_audits()] == names
        assert [a.name for a in audits_of(notebook)] == [name] and AUDITS[name].home == before.home
    finally:
        AUDITS[name] = before


def two_donors(seed: int, effect: float) -> AnnData:
    """A small plate of noise with wells of two donors, the second of whom differs in a third of the genes."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"compound": ["DMSO"] * 16 + [f"c{i // 4}" for i in range(48)], "plate": "P1"})
    obs["is_control"] = obs["compound"] == "DMSO"
    obs["donor"] = np.tile(["D1", "D2"], 32)
    x = rng.normal(size=(64, 30)) + effect * (obs["donor"].to_numpy() == "D2")[:, None] * (np.arange(30) < 10)
    return AnnData(x.astype(np.float32), obs=obs.set_index(obs.index.map("w{}".format)))


def test_a_donor_that_nobody_named_is_found_and_noise_is_not():
    found = audit_screen(two_donors(0, 2.0)).set_index("audit").loc["controls of one kind"]
    assert found["status"] == "fail" and found["tested"] == "donor" and found["value"] > 0.25
    assert "column 'donor' splits the 16 control wells and is not named in strata" in found["meaning"]
    named = two_donors(0, 2.0)
    named.obs["stratum"] = named.obs["donor"]
    assert [(f.tested, f.status) for f in design.audit_kinds_of_controls(named)] == [("columns", "pass")]
    accused = [f.status != "pass" for seed in range(60) for f in design.audit_kinds_of_controls(two_donors(seed, 0.0))]
    assert len(accused) == 60 and np.mean(accused) < 0.05
