"""Strike the commands at random moments, and look at what is left and whether they go on.

    python tests/fault_trials.py --trials 30 --out faults.csv

SIGKILL and SIGTERM come at a moment drawn uniformly over the duration of an undisturbed call; a full disk is one whose
size is drawn uniformly below what such a call needs. Each trial ends with the same command once more. A row is
written when its trial ends, and the same call goes on where another was stopped.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import anndata
import nbformat
import pandas as pd
import psutil
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from shared_runs import disk

from tcell_drugseq.base.defaults import SimConfig
from tcell_drugseq.base.files import write_yaml
from tcell_drugseq.data.simulate import simulate_screen, write_simulation

FAULTS, COMMANDS = ("SIGKILL", "SIGTERM", "full disk"), ("run", "screen", "report", "batch")
COLUMNS = ("fault", "command", "trial", "share", "moment", "struck", "code", "again", "checked", "ok", "reason", "said")
MARK = "FAULT_TRIAL"  # environment variable by which the processes of a trial are known
PATIENCE = 600  # seconds after which a call counts as hanging
SETTINGS = {"epochs": 10, "folds": 2, "n_members": 1, "d_model": 16, "hit_draws": 500}
SETTINGS |= {"hit_bootstrap": 100, "num_threads": 1, "baselines": False, "check_importance": False, "biology": False}
RUN = """
from tcell_drugseq.base.defaults import RunConfig
from tcell_drugseq.base.settings import leaves, with_leaves
from tcell_drugseq.pipeline import run
given = {k: v for k, v in globals().items() if k in leaves(RunConfig())}
run(with_leaves(RunConfig(), given))
"""  # a batch runs this, without the pages of a report, which `report` is tried with


# A call


def prepare(root: Path) -> None:
    """The screen, and the files that the commands are given."""
    small = SimConfig(n_plates=1, n_compounds=20, n_controls=12, n_genes=300)
    write_simulation(simulate_screen(small), root / "data")
    shared = SETTINGS | {"data_dir": str(root / "data")}
    write_yaml(shared, root / "one.yaml")
    asked = {"notebook": str(root / "run.ipynb"), "shared": shared, "grid": {"seed": [1, 2]}}
    write_yaml(asked, root / "set.yaml")
    defaults = {"name": "x", "out_dir": "results", "seed": 614, **shared}
    cells = ["\n".join(f"{k} = {v!r}" for k, v in defaults.items()), RUN]
    cells = [nbformat.v4.new_code_cell(source) for source in cells]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "run.ipynb")


def start(command: str, root: Path, place: Path, tmp: Path) -> subprocess.Popen:
    """The command in a process of its own; what it says is in the file `said` of its temporary folder."""
    raw, reports = root / "data" / "raw", ["--reports_dir", place / "out"]
    words = {
        "run": ["run", "--config", root / "one.yaml", "--out_dir", place / "out"],
        "screen": ["screen", raw / "counts.csv", raw / "plate_map.csv", place / "out"],
        "report": ["report", root / "one.yaml", *reports],
        "batch": ["batch", root / "set.yaml", *reports, "--jobs", "2"],
    }[command]
    tmp.mkdir()
    env = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp), MARK: str(tmp.parent)}
    with tmp.with_suffix(".said").open("w") as said:
        call = [sys.executable, "-m", "tcell_drugseq", *map(str, words)]
        return subprocess.Popen(call, env=env, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True)


def family(mark: Path) -> list[psutil.Process]:
    """All processes of a trial, whoever is their parent by now."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


# What is left


def read_csv(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n"), "no end of line at the end"
    assert len({len(row) for row in csv.reader(text.splitlines(keepends=True), strict=True)}) == 1, "ragged"


def read_html(path: Path) -> None:
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>"), "no end"


def read_png(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


READERS = {".csv": read_csv, ".html": read_html, ".png": read_png, ".safetensors": load_file}
READERS |= {".json": lambda path: json.loads(path.read_text(encoding="utf-8")), ".h5ad": anndata.read_h5ad}
READERS |= {".yaml": lambda path: yaml.safe_load(path.read_text(encoding="utf-8")), ".ipynb": READERS[".json"]}
READERS |= {".pt": lambda path: torch.load(path, weights_only=False)}


def broken_files(place: Path) -> list[str]:
    """Files under a final name, in hidden folders too, that can't be read as a whole."""
    found = []
    for path in sorted(place.rglob("[!.]*")):
        if path.suffix in READERS and path.is_file():
            try:
                READERS[path.suffix](path)
            except FileNotFoundError:  # moved since it was listed, by a kernel that is about to end
                pass
            except Exception as e:
                found.append(f"{path.relative_to(place)} is broken: {type(e).__name__}: {e}")
    return found


def tables(place: Path) -> dict[str, bytes]:
    """Everything under a final name that may not depend on time: all tables, and the weights."""
    found = {str(p.relative_to(place)): p for kind in ("csv", "safetensors") for p in sorted(place.rglob(f"*.{kind}"))}
    return {name: path.read_bytes() for name, path in found.items() if "/." not in f"/{name}"}


def temporary(tmp: Path) -> list[str]:
    """What a process has left among the temporary files, but for the cache of PyTorch, which all calls share."""
    return [f"left in TMPDIR: {p.name}" for p in sorted(tmp.iterdir()) if not p.name.startswith("torchinductor_")]


def names(place: Path) -> set[str]:
    """All files and folders, hidden ones too."""
    return {str(path.relative_to(place)) for path in place.rglob("*")}


# A trial


@dataclass
class Normal:
    """A call that nothing disturbs."""

    seconds: float
    kilobytes: int  # on disk, at most
    tables: dict[str, bytes]
    names: set[str]


def undisturbed(command: str, root: Path) -> Normal:
    begun, most = time.monotonic(), 0
    (folder := root / command).mkdir()
    with small_disk(folder / "disk", "500m") as place:
        process = start(command, root, place, folder / "t")
        while process.poll() is None:
            most = max(most, shutil.disk_usage(place).used)
            time.sleep(0.01)
        assert process.returncode == 0, (folder / "t.said").read_text()
        seconds = time.monotonic() - begun
        return Normal(seconds, most >> 10, tables(place), names(place))


@contextmanager
def small_disk(path: Path, size: str):
    """A disk of its own, or a folder where none can be mounted and no size matters."""
    able = os.geteuid() == 0 and shutil.which("mount")
    with disk(path, size) if able else nullcontext(path) as place:
        place.mkdir(exist_ok=True)
        yield place


def strike(fault: str, process: subprocess.Popen, moment: float) -> bool:
    """Wait for the fault, and for what it does to the process; whether it came in time."""
    try:
        process.wait(PATIENCE if fault == "full disk" else moment)
        return fault == "full disk"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM if fault == "SIGTERM" else signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(60)
    return True


def judge_end(fault: str, command: str, code: int | None, said: str, tmp: Path, whole: bool) -> list[str]:
    """What is wrong with how a struck process ended and with what it said."""
    lines, wrong = said.splitlines() or [""], []
    if any(sign in said for sign in ("Traceback", "Exception ignored")):
        wrong.append("a traceback")
    if fault == "SIGTERM":
        early = code == -signal.SIGTERM and not said  # Python itself was starting; a shell calls this 143 too
        if not early and not (whole and code == 0):
            wrong += [f"exit code {code}, expected 143"] if code != 128 + signal.SIGTERM else []
            wrong += [] if lines[-1].startswith("terminated; ") else ["the last line doesn't say that it was stopped"]
        wrong += temporary(tmp)
    if fault == "full disk" and not (whole and code == 0):
        wrong += [] if code in ((1, 2) if command == "batch" else (2,)) else [f"exit code {code}"]
        # a batch lists what failed, with the reason of each, last
        wrong += [] if "space" in (said if command == "batch" else lines[-1]) else ["no word of space"]
    return wrong


def judge_again(code: int | None, said: str, whole: bool, place: Path, normal: Normal) -> list[str]:
    """What is wrong after the same command once more, on a disk with space."""
    wrong = []
    there = whole and code == 2 and any(word in said for word in ("expected a new", "--overwrite"))
    if code != 0 and not there:
        wrong.append(f"the second call: exit code {code}: {said.splitlines()[-1:]}")
    if (found := tables(place)) != normal.tables:
        differ = sorted(n for n in found.keys() | normal.tables if found.get(n) != normal.tables.get(n))
        wrong.append(f"{len(differ)} tables differ: {', '.join(differ[:3])}")
    if odd := names(place) ^ normal.names:
        wrong.append(f"left over or absent: {', '.join(sorted(odd)[:5])}")
    return wrong


def try_once(fault: str, command: str, trial: int, seed: int, root: Path, normal: Normal) -> dict:
    """One trial, as a row of the file."""
    share = random.Random(f"{seed} {fault} {command} {trial}").random()
    moment = share * (normal.kilobytes if fault == "full disk" else normal.seconds)
    size = f"{max(4, round(moment))}k" if fault == "full disk" else "500m"
    folder = Path(tempfile.mkdtemp(prefix="t", dir=root))
    with small_disk(folder / "disk", size) as place:
        process = start(command, root, place, folder / "a")
        struck = strike(fault, process, moment)
        code, said = process.poll(), (folder / "a.said").read_text()
        whole = set(normal.tables) == set(found := tables(place)) and found == normal.tables
        wrong = broken_files(place) + judge_end(fault, command, code, said, folder / "a", whole)
        if fault == "full disk":
            subprocess.run(["mount", "-o", "remount,size=500m", place], check=True)
        again = start(command, root, place, folder / "b")
        with suppress(subprocess.TimeoutExpired):
            again.wait(PATIENCE)
        wrong += broken_files(place)
        wrong += judge_again(again.poll(), (folder / "b.said").read_text(), whole, place, normal)
        wrong += temporary(folder / "b")
        alive = psutil.wait_procs(family(folder), timeout=10)[1]
        wrong += [f"{len(alive)} processes live on"] if alive else []
        for one in alive:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    checked = "whole files, second call, same tables, no leftovers, no processes"
    checked += {"SIGTERM": ", exit code, message, TMPDIR", "full disk": ", exit code, message"}.get(fault, "")
    row = {"fault": fault, "command": command, "trial": trial, "share": round(share, 4), "moment": round(moment, 2)}
    row |= {"struck": struck, "code": code, "again": again.poll(), "checked": checked, "ok": not wrong}
    shutil.rmtree(folder)
    return row | {"reason": "; ".join(wrong), "said": said[-1500:] if wrong else said[-150:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=30, help="of each fault with each command")
    parser.add_argument("--out", type=Path, default=Path("faults.csv"), help="one row per trial; gone on with")
    parser.add_argument("--seed", type=int, default=614)
    parser.add_argument("--jobs", type=int, default=1, help="trials at once")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    asked = parser.parse_args()
    if not asked.out.exists():
        asked.out.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    done = {(r.fault, r.command, r.trial) for r in pd.read_csv(asked.out).itertuples()}
    wanted = [(f, c, t) for t in range(asked.trials) for f in asked.faults for c in asked.commands]
    left = [key for key in wanted if key not in done]
    with tempfile.TemporaryDirectory(prefix="f", dir="/tmp") as made, ThreadPoolExecutor(asked.jobs) as pool:
        prepare(root := Path(made))  # a short name: the sockets of kernels need one
        normal = dict(zip(asked.commands, pool.map(lambda c: undisturbed(c, root), asked.commands), strict=True))
        print(*(f"{c}: {n.seconds:.1f} s, {n.kilobytes} kB" for c, n in normal.items()), sep="\n", flush=True)
        trials = [pool.submit(try_once, *key, asked.seed, root, normal[key[1]]) for key in left]
        for trial in as_completed(trials):
            with asked.out.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, COLUMNS).writerow(row := trial.result())
            print(*(row[k] for k in COLUMNS[:8]), "ok" if row["ok"] else row["reason"], flush=True)
    rows = pd.read_csv(asked.out)
    counts = (
        rows.groupby(["fault", "command"])[["struck", "ok"]]
        .sum()
        .assign(trials=rows.groupby(["fault", "command"]).size())
    )
    print(counts[["trials", "struck", "ok"]].to_string())
    sys.exit(int(not rows["ok"].all()))


if __name__ == "__main__":
    main()
