"""One run in several processes: the tables of a run in one, one message, one exit code, and nobody left behind."""

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from shared_runs import tiny_run, tree

BRIEF = {
    "epochs": 2,
    "folds": 2,
    "n_members": 1,
    "d_model": 8,
    "hit_draws": 100,
    "hit_bootstrap": 100,
    "num_threads": 1,
}
BRIEF |= {"dropout": 0, "gene_dropout": 0}  # masks differ between processes
FLAGS = [f"--{name}={value}" for name, value in BRIEF.items()]
FLAGS += ["--no_biology", "--no_baselines", "--no_check_importance"]
ONE = [sys.executable, "-m", "tcell_drugseq"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *ONE[1:]]
SRUN = ["srun", "--ntasks=2", "--ntasks-per-node=2", *ONE]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small screen, and a run of it in one process."""
    folder = tmp_path_factory.mktemp("launch")
    tiny_run(folder / "data", folder / "first")
    done = call(ONE, "run", "--data_dir", folder / "data", "--out_dir", folder / "one", *FLAGS)
    assert done.returncode == 0, done.stderr
    return folder


def call(launcher, *args, **more):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*launcher, *map(str, args)], env=env, capture_output=True, text=True, timeout=200, **more)


def running(folder):
    """Processes that name this folder on their command line."""
    found = subprocess.run(["pgrep", "-f", f"tcell_drugseq .*{folder}"], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found]


def check_equal(one, other):
    """The same files and tables but for rounding, which the first steps of AdamW enlarge."""
    assert sorted(tree(one)) == sorted(tree(other))
    for file in sorted(one.glob("*.csv")):
        tables = [pd.read_csv(place / file.name, keep_default_na=False, na_values=[""]) for place in (one, other)]
        pd.testing.assert_frame_equal(*tables, rtol=0.01, atol=1e-3, obj=file.name)


@pytest.fixture
def slurm(slurm_node, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", slurm_node)


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_two_processes_make_the_tables_of_one(data, launcher, request, tmp_path):
    if launcher == "srun":
        request.getfixturevalue("slurm")
    out = tmp_path / launcher
    done = call(
        {"torchrun": TORCHRUN, "srun": SRUN}[launcher], "run", "--data_dir", data / "data", "--out_dir", out, *FLAGS
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("This screen is simulated.") == 1
    check_equal(data / "one", out)
    assert [p.name for p in tmp_path.iterdir()] == [launcher] and not running(out)


@pytest.mark.parametrize("case", ["no data", "a run is there"])
def test_bad_input_is_one_message_and_two_exit_codes(data, case, tmp_path):
    given = {"no data": (tmp_path / "none", tmp_path / "out"), "a run is there": (data / "data", data / "one")}[case]
    before = tree(data)
    done = call(TORCHRUN, "run", "--data_dir", given[0], "--out_dir", given[1], *FLAGS)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and str(given[0] if case == "no data" else given[1]) in errors[0], done.stderr
    assert done.stderr.count("exitcode  : 2") == 2 and not running(given[1])
    assert tree(data) == before and not list(tmp_path.iterdir())


def test_under_slurm_bad_input_is_exit_code_2(data, slurm, tmp_path):
    done = call(SRUN, "run", "--data_dir", tmp_path / "none", "--out_dir", tmp_path / "out")
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1


def test_other_commands_run_in_one_process(data):
    done = call(TORCHRUN, "audit", "--data_dir", data / "data")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert errors == ["error: audit: found 2 processes, expected one: only `run` shares its work"]


@pytest.mark.parametrize("victim", [0, 1])
def test_none_outlives_the_other(data, victim, tmp_path):
    """SIGKILL while they train; without torchrun, which would end the other one by itself."""
    with open(tmp_path / "said", "w") as said:
        places = [{"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(2)]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getpid() % 9_000 + victim)}
        common |= {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
        command = [*ONE, "run", "--data_dir", data / "data", "--out_dir", tmp_path / "out", *FLAGS, "--epochs=5000"]
        envs = [os.environ | common | place | {"OMP_NUM_THREADS": "1"} for place in places]
        both = [subprocess.Popen(list(map(str, command)), env=env, stdout=said, stderr=said) for env in envs]
        state, end = tmp_path / ".out.partial" / "progress.pt", time.monotonic() + 100
        while not state.exists():
            assert time.monotonic() < end and all(p.poll() is None for p in both), (tmp_path / "said").read_text()
            time.sleep(0.1)
        both[victim].send_signal(signal.SIGKILL)
        codes = [p.wait(60) for p in both]
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1
    assert not (tmp_path / "out").exists() and state.exists()  # the same command goes on from there
