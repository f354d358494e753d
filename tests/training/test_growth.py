"""Screens that stay on disk, and trainings in several processes: the same model as in memory and in one process."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from tcell_drugseq.base.defaults import ModelConfig, SimConfig, TrainConfig
from tcell_drugseq.base.settings import leaves
from tcell_drugseq.data.simulate import simulate_screen
from tcell_drugseq.model.checkpoint import predict_wells
from tcell_drugseq.model.expression import expression_rows
from tcell_drugseq.training.fit import fit_model
from tcell_drugseq.training.folds import split_wells

SMALL = ModelConfig(n_members=3, d_model=16, z_dim=8)
QUICK = TrainConfig(epochs=3, num_threads=1, device="cpu")


@pytest.fixture(scope="module")
def screen():
    """Wells in which a score is missing here and there, so that no two shares of a batch weigh alike."""
    made = simulate_screen(SimConfig(n_plates=1, n_compounds=80, n_controls=32, n_genes=150)).screen
    made.obsm["scores"].iloc[::7, 1] = np.nan
    made.obsm["scores"].iloc[1::5, 0] = np.nan
    return made


@pytest.fixture(scope="module")
def split(screen):
    sides = split_wells(screen)
    sides[5:25] = "unseen"
    return sides


def stored(screen, path):
    screen.write_h5ad(path)
    return anndata.read_h5ad(path, backed="r")


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[k], other[k]) for k in one)


SERVER = """
import json, os, signal, sys, traceback
import anndata, lightning_fabric, torch.distributed
import tcell_drugseq.model.checkpoint, tcell_drugseq.training.fit, tcell_drugseq.training.processes
for line in sys.stdin:
    code, args, places, said = json.loads(line)
    children, failed = set(), 0
    for place in places:
        if child := os.fork():
            children.add(child)
            continue
        signal.alarm(300)
        for number in (1, 2):
            os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
        sys.argv, end = ["-c", *args], 1
        os.environ.update(place)
        try:
            exec(code, {"__name__": "__main__"})
            end = 0
        except BaseException:
            traceback.print_exc()
        print(end="", flush=True)
        os._exit(end)
    while children:
        child, status = os.wait()
        children.discard(child)
        if status and not failed:  # as torchrun does: who waits for it would wait for ever
            failed = os.waitstatus_to_exitcode(status)
            for other in children:
                os.kill(other, signal.SIGKILL)
    print(failed, flush=True)
"""


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """A function that runs code in processes, which have every package from the start: exit code and what they said."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}  # freed arrays leave the process
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, "-c", SERVER], env=env, **pipes)
    said = tmp_path_factory.mktemp("fork") / "said"

    def ask(code, *args, places=({},)):
        said.write_text("")
        print(json.dumps([code, [*map(str, args)], places, str(said)]), file=server.stdin, flush=True)
        return int(server.stdout.readline()), said.read_text()

    yield ask
    server.stdin.close()
    server.wait(60)


# ---- on disk


@pytest.fixture(scope="module")
def in_memory(screen, split):
    return fit_model(screen, split, SMALL, QUICK)


@pytest.mark.parametrize("form", (np.asarray, csr_matrix))
def test_training_from_disk_ends_with_the_same_bits(screen, split, in_memory, form, tmp_path):
    copy = screen.copy()
    copy.X = form(copy.X)
    on_disk = stored(copy, tmp_path / "screen.h5ad")
    fit = fit_model(on_disk, split, SMALL, QUICK)
    assert same(fit.last, in_memory.last) and same(fit.best, in_memory.best)
    pd.testing.assert_frame_equal(fit.history, in_memory.history, check_exact=True)
    theirs = predict_wells(in_memory.model, np.asarray(screen.X))
    for mine, wanted in zip(predict_wells(fit.model, expression_rows(on_disk)), theirs, strict=True):
        np.testing.assert_array_equal(mine, wanted)


def test_training_goes_on_where_the_screen_has_moved_to_disk(screen, split, in_memory, tmp_path, monkeypatch):
    """The key of an unfinished training depends on the numbers, not on where they are."""
    real = torch.save

    def interrupt(state, file):
        real(state, file)
        if len(state["history"]["epoch"]) == 2:  # the second epoch never gets its file's name
            raise KeyboardInterrupt

    progress = tmp_path / "progress.pt"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", interrupt)
        fit_model(screen, split, SMALL, QUICK, progress)
    epochs = []

    def note(state, file):
        epochs.append(len(state["history"]["epoch"]))
        real(state, file)

    monkeypatch.setattr(torch, "save", note)
    fit = fit_model(stored(screen, tmp_path / "screen.h5ad"), split, SMALL, QUICK, progress)
    assert epochs == [2, 3, 3] and same(fit.last, in_memory.last)  # the last is what is finished


MEASURE = """
import re, sys
from pathlib import Path
import anndata, numpy as np
from tcell_drugseq.model.checkpoint import predict_wells
from tcell_drugseq.base.defaults import ModelConfig, TrainConfig
from tcell_drugseq.model.expression import expression_rows
from tcell_drugseq.training.fit import fit_model

screen = anndata.read_h5ad(sys.argv[1], backed=sys.argv[2] or None)
split = np.where(np.arange(screen.n_obs) % 5 == 0, "val", "train").astype(object)
SMALL = {"n_members": 1, "d_model": 4, "n_queries": 1, "n_layers": 1, "z_dim": 4}
fit = fit_model(screen, split, ModelConfig(**SMALL), TrainConfig(epochs=1, batch_size=256, num_threads=1))
predict_wells(fit.model, expression_rows(screen))
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def many_wells(path, n, genes=2000):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"compound": [f"c{i // 2}" for i in range(n)], "is_control": False}, index=map(str, range(n)))
    made = anndata.AnnData(rng.random((n, genes), dtype=np.float32), obs=obs)
    made.obsm["scores"] = pd.DataFrame({"Tscore": rng.normal(size=n)}, index=obs.index)
    made.write_h5ad(path)
    return made.X.nbytes


def peak(fork, path, backed):
    """Largest resident memory of a process that trains and predicts, in bytes."""
    code, said = fork(MEASURE, path, backed)
    assert code == 0, said
    return 1024 * int(said.split()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_wells_on_disk(fork, tmp_path):
    few, many = (tmp_path / f"{n}.h5ad" for n in (2_500, 15_000))
    grown = -many_wells(few, 2_500) + many_wells(many, 15_000)
    on_disk = peak(fork, many, "r")
    more = on_disk - peak(fork, few, "r")
    print(f"{more / 1e6:.0f} MB more for {grown / 1e6:.0f} MB of wells")
    assert more < 0.25 * grown
    assert peak(fork, many, "") - on_disk > 0.8 * grown  # in memory it does: the measure can tell


# ---- several processes

TRAIN = """
import json, sys
from pathlib import Path
import anndata, torch
from tcell_drugseq.base.defaults import ModelConfig, TrainConfig
from tcell_drugseq.base.settings import with_leaves
from tcell_drugseq.training.fit import fit_model

folder, n_before, settings = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
real = torch.save

def interrupt(state, file):
    real(state, file)
    if len(state["history"]["epoch"]) == n_before + 1:
        raise KeyboardInterrupt

if n_before:
    torch.save = interrupt
screen = anndata.read_h5ad(folder / "screen.h5ad", backed="r")
split = screen.obs["split"].to_numpy().astype(object)
model, train = with_leaves(ModelConfig(), settings[0]), with_leaves(TrainConfig(), settings[1])
fit = fit_model(screen, split, model, train, folder / "progress.pt")
rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
real({"history": fit.history.to_dict("list"), "last": fit.last, "best": fit.best}, folder / f"fit{rank}.pt")
"""


def places(n_processes):
    """What torchrun tells each process by its environment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "TORCHELASTIC_RUN_ID": "none"}
    common |= {"WORLD_SIZE": str(n_processes), "LOCAL_WORLD_SIZE": str(n_processes), "GROUP_RANK": "0"}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n_processes)]


@pytest.fixture(scope="module")
def train(fork, screen, split, tmp_path_factory):
    """A function that trains in a folder of its own, or in one where a training has been interrupted."""

    def run(n_processes, model=SMALL, cfg=QUICK, n_before=0, folder=None, torchrun=False):
        if folder is None:
            folder = tmp_path_factory.mktemp("train")
            copy = screen.copy()
            copy.obs["split"] = split.astype(str)
            copy.write_h5ad(folder / "screen.h5ad")
        asked = [str(folder), str(n_before), json.dumps([leaves(model), leaves(cfg)])]
        if torchrun:
            (folder / "train.py").write_text(TRAIN)
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
            command, env = [sys.executable, *launch, folder / "train.py", *asked], os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
            code, said = done.returncode, done.stderr
        else:
            code, said = fork(TRAIN, *asked, places=places(n_processes) if n_processes > 1 else [{}])
        assert (code != 0) == (n_before > 0), said
        return folder

    return run


def fits(folder):
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("fit*.pt"))]


STILL = replace(SMALL, dropout=0.0, gene_dropout=0.0)  # masks differ between processes


@pytest.fixture(scope="module")
def two(train):
    return train(2, STILL, torchrun=True)


def test_two_processes_are_one(train, two):
    [alone], (first, second) = fits(train(1, STILL)), fits(two)
    assert same(first["last"], second["last"]) and first["history"] == second["history"]
    for column, values in alone["history"].items():
        np.testing.assert_allclose(first["history"][column], values, rtol=1e-5, atol=1e-6, err_msg=column)
    for name, wanted in alone["last"].items():
        found = first["last"][name]
        if name.endswith("qkv.bias"):  # a softmax takes no notice of the bias of its keys: its gradient is rounding
            found, wanted = (torch.cat([t.chunk(3, -1)[0], t.chunk(3, -1)[2]]) for t in (found, wanted))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    started = {k for k, v in alone["last"].items() if k.endswith(("weight", "value", "logit"))}
    assert started and all(alone["last"][k].abs().max() > 1e-3 for k in started)


def test_two_processes_go_on_after_an_interruption(train, two):
    folder = train(2, STILL, n_before=1)
    assert not fits(folder)
    assert len(torch.load(folder / "progress.pt", weights_only=True)["history"]["epoch"]) == 1
    for resumed, whole in zip(fits(train(2, STILL, folder=folder)), fits(two), strict=True):
        assert same(resumed["last"], whole["last"]) and resumed["history"] == whole["history"]


def test_processes_with_dropout_agree_with_each_other(train):
    """Batches smaller than the number of processes, too: of 2 wells for 3 processes each computes all."""
    first, *others = fits(train(3, SMALL, replace(QUICK, epochs=1, batch_size=2)))
    assert len(others) == 2 and all(same(first["last"], other["last"]) for other in others)
