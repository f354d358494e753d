"""The command line as users call it: one process per call, files in, files out, one line per mistake."""

import csv
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pandas as pd
import pytest
import torch
from shared_runs import call

TINY = "--n_plates 1 --n_compounds 40 --n_controls 20 --n_genes 120".split()
SMALL = "--n_plates 1 --n_compounds 80 --n_controls 32 --n_genes 200".split()
DRAWS = "--hit_draws 500 --hit_bootstrap 100 --set_permutations 100 --biology_top 2".split()
BRIEF = ["--folds", "2", *DRAWS]
MODEL_ALONE = "--no_baselines --no_check_importance --no_biology".split()
LATENT = [f"Latent_{i}" for i in range(5 * (16 + 8))]  # members, each with z_dim numbers and its components
QUICK = [*"--epochs 3 --d_model 16 --n_components 8 --num_threads 1".split(), *BRIEF]


def tree(folder):
    """Every file below a folder, with when it was written."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def screen(fork, tmp_path_factory):
    folder = tmp_path_factory.mktemp("screen") / "data"
    assert fork("simulate", folder, *TINY).returncode == 0
    return folder


@pytest.fixture(scope="module")
def ran(screen):
    """The run that most tests look at, and what it said."""
    done = call("run", "--data_dir", screen, "--out_dir", screen.parent / "results", *QUICK)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def trained(ran, screen):
    return screen.parent / "results"


def read(path):
    return pd.read_csv(path, dtype={"metabolite": str, "Metabolite": str, "Meta": str}, keep_default_na=False)


def few_wells(screen, folder, n):
    folder.mkdir()
    for file in screen.glob("*.csv"):
        if not file.name.startswith("truth"):
            (folder / file.name).write_text("".join(file.read_text().splitlines(keepends=True)[: n + 1]))


def columns(path):
    with open(path, encoding="utf-8", newline="") as f:
        return next(csv.reader(f))


def test_all_files_of_the_contract_with_their_columns(trained):
    expected = {
        "well_activation_socres.csv": ["Well", "Metabolite", *LATENT, "LatentScore"],
        "well_activation_scores.csv": ["Well", "Metabolite", *LATENT, "LatentScore"],
        "metabolite_activation_scores.csv": ["Metabolite", "mean", "std", "N"],
        "well_predictions_results.csv": (
            "well_id metabolite label_cls Tscore_z CytoTRACE_z Pseudotime_z pred_Tscore pred_CytoTRACE pred_Pseudotime "
            "pred_logit pred_label_prob pred_activation split fold"
        ).split(),
        "latent_scores.csv": ["Well", "Meta", "Latent_Euclid", "Latent_Cosine"],
        "compound_ranking.csv": ["rank", "compound", "split", "wells", "dist_relative"],
        "gene_importance_gradinput.csv": ["Gene", "GradInputImportance"],
        "gene_scaler.csv": ["gene", "mean", "std"],
        "history_loss_detailed.csv": (
            "epoch train_total val_total train_mse train_bce train_reg val_mse val_bce val_reg"
        ).split(),
        "audit.csv": ["audit", "tested", "value", "threshold", "status", "meaning"],
        "baselines.csv": ("model target metric value low high difference difference_low difference_high").split(),
        "hits.csv": ["rank", "compound", "wells", "distance", "p", "q", "hit", "direction"],
        "importance_checks.csv": ["check", "value", "threshold", "status", "meaning"],
        "verdict.csv": ["claim", "status", "cause", "todo", "because"],
        "next_layout.csv": ["well", "plate", "row", "column", "compound"],
    }
    for name, wanted in expected.items():
        assert columns(trained / name)[: len(wanted)] == wanted, name
    for name in (
        "model.pt",
        "model_best.pt",
        "model_last.pt",
        "model_fold1.pt",
        "model_fold2.pt",
        "model.safetensors",
        "loss_curve.png",
        "results.h5ad",
        "run.yaml",
        "metrics.json",
    ):
        assert (trained / name).stat().st_size > 0, name


def test_every_exported_figure_is_out_of_fold(trained):
    predictions = read(trained / "well_predictions_results.csv")
    assert set(predictions["split"]) == {"oof"}
    treated = predictions[predictions["metabolite"] != "DMSO"]
    assert set(treated["fold"]) == {1, 2} and treated.groupby("metabolite")["fold"].nunique().max() == 1


def test_a_parameter_file_to_start_from_is_one_that_works(screen, fork, tmp_path):
    made, mine = fork("init", screen), tmp_path / "mine.yaml"
    mine.write_text(made.stdout)
    tried = fork("validate", "--config", mine)
    assert (made.returncode, tried.returncode) == (0, 0), made.stderr + tried.stderr
    understood = tried.stdout.splitlines()[:-1]
    assert understood and understood == [line[2:] for line in made.stdout.splitlines()[1 : 1 + len(understood)]]


def test_a_bundle_as_one_file_is_the_same_screen(screen, fork, tmp_path):
    raw, ways = (
        screen / "raw",
        ([screen], [screen / "raw" / "counts.csv", "--plate_map", screen / "raw" / "plate_map.csv"]),
    )
    for number, (source, *more) in enumerate(ways):
        made = fork("convert", source, tmp_path / f"{number}.h5ad", *more)
        assert made.returncode == 0 and made.stdout.endswith(f"MB -> {tmp_path / f'{number}.h5ad'}\n"), made.stderr
    said = [fork("validate", data).stdout.splitlines()[:-1] for data in (screen, tmp_path / "0.h5ad")]
    assert said[0] and said[0] == said[1]
    counts = fork("validate", tmp_path / "1.h5ad", raw / "plate_map.csv")
    assert counts.returncode == 0 and "no problems found" in counts.stdout, counts.stderr
    before = tree(tmp_path)
    for wrong, why in (
        ([screen, tmp_path / "0.h5ad"], "found a file"),
        ([tmp_path / "no", tmp_path / "n.h5ad"], "no such"),
    ):
        refused = fork("convert", *wrong)
        assert refused.returncode == 2 and why in refused.stderr and "Traceback" not in refused.stderr
    assert tree(tmp_path) == before


def test_what_can_not_fit_is_said_before_it_is_read(fork, tmp_path):
    with h5py.File(tmp_path / "huge.h5ad", "w") as file:
        file.create_dataset("X", (10**6, 10**6), "float32", chunks=(1, 10**6))  # terabytes that nobody has written
    (tmp_path / "huge.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n60000 900000 54000000000\n")
    out, map_ = tmp_path / "out", tmp_path / "map.csv"
    map_.write_text("well,compound\nA01,DMSO\n")
    data = ("--data_dir", tmp_path / "huge.h5ad", "--out_dir", out)
    for asked in (("run", *data), ("audit", *data), ("screen", tmp_path / "huge.mtx", map_, out)):
        refused = fork(*asked)
        assert refused.returncode == 2, refused.stderr
        (line,) = [line for line in refused.stderr.splitlines() if "huge" in line]
        assert " wells x " in line and "of free memory, expected " in line and f"GB for {asked[0]}: give " in line
    assert not out.exists()


def test_the_verdict_is_printed_last_and_kept_for_machines(ran, trained):
    claims = ["prediction", "ranking", "hits", "gene importance"]
    *_, verdict, file = lines = ran.stdout.strip().splitlines()
    assert [line.split(":")[0] for line in lines[-7:-3]] == claims
    assert verdict.count(" claim") and file.startswith(str(trained / "hits.csv")), (verdict, file)
    found = json.loads((trained / "metrics.json").read_text())
    assert [row["claim"] for row in found["verdict"]] == claims
    assert {row["status"] for row in found["verdict"]} <= {"claim", "limited", "no claim"}


def test_best_and_last_differ_as_the_history_says(trained):
    history = read(trained / "history_loss_detailed.csv").astype(float)
    best, last = (torch.load(trained / f"model_{n}.pt", weights_only=True) for n in ("best", "last"))
    assert best["epoch"] == history["epoch"][history["val_total"].idxmin()]
    assert last["epoch"] == len(history)
    drawn = {"score_gain", "act_gain", "logit_gain", "logit_shift"}  # the last epoch is the network as it is
    assert all(k.startswith("closed.") for k in best["state"].keys() - last["state"].keys())
    same = all(torch.equal(best["state"][k], last["state"][k]) for k in last["state"].keys() - drawn)
    assert same == (best["epoch"] == last["epoch"])
    assert all((last["state"][k] == float("gain" in k)).all() for k in drawn)


def test_dashes_and_underscores_are_the_same(fork, screen, tmp_path):
    both = [tmp_path / "a", tmp_path / "b"]
    flags = "--epochs 1 --d_model 16 --num_threads 1 --use_zscore --batch_size 64 --gi_batch_size 50 --seed 3 --folds 1"
    flags += " --no_baselines --no_biology --no_check_importance --hit_draws 500 --hit_bootstrap 100"
    for out, style in zip(both, (flags, flags.replace("_", "-")), strict=True):
        done = fork("run", "--data_dir", screen, "--out-dir", out, *style.split())
        assert done.returncode == 0, done.stderr
    tables = [(out / "well_predictions_results.csv").read_bytes() for out in both]
    assert tables[0] == tables[1]


def test_historical_skip_train_replaces_the_exports_only(fork, screen, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "results")
    before = tree(tmp_path / "results")
    model = tmp_path / "results" / "model.pt"
    done = fork(
        "run", "--data_dir", screen, "--out_dir", tmp_path / "results", "--skip_train", "--model_path", model, *DRAWS
    )
    assert done.returncode == 0, done.stderr
    after = tree(tmp_path / "results")
    assert before.keys() == after.keys()
    kept = {name for name in before if before[name] == after[name]}
    assert {"model.pt", "model_best.pt", "model_last.pt", "history_loss_detailed.csv", "gene_scaler.csv"} <= kept
    assert not {"well_predictions_results.csv", "latent_scores.csv", "results.h5ad"} & kept
    old, new = (read(p / "well_predictions_results.csv") for p in (trained, tmp_path / "results"))
    pd.testing.assert_frame_equal(old, new, rtol=1e-5)


def test_predict_needs_expression_only(fork, screen, trained, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    shuffled = pd.read_csv(screen / "expr_mat.csv").sample(frac=1, axis=1, random_state=0).head(7)
    shuffled.to_csv(new / "expr_mat.csv", index=False)
    done = fork("predict", "--model_path", trained / "model.pt", "--data_dir", new, "--out_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    old, predicted = (read(p / "well_predictions_results.csv") for p in (trained, tmp_path / "out"))
    assert predicted["split"].tolist() == old["split"].head(7).tolist()  # known by their expression
    assert "label_cls" not in predicted and not (tmp_path / "out" / "latent_scores.csv").exists()
    for column in ("pred_Tscore", "pred_label_prob"):
        assert (predicted[column] - old[column].head(7)).abs().max() < 1e-4


def test_predict_predicts_and_no_more_unless_asked(fork, screen, trained, tmp_path):
    model = ["--model_path", trained / "model.pt", "--data_dir", screen, "--no_biology", *DRAWS[:4]]
    assert fork("predict", *model, "--out_dir", tmp_path / "alone").returncode == 0
    assert not (tmp_path / "alone" / "importance_checks.csv").exists()
    assert fork("predict", *model, "--out_dir", tmp_path / "all", "--check_importance").returncode == 0
    assert (tmp_path / "all" / "importance_checks.csv").exists()


@pytest.mark.parametrize("command", ["run", "predict"])
def test_help_fits_on_a_page_and_all_of_it_is_asked_for(fork, command):
    short, whole = (fork(command, words).stdout for words in ("--help", "--help-all"))
    assert len(short.splitlines()) <= 40 and "--help-all" in short
    flags = {line.split()[0] for line in whole.splitlines() if line.strip().startswith("--")}
    assert flags > {line.split()[0] for line in short.splitlines() if line.strip().startswith("--")}
    assert {"--data_dir", "--hit_draws", "--gene_sets"} < flags


def test_audit_and_validate_list_what_they_use(fork):
    for command in ("audit", "validate"):
        said = fork(command, "--help").stdout
        assert "--data_dir" in said and "--folds" in said and "--d_model" not in said and "--epochs" not in said


MISTAKES = {
    "missing folder": (["--data_dir", "nowhere"], "nowhere"),
    "unknown device": (["--device", "tpu"], "device: found 'tpu', expected one of auto, cpu"),
    "empty out_dir": (["--out_dir", ""], "out_dir: found an empty name"),
    "out_dir is data_dir": (["--out_dir", "{screen}", "--overwrite"], "which is the data_dir"),
    "one group to hold out": (["--split", "plate", "--data_dir", "{tmp}/few"], "column 'plate' has 1 group"),
    "column for a bundle": (["--label", "active"], "setting 'label': found 'active'"),
    "score not there": (["--scores", "Foo"], "setting 'scores': found 'Foo'"),
    "unknown flag value": (["--encoder", "cnn"], "encoder: found 'cnn', expected one of induced, full"),
    "out of range": (["--epochs", "-1"], "epochs: found -1, expected at least 0"),
    "no such cluster": (["--dmso_cluster", "C99"], "no control well in cluster 'C99'"),
    "no such split": (["--split", "donor"], "no column 'donor'"),
    "no such target": (["--gi_target", "IL2"], "gi_target: found 'IL2'"),
    "no such control": (["--control", "PBS"], "PBS"),
    "no such preset": (["--preset", "modern"], "expected one of default, historical"),
    "missing model": (["--skip_train", "--model_path", "no.pt"], "no.pt: no such model file"),
    "pickle as model": (["--skip_train", "--model_path", "{tmp}/pickle.pt"], "a pickle with code in it is refused"),
    "model for other genes": (["--skip_train", "--model_path", "{tmp}/other.pt"], "of the model's 2 are missing"),
    "unknown setting": (["--config", "{tmp}/typo.yaml"], "unknown setting 'epoch'; did you mean 'epochs'?"),
    "text for a number": (["--config", "{tmp}/text.yaml"], "found 'many' (str), expected a whole number"),
    "out_dir is a file": (["--out_dir", "{tmp}/typo.yaml"], "found a file, expected a folder"),
    "out_dir below a file": (["--out_dir", "{tmp}/typo.yaml/results"], "cannot be written"),
    "out_dir holds a run": (["--out_dir", "{trained}"], "already holds a run"),
}
WHOLE = ("missing folder", "pickle as model")  # in a process of their own, imports and all


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(fork, name, screen, trained, tmp_path):
    from tcell_drugseq.base.defaults import ModelConfig
    from tcell_drugseq.model.checkpoint import save_model
    from tcell_drugseq.model.network import MultiTaskModel, Tasks

    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Path("x")))
    save_model(MultiTaskModel(["?1", "?2"], Tasks(label=True), ModelConfig()), tmp_path / "other.pt", split={})
    (tmp_path / "typo.yaml").write_text("epoch: 3\n")
    (tmp_path / "text.yaml").write_text("epochs: many\n")
    few_wells(screen, tmp_path / "few", 12)
    flags, message = MISTAKES[name]
    flags = [f.format(tmp=tmp_path, trained=trained, screen=screen) for f in flags]
    before = tree(tmp_path), tree(trained)
    command = ("run", "--data_dir", screen, "--out_dir", "results", *QUICK, *flags)
    done = (call if name in WHOLE else fork)(*command, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith(("INFO", "WARNING"))]
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0], done.stderr
    assert (tree(tmp_path), tree(trained)) == before


class Trap:
    """What a model from a stranger may hold: unpickled, it makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "old torch"])
@pytest.mark.parametrize("force", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD"])
def test_code_in_a_model_never_runs(kind, force, tmp_path, monkeypatch):
    from tcell_drugseq.base.settings import InputError
    from tcell_drugseq.model.checkpoint import load_model

    trap = Trap(tmp_path / "sprung")
    if kind == "pickle":
        (tmp_path / "model.pt").write_bytes(pickle.dumps(trap))
    else:
        torch.save({"state": trap}, tmp_path / "model.pt", _use_new_zipfile_serialization=kind == "torch")
    if force:
        monkeypatch.setenv(force, "1")
    with pytest.raises(InputError, match="a pickle with code in it is refused"):
        load_model(tmp_path / "model.pt")
    assert not (tmp_path / "sprung").exists()
    if kind != "pickle" and force is None:
        torch.load(tmp_path / "model.pt", weights_only=False)
        assert (tmp_path / "sprung").exists()  # it is a trap that works


def test_interrupted_run_says_how_to_go_on(screen, tmp_path):
    command = [
        sys.executable,
        "-m",
        "tcell_drugseq",
        "run",
        "--data_dir",
        str(screen),
        "--epochs",
        "500",
        *BRIEF,
        "--num_threads",
        "1",
    ]
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a background job ignores Ctrl-C
    process = subprocess.Popen([*command, "--out_dir", str(tmp_path / "r")], stderr=subprocess.PIPE, text=True, **heard)
    state = tmp_path / ".r.partial" / "progress.pt"
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "resumes from the last epoch" in said
    assert state.exists() and not (tmp_path / "r").exists()


def test_an_existing_folder_may_be_a_mount_point(fork, screen, tmp_path):
    (tmp_path / "r").mkdir()
    before = (tmp_path / "r").stat().st_ino
    done = fork(
        "run", "--data_dir", screen, "--out_dir", tmp_path / "r", *QUICK, "--scores", "Pseudotime", "--label", ""
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r").stat().st_ino == before  # filled, not replaced
    assert not [name for name in os.listdir(tmp_path / "r") if name.startswith(".")]
    predicted = columns(tmp_path / "r" / "well_predictions_results.csv")
    assert "pred_Pseudotime" in predicted and not {"pred_Tscore", "pred_logit", "label_cls"} & set(predicted)


def test_killed_while_moving_files_in_goes_on(fork, screen, trained, tmp_path):
    out = tmp_path / "r"
    shutil.copytree(trained, out)
    (out / "run.yaml").unlink()
    (out / ".partial").mkdir()
    done = fork("run", "--data_dir", screen, "--out_dir", out, *QUICK, *MODEL_ALONE)
    assert done.returncode == 0, done.stderr
    assert (out / "run.yaml").exists() and not (out / ".partial").exists()


def test_unknown_flag_is_named(fork, screen):
    done = fork("run", "--data_dir", screen, "--epoch", "3")
    assert done.returncode == 2 and "--epoch" in done.stderr


def test_killed_training_goes_on_to_the_same_bits(fork, screen, tmp_path):
    flags = [*"--epochs 20 --d_model 16 --n_components 8 --num_threads 1".split(), *BRIEF, *MODEL_ALONE]
    command = [sys.executable, "-m", "tcell_drugseq", "run", "--data_dir", str(screen), *flags, "--out_dir"]
    state = tmp_path / ".killed.partial" / "progress.pt"
    process = subprocess.Popen([*command, str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.exists() and not (tmp_path / "killed").exists(), "the training must be killed before its end"
    again = fork("run", "--data_dir", screen, *flags, "--out_dir", tmp_path / "killed")
    assert again.returncode == 0 and "continuing after epoch" in again.stderr
    calm = fork("run", "--data_dir", screen, *flags, "--out_dir", tmp_path / "calm")
    assert calm.returncode == 0
    for name in ("model.pt", "model_last.pt", "model_fold1.pt", "model_fold2.pt"):
        ours, theirs = (torch.load(tmp_path / d / name, weights_only=True)["state"] for d in ("killed", "calm"))
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert sorted(os.listdir(tmp_path)) == ["calm", "killed"]


def test_validate_says_what_counts_and_a_map_are_taken_for(fork, tmp_path):
    wells = [f"{row}{column:02d}" for row in "ABCD" for column in range(1, 7)]
    counts = {well: [10 + i, 3, i % 5] for i, well in enumerate(wells)}
    names = [f"β {i % 6}" if i % 4 else "DMSO" for i in range(24)]
    pd.DataFrame(counts, index=["IL2", "GAPDH", "MT-CO1"]).to_csv(tmp_path / "counts.csv")
    pd.DataFrame({"well": wells, "compound": names}).to_csv(tmp_path / "map.csv", index=False)
    done = fork("validate", tmp_path / "counts.csv", tmp_path / "map.csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wells: 24, 'A01' is A1\nplates: not known\ncontrol: 'DMSO', 6 wells\ncompounds: 6")
    assert "counts.csv: read as CSV, genes by wells" in done.stdout and "no problems found" in done.stdout
    done = fork("validate", tmp_path / "counts.csv", tmp_path / "map.csv", "--control", "water")
    assert done.returncode == 2 and "map.csv: compound: found no well of 'water'" in done.stderr
    done = fork("validate", tmp_path / "counts.csv", tmp_path / "map.csv", "--folds", "3")
    assert done.returncode == 2 and "unknown setting 'folds'" in done.stderr


def test_validate_says_everything_at_once(fork, screen, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(screen, broken)
    labels = (broken / "labels_cls.csv").read_text().splitlines()
    (broken / "labels_cls.csv").write_text("\n".join([*labels[:3], "maybe", *labels[4:-1]]) + "\n")
    (broken / "well_id.csv").unlink()
    expression = (broken / "expr_mat.csv").read_text()
    (broken / "expr_mat.csv").write_text(expression.replace("\n", "\n1e400,", 1).replace(",", "", 1))
    done = fork("validate", "--data_dir", broken)
    assert done.returncode == 2
    for part in ("labels_cls.csv", "'maybe'", "well_id.csv", "expr_mat.csv", "99 rows"):
        assert part in done.stdout, part
    assert fork("validate", screen).returncode == 0
    asked = fork("validate", screen, "--dmso_cluster", "C99")
    assert asked.returncode == 2 and "C99" in asked.stderr


def test_audit_answers_without_training_and_fails_with_3(fork, screen, tmp_path):
    clear = tmp_path / "clear"  # with effects that replicates repeat even in a screen this small
    assert fork("simulate", clear, *SMALL, "--strength", "3").returncode == 0
    fine = fork("audit", "--data_dir", clear, "--out_dir", tmp_path / "fine")
    tilted = tmp_path / "tilted"
    assert fork("simulate", tilted, *SMALL, "--column_effect", "6").returncode == 0
    spoilt = fork("audit", "--data_dir", tilted, "--out_dir", tmp_path / "spoilt")
    assert (fine.returncode, spoilt.returncode) == (0, 3), (fine.stdout, fine.stderr, spoilt.stderr)
    table = read(tmp_path / "spoilt" / "audit.csv")
    failed = table[table["status"] == "fail"]
    assert {"Tscore", "PC1"} <= set(failed.loc[failed["audit"] == "position alone", "tested"])
    assert "position alone" in spoilt.stdout and "Nothing fails" in fine.stdout
    again = fork("audit", "--data_dir", clear, "--out_dir", tmp_path / "fine")
    assert again.returncode == 2 and "audit.csv: found an audit" in again.stderr
