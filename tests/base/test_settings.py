"""Whatever somebody gives for a setting, it is taken or refused in one line, before anything is done with it."""

import datetime
from dataclasses import fields

import numpy as np
import pytest

from tcell_drugseq.base import defaults
from tcell_drugseq.base.settings import InputError, Settings, with_leaves

CONFIGS = [c for c in vars(defaults).values() if isinstance(c, type) and issubclass(c, Settings) and c is not Settings]
OPTIONS = [(config, f) for config in CONFIGS for f in fields(config) if "help" in f.metadata]
NUMBERS = [(c, f) for c, f in OPTIONS if type(f.default) in (int, float) and not f.metadata["among"]]
NASTY = [
    *(
        None,
        True,
        0,
        -1,
        1.5,
        3.0,
        2**32,
        10**12,
        10**5_000,
        -1e308,
        1 + 1j,
        np.int64(3),
        np.float32(0.1),
        np.arange(3),
    ),
    *(float("nan"), float("inf"), -float("inf"), "nan", "inf", "1e400", "9" * 5_000),
    *(
        "",
        "\0",
        "\ud800",
        "x" * 10**6,
        b"x",
        [],
        [1],
        ["a"],
        ["a\0"],
        {},
        {"a": 1},
        (1,),
        set(),
        datetime.date(2020, 1, 1),
    ),
    *(object(), type, print),
]


def one_line(error: BaseException) -> bool:
    return "\n" not in str(error) and len(str(error)) < 400


@pytest.mark.parametrize("config", CONFIGS)
def test_a_nasty_value_of_any_type_is_taken_or_refused_in_one_line(config):
    for f in fields(config):
        for value in NASTY:
            for make in (lambda: config(**{f.name: value}), lambda: with_leaves(config(), {f.name: value}, "here")):  # noqa: B023
                try:
                    make()
                except InputError as e:
                    assert one_line(e)
                    assert f.name in str(e) or "unknown setting" in str(e) or "wells are needed" in str(e)


@pytest.mark.parametrize(("config", "f"), NUMBERS, ids=lambda x: getattr(x, "__name__", None) or getattr(x, "name", ""))
def test_every_number_has_limits(config, f):
    low, high = f.metadata["low"], f.metadata["high"]
    assert low <= f.default <= high
    for beyond in (low - 1, high * 1.01 + 1, 1e300, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"^{f.name}: found .*, expected "):
            config(**{f.name: int(beyond) if type(f.default) is int and np.isfinite(beyond) else beyond})


@pytest.mark.parametrize("seed", ["seed", "hit_seed"])
def test_seeds_go_as_far_as_those_of_numpy(seed):
    np.random.RandomState(2**32 - 1)
    with_leaves(defaults.RunConfig(), {seed: 2**32 - 1})
    with pytest.raises(InputError, match=f"here: {seed}: found 4294967296, expected .* at most 4,294,967,295"):
        with_leaves(defaults.RunConfig(), {seed: 2**32}, "here")


def test_sizes_that_are_fine_alone_are_weighed_together():
    together = {"n_members": 200, "d_model": 512, "n_layers": 20}
    for name, value in together.items():
        defaults.ModelConfig(**{name: value})
    with pytest.raises(InputError, match="weights for 1,000 genes"):
        defaults.ModelConfig(**together)
    with pytest.raises(InputError, match="wells x 100,000 genes, expected at most"):
        defaults.SimConfig(n_plates=1_000, n_compounds=10_000, n_genes=100_000)


@pytest.mark.parametrize(
    "values", [None, 3, "epochs", ["epochs"], {10**5_000: 1}, {None: 1}, {("a",): 1}, {"x" * 10**6: 1}]
)
def test_what_holds_no_settings_is_refused(values):
    with pytest.raises(InputError) as e:
        with_leaves(defaults.RunConfig(), values, "here")
    assert one_line(e.value)


REFUSED = {"--seed": "4294967296", "--lr": "nan", "--weight_decay": "inf", "--hit_q": "1e400", "--val_fraction": "nan"}
USED = {"run": list(REFUSED), "predict": ["--seed", "--hit_q"], "validate": ["--seed", "--val_fraction"]}
USED["audit"] = ["--seed", "--hit_q", "--val_fraction"]


@pytest.mark.parametrize(("command", "flag"), [(command, flag) for command, flags in USED.items() for flag in flags])
def test_flags_are_refused_before_anything_is_read(fork, tmp_path, command, flag):
    done = fork(command, "--data_dir", tmp_path / "nowhere", flag, REFUSED[flag], cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: command line: {flag.lstrip('-')}: found ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
