"""What dies while a batch is at work, and what is left. FAULTS=30 tries the random moments that often."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import psutil
import pytest
from shared_runs import disk

from tcell_drugseq.base.defaults import SimConfig
from tcell_drugseq.base.files import write_yaml
from tcell_drugseq.batch.sets import read_sets
from tcell_drugseq.data.simulate import simulate_screen, write_simulation
from tcell_drugseq.report.done import why_not_done

TIMES = int(os.environ.get("FAULTS", 1))
HEAVY = pytest.mark.skipif("FAULTS" not in os.environ, reason="takes minutes; FAULTS=1 or more tries it")
ENV = os.environ | {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}
SETTINGS = {"epochs": 6, "folds": 2, "n_members": 1, "d_model": 16, "hit_draws": 500}
SETTINGS |= {"hit_bootstrap": 100, "baselines": False, "check_importance": False, "biology": False}
RUN = """
from tcell_drugseq.base.defaults import RunConfig
from tcell_drugseq.base.settings import leaves, with_leaves
from tcell_drugseq.pipeline import run
given = {k: v for k, v in globals().items() if k in leaves(RunConfig())}
results = run(with_leaves(RunConfig(), given))
print(results.n_obs, "wells")
"""


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """A set of two experiments on a small screen, through a notebook that runs and draws nothing."""
    root = tmp_path_factory.mktemp("night")
    small = SimConfig(n_plates=1, n_compounds=20, n_controls=12, n_genes=120)
    write_simulation(simulate_screen(small), root / "data")
    defaults = {"name": "x", "data_dir": "data", "out_dir": "results", "seed": 614, **SETTINGS}
    cells = ["\n".join(f"{k} = {v!r}" for k, v in defaults.items()), RUN]
    cells = [nbformat.v4.new_code_cell(source) for source in cells]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "run.ipynb")
    shared = {"data_dir": str(root / "data")}
    asked = {"notebook": str(root / "run.ipynb"), "shared": shared, "grid": {"seed": [1, 2]}}
    write_yaml(asked, root / "night.yaml")
    return root / "night.yaml"


def start(night: Path, reports: Path, env: dict = ENV, options: tuple = ()) -> subprocess.Popen:
    command = [sys.executable, "-m", "tcell_drugseq", "batch", str(night), "--reports_dir", str(reports), "--jobs", "2"]
    command += map(str, options)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env, start_new_session=True, **pipes)


def finish(night: Path, reports: Path, env: dict = ENV, options: tuple = ()) -> tuple[int, str]:
    """Exit code and what was said."""
    batch = start(night, reports, env, options)
    said = "".join(batch.communicate(timeout=500))
    return batch.returncode, said


def results(reports: Path) -> dict[str, bytes]:
    """Everything of the experiments that may not depend on time: all tables and the weights."""
    found = {}
    for path in sorted(reports.glob("night-seed*/results/*")):
        if path.suffix in (".csv", ".safetensors"):
            found[str(path.relative_to(reports))] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def undisturbed(night, tmp_path_factory):
    """The results when nothing goes wrong."""
    reports = tmp_path_factory.mktemp("undisturbed")
    begun = time.monotonic()
    code, said = finish(night, reports)
    assert code == 0, said
    found = results(reports)
    assert len(found) > 20
    (night.parent / "seconds").write_text(str(time.monotonic() - begun))
    return found


def assert_sound(night: Path, reports: Path) -> int:
    """Whatever has a final name is whole; returns how many experiments are done."""
    done = 0
    for e in read_sets([night]):
        if (reports / e.name).exists():
            assert why_not_done(reports / e.name, e.made_of) == ""
            done += 1
    for path in reports.glob("*.html"):
        assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    return done


def assert_finishes(night: Path, reports: Path, undisturbed: dict) -> None:
    """A call finishes the set, with the results of an undisturbed run; another has nothing to do."""
    assert_finished(night, reports, undisturbed, *finish(night, reports))


def assert_finished(night: Path, reports: Path, undisturbed: dict, code: int, said: str) -> None:
    """The same of a call that has ended with this exit code and said this."""
    assert code == 0, said
    assert assert_sound(night, reports) == 2
    assert results(reports) == undisturbed
    assert not list(reports.glob("*.failed")) and not list(reports.glob(".*.partial"))
    code, said = finish(night, reports)
    assert code == 0 and said.count("done before") == 2, said


def family(process: subprocess.Popen) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def until(condition, seconds: float = 120):
    """Wait for something to become true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def of_kind(batch: subprocess.Popen, kind: str) -> list[psutil.Process]:
    """The experiments of a batch, or their kernels."""
    found = []
    for p in family(batch):
        with suppress(psutil.Error):
            if kind in " ".join(p.cmdline()):
                found.append(p)
    return found


EXPERIMENT, KERNEL = "tcell_drugseq.batch.run import answer_stdin", "ipykernel_launcher"


def test_killed_at_random_moments_and_gone_on_with_by_one_of_two_batches(night, undisturbed, tmp_path):
    """A batch is killed, and what goes on with it keeps another batch out of the folder."""
    reports, clock, times = tmp_path / "reports", random.Random(time.time_ns()), []
    whole = float((night.parent / "seconds").read_text())
    for _ in range(TIMES):
        batch = start(night, reports)
        times.append(clock.uniform(0, whole))
        with suppress(subprocess.TimeoutExpired):
            batch.wait(times[-1])
        children = family(batch)
        batch.kill()
        batch.wait()
        alive = psutil.wait_procs(children, timeout=15)[1]
        assert not alive, f"{alive} outlive the batch"
        if reports.exists() and assert_sound(night, reports) == 2:
            assert results(reports) == undisturbed
            shutil.rmtree(reports)
    print(f"killed {TIMES} times, after {', '.join(f'{t:.1f}' for t in times)} of {whole:.0f} s")
    for stale in reports.glob(".*.partial/progress.json"):
        stale.unlink()
    first = start(night, reports)
    until(lambda: list(reports.glob(".*.partial/progress.json")))
    code, said = finish(night, reports)
    assert code == 2 and "another batch is running there" in said and said.count("\n") == 1, said
    said = "".join(first.communicate(timeout=500))
    assert_finished(night, reports, undisturbed, first.returncode, said)


@pytest.mark.parametrize("kind", [EXPERIMENT, pytest.param(KERNEL, marks=HEAVY)], ids=["experiment", "kernel"])
def test_one_of_two_is_killed(night, undisturbed, tmp_path, kind):
    for i in range(TIMES):
        reports = tmp_path / f"reports{i}"
        batch = start(night, reports)
        partial = reports / ".night-seed1.partial"
        until(lambda here=partial: list(here.glob(".results.partial/progress*.pt")))
        victims = {kind: of_kind(batch, kind) for kind in (EXPERIMENT, KERNEL)}
        kernel = next(p for p in victims[KERNEL] if "night-seed1.partial" in str(p.environ()))
        victim = kernel if kind == KERNEL else next(p for p in victims[EXPERIMENT] if p.pid == kernel.ppid())
        time.sleep(random.uniform(0, 0.5))
        victim.kill()
        said = "".join(batch.communicate(timeout=300))
        assert batch.returncode == 1 and "1 failed:" in said, said
        assert assert_sound(night, reports) == 1 and (reports / "night-seed2").exists()
        page = (reports / "night-seed1.failed" / "report.html").read_text(encoding="utf-8")
        assert "SIGKILL" in page if kind == EXPERIMENT else "the kernel died" in page
        assert "night-seed1.failed/report.html" in (reports / "index.html").read_text(encoding="utf-8")
        assert_finishes(night, reports, undisturbed)
    print(f"one killed {TIMES} times")


@HEAVY
@pytest.mark.parametrize("moment", ["between", "during"])
def test_killed_around_a_checkpoint(night, undisturbed, tmp_path, moment):
    reports, hit = tmp_path / "reports", 0
    pattern = ".*.partial/.results.partial/" + ("progress*.pt" if moment == "between" else ".progress*.tmp")
    for _ in range(TIMES):
        batch = start(night, reports)
        with suppress(AssertionError):
            until(lambda: list(reports.glob(pattern)), 60)
            hit += 1
        batch.kill()
        psutil.wait_procs(family(batch), timeout=15)
        batch.communicate()
        time.sleep(2)  # kernels look after their parent once a second
        assert_sound(night, reports)
    print(f"killed {hit} times {moment} writes of the state")
    assert hit
    assert_finishes(night, reports, undisturbed)


SHARES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@HEAVY
@pytest.mark.parametrize("share", SHARES if TIMES > 2 else SHARES[3::4])
def test_the_disk_is_full(night, undisturbed, tmp_path, share):
    wanted = sum(map(len, undisturbed.values()))  # tables and safetensors alone: every disk here is too small
    with disk(tmp_path / "disk", f"{int(2 * share * wanted / 1024) + 16}k") as full:
        reports = full / "reports"
        code, said = finish(night, reports)
        assert code in (1, 2) and "space" in said, said
        assert "Traceback" not in said
        if reports.exists():
            assert_sound(night, reports)
        subprocess.run(["mount", "-o", "remount,size=200m", full], check=True)
        assert_finishes(night, reports, undisturbed)


@HEAVY
def test_the_folder_is_read_only(night, undisturbed, tmp_path):
    with disk(tmp_path / "disk", "200m") as folder:
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        code, said = finish(night, folder / "reports")
        assert code == 2 and said.count("\n") == 1 and said.startswith("error: ") and "Read-only" in said, said
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
        (folder / "reports").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        code, said = finish(night, folder / "reports")
        assert code == 2 and said.count("\n") == 1 and "Read-only" in said, said
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
        assert_finishes(night, folder / "reports", undisturbed)


CLOCK = """
import os, time
_time, _ns = time.time, time.time_ns

def _off():
    with open(os.environ["CLOCK_OFF"]) as file:
        return float(file.read())

time.time = lambda: _time() + _off()
time.time_ns = lambda: _ns() + int(_off() * 1e9)
"""


@HEAVY
def test_the_clock_jumps(night, undisturbed, tmp_path):
    """`time.time` in the batch, the experiments and their kernels: a month ahead, then a year back."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CLOCK)
    (off := tmp_path / "off").write_text(str(30 * 86400))
    path = os.pathsep.join(filter(None, (str(tmp_path / "site"), ENV.get("PYTHONPATH"))))
    batch = start(night, reports := tmp_path / "reports", ENV | {"PYTHONPATH": path, "CLOCK_OFF": str(off)})
    until(lambda: list(reports.glob(".*.partial/progress.json")))
    (tmp_path / "later").write_text(str(-400 * 86400))
    (tmp_path / "later").rename(off)
    said = "".join(batch.communicate(timeout=400))
    assert batch.returncode == 0, said
    assert results(reports) == undisturbed
    code, said = finish(night, reports)
    assert code == 0 and said.count("done before") == 2, said


@HEAVY
def test_an_interrupt_ends_everything(night, undisturbed, tmp_path):
    reports = tmp_path / "reports"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores Ctrl-C
    batch = start(night, reports)
    until(lambda: list(reports.glob(".*.partial/.results.partial/progress*.pt")))
    children = family(batch)
    batch.send_signal(signal.SIGINT)
    said = "".join(batch.communicate(timeout=60))
    assert batch.returncode == 130 and "the same command resumes" in said, said
    assert not psutil.wait_procs(children, timeout=15)[1]
    assert not list(reports.glob("*.failed"))  # who stops something need not be told that it was killed
    assert_finishes(night, reports, undisturbed)


@contextmanager
def dask_cluster(folder: Path):
    """A scheduler and two workers, each a process, and the scheduler's address."""
    file = folder / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard", "--port", "0"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": ENV}
    processes = [subprocess.Popen([*command, "--scheduler-file", str(file)], **quiet)]
    try:
        until(file.exists)
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--no-dashboard"]
        alone = ["--nthreads", "1", "--no-nanny", "--death-timeout", "20", "--local-directory", str(folder)]
        processes += [subprocess.Popen([*worker, *alone], **quiet) for _ in range(2)]
        yield processes[0], processes[1:], str(file)
    finally:
        for process in processes:
            process.kill()
            process.wait()


@HEAVY
def test_a_cluster_gives_the_same_results(night, undisturbed, tmp_path):
    with dask_cluster(tmp_path) as (_, _, address):
        reports = tmp_path / "reports"
        code, said = finish(night, reports, options=("--scheduler", address))
        assert code == 0, said
        assert results(reports) == undisturbed


@HEAVY
def test_slurm_gives_the_same_results(night, undisturbed, tmp_path, slurm_node):
    memory = f"{psutil.virtual_memory().total // 3 // 10**6}MB"
    jobs = {"memory": memory, "walltime": "00:20:00", "interface": "lo", "log_directory": str(tmp_path)}
    write_yaml(jobs, tmp_path / "jobs.yaml")
    reports, options = tmp_path / "reports", ("--scheduler", "slurm", "--scheduler_options", tmp_path / "jobs.yaml")
    code, said = finish(night, reports, ENV | {"SLURM_CONF": slurm_node}, options)
    assert code == 0, said
    assert results(reports) == undisturbed


@HEAVY
@pytest.mark.parametrize("lost", ["scheduler", "worker"])
def test_part_of_a_cluster_is_killed(night, undisturbed, tmp_path, lost):
    """Without its scheduler nothing can go on; what a lost worker had is done by the other one."""
    for i in range(TIMES):
        (place := tmp_path / str(i)).mkdir()
        reports = place / "reports"
        with dask_cluster(place) as (scheduler, workers, address):
            batch = start(night, reports, options=("--scheduler", address))
            until(lambda here=reports: list(here.glob(".*.partial/.results.partial/progress*.pt")))
            time.sleep(random.uniform(0, 0.5))
            (scheduler if lost == "scheduler" else workers[0]).kill()
            said = "".join(batch.communicate(timeout=300))
        if lost == "worker":
            assert batch.returncode == 0 and results(reports) == undisturbed, said
        else:
            assert batch.returncode == 1 and "lost by the executor" in said and "2 failed" in said, said
            time.sleep(3)  # workers are gone now, and with them the experiments
        assert_sound(night, reports)
        assert_finishes(night, reports, undisturbed)
    print(f"a {lost} killed {TIMES} times")
