"""The package where it is installed: a wheel, an environment without the repository, an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pandas as pd
import pytest

import tcell_drugseq

ROOT = Path(__file__).resolve().parents[1]
ANALYSIS = ROOT / "nbs" / "analysis"
SMALL = "--n_plates 1 --n_compounds 40 --n_controls 20 --n_genes 400".split()
QUICK = "epochs: 1\nd_model: 16\nfolds: 2\nbaselines: false\ncheck_importance: false\nbiology: false\nnum_threads: 1\n"


def done(command, **kwargs):
    found = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=500, **kwargs)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The command of a fresh environment that has the wheel; all else in it is what the wheel requires."""
    root = tmp_path_factory.mktemp("wheel")
    tracked = done(["git", "ls-files", "-z"], cwd=ROOT).split("\0")
    for name in filter(None, tracked):
        (root / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / "source" / name)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    done([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", root, root / "source"])
    venv.create(root / "env")
    python = root / "env" / "bin" / "python"
    done([*pip, "--python", python, "install", "--no-deps", "--no-index", *root.glob("*.whl")])
    packages = Path(done([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (root / "env" / "share").symlink_to(Path(sys.prefix) / "share")  # kernels and templates of Jupyter
    return python.with_name("tcell-drugseq")


@pytest.fixture(scope="module")
def ask(installed, tmp_path_factory):
    """The command in an empty folder, where a screen is drawn first."""
    here = tmp_path_factory.mktemp("empty")
    outside = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def ask(*args):
        return done([installed, *args], cwd=here, env=outside)

    ask.here = here
    ask("simulate", "data", *SMALL)
    return ask


def test_it_is_the_installed_package(installed, ask):
    where = done([installed.with_name("python"), "-c", "import tcell_drugseq; print(tcell_drugseq.__file__)"], cwd="/")
    assert Path(where.strip()).is_relative_to(installed.parents[1])
    assert ask("--version") == f"tcell-drugseq {tcell_drugseq.__version__}\n"


def test_screen(ask):
    wells = pd.read_csv(ask.here / "data" / "well_id.csv").iloc[:, 0]
    counts = pd.read_csv(ask.here / "data" / "counts_mat.csv").set_axis(wells, axis=0)
    counts.rename_axis("well").to_csv(ask.here / "counts.csv")
    compound = pd.read_csv(ask.here / "data" / "meta_id.csv").iloc[:, 0]
    pd.DataFrame({"well": wells, "compound": compound}).to_csv(ask.here / "map.csv", index=False)
    assert "-> made" in ask("screen", "counts.csv", "map.csv", "made")


def test_report_and_batch(installed, ask):
    (ask.here / "mine.yaml").write_text(f"data_dir: data\n{QUICK}")
    assert ask("report", "mine.yaml").splitlines()[-1] == "reports/mine/report.html"
    shared = "".join(f"  {line}\n" for line in ["data_dir: data", *QUICK.splitlines()])
    (ask.here / "night.yaml").write_text(f"shared:\n{shared}grid: {{seed: [1]}}\n")
    assert ask("batch", "night.yaml", "--jobs", 1).endswith("1 of 1 experiments are done\n")
    assert (ask.here / "reports" / "index.html").is_file()
    package = next(installed.parents[1].glob("lib/*/site-packages/tcell_drugseq"))
    ours, theirs = ({f.name: f.read_bytes() for f in d.glob("*.ipynb")} for d in (ANALYSIS, package / "analysis"))
    assert ours == theirs and "20_compare.ipynb" in ours
