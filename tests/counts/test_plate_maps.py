"""Plate maps, long or as grids, read alike and join counts; every kind of bad one is one InputError that says where."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from conftest import NAMES
from count_files import WELLS, content, grids, small

from tcell_drugseq.base.defaults import SimConfig
from tcell_drugseq.base.settings import InputError
from tcell_drugseq.counts.joining import join_wells
from tcell_drugseq.counts.matrices import read_counts
from tcell_drugseq.counts.plate_map import read_plate_map
from tcell_drugseq.data.simulate import simulate_screen

COMPOUNDS = [*NAMES[:10], "DMSO", "DMSO"]


def long_map(path: Path, wells: list[str] = WELLS, compounds: list[str] = COMPOUNDS, sep: str = ",", **more) -> Path:
    pd.DataFrame({"well": wells, "compound": compounds, **more}).to_csv(path, sep=sep, index=False)
    return path


@pytest.mark.parametrize("sep", [",", "\t", ";"])
@pytest.mark.parametrize("size", [96, 384])
def test_hostile_names_survive_both_forms(sep: str, size: int, tmp_path: Path):
    last = {96: "H12", 384: "P24"}[size]
    ids = [*(f"A{i}" for i in range(1, 13)), last]
    names = [*NAMES, "DMSO"]
    wells = [f"{well[0]}{int(well[1:]):02d}" for well in ids]
    long_map(tmp_path / "long.txt", wells, names, sep, dose=["100 nM"] * 12 + [""])
    doses = dict.fromkeys(ids[:-1], "0.1")
    cells = dict(zip(ids, names, strict=True))
    text = grids(("Treatment", cells), ("Dose [µM]", doses), size=size, sep=sep)
    (tmp_path / "grid.txt.gz").write_bytes(gzip.compress(text.encode()))
    for path in (tmp_path / "long.txt", tmp_path / "grid.txt.gz"):
        plate_map = read_plate_map(path).loc[wells]
        assert plate_map["compound"].tolist() == names
        assert plate_map["dose"].tolist() == [0.1] * 12 + [0.0] and set(plate_map["unit"]) == {"uM"}
        assert plate_map["is_control"].tolist() == [False] * 12 + [True]
    assert len(read_plate_map(tmp_path / "grid.txt.gz")) == size


def test_grids_of_several_plates(tmp_path: Path):
    plates = ["Plate: P1\n" + grids(("Compound", {"A1": "DMSO", "B7": "x"}), ("Donor", {"A1": "D1", "B7": "D1"}))]
    plates += ["Plate: P2\n" + grids(("Compound", {"A1": "y"}), ("Donor", {"A1": "D2"}))]
    (tmp_path / "map.csv").write_text("Exported 2024-05-01\n\n" + "\n".join(plates))
    plate_map = read_plate_map(tmp_path / "map.csv")
    assert len(plate_map) == 192 and plate_map.loc["P2_A01", ["compound", "plate", "Donor"]].tolist() == [
        "y",
        "P2",
        "D2",
    ]
    counts = AnnData(np.ones((3, 1), np.float32), obs=pd.DataFrame(index=["P1_A1", "P1_B7", "P2_A1"]))
    joined = join_wells(counts, plate_map)
    assert joined.obs["compound"].tolist() == ["DMSO", "x", "y"]
    assert joined.obs["Donor"].tolist() == ["D1", "D1", "D2"]
    assert joined.obs["column"].tolist() == [1, 7, 1] and joined.obs["row"].tolist() == ["A", "B", "A"]


def test_a_simulated_screen_comes_back_from_counts_and_map(tmp_path: Path):
    cfg = SimConfig(n_plates=2, n_compounds=20, n_controls=8, n_genes=120, n_doses=3, n_replicates=1)
    screen = simulate_screen(cfg).screen
    table = pd.DataFrame(screen.layers["counts"].astype(int), index=screen.obs_names, columns=screen.var_names)
    table.T.to_csv(tmp_path / "counts.csv")
    screen.obs[["compound", "dose"]].rename_axis("well").sample(frac=1, random_state=1).to_csv(tmp_path / "map.csv")
    joined = join_wells(read_counts(tmp_path / "counts.csv"), read_plate_map(tmp_path / "map.csv"))
    for name in ("compound", "is_control", "plate", "batch", "row", "column", "dose"):
        expected = screen.obs[name].fillna(0) if name == "dose" else screen.obs[name]
        assert joined.obs[name].tolist() == expected.tolist(), name
    assert (joined.X.toarray() == screen.layers["counts"]).all()
    joined.write_h5ad(tmp_path / "joined.h5ad")


WAYS = {
    "zero-padding": (["A1", "A2", "A3"], {"well": ["A03", "A02", "A01"]}, "zero-padding"),
    "inside ids": (["P1_A1", "P1_A2", "P1_A3"], {"well": ["P1_A03", "P1_A02", "P1_A01"]}, "zero-padding"),
    "case": (["p1_a01", "p1_a02", "p1_a03"], {"well": ["P1_A03", "P1_A02", "P1_A01"]}, "without regard to case"),
    "plate": (["P1_A01", "P1_A02", "P1_A03"], {"well": ["A03", "A02", "A01"], "plate": ["P1"] * 3}, "plate and well"),
    "position": (["x:A01", "x:A02", "x:A03"], {"well": ["A3", "A2", "A1"]}, "by position alone"),
    "barcode": (["GT-1", "CA-1", "AC-1"], {"well": ["A3", "A2", "A1"], "barcode": ["AC", "CA", "GT"]}, "barcodes"),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_assumed_about_well_ids_is_said(way: str, tmp_path: Path):
    wells, columns, words = WAYS[way]
    pd.DataFrame({"compound": ["third", "x", "DMSO"], **columns}).to_csv(tmp_path / "map.csv", index=False)
    counts = AnnData(np.arange(3, dtype=np.float32)[:, None], obs=pd.DataFrame(index=wells))
    joined = join_wells(counts, read_plate_map(tmp_path / "map.csv"), ("counts.csv", "map.csv"))
    assert joined.obs["compound"].tolist() == ["DMSO", "x", "third"] and joined.X.ravel().tolist() == [0, 1, 2]
    assert joined.obs["row"].tolist() == ["A"] * 3 and joined.obs["column"].tolist() == [1, 2, 3]
    note = joined.uns["notes"][-1]
    assert note.startswith("counts.csv and map.csv: ") and words in note and repr(wells[0]) in note


def test_exact_ids_need_no_assumption(tmp_path: Path):
    plate_map = read_plate_map(long_map(tmp_path / "map.csv"))
    counts = AnnData(small().to_numpy(dtype=np.float32), obs=pd.DataFrame(index=WELLS))
    assert join_wells(counts, plate_map).uns["notes"] == plate_map.attrs["notes"]


def write_map(rows: list[str]) -> Callable[[Path], Path]:
    return content("map.csv", "\n".join(rows).encode())


def with_rows(*rows: str, header: str = "well,compound,dose") -> Callable[[Path], Path]:
    return write_map([header, "A01,DMSO,", *rows])


GRID = grids(("Compound", {"A1": "DMSO", "A2": "x"}))
BAD_MAPS = {
    "no control": (
        with_rows("A02,b,", "A03,b,", header="well,drug,dose"),
        "Medium",
        ["map.csv: compound: found no well of 'Medium'; most frequent: 'b' (2), 'DMSO' (1)", "expected control wells"],
    ),
    "another spelling": (
        with_rows("A02,dmso ,"),
        "DMSO",
        ["map.csv: compound: found 'DMSO', 'dmso ', which read as one name", "expected one spelling of the control"],
    ),
    "twin wells": (
        with_rows("A01,x,1"),
        "DMSO",
        ["map.csv: wells: found 'A01' more than once, expected each well once"],
    ),
    "twins by padding": (with_rows("A1,x,1"), "DMSO", ["map.csv: wells: found 'A01', 'A1' more than once", "expected"]),
    "no well": (
        with_rows(",x,1"),
        "DMSO",
        ["map.csv: data row 2 (header not counted): found no well id", "expected a"],
    ),
    "no wells": (
        content("map.csv", b"sample,compound\n1,DMSO\n"),
        "DMSO",
        ["map.csv: found neither a column of wells nor a grid; first line 'sample,compound'", "expected a table"],
    ),
    "no compounds": (
        content("map.csv", b"well,dose\nA1,3\n"),
        "DMSO",
        ["map.csv: columns: found 'well', 'dose'", "drug"],
    ),
    "two compounds": (
        content("map.csv", b"well,drug,treatment\nA1,DMSO,x\n"),
        "DMSO",
        ["map.csv: columns: found 'drug', 'treatment', which all mean compound", "expected one of them"],
    ),
    "bare comma": (
        with_rows("A02,1,3-Propanediol,1"),
        "DMSO",
        ["map.csv: data row 2 (header not counted): found 4 fields, expected 3", "double quotes"],
    ),
    "open quote": (
        with_rows('A02,"x,1'),
        "DMSO",
        ["map.csv: line 3: found broken fields or quotes", "expected a table"],
    ),
    "header only": (
        content("map.csv", b"well,compound\n"),
        "DMSO",
        ["map.csv: found a header and no rows", "expected"],
    ),
    "nameless column": (
        content("map.csv", b"well,compound,\nA1,DMSO,5\n"),
        "DMSO",
        ["map.csv: column 3: found no name, expected a name for each column"],
    ),
    "twin columns": (
        content("map.csv", b"well,compound,x,x\nA1,DMSO,5,6\n"),
        "DMSO",
        ["map.csv: header: found 'x' more than once, expected each column once"],
    ),
    "dose text": (with_rows("A02,x,high"), "DMSO", ["map.csv: well 'A02', dose: found 'high', expected a number"]),
    "dose comma": (with_rows('A02,x,"0,5"'), "DMSO", ["map.csv: well 'A02', dose: found '0,5', expected a number"]),
    "dose negative": (with_rows("A02,x,-5"), "DMSO", ["map.csv: well 'A02', dose: found '-5', expected a number"]),
    "dose units": (
        with_rows("A02,x,5 uM", "A03,x,5 mg/ml"),
        "DMSO",
        ["map.csv: well 'A03', dose: found the unit 'mg/ml' beside 'uM' for 'x', expected one unit"],
    ),
    "dose and unit": (
        content("map.csv", b"well,compound,dose,unit\nA01,DMSO,,\nA02,x,5 nM,uM\n"),
        "DMSO",
        ["map.csv: well 'A02', dose: found '5 nM' beside the unit 'uM', expected one unit"],
    ),
    "control column": (
        content("map.csv", b"well,compound,is_control\nA01,DMSO,yes\nA02,x,yes\n"),
        "DMSO",
        ["map.csv: well 'A02', is_control: found 'yes' for 'x' (1 such wells)", "expected 'DMSO' to be the control"],
    ),
    "position": (
        content("map.csv", b"row,column,compound\nA,1,DMSO\nAG,1,x\n"),
        "DMSO",
        ["map.csv: row and column: found 'A1', 'AG1', expected rows A to AF and columns 1 to 48"],
    ),
    "position against id": (
        content("map.csv", b"well,row,column,compound\nA1,A,1,DMSO\nB1,C,1,x\n"),
        "DMSO",
        ["map.csv: well 'B1': found row and column C01, expected the position that the well id names"],
    ),
    "torn grid": (
        content("map.csv", GRID.replace("\nC,", "\nD,", 1).encode()),
        "DMSO",
        ["map.csv: line 5: found 'D', expected row C of the grid whose header is line 2"],
    ),
    "short grid": (
        content("map.csv", GRID[: GRID.index("\nG,")].encode()),
        "DMSO",
        ["map.csv: line 9: found nothing, expected row G"],
    ),
    "wide grid": (
        content("map.csv", GRID.replace("B,,,,,,,,,,,,", "B,,,,,,,,,,,,,x").encode()),
        "DMSO",
        ["map.csv: line 4, row B: found more than 12 cells, expected 12"],
    ),
    "odd header": (
        content("map.csv", (GRID + GRID.replace("10,11,12", "10,11,13")).encode()),
        "DMSO",
        ["map.csv: line 13: found 12 cells outside a grid, expected a header 1 to 12, 24 or 48"],
    ),
    "twin blocks": (
        content("map.csv", (GRID + GRID).encode()),
        "DMSO",
        ["map.csv: line 13: found a second block 'compound' of one plate, expected each once"],
    ),
    "plateless block": (
        content("map.csv", (GRID + "Plate: P1\n" + GRID).encode()),
        "DMSO",
        ["map.csv: block 'Compound': found no plate, expected one of 'P1'"],
    ),
    "two sizes": (
        content("map.csv", (GRID + grids(("Dose", {}), size=384)).encode()),
        "DMSO",
        ["map.csv: found blocks of 96 and of 384 wells, expected one size"],
    ),
    "empty": (content("map.csv", b" \n"), "DMSO", ["map.csv: found an empty file", "expected a header and rows"]),
    "absent": (lambda folder: folder / "map.csv", "DMSO", ["map.csv: found No such file", "expected a regular file"]),
    "workbook": (
        content("map.csv", b"PK\x03\x04abc"),
        "DMSO",
        ["map.csv: found a zip archive or .xlsx", "expected text"],
    ),
    "cut gzip": (
        content("map.csv", gzip.compress(GRID.encode())[:-9]),
        "DMSO",
        ["map.csv: found a gzip archive that is cut short", "expected a whole one"],
    ),
}


@pytest.mark.parametrize("case", BAD_MAPS)
def test_bad_plate_maps_are_one_clear_error(case: str, tmp_path: Path):
    make, control, parts = BAD_MAPS[case]
    with pytest.raises(InputError) as error:
        read_plate_map(make(tmp_path), control)
    for part in parts:
        assert part in str(error.value)


SAME = "expected the same wells in both, or the compound `empty`"
BAD_JOINS = {
    "not in the map": (WELLS, WELLS[:11], ["'P1_C04' (1 of 12) in counts.csv and not in map.csv", SAME]),
    "not in the counts": (WELLS[1:], WELLS, ["'P1_A01' (1 of 12) in map.csv and not in counts.csv", SAME]),
    "both": (WELLS[1:], WELLS[:11], ["'P1_C04' (1 of 11) in counts.csv", "'P1_A01' (1 of 11) in map.csv", SAME]),
    "another plate": (
        [well.replace("P1", "P2") for well in WELLS],
        WELLS,
        ["'P2_A01', 'P2_A02', 'P2_A03', 'P2_A04', 'P2_B01', and 7 more (12 of 12) in counts.csv", SAME],
    ),
    "twins in counts": (
        ["P1_A1", *WELLS],
        WELLS,
        ["counts.csv: wells: found 'P1_A1', 'P1_A01' more than once", "once"],
    ),
}


@pytest.mark.parametrize("case", BAD_JOINS)
def test_wells_of_one_side_only_are_named(case: str, tmp_path: Path):
    there, mapped, parts = BAD_JOINS[case]
    plate_map = read_plate_map(long_map(tmp_path / "map.csv", mapped, ["DMSO"] * len(mapped)))
    counts = AnnData(np.ones((len(there), 1), np.float32), obs=pd.DataFrame(index=there))
    with pytest.raises(InputError) as error:
        join_wells(counts, plate_map, ("counts.csv", "map.csv"))
    for part in parts:
        assert part in str(error.value)


def test_wells_that_the_map_calls_empty_may_be_in_one_or_both(tmp_path: Path):
    compounds = ["DMSO"] * 9 + ["", "Empty", "empty"]
    plate_map = read_plate_map(long_map(tmp_path / "map.csv", compounds=compounds))
    counts = AnnData(np.ones((11, 1), np.float32), obs=pd.DataFrame(index=WELLS[:11]))
    joined = join_wells(counts, plate_map)
    assert joined.obs_names.tolist() == WELLS[:9]
    assert joined.uns["notes"][-1] == "counts: wells left out, empty in plate map (2): 'P1_C02', 'P1_C03'"
