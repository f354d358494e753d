"""Parameter files that are broken, doubled or meant to take all memory are read as meant or refused in one line."""

import time

import pytest

from tcell_drugseq.base.files import read_yaml, yaml_text
from tcell_drugseq.base.settings import InputError

DOUBLING = "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
MERGING = "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], k{i}: 1}}\n" for i in range(1, 40))
REFUSED = {
    "a name twice": ("seed: 1\nlr: 0.1\nseed: 2", "found 'seed' twice in \"mine.yaml\", line 3"),
    "twice within": ("experiments:\n  a: {}\n  b: {}\n  a: {}", "found 'a' twice in \"mine.yaml\", line 4"),
    "twice within a list": ("a: [{b: 1, b: 2}]", "found 'b' twice"),
    "twice for Python": ("1: a\ntrue: b", "found True twice"),
    "billion laughs": ("a0: &a0 [x, x]\n" + DOUBLING, "found 4,398,046,511,101 values, aliases written out"),
    "billion merges": ("a0: &a0 {k: 1}\n" + MERGING, "values, aliases written out"),
    "itself": ("a: &a [*a]", "nested too deeply"),
    "merged with itself": ("a: &a\n  <<: *a", "nested too deeply"),
    "brackets": ("a: " + "[" * 5_000 + "]" * 5_000, "nested too deeply"),
    "braces": ("{a: " * 5_000, "nested too deeply"),
    "dashes": ("- " * 5_000, "nested too deeply"),
    "long": ("a: " + "x" * 300_000, "found more than 250,000 bytes"),
    "many": ("a: [" + "1," * 110_000 + "]", "found 110,003 values"),
    "5000 digits": ("seed: " + "9" * 5_000, "found no int"),
    "int of text": ("seed: !!int x", 'found no int in "mine.yaml", line 1'),
    "date of text": ("a: !!timestamp x", "found no timestamp"),
    "bool of text": ("a: !!bool x", "found no bool"),
    "map of text": ("a: !!map x", "expected a mapping node"),
    "code": ("a: !!python/object/apply:os.getpid []", "could not determine a constructor"),
    "list as a name": ("? [a]\n: 1", "unhashable key"),
    "merge of a number": ("<<: 3", "expected a mapping"),
    "unknown alias": ("a: *b", "undefined alias"),
    "two documents": ("a: 1\n---\nb: 2", "expected a single document"),
    "NUL": ("a: \0", "special characters are not allowed"),
    "half a text": ('a: "b', "end of stream"),
    "Latin-1": ("a: ä".encode("latin-1"), "can't decode"),
    "list": ("- a", "found list, expected a mapping"),
    "nothing": ("", "found NoneType, expected a mapping"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(tmp_path, name):
    text, message = REFUSED[name]
    file, begun = tmp_path / "mine.yaml", time.monotonic()
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError) as e:
        read_yaml(file)
    assert message in str(e.value) and str(e.value).startswith(f"{file}: ") and "\n" not in str(e.value)
    assert time.monotonic() - begun < 60  # and not the age of the universe


def test_what_looks_like_a_time_or_an_octal_number_is_text(tmp_path):
    text = "a: 0614\nb: 1:30\nc: 2020-01-01\nd: 2020-99-99\ne: 0x10\nf: 1e-3\ng: 10:00:00.5"
    (tmp_path / "mine.yaml").write_text(text)
    assert "".join(f"{k}: {v}\n" for k, v in read_yaml(tmp_path / "mine.yaml").items()).strip() == text


def test_numbers_words_and_merges_are_what_they_were(tmp_path):
    text = "a: 3\nb: -1\nc: 1_000\nd: 1.5e+3\ne: .5\nf: 1.\ng: .inf\nh: [yes, off, ~, '1', +2, 0]\n"
    (tmp_path / "mine.yaml").write_text(text + "i: &i {x: 1, y: 2}\nj: {<<: *i, y: 3}\n")
    found = read_yaml(tmp_path / "mine.yaml")
    assert list(map(repr, found.values())) == [
        *("3", "-1", "1000", "1500.0", "0.5", "1.0", "inf", "[True, False, None, '1', 2, 0]"),
        *("{'x': 1, 'y': 2}", "{'x': 1, 'y': 3}"),
    ]


@pytest.mark.parametrize(
    "value", ["0614", "1:30", "2020-01-01", "1e-3", "NO", "0x1F", "1_0", ".5", "~", 0.001, 614, True]
)
def test_what_is_written_is_read_again(tmp_path, value):
    (tmp_path / "mine.yaml").write_text(yaml_text({"a": value}))
    found = read_yaml(tmp_path / "mine.yaml")["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text", [REFUSED["a name twice"][0], REFUSED["billion laughs"][0], REFUSED["brackets"][0], "1: 2", "~: 1"]
)
@pytest.mark.parametrize("command", [["run", "--config"], ["report"], ["batch"]])
def test_commands_refuse_such_files(fork, tmp_path, command, text):
    (tmp_path / "mine.yaml").write_text(text)
    done = fork(*command, "mine.yaml", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: mine") and done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    "args", [["run", "--data_dir"], ["run", "--out_dir"], ["simulate"], ["report"], ["run", "--config"]]
)
def test_a_name_too_long_for_a_file_is_refused(fork, tmp_path, args):
    done = fork(*args, "x" * 300, cwd=tmp_path)
    assert done.returncode == 2 and "File name too long" in done.stderr and done.stderr.count("\n") == 1
