"""Where experiments run: what happens when a scheduler, its workers or Slurm's jobs die, and no task waits for ever."""

import http.server
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import BrokenExecutor, CancelledError, as_completed
from pathlib import Path

import pytest

from tcell_drugseq.base.settings import InputError
from tcell_drugseq.batch import executors
from tcell_drugseq.batch.executors import open_executor

HERE = Path(__file__).parent
dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")


def say_where(value):
    """The value, the process and its Slurm job."""
    return value, os.getpid(), os.environ.get("SLURM_JOB_ID")


def wait_for_word(folder, limit=60):
    """Leave a file with the number of this process and wait until the folder says `go`; answer with the number."""
    (Path(folder) / f"{uuid.uuid4()}.pid").write_text(str(os.getpid()))
    end = time.monotonic() + limit
    while not (Path(folder) / "go").exists() and time.monotonic() < end:
        time.sleep(0.05)
    return os.getpid()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def start_process():
    """What an experiment does: a process of its own; its answer, the cores of the job and the threads it may use."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        value = pool.apply(abs, (-3,))
    return value, os.environ.get("SLURM_CPUS_PER_TASK"), os.environ.get("OMP_NUM_THREADS")


def fail_with_name(name):
    raise InputError(f"{name!r}: found nothing, expected something")


def soon(condition, seconds=20):
    """The condition's first value that counts."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return value


def processes(folder):
    return {int(text) for path in folder.glob("*.pid") if (text := path.read_text())}


def message(*args, **kwargs):
    """The one line of an `InputError`."""
    with pytest.raises(InputError) as caught, open_executor(*args, **kwargs):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_threads_end_waiting_tasks_when_the_block_fails(tmp_path):
    futures = []
    with pytest.raises(KeyError), open_executor(jobs=1) as executor:
        futures += [executor.submit(wait_for_word, tmp_path) for _ in range(3)]
        soon(lambda: processes(tmp_path))
        (tmp_path / "go").touch()
        raise KeyError
    assert futures[0].result(0) == os.getpid() and futures[2].cancelled()


@pytest.fixture(scope="module")
def address():
    """A scheduler with two workers that are processes."""
    quiet = {"dashboard_address": "127.0.0.1:0", "silence_logs": 50}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", **quiet) as cluster:
        yield cluster.scheduler_address


def test_two_workers_share_the_tasks(address, tmp_path):
    with open_executor(address) as executor:
        futures = [executor.submit(wait_for_word, str(tmp_path)) for _ in range(2)]
        both = soon(lambda: len(processes(tmp_path)) == 2 and processes(tmp_path))
        (tmp_path / "go").touch()
        assert {f.result() for f in futures} == both and os.getpid() not in both
        error = executor.submit(fail_with_name, "1,3-β\n<script>").exception()
        assert type(error) is InputError and str(error).startswith("'1,3-β\\n<script>'")
        assert list(executor.map(abs, [-1, -2])) == [1, 2]


def test_the_block_waits_for_its_tasks_and_an_error_drops_them(address, tmp_path):
    with open_executor(address) as executor:
        last = executor.submit(time.sleep, 0.5)
    assert last.done() and last.exception() is None
    with pytest.raises(KeyError), open_executor(address) as executor:
        futures = [executor.submit(wait_for_word, str(tmp_path)) for _ in range(4)]
        soon(lambda: processes(tmp_path))
        raise KeyError
    assert all(f.cancelled() for f in as_completed(futures, timeout=1))
    (tmp_path / "go").touch()  # what has begun can't be taken back from a worker


def test_a_cancelled_task_never_begins(address, tmp_path):
    with open_executor(address) as executor:
        begun = [executor.submit(wait_for_word, str(tmp_path)) for _ in range(2)]
        soon(lambda: len(processes(tmp_path)) == 2)
        waiting = executor.submit(wait_for_word, str(tmp_path))
        assert waiting.cancel()
        with pytest.raises(CancelledError):
            waiting.result(0)
        soon(lambda: sum(map(len, executor.client.processing().values())) == 2)  # dask cancels by a message
        time.sleep(0.3)  # and the scheduler tells the worker by another
        (tmp_path / "go").touch()
        assert {future.result(20) for future in begun} == processes(tmp_path)
        assert list(executor.map(abs, range(8))) == list(range(8))  # the others go on
        assert len([*tmp_path.glob("*.pid")]) == 2


def test_a_task_whose_worker_is_killed_runs_again(address, tmp_path):
    with open_executor(address) as executor:
        future = executor.submit(wait_for_word, str(tmp_path))
        [first] = soon(lambda: processes(tmp_path))
        os.kill(first, signal.SIGKILL)
        [second] = soon(lambda: processes(tmp_path) - {first})
        (tmp_path / "go").touch()
        assert future.result(20) == second


def test_a_task_that_kills_its_workers_ends_with_one_line(address):
    with open_executor(address) as executor:
        error = executor.submit(die).exception(60)
        assert type(error) is RuntimeError and "\n" not in str(error)
        assert str(error).startswith(f"{address}: each worker that ran this task died, 4 in all")
        assert executor.submit(abs, -1).result(30) == 1


@pytest.fixture
def lonely(tmp_path):
    """A scheduler and a worker as processes of their own, known by the scheduler's file."""
    file, started = tmp_path / "scheduler.json", []
    common = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
    for tool, more in {"dask_scheduler": ["--port", "0", "--protocol", "tcp"], "dask_worker": ["--no-nanny"]}.items():
        program = [sys.executable, "-m", f"distributed.cli.{tool}", "--scheduler-file", str(file), *common, *more]
        env = os.environ | {"PYTHONPATH": str(HERE)}
        started.append(subprocess.Popen(program, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        soon(file.exists)
    yield file, started[0]
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_scheduler_ends_the_tasks(lonely, sign, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "_ANSWER", 2)
    monkeypatch.setattr(executors, "_EVERY", 0.5)
    monkeypatch.setattr(executors, "_SILENCE", 2)
    file, scheduler = lonely
    with open_executor(str(file)) as executor:
        futures = [executor.submit(wait_for_word, str(tmp_path)) for _ in range(3)]
        soon(lambda: processes(tmp_path))
        scheduler.send_signal(sign)
        begun = time.monotonic()
        errors = [future.exception(10) for future in futures]
        assert all(type(e) is BrokenExecutor and str(e).startswith(f"{file}: the scheduler ") for e in errors)
        with pytest.raises(BrokenExecutor, match="the scheduler "):
            executor.submit(abs, -1)
    assert time.monotonic() - begun < 15, "leaving waits for a scheduler that is lost"


@pytest.mark.parametrize("late", [False, True])
def test_a_scheduler_lost_between_tasks_is_noticed(lonely, late, monkeypatch):
    monkeypatch.setattr(executors, "_ANSWER", 2)
    file, scheduler = lonely
    with open_executor(str(file)) as executor:
        assert executor.submit(abs, -1).result(20) == 1
        scheduler.kill()
        scheduler.wait()
        if late:
            soon(lambda: executor.client.status == "closed")
        with pytest.raises(BrokenExecutor, match="the scheduler is gone"):
            executor.submit(abs, -1).result(10)


def test_no_scheduler_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "_ANSWER", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the call and never says a word
        place = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        assert message(place).startswith(f"scheduler: {place}: no answer in 1 s, expected a dask scheduler")
    assert message(place).startswith(f"scheduler: {place}: no answer in 1 s")  # and now nobody is there
    stale = tmp_path / "scheduler.json"
    stale.write_text(f'{{"address": "{place}"}}')
    assert message(str(stale)).startswith(f"scheduler: {stale}: {place}: no answer in 1 s")
    assert message(str(tmp_path / "absent.json")).endswith(
        "No such file or directory, expected the file of a dask scheduler"
    )
    secret = place.replace("tcp", "tls")  # and no keys in dask's configuration
    assert message(secret).startswith(f"scheduler: {secret}: ")


@pytest.mark.parametrize("scheduler", ["tcp://127.0.0.1:8786", "slurm"])
def test_without_the_extra_it_says_what_to_install(scheduler, monkeypatch):
    for name in ("distributed", "dask_jobqueue"):
        monkeypatch.setitem(sys.modules, name, None)
    options = {"memory": "1GB"} if scheduler == "slurm" else None
    assert message(scheduler, options=options) == (
        "scheduler: needs dask.distributed: pip install 'tcell_drugseq[cluster]'"
    )


@pytest.fixture(scope="module")
def slurm(slurm_node, tmp_path_factory):
    """Options of jobs on Slurm's node; the folder of their output is `log_directory`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", slurm_node)
        patch.setenv("PYTHONPATH", str(HERE))
        patch.setattr(executors, "_EVERY", 2)
        patch.chdir(tmp_path_factory.mktemp("project"))
        with dask.config.set({"distributed.deploy.lost-worker-timeout": "500ms"}):
            yield {"memory": "500MB", "walltime": "00:10:00", "interface": "lo", "log_directory": "logs"}


def test_a_web_server_is_no_scheduler(monkeypatch):
    monkeypatch.setattr(executors, "_ANSWER", 2)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"tcp://127.0.0.1:{server.server_port}"
        assert message(place).startswith(f"scheduler: {place}: no answer in 2 s, expected a dask scheduler (")
        server.shutdown()


def test_a_watch_that_fails_ends_the_tasks(address, tmp_path, monkeypatch):
    def broken(*args):
        raise OSError("no squeue")

    monkeypatch.setattr(executors, "_watch", broken)
    with open_executor(address) as executor, pytest.raises(BrokenExecutor, match=r"watching it failed.*no squeue"):
        executor.submit(wait_for_word, str(tmp_path), 5).result(10)


def queue():
    return subprocess.run(["squeue", "--noheader", "--format=%A"], capture_output=True, text=True).stdout.split()


def test_slurm_runs_tasks_in_its_jobs(slurm, tmp_path):
    cores = os.cpu_count()
    with open_executor("slurm", jobs=1, threads=cores, options=slurm) as executor:
        assert executor.submit(start_process).result(60) == (3, str(cores), str(cores))
        value, process, job = executor.submit(say_where, "β").result(20)
        assert value == "β" and process != os.getpid() and queue() == [job]
        futures = [executor.submit(wait_for_word, str(tmp_path)) for _ in range(2)]
        soon(lambda: processes(tmp_path))
        time.sleep(0.5)
        assert len([*tmp_path.glob("*.pid")]) == 1 and not any(f.done() for f in futures)  # one task in a job at a time
        (tmp_path / "go").touch()
        assert list(Path().glob(".keys-*"))
    soon(lambda: not queue())
    assert not list(Path().glob(".keys-*"))


def test_slurm_replaces_a_job_that_ended(slurm, tmp_path):
    with open_executor("slurm", options=slurm) as executor:
        future = executor.submit(wait_for_word, str(tmp_path))
        [first] = soon(lambda: processes(tmp_path), 40)
        [job] = queue()
        subprocess.run(["scancel", job], check=True)
        [second] = soon(lambda: processes(tmp_path) - {first}, 40)
        assert job not in queue()
        (tmp_path / "go").touch()
        assert future.result(20) == second


def test_slurm_jobs_that_never_work_end_the_tasks(slurm):
    with open_executor("slurm", options=slurm | {"python": shutil.which("false")}) as executor:
        error = executor.submit(abs, -1).exception(40)
        assert type(error) is BrokenExecutor and str(error).startswith(
            "slurm: all jobs ended before a worker reached tls://"
        )


def test_slurm_says_in_one_line_what_it_refuses(slurm, monkeypatch):
    assert "invalid partition specified: nope" in message("slurm", options=slurm | {"queue": "nope"})
    assert message("slurm", options=slurm | {"memory": "much"}).startswith("scheduler_options: Could not interpret")
    assert "ib9" in message("slurm", options=slurm | {"interface": "ib9"})
    assert queue() == [] and not list(Path().glob(".keys-*"))
    monkeypatch.setenv("PATH", "")
    assert message("slurm", options=slurm).startswith("scheduler: slurm: found no sbatch, expected a machine that")
