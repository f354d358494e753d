"""Real public files that nobody prepared for this project; skipped where they are not at hand."""

from pathlib import Path

import numpy as np
import pytest

from tcell_drugseq.config import DataConfig, InputError
from tcell_drugseq.data import find_problems, read_h5ad, read_screen, score_names, screen_hash

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def real(name: str) -> str:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not at hand; it is not part of the repository")
    return str(DATA / name)


def test_l1000_plate(tmp_path: Path):
    cfg = DataConfig(
        data_dir=real("l1000_ljp005_a375_24h.h5ad"), scores=("log10(dose_um)",), label="pert_type=trt_poscon"
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
        data_dir=real("tcell_activation_rade2023_bulk.h5ad"),
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
    path = real("macpie_mini_mac.h5ad")
    with pytest.raises(InputError, match="neither a label nor a score"):
        read_h5ad(path)
    caplog.clear()
    screen = read_h5ad(path, DataConfig(label="Sample_type=Positive_control", normalise=True))
    assert screen.shape == (308, 226)  # 274 genes without a single count
    assert "and 269 more" in caplog.text
    assert screen.obs["is_control"].sum() == 19
    assert (screen.obs["row"] + screen.obs["column"].map("{:02d}".format)).tolist() == screen.obs["well"].tolist()
    assert read_h5ad(path, need_targets=False).shape == (308, 500)
