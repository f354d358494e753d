"""A report of a small simulated screen in which every kind of name tries to run a script."""

import os
import subprocess
from pathlib import Path

import nbformat
import pytest

pytest_plugins = ["shared_runs"]
ROOT = Path(__file__).resolve().parents[1]
NAMES = [  # compounds as people call them
    "NA",
    "NAD+",
    "nan",
    "1,3-Propanediol",
    '"quoted"',
    "β-alanine",
    "<script>",
    "001",
    "1E5",
    " x ",
    "a\nb",
    "µ;",
]
HOSTILE = {
    "compounds": (
        "<script>window.hacked = 'script'</script>",
        '"><img src=x onerror="window.hacked = \'image\'">',
        '=HYPERLINK("javascript:window.hacked=1","<x>")',
        "<b onmouseover=window.hacked=1>" + "x" * 300,
    ),
    "gene": "<img src=x onerror=\"window.hacked = 'gene'\">",
    "score": "<svg onload=\"window.hacked = 'score'\">",
    "folder": "<img src=x onerror=window.hacked=1>",
}


@pytest.fixture(scope="session")
def hostile_report(tmp_path_factory):
    """The folder of a finished report, made once for all processes of pytest."""
    from tcell_drugseq.base.folders import locked

    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "hostile"
    with locked(root / ".lock", "another process makes it", timeout=-1):
        report = root / "reports" / "hostile"
        return report if report.exists() else make_hostile_report(root)


def make_hostile_report(root: Path) -> Path:
    from tcell_drugseq.base.defaults import SimConfig
    from tcell_drugseq.data.reading import write_bundle
    from tcell_drugseq.data.simulate import simulate_screen
    from tcell_drugseq.report.experiment import run_report

    small = SimConfig(n_plates=1, n_compounds=20, n_controls=12, n_genes=120)
    screen = simulate_screen(small).screen
    names = screen.obs["compound"].astype(str)
    calm = [name for name in names.unique() if name != "DMSO"]
    screen.obs["compound"] = names.replace(dict(zip(calm, HOSTILE["compounds"], strict=False)))
    screen.var_names = [HOSTILE["gene"], *screen.var_names[1:]]
    screen.obsm["scores"] = screen.obsm["scores"].set_axis([HOSTILE["score"], "Tscore", "Pseudotime"], axis=1)
    write_bundle(screen, root / HOSTILE["folder"])
    brief = {"epochs": 2, "d_model": 16, "folds": 2, "hit_draws": 500, "num_threads": 1}
    brief |= {"n_members": 2, "hit_bootstrap": 100, "set_permutations": 100, "biology_top": 3}
    params = {"data_dir": str(root / HOSTILE["folder"]), **brief}
    return run_report("hostile", params, root / "reports")


@pytest.fixture
def in_process(monkeypatch):
    """Notebooks of reports run here and not in a kernel of their own, as far as the cell that fails."""

    def execute(notebook, params, out_ipynb, log_file=None):
        names = {}
        for cell in (c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"):
            exec(cell.source, names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= params
        raise AssertionError("no cell has failed, and outputs are only kept by a kernel")

    monkeypatch.setattr("tcell_drugseq.report.experiment.execute_notebook", execute)


@pytest.fixture(scope="module")
def slurm_node(tmp_path_factory):
    """The configuration file of a real Slurm with one node; stopped afterwards."""
    folder = tmp_path_factory.mktemp("slurm")
    script = str(ROOT / "tests" / "slurm.sh")
    started = subprocess.run([script, "start", str(folder)], capture_output=True, text=True, timeout=60)
    if started.returncode == 77:
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stderr
    yield str(folder / "slurm.conf")
    subprocess.run([script, "stop", str(folder)], check=True, timeout=60)


def real(name: str) -> Path:
    """A file of real data beside the project; the test is skipped where it is not."""
    path = ROOT.parent / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"{name} is not at hand; it is not part of the repository")
    return path
