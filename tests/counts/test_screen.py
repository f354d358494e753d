"""`tcell-drugseq screen` as users call it: counts and a plate map in, a screen or one line out, nothing left over."""

import csv
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml
from anndata import AnnData
from conftest import HOSTILE, NAMES
from count_files import edit, grids, write_mtx
from scipy import sparse
from shared_runs import call, tree

from tcell_drugseq.base.defaults import DataConfig, ScreenConfig, SimConfig
from tcell_drugseq.counts.gene_sets import known_gene_sets
from tcell_drugseq.data.reading import read_screen
from tcell_drugseq.data.simulate import simulate_screen

COMPOUNDS = [*NAMES, *HOSTILE["compounds"][:2]]
FILES = {  # of a screen with doses and a label
    *"expr_mat.csv counts_mat.csv well_id.csv meta_id.csv dose.csv obs.csv labels_cls.csv cluster_id.csv".split(),
    *"scores_3_z.csv qc_wells.csv qc_dropped.csv qc_findings.csv qc_replicates.csv screen.h5ad screen.yaml".split(),
}
LABEL = ["--label", "Tscore>0.5"]
TINY = "--epochs 2 --d_model 16 --n_components 8 --n_members 1 --folds 2 --num_threads 1 --no_baselines".split()
BRIEF = "--hit_draws 500 --hit_bootstrap 100 --set_permutations 100 --biology_top 2".split()


class Sent(NamedTuple):
    """What a sequencing core and a lab send."""

    counts: pd.DataFrame  # 48 wells x 300 genes
    plates: pd.DataFrame  # well, compound, dose: all text

    def write(self, folder: Path) -> Path:
        folder.mkdir()
        self.counts.to_csv(folder / "counts.csv")
        self.plates.to_csv(folder / "map.csv", index=False)
        return folder


@pytest.fixture(scope="module")
def sent():
    """Three wells of each of 14 compounds whose names nobody wants to read from a file, and six controls."""
    layout = SimConfig(n_batches=1, n_plates=1, n_compounds=14, n_replicates=3, n_controls=6, n_genes=300)
    screen = simulate_screen(layout).screen
    counts = pd.DataFrame(screen.layers["counts"].astype(int), screen.obs_names, screen.var_names)
    plain = screen.obs["compound"].astype(str)
    names = dict(zip(plain[plain != "DMSO"].unique(), COMPOUNDS, strict=True))
    plates = pd.DataFrame({"well": counts.index, "compound": plain.replace(names).to_numpy()})
    return Sent(counts, plates.assign(dose_uM=np.where(plates["compound"] == "DMSO", "", "2.5")))


@pytest.fixture(scope="module")
def made(sent, tmp_path_factory):
    """A screen made of two tables."""
    here = sent.write(tmp_path_factory.mktemp("made") / "here")
    done = call("screen", "counts.csv", "map.csv", "out", *LABEL, cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "48 wells x 300 genes -> out"
    return here / "out"


def about(out):
    return yaml.safe_load((out / "screen.yaml").read_text(encoding="utf-8"))


def both(out):
    """The screen by its bundle and by its `.h5ad`."""
    return [read_screen(DataConfig(str(path))) for path in (out, out / "screen.h5ad")]


def test_all_files_are_written_and_nothing_beside_them(sent, made):
    assert {path.name for path in made.iterdir()} == FILES
    assert {path.name for path in made.parent.iterdir()} == {"counts.csv", "map.csv", "out"}
    told = about(made)
    assert (told["wells"], told["genes"], told["source"]["name"]) == (48, 300, "counts.csv")
    assert told["settings"] == {f.name: f.default for f in fields(ScreenConfig)} | {
        **{name: [] for name in ("positive", "rename", "strata", "treatment")},
        "control": ["DMSO"],
        "label": "Tscore>0.5",
    }
    assert [screen.uns["source"]["hash"] for screen in both(made)] == [told["source"]["hash"]] * 2
    assert "wells agree" not in "\n".join(told["notes"])  # exactly the same ids: nothing was assumed


def as_h5ad(table: pd.DataFrame, path: Path) -> None:
    obs, var = pd.DataFrame(index=table.index), pd.DataFrame(index=table.columns)
    AnnData(sparse.csr_matrix(table.to_numpy(dtype=np.float32)), obs=obs, var=var).write_h5ad(path)


FORMS = {  # how it is written, and what screen.yaml then says was assumed
    "genes.tsv": (lambda table, path: table.T.to_csv(path, sep="\t"), "read as TSV, genes by wells: 300 of 300 row"),
    "genes.csv.gz": (lambda table, path: table.T.to_csv(path), "read as CSV, genes by wells: 300 of 300 row names are"),
    "10x": (lambda table, path: write_mtx(table, path, packed=True), "read as MatrixMarket folder, genes by wells"),
    "counts.h5ad": (as_h5ad, "read as h5ad, wells by genes: row names are well ids"),
    "turned.h5ad": (lambda table, path: as_h5ad(table.T, path), "read as h5ad, genes by wells: 300 of 300 row names"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_makes_the_same_screen(form, fork, sent, made, tmp_path):
    write, words = FORMS[form]
    here = sent.write(tmp_path / "here")
    (here / "counts.csv").unlink()
    (here / "out").mkdir()  # may be there if it is empty
    write(sent.counts, here / form)
    done = fork("screen", form, "map.csv", "out", *LABEL, cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    found, first = about(here / "out"), about(made)
    assert found["source"]["hash"] == first["source"]["hash"] and found["source"]["name"] == form
    assert f"{form}: {words}" in "\n".join(found["notes"]) and f"{form}: {words}" in done.stdout
    assert "counts.csv: read as CSV, wells by genes: row names are well ids" in "\n".join(first["notes"])
    assert {path.name for path in (here / "out").iterdir()} == FILES


def test_the_folder_one_stands_in_has_a_name(fork, sent, tmp_path):
    write_mtx(sent.counts, tmp_path / "plate 7", packed=True)
    sent.plates.to_csv(tmp_path / "map.csv", index=False)
    done = fork("screen", ".", "../map.csv", "../out", cwd=tmp_path / "plate 7")
    assert (done.returncode, done.stderr) == (0, "")
    assert about(tmp_path / "out")["source"]["name"] == "plate 7"
    assert done.stdout.startswith("plate 7: read as MatrixMarket folder")


def test_a_grid_says_the_same_as_a_long_table(fork, sent, made, tmp_path):
    here = sent.write(tmp_path / "here")
    at = [re.sub(r"0(?=\d$)", "", well.split("_")[-1]) for well in sent.plates["well"]]
    blocks = [dict(zip(at, sent.plates[name], strict=True)) for name in ("compound", "dose_uM")]
    (here / "map.csv").write_text(grids(("Compound", blocks[0]), ("Dose [uM]", blocks[1])), newline="")
    done = fork("screen", "counts.csv", "map.csv", "out", *LABEL, cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert about(here / "out")["source"] == about(made)["source"]
    long, grid = both(made)[1], both(here / "out")[1]
    pd.testing.assert_frame_equal(grid.obs, long.obs, check_like=True)
    assert "by position alone, as the plate map names no plate" in "\n".join(about(here / "out")["notes"])


def test_ids_that_agree_after_zero_padding_only_are_taken_and_it_is_said(fork, sent, made, tmp_path):
    here = sent.write(tmp_path / "here")
    full = [well.split("_")[-1] for well in sent.counts.index]
    short = [re.sub(r"0(?=\d$)", "", well) for well in full]
    assert full[0] == "A01" and short[0] == "A1"
    sent.counts.set_axis(short).to_csv(here / "counts.csv")
    sent.plates.assign(well=full).sample(frac=1, random_state=0).to_csv(here / "map.csv", index=False)
    done = fork("screen", "counts.csv", "map.csv", "out", *LABEL, cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    words = "counts.csv and map.csv: wells agree only after zero-padding, such as 'A1' and 'A01'"
    assert words in about(here / "out")["notes"] and words in done.stdout.splitlines()
    found, wanted = both(here / "out")[1], both(made)[1]
    assert found.obs_names.tolist() == short and (found.X == wanted.X).all()
    assert found.obs["compound"].tolist() == wanted.obs["compound"].tolist() == sent.plates["compound"].tolist()


def test_hostile_names_survive_from_the_plate_map_to_the_predictions(sent, made, tmp_path):
    wanted = dict(zip(sent.plates["well"], sent.plates["compound"], strict=True))
    assert {*wanted.values()} == {*COMPOUNDS, "DMSO"}
    for screen in both(made):
        assert dict(zip(screen.obs_names, screen.obs["compound"], strict=True)) == wanted
    done = call("run", "--data_dir", made / "screen.h5ad", "--out_dir", tmp_path / "results", *TINY, *BRIEF)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "results" / "well_predictions_results.csv", encoding="utf-8", newline="") as file:
        assert {row["well_id"]: row["metabolite"] for row in csv.DictReader(file)} == wanted
    with open(tmp_path / "results" / "compound_ranking.csv", encoding="utf-8", newline="") as file:
        assert {row["compound"] for row in csv.DictReader(file)} >= set(COMPOUNDS)


Make = Callable[[Path, Sent], object]


def nothing(folder: Path, sent: Sent) -> None:
    pass


def counts(change: Callable[[pd.DataFrame], pd.DataFrame], name: str = "counts.csv") -> Make:
    return lambda folder, sent: change(sent.counts.astype(object)).to_csv(folder / name)


def cells(*values: object) -> Make:
    """Counts with these values in wells 3, 4, ... and genes 5, 6, ..."""

    def change(table):
        for i, value in enumerate(values):
            table.iloc[2 + i, 4 + i] = value
        return table

    return counts(change)


def plates(change: Callable[[pd.DataFrame], pd.DataFrame], name: str = "map.csv") -> Make:
    return lambda folder, sent: change(sent.plates).to_csv(folder / name, index=False)


def cut(make: Make, name: str) -> Make:
    def cut_short(folder, sent):
        make(folder, sent)
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return cut_short


def tenx(change: Callable[[Path], object]) -> Make:
    return lambda folder, sent: change(write_mtx(sent.counts, folder / "10x"))


def text(name: str, content: str) -> Make:
    def write(folder, sent):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)

    return write


def few_of_the_signature(table: pd.DataFrame) -> pd.DataFrame:
    """Four genes of the default signature, and all that are not in it."""
    genes = [gene for gene in table if gene in known_gene_sets()["T_CELL_ACTIVATION"].genes]
    return table.drop(columns=genes[4:])


def twin(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.iloc[:1]])


def ensembl(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_axis([f"ENSG9{i:010d}" for i in range(table.shape[1])], axis=1)


def no_symbols(folder: Path) -> None:
    (folder / "features.tsv").write_text("".join(f"ENSG9{i:010d}\n" for i in range(300)))


GOOD = "counts.csv map.csv out"
RAW = "expected raw counts: whole numbers, zero or more"
SYMBOLS = "expected human gene symbols"
ONCE = "more than once, expected each well once"
SAME = "expected the same wells in both, or the compound `empty`"
NEW = "expected a new or empty folder"


def two_donors(frame: pd.DataFrame) -> pd.DataFrame:
    """Well by well of one donor and the other."""
    return frame.assign(donor=np.where(np.arange(len(frame)) % 2, "D2", "D1"))


def one_served(frame: pd.DataFrame) -> pd.DataFrame:
    donors = two_donors(frame)
    return donors.assign(donor=donors["donor"].where(donors["compound"] != "DMSO", "D1"))


def last_vehicle(frame: pd.DataFrame) -> pd.DataFrame:
    treated = frame.index[frame["compound"] != "DMSO"]
    return frame.assign(vehicle=["ethanol" if i == treated[-1] else "DMSO" for i in frame.index])


def last_dose_bare(frame: pd.DataFrame) -> pd.DataFrame:
    cells = frame["dose_uM"].where(frame["dose_uM"] == "", frame["dose_uM"] + " uM")
    treated = frame.index[frame["compound"] != "DMSO"]
    return frame.drop(columns="dose_uM").assign(dose=cells.where(frame.index != treated[-1], "2.5"))


DESIGNS = {  # the same for designs, which `validate` refuses in the same words
    "a stratum with no control": (
        plates(one_served),
        f"{GOOD} --strata donor",
        ["map.csv: stratum 'D2': found ", "treated wells and no control well, expected control wells of each stratum"],
    ),
    "a vehicle that names no control": (
        plates(last_vehicle),
        f"{GOOD} --vehicle vehicle",
        ["map.csv: well ", "column 'vehicle': found the vehicle 'ethanol' (1 such wells)", "a control well: 'DMSO'"],
    ),
    "a dose without a unit": (
        plates(last_dose_bare),
        GOOD,
        ["map.csv: well ", "dose: found 2.5 without a unit beside doses in 'uM' (1 such wells), expected a unit"],
    ),
    "a positive in no well": (nothing, f"{GOOD} --positive PMA", ["map.csv: setting 'positive': found no well of"]),
    "a treatment for each well": (
        plates(lambda p: p.assign(sample=[f"S{i}" for i in range(len(p))])),
        f"{GOOD} --treatment sample",
        ["map.csv: setting 'treatment', column 'sample': found another value in each of the 42 treated wells"],
    ),
}
BAD = {  # how to break what was sent, what is asked for, what the line must hold
    "normalised": (
        cells(3.17, 0.5),
        GOOD,
        ["counts.csv: well 'tc1_A1_A05', gene ", "found 3.17 (2 of", "are no whole numbers", "look normalised", RAW],
    ),
    "all normalised": (
        counts(lambda t: np.log1p(t.astype(float))),
        GOOD,
        ["counts.csv: well 'tc1_A1_A01', gene 'IL2': found", "look normalised", RAW],
    ),
    "normalised h5ad": (
        lambda folder, sent: as_h5ad(np.log1p(sent.counts), folder / "counts.h5ad"),
        "counts.h5ad map.csv out",
        ["counts.h5ad: well 'tc1_A1_A01', gene 'IL2': found", "look normalised", RAW],
    ),
    "negative": (cells(-3), GOOD, ["counts.csv: well 'tc1_A1_A05', gene ", "found -3 (1 of", "are negative", RAW]),
    "no number": (cells("many"), GOOD, ["counts.csv: row 'tc1_A1_A05', column ", "found 'many'", "expected a count"]),
    "wrong orientation": (
        nothing,
        f"{GOOD} --orientation genes_by_wells",
        ["counts.csv: found a matrix that is wells_by_genes", "expected genes_by_wells, as `orientation` is set"],
    ),
    "transposed": (
        counts(lambda t: t.T, "turned.tsv.gz"),
        "turned.tsv.gz map.csv out --orientation wells_by_genes",
        ["turned.tsv.gz: found a matrix that is genes_by_wells", "expected wells_by_genes, as `orientation` is set"],
    ),
    "transposed h5ad": (
        lambda folder, sent: as_h5ad(sent.counts.T, folder / "counts.h5ad"),
        "counts.h5ad map.csv out --orientation wells_by_genes",
        ["counts.h5ad: found a matrix that is genes_by_wells", "expected wells_by_genes, as `orientation` is set"],
    ),
    "no such orientation": (nothing, f"{GOOD} --orientation rows", ["orientation: found 'rows', expected one of auto"]),
    "twin wells in the counts": (counts(twin), GOOD, ["counts.csv: well names: found 'tc1_A1_A01' " + ONCE]),
    "twins by padding in the counts": (
        counts(lambda t: pd.concat([t, t.iloc[:1].set_axis(["tc1_A1_A1"])])),
        GOOD,
        ["counts.csv: wells: found 'tc1_A1_A01', 'tc1_A1_A1' " + ONCE],
    ),
    "twin wells in the map": (plates(twin), GOOD, ["map.csv: wells: found 'tc1_A1_A01' " + ONCE]),
    "twins by padding in the map": (
        plates(lambda p: pd.concat([p, p.iloc[:1].assign(well="tc1_A1_A1")])),
        GOOD,
        ["map.csv: wells: found 'tc1_A1_A01', 'tc1_A1_A1' " + ONCE],
    ),
    "no control": (
        plates(lambda p: p.replace({"compound": {"DMSO": "Medium"}})),
        GOOD,
        ["map.csv: compound: found no well of 'DMSO'; most frequent: 'Medium' (6)", "expected control wells"],
    ),
    "another control": (
        nothing,
        f"{GOOD} --control PBS",
        ["map.csv: compound: found no well of 'PBS'; most frequent: 'DMSO' (6)", "expected control wells"],
    ),
    "no compounds": (
        plates(lambda p: p.drop(columns="compound")),
        GOOD,
        ["map.csv: columns: found 'well', 'dose'", "expected a column or block of compounds"],
    ),
    "Ensembl": (
        counts(ensembl),
        GOOD,
        ["counts.csv: found Ensembl ids instead of symbols: 'ENSG90000000000'", "(300 of 300 names)", SYMBOLS],
    ),
    "Ensembl 10x": (
        tenx(no_symbols),
        "10x map.csv out",
        ["10x: found Ensembl ids instead of symbols", SYMBOLS, "second column of 10x/features.tsv"],
    ),
    "Ensembl h5ad": (
        lambda folder, sent: as_h5ad(ensembl(sent.counts), folder / "counts.h5ad"),
        "counts.h5ad map.csv out",
        ["counts.h5ad: found Ensembl ids instead of symbols", SYMBOLS, "as var_names or in a column of var"],
    ),
    "mouse": (
        counts(lambda t: t.rename(columns=str.capitalize)),
        GOOD,
        ["counts.csv: found symbols of mouse or rat, or not in capitals: 'Il2'", SYMBOLS],
    ),
    "too few genes of the signature": (
        counts(few_of_the_signature),
        GOOD,
        ["counts.csv", "T_CELL_ACTIVATION: found 4 of its 163 genes", "expected at least 5"],
    ),
    "too few genes of one's own signature": (
        text("mine.gmt", "MINE\tme\tIL2\tIFNG\tGZMB\tABC\tDEF\tGHI\n"),
        f"{GOOD} --signature mine.gmt:MINE",
        ["mine.gmt", "MINE: found 3 of its 6 genes among the 300 measured ('IL2', 'IFNG', 'GZMB')", "at least 5"],
    ),
    "no such signature": (
        nothing,
        f"{GOOD} --signature T_CELL",
        ["signature: no 'T_CELL' in the gene sets of the package; found 'T_CELL_ACTIVATION'", "or give FILE.gmt:NAME"],
    ),
    "gzip cut short": (
        cut(counts(lambda t: t, "counts.csv.gz"), "counts.csv.gz"),
        "counts.csv.gz map.csv out",
        ["counts.csv.gz: found a gzip archive that is cut short", "expected a whole one"],
    ),
    "map cut short": (
        cut(plates(lambda p: p, "map.csv.gz"), "map.csv.gz"),
        "counts.csv map.csv.gz out",
        ["map.csv.gz: found a gzip archive that is cut short", "expected a whole one"],
    ),
    "10x cut short": (
        cut(lambda folder, sent: write_mtx(sent.counts, folder / "10x", packed=True), "10x/matrix.mtx.gz"),
        "10x map.csv out",
        ["matrix.mtx.gz: found a gzip archive that is cut short", "expected a whole one"],
    ),
    "h5ad cut short": (
        cut(lambda folder, sent: as_h5ad(sent.counts, folder / "counts.h5ad"), "counts.h5ad"),
        "counts.h5ad map.csv out",
        ["counts.h5ad: found no readable AnnData", "expected a whole AnnData"],
    ),
    "10x of another barcode file": (
        tenx(edit("barcodes.tsv", "tc1_A1_A01\n", "")),
        "10x map.csv out",
        ["10x/matrix.mtx: found 300 x 48, expected 300 x 47, as 10x/features.tsv and 10x/barcodes.tsv have lines"],
    ),
    "no counts": (nothing, "nowhere.csv map.csv out", ["nowhere.csv: found no such file", "expected a count matrix"]),
    "no map": (nothing, "counts.csv nowhere.csv out", ["nowhere.csv: found No such file", "expected a regular file"]),
    "no config": (nothing, f"{GOOD} --config nowhere.yaml", ["nowhere.yaml: found No such file or directory"]),
    "no gene sets": (nothing, f"{GOOD} --signature nowhere.gmt:X", ["nowhere.gmt: found No such file", "expected a"]),
    "map and counts exchanged": (
        nothing,
        "map.csv counts.csv out",
        ["map.csv: row 'tc1_A1_A01', column 'compound': found 'NA'", "expected a count"],
    ),
    "OUT holds something": (text("out/notes.txt", "mine"), GOOD, [f"out: found notes.txt, {NEW}"]),
    "OUT holds a screen": (text("out/screen.h5ad", "mine"), GOOD, [f"out: found screen.h5ad, {NEW}"]),
    "OUT is a file": (text("out", "mine"), GOOD, [f"out: found a file, {NEW}"]),
    "OUT below a file": (nothing, "counts.csv map.csv map.csv/out", ["map.csv/out: "]),
    "OUT holds the input": (nothing, "counts.csv map.csv .", [".: found counts.csv, map.csv", NEW]),
    "unknown setting": (
        text("mine.yaml", "min_umi: 500\n"),
        f"{GOOD} --config mine.yaml",
        ["mine.yaml: unknown setting 'min_umi'; did you mean 'min_umis'?"],
    ),
    "setting of a run": (text("mine.yaml", "epochs: 5\n"), f"{GOOD} --config mine.yaml", ["unknown setting 'epochs'"]),
    "text for a number": (
        text("mine.yaml", "min_umis: many\n"),
        f"{GOOD} --config mine.yaml",
        ["mine.yaml: min_umis: found 'many' (str), expected a whole number"],
    ),
    "out of range": (nothing, f"{GOOD} --max_mito 50", ["max_mito: found 50", "expected"]),
    "only in the map": (
        counts(lambda t: t.iloc[2:]),
        GOOD,
        ["counts.csv and map.csv: wells: found 'tc1_A1_A01', 'tc1_A1_A03' (2 of 48) in map.csv and not in counts.csv"],
    ),
    "only in the counts": (
        plates(lambda p: p.iloc[1:]),
        GOOD,
        ["counts.csv and map.csv: wells: found 'tc1_A1_A01' (1 of 48) in counts.csv and not in map.csv", SAME],
    ),
    "another plate": (
        plates(lambda p: p.assign(well=p["well"].str.replace("A1_", "A2_"))),
        GOOD,
        ["found 'tc1_A1_A01'", "(48 of 48) in counts.csv and not in map.csv; 'tc1_A2_A01'", SAME],
    ),
    "no well left": (
        counts(lambda t: t // 1000),
        GOOD,
        [
            "counts.csv",
            "found 0 control wells left, expected at least 1 (of 48 wells dropped",
            "carries next to nothing",
        ],
    ),
    "no such label": (nothing, f"{GOOD} --label Foo>1", ["label: 'Foo>1': no score 'Foo'; found 'Tscore'"]),
    "no such root": (nothing, f"{GOOD} --root donor=1", ["root: 'donor=1': no column 'donor'; found 'compound'"]),
}
BAD |= DESIGNS
WHOLE = ("normalised", "no counts", "too few genes of the signature")  # in a process of their own, imports and all


def refused(case, sent, here):
    """What is asked of a folder with this fault, what has to be said of it, and the folder as it was."""
    make, asked, parts = BAD[case]
    make(sent.write(here), sent)
    return asked, parts, tree(here)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, fork, sent, tmp_path):
    here = tmp_path / "here"
    asked, parts, before = refused(case, sent, here)
    done = (call if case in WHOLE else fork)("screen", *asked.split(), cwd=here)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.endswith("\n") and done.stderr.count("\n") == 1
    assert [part for part in parts if part not in done.stderr] == [], done.stderr
    assert tree(here) == before  # no OUT, nothing in it or beside it, hidden or not, and the input as it was


@pytest.mark.parametrize("case", DESIGNS)
def test_validate_refuses_the_same_designs(case, fork, sent, tmp_path):
    here = tmp_path / "here"
    asked, parts, before = refused(case, sent, here)
    done = fork("validate", *asked.replace(" out", "", 1).split(), cwd=here)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert [part for part in parts if part not in done.stderr] == [], done.stderr
    assert tree(here) == before


def test_a_design_goes_from_the_plate_map_to_the_hits(fork, sent, tmp_path):
    here = sent.write(tmp_path / "here")
    plates(two_donors)(here, sent)
    compound = sent.plates["compound"][sent.plates["compound"] != "DMSO"].iloc[0]
    asked = ["--strata", "donor", "--positive", compound]
    done = fork("screen", "counts.csv", "map.csv", "out", *LABEL, *asked, cwd=here)
    assert done.returncode == 0, done.stderr
    done = fork("run", "--data_dir=out", "--out_dir=results", *TINY, *BRIEF, "--no_biology", cwd=here)
    assert done.returncode == 0, done.stderr
    names = ("strata", "treatments", "references")
    strata, treatments, references = (
        pd.read_csv(here / "results" / f"{name}.csv", keep_default_na=False) for name in names
    )
    assert set(strata["stratum"]) == {"D1", "D2"} and set(references["compound"]) == {compound}
    assert set(treatments["compound"]) == set(COMPOUNDS) and set(treatments["stratum"]) == {"D1", "D2"}


ODD = {  # columns of a plate map that mean something elsewhere
    "reserved by AnnData": lambda p: p.assign(_index="1"),
    "slash": lambda p: p.assign(**{"lot/supplier": "7"}),
    "text as label": lambda p: p.assign(label="bright"),
    "text as activation": lambda p: p.assign(activation_old="high"),
    "names of scores and measures": lambda p: p.assign(Tscore="3", umis="many", cluster="x", pred_label="1"),
    "gaps in doses": lambda p: p.assign(dose_uM=p["dose_uM"].where(p.index % 4 > 0, "")),
    "gaps in plates": lambda p: p.assign(plate="", batch=""),
    "a plate of each well": lambda p: p.assign(plate=[f"P{i}" for i in range(len(p))]),
}


@pytest.mark.parametrize("case", ODD)
def test_a_screen_that_is_written_can_be_read(case, fork, sent, tmp_path):
    """Or it is refused as anything is."""
    here = sent.write(tmp_path / "here")
    plates(ODD[case])(here, sent)
    before = tree(here)
    done = fork("screen", "counts.csv", "map.csv", "out", cwd=here)
    if done.returncode:
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert "map.csv" in done.stderr and tree(here) == before
        return
    assert "Traceback" not in done.stderr and "Warning: " not in done.stderr, done.stderr
    bundle, h5ad = both(here / "out")
    for screen in (bundle, h5ad):
        assert screen.obs["compound"].tolist() == sent.plates["compound"].tolist()
    assert h5ad.uns["source"]["hash"] == about(here / "out")["source"]["hash"]


def test_help_lists_every_setting_at_once():
    begun = time.perf_counter()
    done = call("screen", "--help")
    assert done.returncode == 0 and done.stderr == "" and time.perf_counter() - begun < 10
    said = re.sub(r"\s", "", done.stdout)
    for field in fields(ScreenConfig):
        assert re.search(rf"^ +--{field.name}\b", done.stdout, re.MULTILINE), field.name
        assert re.sub(r"\s", "", field.metadata["help"]) in said, field.name
    assert re.search(r"^ +--config\b", done.stdout, re.MULTILINE)


def test_help_waits_for_no_heavy_package():
    command = [sys.executable, "-X", "importtime", "-m", "tcell_drugseq", "screen", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300).stderr
    loaded = {line.split("|")[-1].strip() for line in said.splitlines()}
    assert "tcell_drugseq.base.settings" in loaded and not {"scanpy", "anndata", "torch", "pandas"} & loaded
