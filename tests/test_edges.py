"""At the edges: what fails after the training, a full disk, a process that is asked to end."""

import getpass
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from shared_runs import disk

from tcell_drugseq.base.defaults import RunConfig, SimConfig
from tcell_drugseq.base.files import NoSpaceError, write_h5ad, write_json, write_yaml, written_whole
from tcell_drugseq.base.settings import InputError, with_leaves
from tcell_drugseq.base.tables import write_csv
from tcell_drugseq.biology.enrichment import enrich, enrich_importance
from tcell_drugseq.data.simulate import simulate_screen, write_simulation
from tcell_drugseq.pipeline import run
from tcell_drugseq.report.summary import conclude

BRIEF = {"epochs": 2, "d_model": 16, "folds": 2, "n_members": 1, "hit_draws": 500}
BRIEF |= {"hit_bootstrap": 100, "set_permutations": 100, "biology_top": 3, "num_threads": 1}
ALONE = {"baselines": False, "check_importance": False, "biology": False}
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


class Panic(BaseException):
    """Like pyo3's: no `Exception`."""


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    """A small screen on disk, with a thousand genes that most models here don't read."""
    folder = tmp_path_factory.mktemp("edges") / "data"
    write_simulation(simulate_screen(SimConfig(n_plates=1, n_compounds=20, n_controls=12, n_genes=1000)), folder)
    rng = np.random.default_rng(0)
    genes = (folder / "expr_mat.csv").open(encoding="utf-8").readline().strip().split(",")[1:]
    sets = [
        "\t".join([f"set{i}", "", *rng.choice(genes, size, replace=False)]) for i, size in enumerate((5, 10, 30) * 9)
    ]
    (folder.parent / "sets.gmt").write_text("\n".join(sets), encoding="utf-8")
    return folder


def settings(screen, out, **more):
    return with_leaves(RunConfig(), BRIEF | {"data_dir": str(screen), "out_dir": str(out)} | more, where="edges")


def flags(screen, out, **more):
    given = BRIEF | ALONE | {"data_dir": screen, "out_dir": out} | more
    words = [[f"--{k}", v] if not isinstance(v, bool) else [f"--{'' if v else 'no_'}{k}"] for k, v in given.items()]
    return [str(word) for pair in words for word in pair]


# What fails after the training


@pytest.mark.parametrize("kept", [50, 250])
def test_rankings_of_mostly_zeros_have_an_answer(kept):
    """gseapy counts weights in whole numbers; sets that come to 0 ended in a panic of its sort."""
    rng, genes = np.random.default_rng(kept), np.array([f"g{i}" for i in range(1500)])
    effect = pd.Series(np.where(rng.permutation(1500) < kept, rng.standard_normal(1500), 0.0), genes)
    for tail in (0.0, 1e-13):
        sets = {f"s{i}": list(rng.choice(genes, size, replace=False)) for i, size in enumerate((5, 10, 30))}
        table = enrich(effect.where(effect != 0, tail), sets | {"top": list(effect.nlargest(10).index)})
        assert table["p"].between(0, 1).all() and table["set"][0] == "top"


def test_unread_genes_have_no_rank():
    rng, genes = np.random.default_rng(1), np.array([f"g{i}" for i in range(600)])
    results = anndata.AnnData(np.zeros((2, 600), np.float32), var=pd.DataFrame(index=genes))
    effect = rng.standard_normal(600)
    effect[200:], effect[199] = 0.0, np.nan
    results.var["effect_per_sd"] = effect
    sets = {"read": list(genes[:20]), "mixed": list(genes[190:230]), "unread": list(genes[300:320])}
    table = enrich_importance(results, sets).set_index("set")
    assert table["size"].to_dict() == {"read": 20, "mixed": 9, "unread": 0}
    alone = enrich(pd.Series(effect[:199], genes[:199]), sets).set_index("set")
    assert table.loc["read", "p_genes"] == alone.loc["read", "p"]
    assert "0 of 20 genes read by the models" in table.loc["unread", "note"]


def test_a_run_that_reads_few_genes_ends_well(screen, tmp_path):
    """All training was lost here, at --genes variable with many genes unread."""
    few = {"genes": "variable", "n_genes": 200, "gene_sets": str(screen.parent / "sets.gmt")}
    more = ALONE | {"biology": True, "epochs": 1}
    results = run(settings(screen, tmp_path / "r", **more | few))
    assert (tmp_path / "r" / "run.yaml").exists() and results.uns["stage_notes"].tolist() == []
    read = int((results.var["effect_per_sd"] != 0).sum())
    assert read < 500 and len(results.uns["gene_enrichment"]) == 27
    assert results.uns["gene_enrichment"]["size"].max() <= 30 * read / 500 + 10
    assert results.uns["compound_enrichment"]["p"].notna().any()


STAGES = {
    "quality of the wells": "counts.quality.measure_wells",
    "baselines": "evidence.baselines.fit_baselines",
    "importance checks": "importance.checks.check_importance",
    "importance by compound": "importance.checks.compound_importance",
    "genes behind the distances": "importance.distance.distance_genes",
    "next plates": "latent.next_plates.next_layout",
    "verdict": "evidence.verdict.judge_claims",
    "pathways of the prediction": "biology.enrichment.enrich_importance",
    "pathways of the compounds": "biology.enrichment.enrich_hits",
    "groups of compounds": "biology.gather.groups_of",
    "changed genes": "biology.differential.differential_expression",
    "dose curves": "biology.dose.dose_response",
    "loss_curve.png": "training.figures.plot_losses",
    "well_activation_scores.csv": "report.exports.well_latents",
    "results.xlsx": "report.exports.write_workbook",
}


def test_every_stage_after_the_training_may_fail(screen, tmp_path, monkeypatch, capsys):
    """All at once, each with another kind of error: the training is written, and each is a note with its reason."""
    kinds = [Panic("no total order"), MemoryError(), KeyError("gene"), FloatingPointError("nan"), OSError(5, "I/O")]
    for i, place in enumerate(STAGES.values()):

        def fail(*_, error=kinds[i % len(kinds)], **__):
            raise error

        monkeypatch.setattr(f"tcell_drugseq.{place}", fail)
    from tcell_drugseq import cli

    monkeypatch.setattr(
        sys, "argv", ["tcell-drugseq", "run", *flags(screen, tmp_path / "r", **dict.fromkeys(ALONE, True))]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (0, None)
    said = capsys.readouterr().err
    about = yaml.safe_load((tmp_path / "r" / "run.yaml").read_text(encoding="utf-8"))
    notes = about["stage_notes"]
    for stage in STAGES:
        assert any(f": {stage}: " in note for note in notes), stage
        assert f": {stage}: " in said.split("warning: all else is written")[1]
    assert "Panic: no total order" in said and "not enough memory" in said
    results = anndata.read_h5ad(tmp_path / "r" / "results.h5ad")
    assert set(notes) == set(results.uns["stage_notes"]) == set(conclude(results)[-len(notes) :])
    assert json.loads((tmp_path / "r" / "metrics.json").read_text())["stage_notes"] == notes
    assert set(results.uns["verdict"]["status"]) == {"no claim"}
    for name in ("model.pt", "model_fold2.pt", "hits.csv", "well_predictions_results.csv", "metrics.csv"):
        assert (tmp_path / "r" / name).stat().st_size > 0
    absent = ("baselines.csv", "importance_checks.csv", "differential.csv", "loss_curve.png", "next_layout.csv")
    assert not [name for name in absent if (tmp_path / "r" / name).exists()]


def test_input_errors_before_the_training_stay_errors(screen, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.gmt"):
        run(settings(screen, tmp_path / "r", gene_sets="nowhere.gmt"))
    with pytest.raises(InputError, match="gi_target"):
        run(settings(screen, tmp_path / "r", gi_target="IL2"))
    assert os.listdir(tmp_path) == []


def small_notebook(folder, *cells):
    cells = [nbformat.v4.new_code_cell(source) for source in ('name = "x"\nout_dir = "y"', *cells)]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "small.ipynb")
    return folder / "small.ipynb"


def test_a_figure_that_fails_leaves_the_files_of_the_training(fork, tmp_path):
    made = "from pathlib import Path\nPath(out_dir).mkdir()\nPath(out_dir, 'run.yaml').write_text('wells: 1')"
    notebook = small_notebook(tmp_path, made, "1 / 0  # a figure")
    (tmp_path / "one.yaml").write_text("{}")
    reports = tmp_path / "reports"
    done = fork("report", tmp_path / "one.yaml", "--reports_dir", reports, "--notebook", notebook)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr and "its training was finished" in done.stderr
    assert (reports / "one.failed" / "results" / "run.yaml").read_text() == "wells: 1"


# A full disk


def write_figure(path):
    figure, axis = plt.subplots()
    axis.imshow(np.random.default_rng(0).random((300, 300)))
    with written_whole(path) as tmp:
        figure.savefig(tmp, format="png", dpi=300)
    plt.close(figure)


def write_torch(path):
    with written_whole(path) as tmp:
        torch.save({"weight": torch.rand(300, 300)}, tmp)


def write_safetensors(path):
    from safetensors.torch import save_file

    with written_whole(path) as tmp:
        save_file({"weight": torch.rand(300, 300)}, tmp)


WRITERS = {
    "torch": write_torch,
    "h5ad": lambda path: write_h5ad(anndata.AnnData(np.random.default_rng(0).random((300, 300))), path),
    "safetensors": write_safetensors,
    "png": write_figure,
    "csv": lambda path: write_csv(pd.DataFrame({"a": ["text"] * 50_000}), path),
    "json": lambda path: write_json({"a": "text" * 50_000}, path),
    "yaml": lambda path: write_yaml({"a": "text" * 50_000}, path),
}


def test_every_writer_says_that_the_disk_is_full(tmp_path):
    for size in ("8k", "64k", "100k"):
        with disk(tmp_path / size, size) as full:
            for name, write in WRITERS.items():
                with pytest.raises(NoSpaceError, match="no space left on device") as told:
                    write(full / f"file.{name}")
                assert f"file.{name}" in str(told.value) and "\n" not in str(told.value)
                assert os.listdir(full) == []


STARVED = """
import sys
import anndata, numpy as np, pandas as pd
from tcell_drugseq.base.files import NoSpaceError, write_h5ad
rng, names = np.random.default_rng(0), [f"w{i}" for i in range(300)]
tables = {f"t{i}": pd.DataFrame({"a": rng.random(300), "b": names}, names) for i in range(5)}
screen = anndata.AnnData(rng.random((300, 100)), obs=tables["t0"], uns=tables)
try:
    write_h5ad(screen, sys.argv[1])
except NoSpaceError as e:
    print(e)
"""


@pytest.mark.parametrize("size", ["100k", "300k"])
def test_a_full_disk_makes_no_noise_and_no_crash(tmp_path, size):
    """HDF5 on the disk itself gave a traceback for each part that it could not close, and crashed as Python ended."""
    with disk(tmp_path / "disk", size) as full:
        done = subprocess.run([sys.executable, "-c", STARVED, full / "x.h5ad"], capture_output=True, text=True, env=ENV)
        assert (done.returncode, done.stderr, os.listdir(full)) == (0, "", [])
        assert done.stdout.startswith("no space left on device")


def test_another_error_of_a_writer_is_not_taken_for_a_full_disk(tmp_path):
    for error in (
        OSError(5, "Input/output error"),
        RuntimeError("PytorchStreamWriter failed writing file"),
        KeyError(),
    ):
        with pytest.raises(type(error)) as told, written_whole(tmp_path / "x"):
            raise error
        assert told.value is error


def test_a_run_goes_on_when_there_is_space_again(fork, screen, tmp_path):
    with disk(tmp_path / "disk", "1000k") as full:
        command = ["run", *flags(screen, full / "deep" / "r")]
        done = fork(*command)
        said = done.stderr.splitlines()
        assert done.returncode == 2, done.stderr
        assert said[-1].startswith("error: no space left on device: ") and "progress" in said[-1]
        assert "Traceback" not in done.stderr
        assert (full / "deep" / ".r.partial" / "progress.pt").exists() and not (full / "deep" / "r").exists()
        subprocess.run(["mount", "-o", "remount,size=100m", full], check=True)
        done = fork(*command)
        assert done.returncode == 0 and "continuing after epoch" in done.stderr, done.stderr
        assert (full / "deep" / "r" / "run.yaml").exists() and os.listdir(full / "deep") == ["r"]


@pytest.mark.parametrize("size", ["16k", "250k"])
def test_screen_and_simulate_leave_nothing_on_a_full_disk(fork, screen, tmp_path, size):
    with disk(tmp_path / "disk", size) as full:
        raw = screen / "raw"
        for command in (
            ("simulate", full / "a" / "b", *"--n_plates 1 --n_compounds 20 --n_controls 12 --n_genes 1000".split()),
            ("screen", raw / "counts.csv", raw / "plate_map.csv", full / "a" / "b"),
        ):
            done = fork(*command)
            last = done.stderr.splitlines()[-1]
            assert done.returncode == 2 and "no space left on device" in last.lower(), done.stderr
            assert "Traceback" not in done.stderr and os.listdir(full) == []


# A process that is asked to end


def start(*args, **env):
    command = [sys.executable, "-m", "tcell_drugseq", *map(str, args)]
    return subprocess.Popen(command, env=ENV | env, stderr=subprocess.PIPE, text=True, start_new_session=True)


def until(process, condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_a_run_that_is_asked_to_end_says_how_it_goes_on(screen, tmp_path):
    process = start("run", *flags(screen, tmp_path / "r", epochs=2000))
    until(process, (tmp_path / ".r.partial" / "progress.pt").exists)
    process.terminate()
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said.splitlines()[-1] == "terminated; the same command resumes from the last epoch"
    assert "Traceback" not in said
    assert (tmp_path / ".r.partial" / "progress.pt").exists() and not (tmp_path / "r").exists()


@pytest.mark.parametrize("command", ["report", "batch"])
def test_a_report_that_is_asked_to_end_leaves_no_folder_of_its_kernel(tmp_path, command):
    place = Path(
        tempfile.mkdtemp(prefix="t", dir="/tmp" if os.path.isdir("/tmp") else None)
    )  # sockets need short names
    notebook = small_notebook(tmp_path, "import time\nfrom pathlib import Path\nPath(out_dir).mkdir()\ntime.sleep(120)")
    (tmp_path / "one.yaml").write_text(
        "{}" if command == "report" else f"notebook: {notebook}\nexperiments: {{a: {{}}}}"
    )
    more = ["--notebook", notebook] if command == "report" else []
    process = start(command, tmp_path / "one.yaml", "--reports_dir", tmp_path / "reports", *more, TMPDIR=str(place))
    try:
        until(process, lambda: list((tmp_path / "reports").glob(".*.partial/results")))
        assert list(place.glob("kernel*"))
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        said = process.communicate(timeout=30)[1]
        assert process.returncode == 128 + signal.SIGTERM, said
        assert said.splitlines()[-1] == "terminated; the same command resumes where it stopped", said
        assert "Traceback" not in said
        assert not psutil.wait_procs(children, timeout=15)[1]
        assert {path.name for path in place.iterdir()} <= {f"torchinductor_{getpass.getuser()}"}  # a cache
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        subprocess.run(["rm", "-rf", str(place)], check=True)


LATE = """
import os, signal, sys

class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

late, sys.argv = Late(), ["tcell-drugseq", "simulate", sys.argv[1], "--n_plates", "1", "--n_compounds", "20"]
from tcell_drugseq.cli import main
main()
"""


def test_a_command_that_has_done_its_work_ends_well_although_it_is_asked_to_end(tmp_path):
    """Python takes half a second to take the libraries down; a signal in that time made a failure of a success."""
    done = subprocess.run([sys.executable, "-c", LATE, tmp_path / "screen"], capture_output=True, text=True, env=ENV)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "screen" / "well_id.csv").exists()


def test_a_lack_of_memory_is_named(screen, tmp_path, monkeypatch, capsys):
    """In the process itself; of an experiment that was killed its batch says so."""
    from tcell_drugseq import cli
    from tcell_drugseq.batch.run import _died

    words = (
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )
    for error in (MemoryError(), RuntimeError(words)):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr("tcell_drugseq.pipeline.run", fail)
        monkeypatch.setattr(
            sys, "argv", ["tcell-drugseq", "run", "--data_dir", str(screen), "--out_dir", str(tmp_path)]
        )
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr().err
        assert end.value.code == 1 and said.startswith("error: not enough memory: ") and said.count("\n") == 1
    assert "memory" in _died(-signal.SIGKILL) and "memory" in _died(137) and "memory" not in _died(1)
