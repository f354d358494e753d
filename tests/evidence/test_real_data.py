"""Real public files that nobody prepared for this project; skipped where they are not at hand."""

from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from conftest import real

from tcell_drugseq.base.defaults import DataConfig, RunConfig
from tcell_drugseq.base.files import read_yaml
from tcell_drugseq.base.settings import InputError, with_leaves
from tcell_drugseq.data.reading import find_problems, read_h5ad, read_screen, score_names, screen_hash
from tcell_drugseq.pipeline import run

ROOT = Path(__file__).resolve().parents[2]


def test_l1000_plate(tmp_path: Path):
    cfg = DataConfig(
        data_dir=str(real("l1000_ljp005_a375_24h.h5ad")), scores=("log10(dose_um)",), label="pert_type=trt_poscon"
    )
    screen = read_screen(cfg)
    assert screen.shape == (377, 978) and screen.X.dtype == np.float32
    assert screen.obs["is_control"].sum() == 26 and screen.obs["label"].sum() == 23
    assert screen.obsm["scores"]["log10(dose_um)"].isna().sum() == 26  # DMSO has no dose
    assert screen.obs["plate"].unique().tolist() == ["LJP005_A375_24H_X1"]
    assert (screen.obs["row"] + screen.obs["column"].map("{:02d}".format)).tolist() == screen.obs["well"].tolist()
    assert len(find_problems(cfg)) == 0
    screen.write_h5ad(tmp_path / "screen.h5ad")
    assert screen_hash(read_h5ad(tmp_path / "screen.h5ad")) == screen.uns["source"]["hash"]


def test_bulk_counts_of_t_cells():
    cfg = DataConfig(
        data_dir=str(real("tcell_activation_rade2023_bulk.h5ad")),
        compound="Condition",
        control="ctr",
        label="activated",
        scores=("log1p(hours)",),
        normalise=True,
    )
    screen = read_screen(cfg)
    assert screen.n_obs == 44 and screen.obs["label"].sum() == 20 and screen.obs["is_control"].sum() == 20
    assert score_names(screen) == ["log1p(hours)"] and not screen.obsm["scores"].isna().any(axis=None)
    assert "row" not in screen.obs  # donors D1 to D4 are not row D
    assert (screen.layers["counts"] % 1 == 0).all()
    assert sorted(screen.obs["donor"].unique()) == ["D1", "D2", "D3", "D4"]


def test_mac_seq_plate(caplog: pytest.LogCaptureFixture):
    path = str(real("macpie_mini_mac.h5ad"))
    with pytest.raises(InputError, match="neither a label nor a score"):
        read_h5ad(path)
    caplog.clear()
    screen = read_h5ad(path, DataConfig(label="Sample_type=Positive_control", normalise=True))
    assert screen.shape == (262, 215)  # 46 wells of medium are set aside; 285 genes without a single count are dropped
    assert "and 280 more" in caplog.text
    assert screen.obs["is_control"].sum() == 19
    assert (screen.obs["row"] + screen.obs["column"].map("{:02d}".format)).tolist() == screen.obs["well"].tolist()
    assert read_h5ad(path, need_targets=False).shape == (262, 500)


def run_as_written(name: str, out: Path, **changes: object) -> AnnData:
    """The run of a parameter file in `reports/`, with the data where they are now."""
    settings = read_yaml(ROOT / "reports" / name) | changes
    data = str(real(Path(settings["data_dir"]).name))
    return run(with_leaves(RunConfig(), settings | {"data_dir": data, "out_dir": str(out), "num_threads": 1}, name))


def test_mek_and_braf_inhibitors_are_far_from_dmso(tmp_path: Path):
    results = run_as_written("ljp005.yaml", tmp_path / "out", biology=False)
    drugs = results.obs.groupby("compound")["pert_type"].first()
    ranked = [c for c in results.uns["compounds"]["compound"] if drugs[c] == "trt_cp"]
    assert len(ranked) == 55
    inhibitors = ["PD-0325901", "PD-184352", "trametinib", "AZD-8330", "PLX-4720", "vemurafenib"]
    ranks = sorted(ranked.index(drug) + 1 for drug in inhibitors)
    assert ranks[0] <= 5 and np.median(ranks) <= 10, ranks  # plain PCA: 2, 4, 7, 8, 10, 12
    audit = results.uns["audit"]
    failed = {(row.audit, row.tested) for row in audit[audit["status"] == "fail"].itertuples()}
    assert {("DMSO placement", "rows"), ("DMSO placement", "blocks")} <= failed  # controls in blocks of rows
    assert ("position alone", "log10(dose_um)") in failed  # doses run along the plate
    assert "claim" not in set(results.uns["verdict"]["status"])


def test_a_plate_that_carries_nothing_gets_no_claim(tmp_path: Path):
    results = run_as_written("mini_mac.yaml", tmp_path / "out", biology=False)
    verdict = results.uns["verdict"].set_index("claim")["status"]
    assert (verdict == "no claim").all(), results.uns["verdict"].to_string()


def test_activation_is_recognised_in_a_donor_never_seen(tmp_path: Path):
    model_alone = {"baselines": False, "check_importance": False, "biology": False}
    results = run_as_written("rade2023.yaml", tmp_path / "out", **model_alone)
    assert results.obs.groupby("donor")["fold"].nunique().max() == 1
    held_out = results.uns["metrics"].query("model == 'ensemble' and split == 'oof'")
    found = held_out.set_index(["target", "metric"])["value"]
    assert found["label", "AUROC"] > 0.95 and found["log1p(hours)", "R2"] > 0.6
