"""Files as laboratories have them: each shape becomes the right screen, or is refused by one line that says why.

A row of a table is one shape: what it is, how its files are made, and what has to be read from them or said.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from tcell_drugseq.base.defaults import DataConfig
from tcell_drugseq.base.settings import InputError
from tcell_drugseq.counts.matrices import read_counts
from tcell_drugseq.counts.plate_map import join_wells, read_plate_map
from tcell_drugseq.data.reading import find_problems, read_screen, write_bundle

GENES = ["IL2", "IFNG", "MT-CO1", "RPL3", "ACTB", "GAPDH"]
PLATES = ("P1", "P2")
AT = [f"{row}{column:02d}" for row in "ABCD" for column in range(1, 7)]  # 24 wells of each plate
PLATE, WELL = [plate for plate in PLATES for _ in AT], AT * len(PLATES)


def table(ids: list[str] | None = None) -> pd.DataFrame:
    """48 wells x 6 genes, every well of another depth."""
    rng = np.random.default_rng(5)
    ids = [f"{p}_{w}" for p, w in zip(PLATE, WELL, strict=True)] if ids is None else ids
    counts = rng.poisson(rng.uniform(2, 60, (len(ids), 1)) * rng.uniform(0.2, 3, len(GENES)))
    return pd.DataFrame(counts, index=ids, columns=GENES)


def plates(**columns: list) -> pd.DataFrame:
    """Every fourth well is DMSO, six compounds have six wells each."""
    compounds = ["DMSO" if i % 4 == 0 else f"drug {i % 4 + 3 * (i % 2)}" for i in range(48)]
    return pd.DataFrame({"well": table().index, "compound": compounds} | columns)


def screened(folder: Path, counts: pd.DataFrame, wells: pd.DataFrame, pattern: str = "") -> AnnData:
    """Both through their files, joined."""
    counts.to_csv(folder / "counts.csv")
    wells.to_csv(folder / "map.csv", index=False)
    raw, read = read_counts(folder / "counts.csv"), read_plate_map(folder / "map.csv")
    return join_wells(raw, read, ("counts.csv", "map.csv"), pattern)


def expressed(obs: pd.DataFrame) -> AnnData:
    """Expression, a label and these columns."""
    x = np.random.default_rng(2).normal(size=(len(obs), 5)).astype(np.float32)
    obs = obs.assign(compound=plates()["compound"].to_numpy(), label=[0, 1] * (len(obs) // 2))
    return AnnData(x, obs=obs, var=pd.DataFrame(index=GENES[:5]))


# Where a well is

FIRST = [f"{w}_{p}" for p, w in zip(PLATE, WELL, strict=True)]  # A01_P1, and P1 could be a well
LOTS = [f"{w}_lot{p[1]}" for p, w in zip(PLATE, WELL, strict=True)]
PATTERN = "(?P<row>[A-P])(?P<column>[0-9]+)_(?P<plate>.+)"
IDS: dict[str, tuple[list[str], dict[str, list], str, str]] = {  # ids, more columns, pattern, text of the error
    "plate first": ([f"{p}_{w}" for p, w in zip(PLATE, WELL, strict=True)], {}, "", ""),
    "well first, plate no well": (LOTS, {}, "", ""),
    "well first": (FIRST, {}, "", "found 'A01_P1', which reads as plate 'A01', well P1 or as plate 'P1', well A1"),
    "well first, pattern": (FIRST, {}, PATTERN, ""),
    "well first, plate in the map": (FIRST, {"plate": PLATE}, "", ""),
    "well first, plates of other names": (FIRST, {"plate": [f"{p}x" for p in PLATE]}, "", ""),
    "plate of the map contradicts": (
        [f"{p}x_{w}" for p, w in zip(PLATE, WELL, strict=True)],
        {"plate": [f"L{i % 2}" for i in range(48)]},
        "",
        "found 'P1x_A01', which reads as plate 'P1x', well A1, beside plate 'L0'",
    ),
    "samples numbered": ([f"s{i}_{w}" for i, w in enumerate(WELL)], {}, "", "48 plates of at most 1 wells"),
}


@pytest.mark.parametrize("kind", ["map", "h5ad", "bundle"])
@pytest.mark.parametrize("shape", IDS)
def test_where_a_well_is(shape: str, kind: str, tmp_path: Path):
    ids, columns, pattern, error = IDS[shape]
    if kind == "bundle" and columns:
        pytest.skip("a bundle has no column of plates")

    def read() -> pd.DataFrame:
        if kind == "map":
            return screened(tmp_path, table(ids), plates(well=ids, **columns), pattern).obs
        if kind == "h5ad":
            expressed(pd.DataFrame(columns, index=ids)).write_h5ad(tmp_path / "sent.h5ad")
        else:
            write_bundle(expressed(pd.DataFrame(columns, index=ids)), tmp_path / "sent")
        return read_screen(DataConfig(str(next(tmp_path.iterdir())), well_pattern=pattern)).obs

    if error:
        with pytest.raises(InputError) as raised:
            read()
        assert error in str(raised.value)
        return
    obs = read()
    assert obs["row"].tolist() == [w[0] for w in WELL] and obs["column"].tolist() == [int(w[1:]) for w in WELL]
    assert len(set(zip(obs["plate"], PLATE, strict=True))) == 2


POSITIONS = {
    "well_position": {"plate": PLATE, "well_position": WELL},
    "position": {"plate": PLATE, "position": [w.lower() for w in WELL]},
    "Well": {"plate": PLATE, "Well": [f"{w[0]}{int(w[1:])}" for w in WELL]},
    "row and col": {"plate": PLATE, "row": [w[0] for w in WELL], "col": [int(w[1:]) for w in WELL]},
    "JUMP": {"plate": PLATE, "Metadata_Well": WELL},
    "by a setting": {"plate": PLATE, "where it was": WELL},
}


@pytest.mark.parametrize("shape", POSITIONS)
def test_positions_of_an_h5ad(shape: str, tmp_path: Path):
    columns = POSITIONS[shape]
    cfg = DataConfig(str(tmp_path / "screen.h5ad"))
    expressed(pd.DataFrame(columns, index=[f"AACC{i}" for i in range(48)])).write_h5ad(cfg.data_dir)
    position = "where it was" if "where it was" in columns else ""
    obs = read_screen(DataConfig(cfg.data_dir, position=position)).obs
    assert obs["row"].tolist() == [w[0] for w in WELL] and obs["column"].tolist() == [int(w[1:]) for w in WELL]
    assert obs["plate"].tolist() == PLATE
    found = find_problems(DataConfig(cfg.data_dir, position="compound"))
    assert "compound" in found["where"].iloc[0] or "compound" in found["found"].iloc[0]
