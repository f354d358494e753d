"""Several controls, vehicles, strata, references, treatments: what is read, and what is refused, in one line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from shared_runs import tree

from tcell_drugseq.base.settings import InputError
from tcell_drugseq.data.reading import read_screen, write_bundle


def wells() -> AnnData:
    """Two donors, two vehicles, two compounds at two doses, a reference compound and wells of medium."""
    rows = [
        (c, v, d, dose)
        for d in ("D1", "D2")
        for c, v, dose in (
            *[("DMSO", "DMSO", 0.0)] * 2,
            *[("water", "water", 0.0)] * 2,
            *[('β, "x"', "water", 1.0)] * 2,
            *[("NA", "DMSO", dose) for dose in (1.0, 10.0)],
            ("PMA", "DMSO", 5.0),
            ("Medium", "", 0.0),
        )
    ]
    obs = pd.DataFrame(rows, columns=["compound", "vehicle", "donor", "dose"])
    obs.index = [f"P1_{'ABCDEFGH'[i // 12]}{i % 12 + 1:02d}" for i in range(len(obs))]
    obs["unit"], obs["id"] = np.where(obs["dose"] > 0, "uM", ""), obs.index
    obs["label"] = np.arange(len(obs)) % 2
    return AnnData(np.random.default_rng(0).normal(size=(len(obs), 5)).astype(np.float32), obs=obs)


SETTINGS = {"control": ["DMSO", "water"], "strata": ["donor"], "positive": "PMA"}


def test_a_design_is_read_and_goes_with_the_file(tmp_path: Path):
    screen = read_screen(wells(), **SETTINGS)
    obs = screen.obs
    assert obs["is_control"].sum() == 8 and set(obs["stratum"]) == {"D1", "D2"}
    assert (obs["vehicle"] == wells().obs.loc[obs.index, "vehicle"]).all()
    assert obs["compound"][obs["is_positive"]].unique().tolist() == ["PMA"]
    assert "NA, 10 uM, donor D2" in set(obs["treatment"])
    assert screen.uns["set_aside"].to_numpy().tolist() == [["medium", "Medium", 2]]
    screen.write_h5ad(tmp_path / "screen.h5ad")
    again = read_screen(tmp_path / "screen.h5ad")  # with no settings at all
    parts = ["is_control", "stratum", "vehicle", "is_positive", "treatment"]
    assert (again.obs[parts].astype(str) == obs[parts].astype(str)).all(axis=None)
    assert again.uns["source"]["hash"] == screen.uns["source"]["hash"]
    assert again.uns["set_aside"].to_numpy().tolist() == screen.uns["set_aside"].to_numpy().tolist()


def as_bundle(made: AnnData, folder: Path) -> None:
    """The same as a bundle, with what it has no file for in `obs.csv`."""
    write_bundle(AnnData(made.X, made.obs[["compound", "label", "dose"]], made.var), folder)
    made.obs[["donor", "vehicle", "unit", "id"]].to_csv(folder / "obs.csv", index=False)


def test_other_columns_of_a_bundle_stand_in_obs_csv(tmp_path: Path):
    made = wells()
    as_bundle(made, tmp_path / "bundle")
    found, known = read_screen(tmp_path / "bundle", **SETTINGS).obs, read_screen(made, **SETTINGS).obs
    assert (found[["stratum", "vehicle"]].astype(str) == known[["stratum", "vehicle"]].astype(str)).all(axis=None)


def test_a_design_is_written_to_obs_csv_and_read_again(tmp_path: Path):
    made = wells()
    made.obs.loc[made.obs["donor"] == "D2", "donor"] = 'β, "2"'
    screen = read_screen(made, **SETTINGS)
    write_bundle(screen, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "obs.csv").read_text("utf-8").splitlines()[0] == "donor,vehicle,unit"
    again = read_screen(tmp_path / "bundle", **SETTINGS)
    assert again.uns["source"]["hash"] == screen.uns["source"]["hash"]
    plain = made[:, :].copy()
    plain.obs = made.obs[["compound", "label", "dose"]]
    write_bundle(plain, tmp_path / "plain")
    files = ["dose.csv", "expr_mat.csv", "labels_cls.csv", "meta_id.csv", "well_id.csv"]
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == files


def said(folder: Path, *command: str) -> str:
    """What a command prints, once it has done its work."""
    done = subprocess.run([sys.executable, "-m", "tcell_drugseq", *command], capture_output=True, text=True, cwd=folder)
    assert done.returncode in (0, 3), done.stderr  # 3: an audit failed
    return done.stdout


def test_a_simulated_design_is_read_by_its_settings(tmp_path: Path):
    layout = "--n_donors=2 --stimulations=2 --vehicles=2 --n_doses=3 --n_references=2 --n_plates=1 --n_compounds=5"
    said(tmp_path, "simulate", "out", *layout.split(), "--n_controls=16", "--n_genes=100")
    settings = ["--control=DMSO 0.1%", "--control=DMSO 0.3%", "--strata=donor", "--strata=stimulation"]
    settings += ["--positive=dexamethasone"]
    mixed = AnnData(np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32))
    mixed.obs = pd.DataFrame(
        {"compound": ["DMSO", "A", "B"] * 8, "donor": ["D1"] * 12 + ["D2"] * 12, "label": [0, 1] * 12}
    )
    mixed.write_h5ad(tmp_path / "mixed.h5ad")
    lines = said(tmp_path, "validate", "out", *settings)
    assert "strata: 4: 'D1 · resting' (16 controls" in lines and "vehicles: 2: " in lines
    assert "no problems found" in lines
    assert "is not named in strata" not in lines
    unnamed = said(tmp_path, "validate", "mixed.h5ad")
    assert "column 'donor' splits the 8 control wells ('D1', 'D2') and is not named in strata" in unnamed
    said(tmp_path, "audit", "--data_dir=out", "--out_dir=audit", *settings)
    assert (tmp_path / "audit" / "audit.csv").exists()


def without(made: AnnData, **values: str) -> AnnData:
    """The wells without those where a column has a value."""
    ((name, value),) = values.items()
    return made[~((made.obs["compound"].isin(["DMSO", "water"])) & (made.obs[name] == value))].copy()


def changed(made: AnnData, column: str, value: str) -> AnnData:
    made.obs.loc[made.obs_names[4], column] = value
    return made


BAD = {
    "a stratum with no control": (lambda: without(wells(), donor="D2"), {}, ["'D2'", "no control well"]),
    "a vehicle that names no control": (lambda: changed(wells(), "vehicle", "ethanol"), {}, ["P1_A05", "'ethanol'"]),
    "a dose without a unit": (lambda: changed(wells(), "unit", ""), {}, ["P1_A05", "without a unit"]),
    "two units of one compound": (lambda: changed(wells(), "unit", "nM"), {}, ["P1_A06", "the unit 'uM' beside 'nM'"]),
    "a positive in no well": (wells, {"positive": ["PMA "]}, ["no well of 'PMA '", "near: 'PMA'"]),
    "a treatment for each well": (wells, {"treatment": ["id"]}, ["setting 'treatment', column 'id'"]),
    "a column that is not there": (wells, {"strata": ["doner"]}, ["setting 'strata'", "near: 'donor'"]),
}


@pytest.mark.parametrize("form", ["wells.h5ad", "bundle"])
@pytest.mark.parametrize("case", BAD)
def test_bad_designs_are_one_error(case: str, form: str, fork, tmp_path: Path):
    make, settings, parts = BAD[case]
    with pytest.raises(InputError) as caught:
        read_screen(make(), **SETTINGS | settings)
    assert [part for part in parts if part not in str(caught.value)] == []
    as_bundle(make(), tmp_path / form) if form == "bundle" else make().write_h5ad(tmp_path / form)
    before = tree(tmp_path)
    flags = [f"--{name}={v}" for name, value in (SETTINGS | settings).items() for v in np.ravel(value)]
    for command in ("audit", "run"):
        done = fork(command, f"--data_dir={form}", "--out_dir=out", *flags, cwd=tmp_path)
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 2 and last.startswith("error: ") and "Traceback" not in done.stderr, done.stderr
        assert [part for part in parts if part not in last] == []
    listed = fork("validate", form, *flags, cwd=tmp_path)
    assert listed.returncode == 2 and "Traceback" not in listed.stderr
    assert [part for part in parts if part not in listed.stdout] == [], listed.stdout
    assert tree(tmp_path) == before


REAL = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data are not beside the project")
def test_wells_of_medium_are_no_compound_of_a_real_plate():
    screen = read_screen(REAL / "macpie_mini_mac.h5ad", label="", scores=["nCount_RNA"], positive=["Staurosporine"])
    medium = (read_h5ad(REAL / "macpie_mini_mac.h5ad").obs["compound"] == "Media").sum()
    assert screen.uns["set_aside"]["wells"].tolist() == [medium] and screen.obs["is_positive"].sum() == 9
