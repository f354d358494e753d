"""Every kind of bad input is one InputError that names file, place, what was found and what was expected."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from conftest import NAMES

from tcell_drugseq.base.defaults import DataConfig
from tcell_drugseq.base.settings import InputError
from tcell_drugseq.data.reading import (
    find_problems,
    read_bundle,
    read_h5ad,
    read_screen,
    score_names,
    screen_hash,
    write_bundle,
)
from tcell_drugseq.data.wells import parse_wells


def make_screen(n: int = 24, genes: int = 5) -> AnnData:
    rng = np.random.default_rng(1)
    wells = [f"tc{1 + i % 2}_A1_{'ABCD'[i // 6 % 4]}{1 + i % 6:02d}" for i in range(n)]
    obs = pd.DataFrame(
        {
            "compound": (NAMES + ["DMSO"] * n)[:n],
            "label": [0, 1] * (n // 2),
            "cluster": ["C0", "NA"] * (n // 2),
            "activation_old": rng.normal(size=n),
        },
        index=wells,
    )
    x = rng.normal(size=(n, genes)).astype(np.float32)
    screen = AnnData(X=x, obs=obs, var=pd.DataFrame(index=["IL2", "IFNG", "NA", "HLA-A,B", "1E5"][:genes]))
    names = ["pseudotime_z", "cytoscore_z", "TSCORE"]
    screen.obsm["scores"] = pd.DataFrame(rng.normal(size=(n, 3)), index=wells, columns=names)
    return screen


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(make_screen(), tmp_path / "bundle")
    return tmp_path / "bundle"


def test_round_trips(bundle: Path, tmp_path: Path):
    screen = read_bundle(bundle)
    assert screen.obs["compound"].tolist()[:12] == NAMES
    assert score_names(screen) == ["Pseudotime", "CytoTRACE", "Tscore"]
    assert screen.X.dtype == np.float32 and (screen.X == make_screen().X).all()
    assert screen.var_names.tolist() == ["IL2", "IFNG", "NA", "HLA-A,B", "1E5"]
    write_bundle(screen, tmp_path / "again")
    screen.copy().write_h5ad(tmp_path / "screen.h5ad")
    for other in (read_bundle(tmp_path / "again"), read_h5ad(tmp_path / "screen.h5ad")):
        pd.testing.assert_frame_equal(other.obs, screen.obs)
        pd.testing.assert_frame_equal(other.obsm["scores"], screen.obsm["scores"])
        assert (other.X == screen.X).all() and screen_hash(other) == screen_hash(screen)
    assert not list((tmp_path / "again").glob(".*"))


def test_bom_and_crlf(bundle: Path):
    before = screen_hash(read_bundle(bundle))
    for name in ("expr_mat.csv", "scores_3_z.csv", "labels_cls.csv", "well_id.csv"):
        text = (bundle / name).read_bytes()
        (bundle / name).write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    assert screen_hash(read_bundle(bundle)) == before


def test_the_header_says_which_score_is_which(bundle: Path):
    scores = pd.read_csv(bundle / "scores_3_z.csv", dtype=str)
    scores[scores.columns[::-1]].to_csv(bundle / "scores_3_z.csv", index=False)
    again = read_bundle(bundle).obsm["scores"]
    assert list(again) == ["Tscore", "CytoTRACE", "Pseudotime"]
    assert (again["Pseudotime"].to_numpy() == make_screen().obsm["scores"]["pseudotime_z"].to_numpy()).all()


def text(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    """A mutation of one file's text."""

    def apply(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes().decode()).encode())

    return apply


def raw(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content)


def cell(name: str, row: int, column: int, value: str) -> Callable[[Path], None]:
    """A mutation of one cell; row 1 is the first data row."""

    def change(content: str) -> str:
        lines = content.split("\n")
        fields = lines[row].split(",")
        fields[column] = value
        return "\n".join([*lines[:row], ",".join(fields), *lines[row + 1 :]])

    return text(name, change)


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def labels(values: list[int]) -> Callable[[Path], None]:
    return raw("labels_cls.csv", ("x\n" + "\n".join(map(str, values)) + "\n").encode())


def column(name: str, values: list[str]) -> Callable[[Path], None]:
    return lambda folder: pd.DataFrame({"x": values}).to_csv(folder / name, index=False)


WELLS = make_screen().obs_names.tolist()
FINITE = "expected a finite number"
UTF8 = "expected a CSV saved as UTF-8"
HAS = "expected 24, as many as expr_mat.csv has"


def renamed(name: str, other: str) -> Callable:
    return lambda folder: (folder / name).rename(folder / other)


def linked(name: str, target: str) -> Callable:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return spoil


BAD = {
    "missing": (without("meta_id.csv"), ["meta_id.csv", "no such file", "expected it in the folder bundle"]),
    "no expression": (without("expr_mat.csv"), ["expr_mat.csv", "no such file"]),
    "no task": (without("labels_cls.csv", "scores_3_z.csv"), ["labels_cls.csv", "scores_3_z.csv", "at least one"]),
    "empty": (raw("expr_mat.csv", b""), ["expr_mat.csv", "an empty file", "expected a header"]),
    "blank": (raw("labels_cls.csv", b"\n\n"), ["labels_cls.csv", "an empty file", "expected a header"]),
    "header only": (
        raw("scores_3_z.csv", b"Tscore,x\n"),
        ["scores_3_z.csv", "a header and no rows", "one row per well"],
    ),
    "names short": (column("meta_id.csv", ["DMSO"] * 23), ["meta_id.csv", "found 23 rows", HAS]),
    "labels long": (labels([0, 1] * 13), ["labels_cls.csv", "found 26 rows", HAS]),
    "scores short": (
        text("scores_3_z.csv", lambda s: s[: s[:-1].rindex("\n") + 1]),
        ["scores_3_z.csv", "found 23 rows", HAS],
    ),
    "twin genes": (
        text("expr_mat.csv", lambda s: s.replace("IFNG", "IL2", 1)),
        ["expr_mat.csv", "'IL2' more than once", "each gene once"],
    ),
    "nameless gene": (
        text("expr_mat.csv", lambda s: s.replace("IFNG", "", 1)),
        ["expr_mat.csv", "column 2", "an empty name", "row.names"],
    ),
    "twin wells": (
        column("well_id.csv", WELLS[:23] + WELLS[:1]),
        ["well_id.csv", "'tc1_A1_A01' more than once", "each well once"],
    ),
    "nameless well": (
        column("well_id.csv", [*WELLS[:23], " "]),
        ["well_id.csv", "data row 24 (header not counted)", "an empty name"],
    ),
    "nameless compound": (
        column("meta_id.csv", ["DMSO", "", *["x"] * 22]),
        ["meta_id.csv", "data row 2", "an empty name"],
    ),
    "two columns": (raw("meta_id.csv", b",x\n1,DMSO\n"), ["meta_id.csv", "header", "2 columns", "row.names = FALSE"]),
    "bare comma": (
        raw("meta_id.csv", b"x\nDMSO\n1,3-Diol\n"),
        ["meta_id.csv", "data row 2", "2 fields", "double quotes"],
    ),
    "long row": (cell("expr_mat.csv", 4, 1, "1,2"), ["expr_mat.csv", "data row 4", "6 fields", "expected 5"]),
    "short row": (
        text("scores_3_z.csv", lambda s: s[: s[:-1].rindex(",")]),
        ["scores_3_z.csv", "data row 24", "2 fields", "expected 3"],
    ),
    "all rows long": (
        text("expr_mat.csv", lambda s: s.replace("\n", ",1\n").replace(",1\n", "\n", 1)),
        ["data row 1", "6 fields", "expected 5"],
    ),
    "UTF-16": (raw("well_id.csv", "x\nA1\n".encode("utf-16")), ["well_id.csv", "UTF-16 text", UTF8]),
    "UTF-16 bare": (raw("well_id.csv", "x\nA1\n".encode("utf-16-le")), ["well_id.csv", "UTF-16 text", UTF8]),
    "Latin-1": (raw("meta_id.csv", "x\nµ\n".encode("latin-1")), ["meta_id.csv", "line 2", "byte 0xb5", UTF8]),
    "NUL": (text("expr_mat.csv", lambda s: s[:-5] + "\0" + s[-5:]), ["expr_mat.csv", "line 25", "a NUL byte", UTF8]),
    "xlsx": (raw("expr_mat.csv", b"PK\x03\x04abc"), ["expr_mat.csv", ".xlsx", UTF8]),
    "quote": (cell("expr_mat.csv", 24, 0, '"1'), ["expr_mat.csv", "line 25", "quotes", "expected a CSV"]),
    "thousands": (
        text("scores_3_z.csv", lambda s: "a;b\n" + "1,234;5\n" * 24),
        ["scores_3_z.csv", "data row 1", "column a", "'1,234'", "no thousands set apart"],
    ),
    "two decimal signs": (
        text("scores_3_z.csv", lambda s: s.replace(",", ";").replace(".", ",", 1)),
        ["scores_3_z.csv", "data row 1", "one decimal sign"],
    ),
    "folder": (
        lambda d: (d / "labels_cls.csv").unlink() or (d / "labels_cls.csv").mkdir(),
        ["labels_cls.csv", "a folder", "regular"],
    ),
    "label 2": (labels([0, 1] * 11 + [2, 0]), ["labels_cls.csv", "data row 23", "found '2'", "expected 0 or 1"]),
    "label text": (
        cell("labels_cls.csv", 3, 0, "yes"),
        ["labels_cls.csv", "data row 3", "found 'yes'", "expected 0 or 1"],
    ),
    "label NA": (cell("labels_cls.csv", 3, 0, "NA"), ["labels_cls.csv", "data row 3", "found 'NA'", "expected 0 or 1"]),
    "one class": (labels([1] * 24), ["labels_cls.csv", "0 wells of class 0", "at least 2 wells of each class"]),
    "one well": (labels([1] * 23 + [0]), ["labels_cls.csv", "1 wells of class 0", "at least 2 wells of each class"]),
    "no control": (
        column("meta_id.csv", ["Lactate"] * 24),
        ["meta_id.csv", "no well of 'DMSO'", "'Lactate' (24)", "control wells"],
    ),
    "all constant": (
        raw("expr_mat.csv", b"IL2,IFNG\n" + b"1,2\n" * 24),
        ["expr_mat.csv", "no gene of 2", "at least one"],
    ),
    "constant score": (
        raw("scores_3_z.csv", b"Tscore\n" + b"1\n" * 24),
        ["scores_3_z.csv", "Tscore", "differs between wells"],
    ),
    "twin scores": (
        text("scores_3_z.csv", lambda s: s.replace("cytoscore_z", "tscore")),
        ["scores_3_z.csv", "'TSCORE'", "one column per score"],
    ),
    "two activations": (
        raw("e.activation_score_old.csv", b"x\n"),
        ["activation_score_old.csv", "e.activation", "one of the two"],
    ),
    "spellings": (
        column("meta_id.csv", ["DMSO", "Caf\u00e9", "Cafe\u0301 "] * 8),
        ["meta_id.csv", "'Caf\u00e9', 'Cafe\u0301 '", "read as one name", "one spelling of the compound"],
    ),
    "control's spellings": (
        column("meta_id.csv", ["DMSO", "dmso", "NAD+"] * 8),
        ["meta_id.csv", "'DMSO', 'dmso'", "one spelling of the control"],
    ),
    "misnamed label": (renamed("labels_cls.csv", "label_cls.csv"), ["label_cls.csv", "not read", "labels_cls.csv"]),
    "misnamed activation": (
        renamed("activation_score_old.csv", "activation_old.csv"),
        ["activation_old.csv", "not read", "activation_score_old.csv"],
    ),
    "misnamed cluster": (renamed("cluster_id.csv", "Cluster_ID.csv"), ["Cluster_ID.csv", "not read", "cluster_id.csv"]),
    "scores as a workbook": (renamed("scores_3_z.csv", "scores.xlsx"), ["scores.xlsx", "not read", "scores_3_z.csv"]),
    "a link to itself": (linked("cluster_id.csv", "cluster_id.csv"), ["cluster_id.csv", "symbolic links"]),
    "a link to nothing": (linked("cluster_id.csv", "gone.csv"), ["cluster_id.csv", "No such file"]),
    "activation": (
        cell("activation_score_old.csv", 7, 0, "inf"),
        ["activation_score_old.csv", "data row 7", "'inf'", FINITE],
    ),
}
for value in (
    "abc",
    "",
    "NA",
    "nan",
    "inf",
    "-Infinity",
    "1e400",
    "1e39",
    "1_000",
    "True",
    "0x10",
    "1 2",
    "٣",
    '"1,234"',
):
    for name, header in (("expr_mat.csv", "NA"), ("scores_3_z.csv", "TSCORE")):
        found = f"found {value.strip(chr(34))!r}"
        BAD[f"{name} {value}"] = (
            cell(name, 3, 2, value),
            [name, "data row 3 (header not counted)", f"column {header}", found, FINITE],
        )


@pytest.mark.parametrize("name", BAD)
def test_bad_bundle(bundle: Path, name: str):
    spoil, expected = BAD[name]
    spoil(bundle)
    with pytest.raises(InputError) as error:
        read_bundle(bundle)
    table = find_problems(DataConfig(data_dir=str(bundle)))
    assert len(table) >= 1
    first = table.iloc[0]
    for part in expected:
        assert part in str(error.value)
    for part in (first["file"], first["where"], first["found"], first["expected"]):
        assert part in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_tables_that_are_not_read_are_named(bundle: Path, caplog: pytest.LogCaptureFixture):
    for name in ("plate_layout.csv", "labels_cls_v2.csv", "cluster_id.csv.bak", "notes.txt", "truth_wells.csv"):
        (bundle / name).write_text("x\n")
    read_bundle(bundle)
    named = "not read: 'cluster_id.csv.bak', 'labels_cls_v2.csv', 'plate_layout.csv', 'truth_wells.csv'"
    none = "meta_id.csv: names of compounds that may mean none, with their wells: 'NA' (1), 'nan' (1)"
    assert [r.getMessage() for r in caplog.records] == [f"bundle: {named}", none]
    (bundle / "cluster_id.csv").rename(bundle / "Cluster.csv")
    assert "cluster" not in read_bundle(bundle, DataConfig(cluster="")).obs  # left out by the user


def test_names_that_differ_in_capitals_alone_are_two_compounds_and_said(bundle: Path, caplog: pytest.LogCaptureFixture):
    column("meta_id.csv", ["DMSO", "Curcumin", "curcumin"] * 8)(bundle)
    assert set(read_bundle(bundle).obs["compound"]) == {"DMSO", "Curcumin", "curcumin"}
    assert "meta_id.csv: 'Curcumin', 'curcumin' are taken for different compounds" in caplog.text
    assert "as by the setting rename: curcumin=Curcumin" in caplog.text
    caplog.clear()
    one, two = (read_bundle(bundle, DataConfig(rename=(rule,))) for rule in ("curcumin=Curcumin", "curcumin=curcumin"))
    assert set(one.obs["compound"]) == {"DMSO", "Curcumin"} and "taken for" not in caplog.text
    assert set(two.obs["compound"]) == {"DMSO", "Curcumin", "curcumin"}


def test_all_problems_at_once(bundle: Path):
    for name in ("missing", "label 2", "twin wells", "expr_mat.csv abc", "scores_3_z.csv 1e400"):
        BAD[name][0](bundle)
    table = find_problems(DataConfig(data_dir=str(bundle)))
    assert set(table["file"]) == {"meta_id.csv", "labels_cls.csv", "well_id.csv", "expr_mat.csv", "scores_3_z.csv"}
    with pytest.raises(InputError, match=rf"and {len(table) - 1} more; `tcell-drugseq validate` lists them"):
        read_bundle(bundle)


def test_a_file_full_of_faults_is_summed_up(bundle: Path):
    (bundle / "expr_mat.csv").write_text("a,b\n" + "x,y\n" * 24)
    table = find_problems(DataConfig(data_dir=str(bundle)))
    assert len(table) == 21
    assert table["where"].iloc[-1] == "28 more places"


@pytest.mark.parametrize("name", ["nowhere", "notes.csv", "plate.xlsx"])
def test_no_screen_at_all(tmp_path: Path, name: str):
    if "." in name:
        (tmp_path / name).write_text("x\n1\n")
    with pytest.raises(InputError, match=r"expected a folder with the CSV bundle or an \.h5ad file"):
        read_screen(DataConfig(data_dir=str(tmp_path / name)))
    assert len(find_problems(DataConfig(data_dir=str(tmp_path / name)))) == 1
    with pytest.raises(InputError):
        read_bundle(tmp_path / name)
    with pytest.raises(InputError):
        read_h5ad(tmp_path / name)


def test_constant_genes_are_dropped_with_one_warning(bundle: Path, caplog: pytest.LogCaptureFixture):
    cells = pd.read_csv(bundle / "expr_mat.csv", keep_default_na=False)
    cells.assign(IL2=1.5, IFNG=0).to_csv(bundle / "expr_mat.csv", index=False)
    assert read_bundle(bundle).var_names.tolist() == ["NA", "HLA-A,B", "1E5"]
    about = [r.getMessage() for r in caplog.records if r.getMessage().startswith("expr_mat.csv")]
    assert about == ["expr_mat.csv: left out, the same value in every well: 'IL2', 'IFNG'"]


def test_a_bundle_is_never_overwritten(bundle: Path):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with pytest.raises(InputError, match="expected a folder without a bundle"):
        write_bundle(make_screen(), bundle)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_unwritable_folder(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be made"):
        write_bundle(make_screen(), tmp_path / "file" / "bundle")


def test_simulated_stays_simulated(bundle: Path, tmp_path: Path):
    assert read_bundle(bundle).uns["source"]["simulated"] is False
    (bundle / "simulated.yaml").write_text("seed: 1\n")
    screen = read_bundle(bundle)
    assert screen.uns["source"]["simulated"] is True
    screen.copy().write_h5ad(tmp_path / "s.h5ad")
    write_bundle(read_h5ad(tmp_path / "s.h5ad"), tmp_path / "again")
    assert read_bundle(tmp_path / "again").uns["source"]["simulated"] is True


def test_prediction_needs_expression_only(bundle: Path):
    for path in bundle.iterdir():
        if path.name != "expr_mat.csv":
            path.unlink()
    (bundle / "expr_mat.csv").write_text("IL2,IFNG\n1,2\n")
    screen = read_screen(DataConfig(data_dir=str(bundle)), need_targets=False)
    assert screen.obs_names.tolist() == ["well_1"] and screen.obs["compound"].tolist() == ["unknown"]
    assert screen.var_names.tolist() == ["IL2", "IFNG"]  # one well, yet no gene is dropped as constant
    AnnData(X=np.ones((1, 2)), var=pd.DataFrame(index=["IL2", "IFNG"])).write_h5ad(bundle / "x.h5ad")
    named = DataConfig(label="pert=poscon", scores=("log10(dose)",), plate="Plate")
    assert read_h5ad(bundle / "x.h5ad", named, need_targets=False).X.tolist() == [[1, 1]]


def their_screen() -> AnnData:
    screen = make_screen()
    screen.obs = screen.obs.assign(
        drug=screen.obs["compound"],
        dose_um=[0.0] * 4 + [1.0, 10.0] * 10,
        kind=["a", "b", "c"] * 8,
        gaps=[np.nan, *[1.0] * 23],
        rare=[1.0, 2.0, 3.0, *[np.nan] * 21],
        flat=1.0,
    ).drop(columns="compound")
    return screen


def set_x(i: int, j: int, value: float) -> Callable[[AnnData], None]:
    def apply(screen: AnnData) -> None:
        screen.X[i, j] = value

    return apply


def set_genes(screen: AnnData) -> None:
    screen.var_names = ["IL2", "IL2", "a", "b", "c"]


def set_counts(screen: AnnData) -> None:
    screen.X = np.arange(screen.n_obs * screen.n_vars, dtype=np.float32).reshape(screen.shape)
    screen.X[2] = 0


def same(screen: AnnData) -> None:
    pass


BAD_H5AD = {
    "compound": ({"compound": "drugs"}, same, ["'compound'", "'drugs'", "near: 'drug'", "kind"]),
    "default compound": ({"compound": "compound"}, same, ["no obs column 'compound'", "drug"]),
    "control": ({"control": "veh"}, same, ["obs column 'drug'", "no well of 'veh'", "'DMSO' (12)"]),
    "plate": ({"plate": "Plate"}, same, ["setting 'plate'", "no obs column 'Plate'"]),
    "well": ({"well": "Well"}, same, ["setting 'well'", "no obs column 'Well'"]),
    "twin wells": ({"well": "kind"}, same, ["obs column 'kind'", "'a', 'b', 'c' more than once", "each well once"]),
    "twin genes": ({}, set_genes, ["var_names", "'IL2' more than once", "each gene once"]),
    "dose gaps": ({"dose": "gaps"}, same, ["obs column 'gaps'", "1 wells without a value", "every well"]),
    "label value": ({"label": "kind=d"}, same, ["obs column 'kind'", "no value 'd'", "'a', 'b', 'c'"]),
    "label column": ({"label": "sort=d"}, same, ["setting 'label'", "no obs column 'sort'"]),
    "label text": ({"label": "kind"}, same, ["obs column 'kind'", "found 'a'", "0 or 1"]),
    "score column": ({"scores": ("log10(dose)",)}, same, ["setting 'scores'", "no obs column 'dose'", "dose_um"]),
    "score text": ({"scores": ("kind",)}, same, ["obs column 'kind'", "well 'tc1_A1_A01'", "found 'a'", FINITE]),
    "score rare": ({"scores": ("rare",)}, same, ["score rare", "in 3 wells", "at least 10"]),
    "score flat": ({"scores": ("flat",)}, same, ["the same value of flat", "differs between wells"]),
    "layer": ({"layer": "raw"}, same, ["layer 'raw'", "nothing", "a matrix"]),
    "NaN": ({}, set_x(2, 1, np.nan), ["X, well 'tc1_A1_A03', gene 'IFNG'", "found nan", FINITE]),
    "inf": ({}, set_x(2, 1, np.inf), ["X, well 'tc1_A1_A03', gene 'IFNG'", "found inf", FINITE]),
    "no counts": ({"normalise": True}, same, ["IL2", "well 'tc1_A1_A01'", "raw counts"]),
    "empty well": (
        {"normalise": True},
        set_counts,
        ["obs_names", "no count at all in 'tc1_A1_A03'", "wells with counts"],
    ),
    "pattern": ({"well_pattern": "("}, same, ["well_pattern", "'('", "a regular expression"]),
    "groups": ({"well_pattern": ".*"}, same, ["well_pattern", "'column', 'row'", "named groups"]),
    "no match": ({"well_pattern": "(?P<row>.)(?P<column>.)"}, same, ["well 'tc1_A1_A01'", "no match", "in every well"]),
}


@pytest.mark.parametrize("name", BAD_H5AD)
def test_bad_h5ad(tmp_path: Path, name: str):
    settings, spoil, expected = BAD_H5AD[name]
    screen = their_screen()
    spoil(screen)
    path = tmp_path / "plate.h5ad"
    screen.write_h5ad(path)
    cfg = DataConfig(**{"data_dir": str(path), "compound": "drug"} | settings)
    with pytest.raises(InputError) as error:
        read_screen(cfg)
    for part in ["found", "expected", "well_pattern" if "well_pattern" in settings else "plate.h5ad", *expected]:
        assert part in str(error.value)
    assert len(find_problems(cfg)) >= 1


def test_h5ad_of_another_kind(tmp_path: Path):
    screen = their_screen()
    screen.X = np.random.default_rng(0).poisson(5, screen.shape).astype(np.int64)
    screen.obs["plate"] = ["P1", None] * 12  # a default name with gaps: left out
    del screen.obsm["scores"]
    path = tmp_path / "plate.h5ad"
    screen.write_h5ad(path)
    cfg = DataConfig(compound="drug", label="kind=b", scores=("log10(dose_um)", "log1p(dose_um)"), normalise=True)
    read = read_h5ad(path, cfg)
    assert score_names(read) == ["log10(dose_um)", "log1p(dose_um)"]
    assert read.obsm["scores"].isna().sum().tolist() == [4, 0]
    assert read.obs["label"].tolist() == [0, 1, 0] * 8
    assert (read.layers["counts"] == screen.X).all()
    np.testing.assert_allclose(read.X, np.log1p(1e4 * screen.X / screen.X.sum(1, keepdims=True)), rtol=1e-5)
    assert read.obs["plate"].tolist()[:2] == ["tc1_A1", "tc2_A1"]  # by the well ids then
    assert read.obs["kind"].tolist() == ["a", "b", "c"] * 8


@pytest.mark.parametrize("keep", [0, 10, 2000, 0.5, 0.99])
def test_truncated_h5ad(tmp_path: Path, keep: float):
    path = tmp_path / "screen.h5ad"
    make_screen().write_h5ad(path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(InputError, match=r"screen\.h5ad: found .*expected a whole AnnData"):
        read_h5ad(path)


@pytest.mark.parametrize("seed", range(60))
def test_random_corruption(bundle: Path, tmp_path: Path, seed: int):
    """A truncated or damaged bundle is refused or is a valid screen; nothing else ever comes out."""
    rng = random.Random(seed)
    path = rng.choice(sorted(bundle.iterdir()))
    content = bytearray(path.read_bytes())
    if seed % 2:
        content = content[: rng.randrange(len(content))]
    for _ in range(0 if seed % 4 == 1 else rng.randint(1, 5)):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)
    try:
        screen = read_bundle(bundle)
    except InputError as error:
        assert "found" in str(error) and "expected" in str(error)
        assert len(find_problems(DataConfig(data_dir=str(bundle)))) >= 1
        return
    assert len(find_problems(DataConfig(data_dir=str(bundle)))) == 0
    assert np.isfinite(screen.X).all() and screen.obs_names.is_unique and screen.var_names.is_unique
    assert screen.obs["is_control"].any() and set(screen.obs["label"]) == {0, 1}
    write_bundle(screen, tmp_path / "again")
    assert screen_hash(read_bundle(tmp_path / "again")) == screen_hash(screen)


def test_a_whole_screen_is_exact(tmp_path: Path):
    rng = np.random.default_rng(3)
    names = [f"w{i}" for i in range(768)]
    obs = pd.DataFrame({"compound": ["DMSO", "x"] * 384, "label": [0, 1] * 384}, index=names)
    x = (rng.normal(size=(768, 2541)) * 10.0 ** rng.integers(-6, 6, (768, 2541))).astype(np.float32)
    write_bundle(AnnData(X=x, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(2541)])), tmp_path / "b")
    assert (read_bundle(tmp_path / "b").X == x).all()
    shutil.copy(tmp_path / "b" / "expr_mat.csv", tmp_path / "copy.csv")
    content = (tmp_path / "copy.csv").read_text()
    (tmp_path / "b" / "expr_mat.csv").write_text(content[: content.rindex(",")] + ",oops\n")
    with pytest.raises(InputError, match=r"data row 768 \(header not counted\), column g2540: found 'oops'"):
        read_bundle(tmp_path / "b")


def test_unknown_positions_warn_once(caplog: pytest.LogCaptureFixture):
    assert parse_wells(["barcode1", "A03"]).shape == (2, 0)
    assert len(caplog.records) == 1 and "barcode1" in caplog.text


COUNTS = np.random.default_rng(2).poisson(9, (24, 5))


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    """A bundle with counts and doses."""
    screen = make_screen()
    screen.layers["counts"], screen.obs["dose"] = COUNTS.astype(np.float32), [0.1, 1.0, 0.0] * 8
    write_bundle(screen, tmp_path / "counted")
    return tmp_path / "counted"


def test_counts_and_doses_travel_in_a_bundle(counted: Path, tmp_path: Path):
    screen = read_bundle(counted)
    assert (screen.layers["counts"] == COUNTS).all() and screen.obs["dose"].tolist() == [0.1, 1.0, 0.0] * 8
    assert (counted / "counts_mat.csv").read_text().split("\n")[1] == ",".join(map(str, COUNTS[0]))
    assert "dose" not in read_bundle(counted, DataConfig(dose="")).obs
    screen.layers["counts"][3, 1] = 0.5
    with pytest.raises(InputError, match="layer counts: found values that are no whole numbers"):
        write_bundle(screen, tmp_path / "halves")
    assert not (tmp_path / "halves" / "expr_mat.csv").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cell("counts_mat.csv", 3, 1, "-1"), ["counts_mat.csv", "data row 3", "IFNG", "found -1", "zero or more"]),
        (cell("counts_mat.csv", 3, 1, "1.5"), ["counts_mat.csv", "data row 3", "IFNG", "found 1.5", "whole numbers"]),
        (cell("counts_mat.csv", 0, 1, "IL4"), ["counts_mat.csv", "column 2", "'IL4'", "'IFNG', as in expr_mat.csv"]),
        (raw("counts_mat.csv", b"IL2\n" + b"1\n" * 24), ["counts_mat.csv", "header", "1 genes", "5, as in"]),
        (text("counts_mat.csv", lambda s: s[: s.rfind("\n", 0, -1) + 1]), ["counts_mat.csv", "23 rows", "24"]),
        (cell("dose.csv", 4, 0, "10 uM"), ["dose.csv", "data row 4", "'10 uM'", FINITE]),
        (cell("dose.csv", 4, 0, ""), ["dose.csv", "data row 4", "0 fields"]),
    ],
)
def test_counts_and_doses_are_checked(counted: Path, change: Callable, words: list[str], caplog):
    change(counted)
    with pytest.raises(InputError) as e:
        read_bundle(counted)
    assert all(word in str(e.value) for word in words), str(e.value)
    assert "left out" not in caplog.text  # what is refused isn't a gap as well
