"""The list of experiments: what is on it, that it sorts and filters in a browser, that no name on it runs."""

import json
import logging
import os
import re
import subprocess
import time
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from conftest import HOSTILE
from test_browser import CHROMIUM, FLAGS, look_at

from tcell_drugseq.base.settings import InputError
from tcell_drugseq.report.index import list_experiments, write_index, write_thumbnail
from tcell_drugseq.report.page import LIGHTS

browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
LONG = "=cmd|' /C calc'!A0" + "x" * 282  # 300 characters
CLAIMS = ("prediction", "ranking", "hits", "gene importance")


def metrics(i: int = 0, **more) -> dict:
    """What a report leaves, with numbers of its own."""
    status = ("claim", "limited", "no claim")
    model = {target: {"R2": 0.5 - 0.1 * ((7 * i) % 11)} for target in ("Tscore", "CytoTRACE", "Pseudotime")}
    model["label"] = {"AUROC": 0.5 + ((3 * i) % 40) / 100}
    judged = [
        {"claim": c, "status": status[(i + k) % 3], "because": "wells agree (0.42)"} for k, c in enumerate(CLAIMS)
    ]
    return {
        "date": f"2026-{i % 12 + 1:02d}-{i % 28 + 1:02d}T10:{i % 60:02d}:00+00:00",
        "data": "screen",
        "wells": (96, 384, 1536)[i % 3],
        "genes": 978 + i,
        "compounds": 60,
        "validation": {"ensemble": model, "ridge": model},
        "top_compounds": ["NAD+", "glycine", "itaconate"],
        "verdict": judged,
        "hits": ["NAD+"] * (i % 12),
    } | more


def add(reports: Path, name: str, found: dict | None = None, picture: bool = True) -> Path:
    """A folder as a finished report leaves it."""
    folder = reports / name
    (folder / "results").mkdir(parents=True)
    (folder / "report.html").write_text("report")
    (folder / "metrics.json").write_text(json.dumps(metrics() if found is None else found))
    if picture:
        rows = {"compound": ["a", "b", "NA"], "distance": [1.0, 3.0, 2.0], "hit": [False, True, False]}
        pd.DataFrame(rows | {"direction": "activating"}).to_csv(folder / "results" / "hits.csv", index=False)
        write_thumbnail(folder)
    return folder


def fail(reports: Path, name: str, **error) -> Path:
    """A folder as a failed report leaves it."""
    folder = reports / f"{name}.failed"
    folder.mkdir(parents=True)
    if error:
        (folder / "error.json").write_text(json.dumps({"experiment": name, "cell": 4} | error))
    return folder


def act(page: Path, script: str, fragment: str = "", flags: list[str] = FLAGS) -> dict:
    """What a script (the body of a function) finds on a copy of the page beside it, without its policy."""
    text = re.sub('<meta[^>]*"Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    end = "const pre = document.createElement('pre'); pre.id = 'found'; pre.textContent = JSON.stringify(found);"
    run = f"const found = (() => {{ {script} }})(); {end} document.body.append(pre);"
    copy = page.with_name("copy.html")
    added = f"<script>window.addEventListener('load', () => {{ {run} }});</script></body>"
    copy.write_text(text.replace("</body>", added), encoding="utf-8")
    found = re.search(r'<pre id="found">(.*?)</pre>', dom(copy, fragment, flags), re.S)
    return json.loads(unescape(found.group(1)))


def dom(page: Path, fragment: str = "", flags: list[str] = FLAGS) -> str:
    """The page as the browser has made it, policy, script and all."""
    profile = f"--user-data-dir={page.parent / '.profile'}"
    command = [CHROMIUM, *flags, profile, page.as_uri() + fragment]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_newest_comes_first_and_what_is_broken_is_passed_over(tmp_path, caplog):
    texts = {"a": '{"date": "2024-01-01"}', "b": '{"date": "2024-02-01"}', "c": "{", "d": "[1]", "e": "[" * 100_000}
    texts |= {"f": '{"date": "2024-03-01", "verdict": [{"claim": "hits", "status": "perhaps"}]}'}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        page = write_index(tmp_path).read_text()
    assert re.findall(r'href="(\w+)/report.html"', page) == ["b", "a"]
    warned = [Path(record.args[0]).parent.name for record in caplog.records]
    assert warned == ["c", "d", "e", "f"]


def test_dates_are_compared_as_times(tmp_path):
    add(tmp_path, "east", metrics(date="2024-01-01T09:30:00+09:00"))  # half an hour after midnight in Greenwich
    add(tmp_path, "west", metrics(date="2024-01-01T01:00:00+00:00"))
    add(tmp_path, "none", metrics(date="soon"))
    assert [row["experiment"] for row in list_experiments(tmp_path)] == ["west", "east", "none"]


def test_an_empty_folder_has_a_page(tmp_path):
    page = write_index(tmp_path).read_text()
    assert "No finished report yet." in page and "<script>" not in page


def test_failed_ones_are_listed_with_their_reason(tmp_path):
    fail(tmp_path, "told", date="2024-01-02T00:00:00+00:00", error="KeyError: 'IL2'\n  at line 3")
    said = fail(tmp_path, "said")
    (said / "run.log").write_bytes(b"x" * 200_000 + b"\nepoch 1\r\n\x1b[31mKilled: no memory\x1b[0m\n\n")
    os.utime(said / "run.log", (0, 0))
    broken = fail(tmp_path, "broken")
    (broken / "error.json").write_text("{")
    (broken / "report.html").write_text("as far as it got")
    (tmp_path / ".running.partial").mkdir()
    (tmp_path / ".running.partial" / "metrics.json").write_text('{"date": "2024-01-01"}')
    rows = {row["experiment"]: row for row in list_experiments(tmp_path)}
    assert rows.keys() == {"told", "said", "broken"} and {row["status"] for row in rows.values()} == {"failed"}
    assert (rows["told"]["error"], rows["told"]["date"][:10]) == ("KeyError: 'IL2'", "2024-01-02")
    assert (rows["said"]["error"], rows["said"]["when"]) == ("Killed: no memory", 0)
    assert rows["broken"]["error"] == "no reason is known"
    assert (rows["told"]["link"], rows["broken"]["link"]) == (None, "broken.failed/report.html")
    page = write_index(tmp_path).read_text()
    assert re.findall(r'href="([^"]*)"', page) == ["data:,", "broken.failed/report.html"]


def test_an_old_report_does_not_pass_for_the_attempt_that_failed_since(tmp_path):
    for name in ("since", "before"):
        add(tmp_path, name, metrics(date="2024-06-01T00:00:00+00:00"))
    fail(tmp_path, "since", date="2024-06-02T00:00:00+00:00", error="no")
    fail(tmp_path, "before", date="2024-05-31T00:00:00+00:00", error="no")
    rows = [(r["experiment"], r["status"], r.get("later_failed")) for r in list_experiments(tmp_path)]
    assert sorted(rows, key=str) == [
        ("before", "earlier attempt failed", None),
        ("before", "finished", False),
        ("since", "finished", True),
        ("since", "last attempt failed", None),
    ]
    assert write_index(tmp_path).read_text().count("but the last attempt failed") == 1


def test_settings_are_shown_where_there_are_any(tmp_path):
    add(tmp_path, "one", metrics(set=None, changed=None, run=1))
    page = write_index(tmp_path).read_text()
    assert "settings" not in page and "run 1" not in page and "None" not in page
    add(
        tmp_path,
        "two",
        metrics(run=3, set="depth", changed={"lr": 0.001, "scores": ["Tscore", "CytoTRACE"], "z": False}),
    )
    page = write_index(tmp_path).read_text()
    assert "finished<small>run 3</small>" in page
    assert "<small>depth</small>lr 0.001, scores Tscore, CytoTRACE, z False</div>" in page


def test_rare_scores_share_a_column(tmp_path):
    often = {"ensemble": {f"s{k}": {"R2": 0.5} for k in range(4)}}
    rare = {"ensemble": {"s0": {"R2": 0.1}, "odd": {"R2": 0.25}}, "ridge": {"odd": {"R2": None}}}
    add(tmp_path, "a", metrics(validation=often))
    add(tmp_path, "b", metrics(validation=often))
    add(tmp_path, "c", metrics(validation=rare))
    page = write_index(tmp_path).read_text()
    assert re.findall(r'data-name="R² (\w+)"', page) == ["s0", "s1", "s2", "s3"]
    assert "odd 0.25(–)" in re.sub(r"\s", " ", page).replace("0.25 (", "0.25(")


def test_only_experiments_with_a_ranking_have_a_picture(tmp_path):
    add(tmp_path, "with")
    without = add(tmp_path, "without", picture=False)
    assert write_thumbnail(without) is None
    page = write_index(tmp_path).read_text()
    assert re.findall(r'<img src="([^"]*)"', page) == ["with/thumbnail.png"] and 'loading="lazy"' in page
    assert (tmp_path / "with" / "thumbnail.png").stat().st_size < 6_000
    (without / "results" / "hits.csv").write_text("compound,distance\na,far\n")
    with pytest.raises(InputError, match=r"hits.csv: header: found compound, distance, expected numbers"):
        write_thumbnail(without)


@browser
def test_the_policy_lets_the_own_script_run_and_no_other(tmp_path):
    add(tmp_path, "one")
    page = write_index(tmp_path)
    evil = "<script>document.title = 'hacked'</script><img src=x onerror=\"document.title = 'hacked'\">"
    text = page.read_text().replace("<h1>", evil + "<h1>")
    page.write_text(text)
    seen = dom(page)
    assert "<title>Experiments</title>" in seen and "1 of 1 rows" in seen
    page.write_text(text.replace("'sha256-", "'unsafe-inline' 'not-"))
    assert "<title>hacked</title>" in dom(page)  # without the hash it would have run


@browser
def test_every_column_sorts_both_ways(tmp_path):
    for i, name in enumerate(["p2", "p10", "P1", "p3"]):
        more = {"set": "s", "changed": {"seed": 10 - i}, "data": f"d{i * 5}"} if i else {}
        add(tmp_path, name, metrics(i, **more))
    fail(tmp_path, "q", date="2026-12-01T00:00:00+00:00", error="no")
    script = """
      const name = row => row.cells[0].textContent.trim();
      const order = () => [...document.querySelectorAll("tbody tr")].map(name);
      const found = {start: order()};
      for (const head of document.querySelectorAll("thead th")) {
        const button = head.querySelector("button"), column = head.cellIndex;
        button.focus();
        const steps = [document.activeElement === button];
        for (let i = 0; i < 2; i++) {
          button.click();
          steps.push([head.getAttribute("aria-sort"), order(), document.querySelectorAll("[aria-sort]").length,
                      getComputedStyle(head.querySelector("small"), "::after").content]);
        }
        found[head.dataset.name] = steps;
      }
      return found;"""
    found = act(write_index(tmp_path), script)
    assert found.pop("start") == ["q", "p3", "P1", "p10", "p2"]
    assert list(found)[:7] == ["experiment", "date", "status", *(f"claim {c}" for c in CLAIMS)]
    assert list(found)[-2:] == ["data", "size wells"] and len(found) == 16
    arrows = {"ascending": '" ▲"', "descending": '" ▼"'}
    for focused, *steps in found.values():
        assert focused  # a button: Tab leads to it, Enter and Space press it
        assert {direction for direction, *_ in steps} == set(arrows)
        assert all(marked == 1 and arrow == arrows[direction] for direction, _, marked, arrow in steps)
    assert [order for _, order, *_ in found["experiment"][1:]] == [
        ["P1", "p2", "p3", "p10", "q"],
        ["q", "p10", "p3", "p2", "P1"],
    ]
    assert found["date"][1][0] == "descending" and found["date"][1][1][0] == "q"  # newest first
    assert [
        order for _, order, *_ in found["size wells"][1:]
    ] == [  # 1536, 384, 96, 96: numbers, not texts; nothing comes last
        ["P1", "p10", "p3", "p2", "q"],
        ["p3", "p2", "p10", "P1", "q"],
    ]
    r2 = found["R² Tscore"][1:]  # 0.5, 0.2, -0.2, -0.5
    assert [order for _, order, *_ in r2] == [["p2", "P1", "p10", "p3", "q"], ["p3", "p10", "P1", "p2", "q"]]
    assert found["claim prediction"][1][1] == ["p3", "p2", "p10", "P1", "q"]  # claim, claim, limited, no claim
    assert found["settings"][1][1] == ["p3", "P1", "p10", "q", "p2"]  # seeds 7, 8, 9; without settings last


@browser
def test_filters_by_text_status_and_verdict(tmp_path):
    for i in range(6):
        add(tmp_path, f"plate{i}", metrics(i, data=f"donor{i % 2}"))
    fail(tmp_path, "plate1", date="2026-12-01T00:00:00+00:00", error="MemoryError")
    fail(tmp_path, "plate9", date="2026-12-01T00:00:00+00:00", error="KeyError")
    script = """
      const field = name => document.querySelector(`[name="${name}"]`);
      const set = (name, value) => { field(name).value = value; field(name).dispatchEvent(new Event("input")); };
      const seen = () => [...document.querySelectorAll("tbody tr")].filter(r => r.checkVisibility())
        .map(r => r.cells[0].textContent.trim() + (r.cells[2].textContent.startsWith("finished") ? "" : "!")).sort();
      const found = {};
      const look = (name) => { found[name] = [seen(), document.getElementById("count").textContent, location.hash]; };
      set("text", "PLATE donor1"); look("text");
      set("text", "keyerr"); look("error");
      set("text", ""); set("status", "failed"); look("failed");
      set("status", "last attempt failed"); look("last");
      set("status", "finished"); set("claim prediction", "no claim"); look("both");
      set("claim prediction", "none"); set("status", ""); look("none");
      document.querySelector(".filters button").click(); look("clear");
      return found;"""
    page = write_index(tmp_path)
    found = act(page, script)
    assert found["text"] == [["plate1", "plate3", "plate5"], "3 of 8 rows", "#text=PLATE+donor1"]
    assert found["error"][0] == ["plate9!"]
    assert found["failed"][0] == ["plate1!", "plate9!"]
    assert found["last"][0] == ["plate1", "plate1!"]  # the old report as well: it isn't that of the last attempt
    assert found["both"][0] == ["plate2", "plate5"]
    assert found["none"][0] == ["plate1!", "plate9!"]
    assert found["clear"][1:] == ["8 of 8 rows", ""]
    again = act(page, script.replace("set(", "void (").replace(".click()", ""), "#text=donor1&sort=genes&status=odd")
    assert again["text"][:2] == [["plate1", "plate3", "plate5"], "3 of 8 rows"]  # what a bookmark keeps
    first = act(page, "return document.querySelector('tbody th').textContent", "#sort=AUROC+label")
    assert first.strip() == "plate0"


@browser
def test_no_name_on_it_runs(tmp_path):
    evil = [*HOSTILE["compounds"], HOSTILE["gene"], HOSTILE["score"], LONG, '" onmouseover="window.hacked=1', "\ud800"]
    named = "<img src=x onerror=window.hacked=1>"
    for i, text in enumerate([*evil, "</script><script>window.hacked = 'end'</script>"]):
        found = metrics(i, data=text, top_compounds=[text], set=text, changed={text: text})
        found["verdict"] = [{"claim": text, "status": "claim", "because": text}]
        found["validation"] = {"ensemble": {text: {"R2": 0.5}}}
        add(tmp_path, f"{i}", found)
        fail(tmp_path, f"f{i}", date=text, error=text)
    add(tmp_path, named)
    add(tmp_path, "=1+1';--\"")
    add(tmp_path, "javascript:window.hacked=1")
    page = write_index(tmp_path)
    fragment = "#sort=%22%3E%3Cimg%20src%3Dx%20onerror%3Dwindow.hacked%3D1%3E&text=%3Cimg%20src%3Dx"
    script = """
      document.querySelectorAll("thead button").forEach(b => b.click());
      const links = [...document.querySelectorAll("tbody a")];
      return {hacked: window.hacked ?? null, text: document.querySelector("tbody").textContent,
              handlers: document.querySelectorAll("[onerror], [onload], [onmouseover]").length,
              scripts: document.scripts.length, schemes: [...new Set(links.map(a => a.protocol))],
              broken: [...document.images].filter(i => i.complete && i.naturalWidth !== 240).length,
              width: Math.max(...[...document.querySelectorAll("td, tbody th")].map(c => c.offsetWidth)),
              height: Math.max(...[...document.querySelectorAll("tbody tr")].map(c => c.offsetHeight))};"""
    found = act(page, script, fragment)
    assert found["hacked"] is None and found["handlers"] == 0 and found["broken"] == 0
    assert found["scripts"] == 2 and found["schemes"] == ["file:"]  # the page's own and this test's
    for text in [*evil[:-1], named, "=1+1';--\"", "javascript:window.hacked=1"]:
        assert text in found["text"]
    assert found["width"] < 420 and found["height"] < 130  # 300 characters don't burst the table
    found = look_at(page, tmp_path)
    assert found["hacked"] is None and found["requests"] == [] and found["console"] == []


@browser
def test_the_test_of_names_can_fail(tmp_path):
    add(tmp_path, "one", metrics(data=HOSTILE["compounds"][1]))
    page = write_index(tmp_path)
    page.write_text(unescape(page.read_text()))
    assert act(page, "return {hacked: window.hacked ?? null}")["hacked"] == "image"


@browser
def test_two_hundred_experiments_are_no_burden(tmp_path, capsys):
    for i in range(200):
        add(tmp_path, f"plate{i:03d}", metrics(i, set="depth", changed={"seed": i}))
    start = time.perf_counter()
    page = write_index(tmp_path)
    written = time.perf_counter() - start
    script = "return {ms: performance.now(), rows: document.querySelectorAll('tbody tr').length}"
    clock = [flag for flag in FLAGS if not flag.startswith("--virtual-time")]  # a real one
    found = act(page, script, flags=clock)
    size, pictures = page.stat().st_size, sum(p.stat().st_size for p in tmp_path.glob("*/thumbnail.png"))
    with capsys.disabled():
        print(f"\n200 experiments: index {size / 1e3:.0f} kB, pictures {pictures / 1e3:.0f} kB, ", end="")
        print(f"written in {written:.2f} s, loaded in {found['ms']:.0f} ms")
    assert found["rows"] == 200 and size < 600_000 and pictures < 200 * 6_000
    loads = re.findall(r"""\b(?:src|href)\s*=\s*["']?([^"'>]+)""", page.read_text())
    assert {re.sub(r"^plate\d{3}", "", target) for target in loads} == {"/report.html", "/thumbnail.png", "data:,"}


def test_every_light_has_a_style(tmp_path):
    add(tmp_path, "one")
    page = write_index(tmp_path).read_text()
    for status in LIGHTS:
        name = status.replace(" ", "-")
        assert f'.{name}::before {{ content: "●";' in page
        assert re.search(rf"\.{name}::before(, \.[a-z-]+::before)* {{ color: var\(--[a-z]+\)", page)
