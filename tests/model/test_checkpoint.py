"""Whatever a model file holds that `run` did not write, it is refused in one line, before anything is built of it."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from shared_runs import tiny_run

from tcell_drugseq.base.defaults import ModelConfig
from tcell_drugseq.base.settings import InputError, leaves
from tcell_drugseq.data.reading import read_screen
from tcell_drugseq.model.checkpoint import load_model, save_model
from tcell_drugseq.model.network import MultiTaskModel, Tasks
from tcell_drugseq.training.fit import _load_progress
from tcell_drugseq.training.store import load_for, load_views

NAN, HUGE = torch.full((3,), float("nan")), torch.zeros(1).expand(10**6, 10**6)
NASTY = [
    *(None, True, -1, 2, 1.5, float("nan"), 10**12, 10**5_000, "", "x", b"x"),
    *([], [1], ["a", "a"], [""], {}, {"a": 1}, {1: 2}, (), ("a",), [torch.zeros(2)], {"a": torch.zeros(2)}),
    *(torch.zeros(3), torch.tensor(1), NAN, HUGE),
]
GENES = [f"G{i}" for i in range(12)]


@pytest.fixture
def saved(tmp_path):
    """A model that was never trained: where it lies, and what its file holds."""
    model = MultiTaskModel(GENES, Tasks(("Tscore",), label=True), ModelConfig(n_members=2, d_model=8))
    save_model(model, tmp_path / "model.pt", data_hash="abc")
    return tmp_path / "model.pt", torch.load(tmp_path / "model.pt", weights_only=True)


def refusal(path: Path, ask=load_model) -> str:
    with pytest.raises(InputError) as e:
        ask(path)
    assert str(e.value).startswith(f"{path}: ") and "\n" not in str(e.value) and len(str(e.value)) < 600
    return str(e.value)


def like(a, b) -> bool:
    return type(a) is type(b) and not isinstance(a, torch.Tensor) and a == b


@pytest.mark.parametrize("entry", ["format", "model", "genes", "scores", "label", "activation", "state"])
def test_an_entry_that_is_another_is_refused(saved, entry):
    path, whole = saved
    for value in NASTY:
        if not like(value, whole[entry]):
            if entry == "model" and value == {}:
                continue  # the defaults, whose weights have other shapes: below
            torch.save(whole | {entry: value}, path)
            refusal(path)
    torch.save({k: v for k, v in whole.items() if k != entry}, path)
    assert "expected the entries" in refusal(path)


@pytest.mark.parametrize("setting", leaves(ModelConfig()))
def test_a_setting_that_is_another_is_refused_before_it_is_built(saved, setting):
    path, whole = saved
    default, of_shape = (
        whole["model"][setting],
        ("n_members", "d_model", "n_heads", "n_layers", "z_dim", "n_components"),
    )
    for value in [*NASTY, 100, 4_096]:
        other_kind = type(value) is not type(default) and not (type(default) is float and type(value) is int)
        if other_kind or (setting in of_shape and value != default):
            torch.save(whole | {"model": whole["model"] | {setting: value}}, path)
            said = refusal(path)
            assert any(words in said for words in (setting, "weights", "not a readable model"))


def test_every_weight_is_of_its_kind_shape_and_type_and_finite(saved):
    path, whole = saved
    state = whole["state"]
    for name, weight in state.items():
        for value in [
            None,
            3,
            "x",
            [],
            NAN,
            HUGE,
            weight.double(),
            weight[..., None],
            weight * float("nan"),
            weight + float("inf"),
        ]:
            torch.save(whole | {"state": state | {name: value}}, path)
            assert any(words in refusal(path) for words in (name, "not a readable model"))
        torch.save(whole | {"state": {k: v for k, v in state.items() if k != name}}, path)
        assert f"'{name}' is missing" in refusal(path)
    torch.save(whole | {"state": state | {"more": NAN}}, path)
    assert "'more' is unknown" in refusal(path)
    spread = torch.zeros(1).expand(state["mean"].shape)
    torch.save(whole | {"state": state | {"mean": spread}}, path)
    assert "mean: found (12, 'float32') with gaps" in refusal(path)


def test_a_format_of_later_is_named(saved):
    path, whole = saved
    torch.save(whole | {"format": 3}, path)
    assert "format: found 3, expected 2" in refusal(path)


@pytest.mark.parametrize("value", [v for v in NASTY if not isinstance(v, dict)] + [{}], ids=lambda v: type(v).__name__)
def test_a_file_of_anything_else_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "model.pt")
    refusal(tmp_path / "model.pt")


def test_a_file_that_is_cut_or_has_another_bit_is_refused(saved):
    path, whole = saved
    content, weight = path.read_bytes(), whole["state"]["encoder.read.value"].numpy().tobytes()
    for end in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        refusal(path)
    begin = content.index(weight)
    for at in np.random.default_rng(614).integers(begin, begin + len(weight), 20):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert "not a readable model" in refusal(path)


def test_a_packed_archive_is_not_unpacked(saved):
    path, _ = saved
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(packed := path.with_name("b.pt"), "w") as bomb:
        for part in plain.infolist():
            bomb.writestr(part.filename, plain.read(part) + b"\0" * 10**7, zipfile.ZIP_DEFLATED)
    refusal(packed)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a run with two folds on a small screen, its settings and the screen."""
    root = tmp_path_factory.mktemp("trained")
    cfg = tiny_run(root / "data", root / "run")
    return root / "run", cfg, read_screen(cfg.data)


@pytest.fixture
def folder(trained, tmp_path):
    for path in trained[0].glob("model*.pt"):
        shutil.copy(path, tmp_path)
    return tmp_path


def load_all(folder, trained):
    about = load_for(folder / "model.pt", trained[1])[1]
    return load_views(folder, about, trained[2], trained[1])


def could_be(entry, value) -> bool:
    """Whether a run might have written this value, however strange."""
    if entry == "compounds":
        return isinstance(value, list) and all(isinstance(v, str) for v in value)
    return value == {} if entry == "split" else False


@pytest.mark.parametrize("file", ["model.pt", "model_fold1.pt"])
@pytest.mark.parametrize("entry", ["settings", "split", "compounds", "data_hash", "fold"])
def test_what_a_model_says_of_its_training_is_checked(trained, folder, file, entry):
    assert len(load_all(folder, trained)) == 2
    whole = torch.load(folder / file, weights_only=True)
    if entry not in whole:
        return  # only a fold has a number
    for value in [*map(lambda v: [v], NASTY), *NASTY]:
        if not could_be(entry, value):
            torch.save(whole | {entry: value}, folder / file)
            with pytest.raises(InputError) as e:
                load_all(folder, trained)
            assert str(folder) in str(e.value) and "\n" not in str(e.value)


def test_fold_models_of_another_run_are_refused(trained, folder):
    whole = torch.load(folder / "model_fold1.pt", weights_only=True)
    settings = whole["settings"] | {"seed": 615}
    for changes, said in (
        ({"settings": settings}, "settings"),
        ({"data_hash": "x"}, "data_hash"),
        ({"fold": 2}, "this fold"),
    ):
        torch.save(whole | changes, folder / "model_fold1.pt")
        with pytest.raises(InputError, match=f"model_fold1.pt: found .*{said}"):
            load_all(folder, trained)
    model = MultiTaskModel(GENES, Tasks(("Tscore",)), ModelConfig(n_members=1, d_model=8))
    save_model(model, folder / "model_fold1.pt", **{k: whole[k] for k in ("fold", "split", "settings", "data_hash")})
    with pytest.raises(InputError, match=r"model_fold1.pt: found another genes"):
        load_all(folder, trained)


def test_predict_refuses_in_one_line_and_writes_nothing(trained, folder, fork):
    whole = torch.load(folder / "model.pt", weights_only=True)
    torch.save(whole | {"state": whole["state"] | {"mean": whole["state"]["mean"] * float("nan")}}, folder / "model.pt")
    args = ["--model_path", folder / "model.pt", "--data_dir", trained[1].data.data_dir, "--out_dir", folder / "new"]
    done = fork("predict", *args)
    assert done.returncode == 2 and not (folder / "new").exists()
    assert done.stderr == f"error: {folder / 'model.pt'}: mean: found a weight that is no number or infinite\n"


@pytest.mark.parametrize(
    "value", [v for v in NASTY if not isinstance(v, (bytes, int, float))], ids=lambda v: type(v).__name__
)
def test_a_state_of_training_that_is_something_else_is_not_continued(tmp_path, value):
    for content in (value, {"key": value}, {"key": "other"}):
        torch.save(content, tmp_path / "progress.pt")
        assert _load_progress(tmp_path / "progress.pt", "key") is None
