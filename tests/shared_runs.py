"""What more than one file of tests needs: the command line, in processes that start at once, and a small disk."""

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest


def call(*args, cwd=None):
    """The command line in a process of its own, imports and all."""
    command = [sys.executable, "-m", "tcell_drugseq", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=cwd)


SERVER = """
import json, os, signal, sys, traceback
import captum.attr, graspologic_native, gseapy, pydeseq2.dds, pydeseq2.ds, safetensors.torch, scanpy, sklearn.neighbors
import lightning_fabric, matplotlib.pyplot, seaborn, torch
import importlib, pkgutil, tcell_drugseq
from tcell_drugseq import cli
for module in pkgutil.walk_packages(tcell_drugseq.__path__, "tcell_drugseq."):
    if "." in module.name.removeprefix("tcell_drugseq."):
        importlib.import_module(module.name)
for line in sys.stdin:
    args, cwd, said, limit = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    signal.alarm(limit)
    os.chdir(cwd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (1, 2):
        os.dup2(os.open(said + str(number), os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    sys.argv = ["tcell-drugseq", *args]
    try:
        code = cli.main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        code = traceback.print_exc() or 1
    print(end="", flush=True)
    os._exit(code or 0)  # without taking scanpy down again
"""


@contextmanager
def forked(said: Path):
    """The same in processes that have every package from the start, which saves five seconds for each."""
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(*args, cwd=".", limit=500):
        assert server.poll() is None, "what the processes share can't be imported"
        print(json.dumps([[*map(str, args)], str(cwd), str(said), limit]), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        said_ = (Path(f"{said}{n}").read_text(encoding="utf-8", errors="replace") for n in (1, 2))
        return subprocess.CompletedProcess(args, code, *said_)

    yield ask
    server.stdin.close()
    server.wait(60)


@pytest.fixture(scope="session")
def fork(tmp_path_factory):
    with forked(tmp_path_factory.mktemp("fork") / "said") as ask:
        yield ask


def tiny_run(data: Path, out: Path):
    """A run of seconds on a small simulated screen; its settings."""
    from tcell_drugseq.base.defaults import RunConfig, SimConfig
    from tcell_drugseq.base.settings import with_leaves
    from tcell_drugseq.data.simulate import simulate_screen, write_simulation
    from tcell_drugseq.pipeline import run

    write_simulation(simulate_screen(SimConfig(n_plates=1, n_compounds=20, n_controls=12, n_genes=120)), data)
    brief = {"epochs": 1, "folds": 2, "n_members": 1, "d_model": 8, "hit_draws": 100, "hit_bootstrap": 100}
    brief |= {"biology": False, "baselines": False, "check_importance": False, "num_threads": 1}
    cfg = with_leaves(RunConfig(), brief | {"data_dir": str(data), "out_dir": str(out)})
    run(cfg)
    return cfg


def tree(folder):
    """Every file below a folder, with what it holds."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@contextmanager
def disk(path: Path, size: str):
    """A file system of its own; skipped where it can't be made."""
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)
