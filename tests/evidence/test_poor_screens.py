"""Screens that support little: a run still answers, and claims no more than they support."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from anndata import AnnData

from tcell_drugseq.base.defaults import (
    BiologyConfig,
    DataConfig,
    HitConfig,
    ModelConfig,
    RunConfig,
    SimConfig,
    TrainConfig,
)
from tcell_drugseq.base.settings import InputError
from tcell_drugseq.data.reading import write_bundle
from tcell_drugseq.data.simulate import simulate_screen
from tcell_drugseq.pipeline import run

CFG = RunConfig(
    model=ModelConfig(d_model=8, n_components=8),
    train=TrainConfig(epochs=2, folds=2, num_threads=1),
    hits=HitConfig(hit_draws=500, hit_bootstrap=100),
    biology=BiologyConfig(set_permutations=100, biology_top=2),
)


@pytest.fixture(scope="module")
def screen() -> AnnData:
    torch.set_num_threads(1)
    return simulate_screen(SimConfig(n_plates=1, n_compounds=40, n_controls=20, n_genes=120, strength=3.0)).screen


def answer(screen: AnnData, tmp_path, **train) -> tuple[AnnData, dict[str, str]]:
    """Results of a run on a part of the screen, written and read as a user would, and its verdict."""
    write_bundle(screen, tmp_path / "data")
    cfg = replace(CFG, data=DataConfig(data_dir=str(tmp_path / "data")), out_dir=str(tmp_path / "out"))
    results = run(replace(cfg, train=replace(cfg.train, **train)))
    return results, results.uns["verdict"].set_index("claim")["status"].to_dict()


def test_one_control_on_each_plate(screen: AnnData, tmp_path):
    control, plate = screen.obs["is_control"].to_numpy(), screen.obs["plate"].to_numpy()
    first = np.isin(np.arange(screen.n_obs), [np.flatnonzero(control & (plate == p))[0] for p in set(plate)])
    results, verdict = answer(screen[~control | first].copy(), tmp_path)
    assert verdict["hits"] == verdict["ranking"] == "no claim"
    assert not results.uns["hits"]["hit"].any() and results.uns["hits"]["why_not"].str.contains("control").all()
    assert len(results.uns["audit"]) > 20


def test_no_replicates(screen: AnnData, tmp_path):
    once = screen.obs["is_control"] | ~screen.obs["compound"].duplicated()
    results, verdict = answer(screen[once.to_numpy()].copy(), tmp_path)
    assert verdict["hits"] == verdict["ranking"] == "no claim"
    assert results.uns["hits"]["why_not"].str.contains("no replicate").all()


def test_one_compound(screen: AnnData, tmp_path):
    one = screen.obs["compound"].iloc[np.flatnonzero(~screen.obs["is_control"])[0]]
    wells = screen[(screen.obs["is_control"] | (screen.obs["compound"] == one)).to_numpy()].copy()
    wells.obs["label"] = (np.arange(wells.n_obs) % 2).astype(int)
    results, verdict = answer(wells, tmp_path)
    assert len(results.uns["hits"]) == 1 and len(results.uns["audit"]) > 20
    assert "claim" not in {verdict["ranking"], verdict["hits"]}


def test_no_positions(screen: AnnData, tmp_path):
    nameless = screen.copy()
    nameless.obs_names = [f"sample {i}" for i in range(screen.n_obs)]
    nameless.obs = nameless.obs.drop(columns=["plate", "batch", "row", "column"])
    results, verdict = answer(nameless, tmp_path)
    assert "claim" not in set(verdict.values())
    unseen = results.uns["audit"].query("audit == 'position alone' and value != value")
    assert len(unseen) and "position" not in set(results.uns["baselines"]["model"])
    assert results.uns["hits"]["why_not"].str.contains("plates are not known").all()


def test_replicates_torn_apart_as_asked(screen: AnnData, tmp_path):
    results, _ = answer(screen, tmp_path, split="random")
    assert set(results.obs["split"]) == {"oof"} and len(results.uns["hits"]) == 40


def test_left_out_plates_and_batches(screen: AnnData, tmp_path):
    results, _ = answer(screen, tmp_path, split="batch", folds=0)
    assert results.obs.groupby("batch", observed=True)["fold"].nunique().tolist() == [1, 1]


def test_nothing_but_controls_is_refused(screen: AnnData, tmp_path):
    with pytest.raises(InputError):
        answer(screen[screen.obs["is_control"].to_numpy()][:1].copy(), tmp_path)
