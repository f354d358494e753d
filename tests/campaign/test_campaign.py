"""Many screens as one on the command line: what is refused, what is left behind, what a browser makes of the page, and
whole batches on a cluster that loses a worker."""

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import HOSTILE
from shared_runs import tree

from tcell_drugseq.base.defaults import SimConfig
from tcell_drugseq.base.files import write_yaml
from tcell_drugseq.base.tables import write_csv
from tcell_drugseq.campaign.examples import made_up_screen
from tcell_drugseq.data.reading import write_bundle
from tcell_drugseq.data.simulate import simulate_screen
from tcell_drugseq.report.done import write_record

sys.path.append(str(Path(__file__).parents[1] / "report"))
from test_browser import CHROMIUM, FLAGS

BATCHES = int(os.environ.get("CAMPAIGN_BATCHES", 4))  # of the clusters; 20 take minutes


def make(reports, n=4, **more):
    """Reports of made-up screens, with their records."""
    for i in range(1, n + 1):
        write_record(
            made_up_screen(reports / f"batch{i}", seed=i, **more), {"parameters": {}, "inputs": {}, "code": "x"}
        )
    return reports


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return make(tmp_path_factory.mktemp("atlas") / "reports")


def test_one_command_makes_one_folder(fork, reports, tmp_path):
    done = fork("campaign", reports, "--out_dir", tmp_path / "joined")
    assert done.returncode == 0, done.stderr
    assert "4 screens, " in done.stdout and done.stdout.splitlines()[-1] == str(tmp_path / "joined" / "campaign.html")
    assert [p.name for p in tmp_path.iterdir()] == ["joined"]
    first = tree(tmp_path / "joined")
    again = fork("campaign", *sorted(reports.iterdir()), "--out_dir", tmp_path / "joined", "--overwrite")
    assert again.returncode == 0 and tree(tmp_path / "joined")["campaign.csv"] == first["campaign.csv"]
    assert set(tree(tmp_path / "joined")) == set(first)


def cut(folder):
    file = folder / "results" / "hits.csv"
    file.write_bytes(file.read_bytes()[:-40])


def unreadable(folder):
    (folder / "results" / "results.h5ad").write_bytes(b"no HDF5")
    write_record(folder, {"parameters": {}, "inputs": {}, "code": "x"})


def wrong_cell(folder):
    file = folder / "results" / "hits.csv"
    table = pd.read_csv(file, keep_default_na=False)
    write_csv(table.astype({"p": object}).replace({"p": {table["p"][2]: "low"}}), file)
    write_record(folder, {"parameters": {}, "inputs": {}, "code": "x"})


def twice(folder):
    file = folder / "results" / "hits.csv"
    table = pd.read_csv(file, keep_default_na=False)
    write_csv(pd.concat([table, table.tail(1)]), file)
    write_record(folder, {"parameters": {}, "inputs": {}, "code": "x"})


DAMAGES = {
    cut: "results/hits.csv: found another file than the report wrote",
    unreadable: "results/results.h5ad: found no genes (",
    wrong_cell: "results/hits.csv: data row 3 (header not counted), column p: found 'low', expected a number",
    twice: "twice, expected each compound once",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_a_damaged_screen_is_named(fork, damage, tmp_path):
    damage(make(tmp_path / "reports") / "batch2")
    done = fork("campaign", tmp_path / "reports", "--out_dir", tmp_path / "joined", "--skip")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert str(tmp_path / "reports" / "batch2") in done.stderr and DAMAGES[damage] in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["reports"]


ODD = {
    "control": {"control": "water"},
    "genes": {"genes": ["<b>", *(f"G{i}" for i in range(39))]},
    "rule": {"centre_controls": 5},
    "targets": {"targets": ["Tscore"]},
    "reference": {"references": ["of another assay"]},
    "no control": {"n_controls": 0},
}


@pytest.mark.parametrize("kind", ODD)
def test_a_screen_of_another_kind_is_named_and_not_joined(fork, kind, tmp_path):
    made_up_screen(make(tmp_path / "reports", 3) / "odd", seed=9, **ODD[kind])
    done = fork("campaign", tmp_path / "reports", "--out_dir", tmp_path / "joined")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: {tmp_path / 'reports' / 'odd'}: results/") and "expected" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["reports"]
    if kind != "no control":  # which is damage, not another kind
        done = fork("campaign", tmp_path / "reports", "--out_dir", tmp_path / "joined", "--skip")
        assert done.returncode == 0 and "warning: odd: left out: " in done.stderr, done.stderr
        assert pd.read_csv(tmp_path / "joined" / "screens.csv")["screen"].tolist() == ["batch1", "batch2", "batch3"]


WRONG = {
    "nothing there": ("none", "joined", "found no finished experiment with hits"),
    "no campaign": ("reports", "reports", "which is no campaign"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_places_are_one_line(fork, reports, case):
    given, out, said = WRONG[case]
    before = tree(reports.parent)
    done = fork("campaign", reports.parent / given, "--out_dir", reports.parent / out)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
    assert tree(reports.parent) == before


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_join_leaves_the_old_campaign(fork, reports, tmp_path, sign):
    out = tmp_path / "joined"
    assert fork("campaign", reports, "--out_dir", out).returncode == 0
    before = tree(out)
    command = [sys.executable, "-m", "tcell_drugseq", "campaign", str(reports), "--out_dir", str(out), "--overwrite"]
    process, end = subprocess.Popen(command, stderr=subprocess.DEVNULL), time.monotonic() + 60
    while not (tmp_path / ".joined.partial").exists():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.005)
    process.send_signal(sign)
    assert process.wait(60) == {signal.SIGTERM: 143, signal.SIGKILL: -9}[sign]
    assert tree(out) == before
    assert fork("campaign", reports, "--out_dir", out, "--overwrite").returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["joined"]


FIND = """
<script>
window.addEventListener("load", async () => {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms)), byId = (id) => document.getElementById(id);
  const found = { first: byId("count").textContent, words: [] };
  const field = byId("find"), body = byId("compounds").tBodies[0];
  for (const text of WORDS) {
    field.value = text;
    field.dispatchEvent(new Event("input"));
    await wait(600);
    const links = [...body.querySelectorAll("a")];
    const one = { names: links.map((link) => link.textContent), said: byId("count").textContent };
    found.words.push(one);
    if (!links.length) continue;
    location.hash = links[0].getAttribute("href");
    await wait(600);
    one.card = byId("card").innerText;
    byId("card").close();
  }
  found.hacked = window.hacked || null;
  const pre = document.createElement("pre");
  pre.id = "found";
  pre.textContent = JSON.stringify(found);
  document.body.append(pre);
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_finds_any_compound_from_disk_and_no_name_runs(fork, tmp_path):
    names = [*HOSTILE["compounds"], "__proto__", "</script>"]
    make(tmp_path / "reports", 3, references=names, n_compounds=1_500)
    done = fork("campaign", tmp_path / "reports", "--out_dir", tmp_path / "joined")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "joined"
    table = pd.read_csv(out / "campaign.csv", keep_default_na=False)
    assert len(table) == 3 * 1_500 + len(names)

    def open_page(url):
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert not [line for line in done.stderr.splitlines() if ":CONSOLE" in line], done.stderr
        return done.stdout

    place = 3_456  # in a file beside the page, with the page's own policy in force
    dom = open_page(f"{(out / 'campaign.html').as_uri()}#compound-{place}")
    card = re.search(r"<dialog[^>]*open[^>]*>(.*?)</dialog>", dom, re.S)[1]
    assert html.escape(table["compound"][place], quote=False) in card and "report.html#card-" in card
    words = ["batch2, compound 77", "nothing like it", "<script>", "hyperlink", "__proto__"]
    text = re.sub('<meta[^>]*"Content-Security-Policy"[^>]*>', "", (out / "campaign.html").read_text(encoding="utf-8"))
    check = FIND.replace("WORDS", json.dumps(words).replace("<", "\\u003c"))
    (out / "copy.html").write_text(text.replace("</body>", check + "</body>"), encoding="utf-8")
    dom = open_page((out / "copy.html").as_uri())
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)[1]))
    assert found["hacked"] is None and found["first"] == f"the first 300 of {len(table):,}"
    some, none, script, link, proto = found["words"]
    alike = [n for n in table["compound"] if all(word in n for word in words[0].split())]
    assert some["names"] == alike and len(alike) > 10 and "batch2" in some["card"]
    assert none["names"] == [] and none["said"] == "0 found"
    assert script["names"] == [names[0]] and len(link["names"]) == 1
    assert proto["names"] == ["__proto__"] and proto["card"].count("batch") == 3


RUN = """
from tcell_drugseq.base.defaults import RunConfig
from tcell_drugseq.base.settings import leaves, with_leaves
from tcell_drugseq.pipeline import run
run(with_leaves(RunConfig(), {k: v for k, v in globals().items() if k in leaves(RunConfig())}))
"""
BRIEF = {"epochs": 3, "folds": 2, "n_members": 1, "d_model": 8, "hit_draws": 5_000, "hit_bootstrap": 100}
BRIEF |= {"baselines": False, "check_importance": False, "biology": False, "num_threads": 1}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """A set of batches of plates, each with compounds of its own and the same two references."""
    root = tmp_path_factory.mktemp("clusters")
    small = {"n_plates": 2, "n_compounds": 40, "n_controls": 32, "n_genes": 200, "strength": 4}
    for i in range(1, BATCHES + 1):
        made = simulate_screen(SimConfig(seed=i, **small))
        strong = made.compounds.sort_values("strength", ascending=False)
        known = {m: strong.loc[strong["mechanism"] == m, "compound"].head(1) for m in ("activation", "suppression")}
        own = {name: f"reference {m}" for m, names in known.items() for name in names} | {"DMSO": "DMSO"}
        names = made.screen.obs["compound"].astype(str)
        made.screen.obs["compound"] = [own.get(name, f"{name} / {i}") for name in names]
        write_bundle(made.screen, root / "screens" / f"batch{i}")
    defaults = {"name": "x", "data_dir": "", "out_dir": "results", "seed": 614, **BRIEF}
    cells = [nbformat.v4.new_code_cell(text) for text in ("\n".join(f"{k} = {v!r}" for k, v in defaults.items()), RUN)]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "run.ipynb")
    own = {f"batch{i}": {"data_dir": str(root / "screens" / f"batch{i}")} for i in range(1, BATCHES + 1)}
    write_yaml({"notebook": str(root / "run.ipynb"), "experiments": own}, root / "atlas.yaml")
    return root


def workers_of_slurm(folder):
    """The processes of dask's workers in jobs that were submitted from this folder, where their keys are."""
    asked = ["pgrep", "-f", f"distributed.cli.dask_worker .*{folder}/.keys-"]
    return [int(pid) for pid in subprocess.run(asked, capture_output=True, text=True).stdout.split()]


@pytest.mark.parametrize("cluster", ["dask", "slurm"])
def test_batches_survive_a_killed_worker_and_are_joined(atlas, fork, cluster, request, tmp_path):
    distributed, where, workers = pytest.importorskip("distributed"), [], None
    if cluster == "slurm":
        conf = request.getfixturevalue("slurm_node")
        options = {"memory": "3GB", "walltime": "01:00:00", "interface": "lo", "log_directory": str(tmp_path / "logs")}
        write_yaml(options, tmp_path / "site.yaml")
        where = ["--scheduler", "slurm", "--scheduler_options", tmp_path / "site.yaml", "--jobs", "2"]
        env = os.environ | {"SLURM_CONF": conf}
    else:
        quiet = {"dashboard_address": "127.0.0.1:0", "silence_logs": 50, "host": "127.0.0.1"}
        workers = distributed.LocalCluster(n_workers=2, threads_per_worker=1, **quiet)
        where, env = ["--scheduler", workers.scheduler_address], dict(os.environ)
    command = [
        sys.executable,
        "-m",
        "tcell_drugseq",
        "batch",
        atlas / "atlas.yaml",
        "--reports_dir",
        tmp_path / "reports",
    ]
    begun = time.monotonic()
    with open(tmp_path / "said", "w") as said:
        batch = subprocess.Popen(
            [*map(str, command), *map(str, where)], env=env, cwd=tmp_path, stdout=said, stderr=said
        )
        while not list((tmp_path / "reports").glob("batch*/metrics.json")):
            assert batch.poll() is None and time.monotonic() < begun + 300, (tmp_path / "said").read_text()
            time.sleep(0.2)
        [victim, *_] = [w.pid for w in workers.workers.values()] if workers else workers_of_slurm(tmp_path)
        os.kill(victim, signal.SIGKILL)
        assert batch.wait(1_800) == 0, (tmp_path / "said").read_text()
    if workers:
        workers.close()
    print(f"{cluster}: {BATCHES} batches in {time.monotonic() - begun:.0f} s, process {victim} killed")
    done = fork("campaign", tmp_path / "reports", "--out_dir", tmp_path / "joined")
    assert done.returncode == 0, done.stderr
    screens = pd.read_csv(tmp_path / "joined" / "screens.csv", keep_default_na=False)
    assert screens["screen"].tolist() == [f"batch{i}" for i in range(1, BATCHES + 1)]
    table = pd.read_csv(tmp_path / "joined" / "campaign.csv", keep_default_na=False, na_values=[""]).set_index(
        "compound"
    )
    each = [
        pd.read_csv(p, keep_default_na=False) for p in sorted((tmp_path / "reports").glob("batch*/results/hits.csv"))
    ]
    assert len(table) == pd.concat(each)["compound"].nunique()
    claimable = int((screens["barred"] == "").sum())
    assert table.loc["reference activation", "screens"] <= claimable and table["in_screens"].max() <= BATCHES
    assert np.isfinite(table["q"].dropna()).all() and (table["q"].isna() == (table["screens"] == 0)).all()
