"""Numbers at the edge of what counts and doses can be, in every form of file."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from count_files import RAW, small, write_10x, write_mtx
from scipy import sparse

from tcell_drugseq.base.defaults import SimConfig
from tcell_drugseq.base.settings import InputError
from tcell_drugseq.counts.build import build_screen
from tcell_drugseq.counts.matrices import read_counts
from tcell_drugseq.counts.plate_map import read_plate_map
from tcell_drugseq.counts.scores import score_wells
from tcell_drugseq.data.simulate import simulate_screen


def as_csv(table: pd.DataFrame, folder: Path) -> Path:
    table.to_csv(folder / "counts.csv")
    return folder / "counts.csv"


def as_h5ad(table: pd.DataFrame, folder: Path) -> Path:
    x = sparse.csr_matrix(table.to_numpy(float))
    AnnData(x, pd.DataFrame(index=table.index), pd.DataFrame(index=table.columns)).write_h5ad(folder / "counts.h5ad")
    return folder / "counts.h5ad"


def as_10x(table: pd.DataFrame, folder: Path) -> Path:
    path = write_10x(small() + 1, folder / "counts.h5")
    with h5py.File(path, "r+") as file:
        del file["matrix/data"]
        file["matrix/data"] = table.to_numpy().ravel()
    return path


@pytest.mark.parametrize("value", [1e39, 1e30, -2.0, 0.5])
@pytest.mark.parametrize("write", [as_csv, as_h5ad, as_10x, lambda table, folder: write_mtx(table, folder / "raw")])
def test_no_count_is_huge_negative_or_a_fraction(write: Callable, value: float, tmp_path: Path):
    table = (small() + 1).astype(float)
    table.iloc[2, 3] = value
    with pytest.raises(InputError) as error:
        read_counts(write(table, tmp_path))
    assert "well 'P1_A03', gene 'RPL3'" in str(error.value) and RAW in str(error.value)


@pytest.mark.parametrize("deep", [False, True])
def test_wells_that_are_all_alike_have_no_scores(deep: bool):
    screen = simulate_screen(SimConfig(n_plates=1, n_compounds=20, n_controls=12, n_genes=200)).screen
    counts = np.tile(np.arange(1, 201), (screen.n_obs, 1)) * (np.arange(1, screen.n_obs + 1)[:, None] if deep else 1)
    screen.X = screen.layers["counts"] = counts.astype(np.float32)
    with pytest.raises(InputError, match="found 0 genes that vary among 52 wells"):
        score_wells(screen)


@pytest.mark.parametrize("dose", ["1e400", "1e308 mM"])
def test_a_dose_is_finite(dose: str, tmp_path: Path):
    (tmp_path / "map.csv").write_text(f"well,compound,dose\nA01,DMSO,\nA02,NAD+,{dose}\n")
    with pytest.raises(InputError, match=f"map.csv: well 'A02', dose: found '{dose}', expected a finite dose"):
        read_plate_map(tmp_path / "map.csv")


def test_a_map_of_controls_alone_is_no_screen(tmp_path: Path):
    table = small()
    rows = "".join(f"{well},DMSO\n" for well in table.index)
    (tmp_path / "map.csv").write_text(f"well,compound\n{rows}")
    with pytest.raises(InputError, match=r"map.csv: compound: found 'DMSO' in all 12 wells, expected a compound to"):
        build_screen(as_csv(table, tmp_path), tmp_path / "map.csv")
