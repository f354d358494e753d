"""A plate of 1536 wells, from its map to the layout of the next ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tcell_drugseq.audit.layout import well_places
from tcell_drugseq.audit.mixups import audit_turned_plates, plate_grids
from tcell_drugseq.base.defaults import CorrectionConfig, DataConfig, RunConfig, SimConfig
from tcell_drugseq.counts.joining import join_wells
from tcell_drugseq.counts.matrices import read_counts
from tcell_drugseq.counts.plate_map import read_plate_map
from tcell_drugseq.data.figures import plot_plates
from tcell_drugseq.data.reading import find_problems, read_screen, write_bundle
from tcell_drugseq.data.simulate import simulate_screen
from tcell_drugseq.data.wells import ROWS
from tcell_drugseq.evidence.baselines import _position
from tcell_drugseq.evidence.gather import plan_next
from tcell_drugseq.latent.figures import plot_layout
from tcell_drugseq.latent.next_plates import next_layout
from tcell_drugseq.training.correction import correct_plates


@pytest.fixture(scope="module")
def screen():
    """Two plates, nearly full, with few genes."""
    return simulate_screen(
        SimConfig(
            n_batches=2, n_plates=1, plate_wells=1536, n_compounds=1_400, n_replicates=2, n_controls=256, n_genes=100
        )
    ).screen


def test_a_bundle_is_validated_and_read(screen, tmp_path: Path):
    write_bundle(screen, tmp_path)
    found = find_problems(DataConfig(str(tmp_path)))
    assert not len(found) and "wells: 3056, 'tc1_A1_A01' is A1" in found.attrs["understood"]
    read = read_screen(DataConfig(str(tmp_path)))
    assert read.obs[["plate", "row", "column"]].equals(screen.obs[["plate", "row", "column"]])
    assert set(read.obs["row"]) == set(ROWS) and read.obs["column"].max() == 48


@pytest.mark.parametrize("form", ["ids", "row and column", "grid"])
def test_counts_and_a_map_are_joined(form: str, screen, tmp_path: Path):
    one = screen[screen.obs["plate"] == "tc1_A1"]
    wells = pd.Index([well.rpartition("_")[2] for well in one.obs_names])
    table = pd.DataFrame(one.layers["counts"].astype(int), index=wells, columns=one.var_names)
    table.T.to_csv(tmp_path / "counts.csv")
    plate_map = pd.DataFrame({"well": wells, "compound": one.obs["compound"].to_numpy()})
    if form == "row and column":
        apart = {"row": one.obs["row"].to_numpy(), "col": one.obs["column"].to_numpy()}
        plate_map = plate_map.drop(columns="well").assign(**apart)
    if form == "grid":
        named = dict(zip(wells, one.obs["compound"], strict=True))
        grid = pd.DataFrame(
            [[named.get(f"{row}{c:02d}", "") for c in range(1, 49)] for row in ROWS], ROWS, range(1, 49)
        )
        grid.to_csv(tmp_path / "map.csv")
    else:
        plate_map.to_csv(tmp_path / "map.csv", index=False)
    joined = join_wells(read_counts(tmp_path / "counts.csv"), read_plate_map(tmp_path / "map.csv"))
    for name in ("compound", "row", "column"):
        assert joined.obs[name].tolist() == one.obs[name].tolist()


def places(screen, at):
    """Row, from 0, and column, from 1, of some wells."""
    obs = screen.obs.iloc[at]
    return [ROWS.index(row) for row in obs["row"]], obs["column"].tolist()


def test_rows_beyond_z_are_no_first_rows(screen):
    obs = screen.obs
    row = np.array([ROWS.index(r) for r in obs["row"]])
    assert (well_places(obs)["row"] == row).all() and (_position(screen)[:, 0] == row).all()
    grids, _ = plate_grids(obs)
    assert grids.shape == (2, 32, 48)
    at = np.argwhere(grids >= 0)
    assert (row[grids[tuple(at.T)]] == at[:, 1]).all()


def test_a_row_effect_is_taken_out(screen):
    shifted = screen.copy()
    effect = np.where(shifted.obs["row"].isin(ROWS[26:]), 3.0, 0.0)
    shifted.X = shifted.X + effect[:, None].astype(np.float32)
    late = shifted.obs["row"].isin(ROWS[26:]).to_numpy()
    assert shifted.X[late].mean() - shifted.X[~late].mean() > 2.5
    corrected = correct_plates(shifted, np.ones(len(late), bool), CorrectionConfig(correction="median_polish"))
    assert abs(corrected[late].mean() - corrected[~late].mean()) < 0.3


def test_a_turned_plate_is_found(screen):
    turned = screen.copy()
    here = np.flatnonzero(turned.obs["plate"] == "tc1_A1")
    at = {place: i for i, place in zip(here, zip(*places(turned, here), strict=True), strict=True)}
    opposite = np.array([at.get((31 - r, 49 - c), -1) for r, c in zip(*places(turned, here), strict=True)])
    both = opposite >= 0
    turned.X[here[both]] = screen.X[opposite[both]]
    turned.obsm["scores"].iloc[here[both]] = screen.obsm["scores"].iloc[opposite[both]].to_numpy()
    assert {found.status for found in audit_turned_plates(screen)} == {"pass"}
    assert "tc1_A1 is turned by 180 degrees" in audit_turned_plates(turned)[0].meaning


def test_pictures_have_all_rows(screen):
    axis = plot_plates(screen, screen.obsm["scores"].columns[0]).axes[0]
    assert axis.images[0].get_array().shape == (32, 48)
    assert [tick.get_text() for tick in axis.get_yticklabels()][-2:] == ["Y", "AC"]
    layout = next_layout([f"c{i}" for i in range(1_300)], 2, 1536, 128, n_replicates=2)
    assert set(layout["row"]) == set(ROWS) and layout["column"].max() == 48
    assert [tick.get_text() for tick in plot_layout(layout).axes[0].get_yticklabels()][-1] == "AE"


def test_the_next_plates_are_as_large(screen):
    hits = pd.DataFrame({"compound": screen.obs["compound"][~screen.obs["is_control"]].unique()[:20], "hit": True})
    same = {"p": 0.001, "q": 0.01, "rank": 1, "null_level": "plate", "direction": "up", "agreement": 0.5}
    results = screen.copy()
    results.uns["hits"] = hits.assign(**same, wells=2, why_not="")
    plan_next(results, RunConfig())
    plates = results.uns["next_layout"].groupby("plate")["compound"].agg(lambda names: (names == "DMSO").sum())
    assert (plates == 256).all() and results.uns["next_layout"]["column"].max() == 48
