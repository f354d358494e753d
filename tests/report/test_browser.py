"""Pages in a real browser: nothing fails, nothing leaves the machine, no name runs, every plot is drawn."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import HOSTILE

from tcell_drugseq.report.notebooks import render_html

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost",  # the browser's own calls home get nowhere
    "--virtual-time-budget=30000",
    "--enable-logging=stderr",
    "--dump-dom",
]

# Added to a copy of the page: open every card, then write down what the browser made of the page.
CHECK = """
<script>
window.addEventListener("load", async () => {
  const wait = ms => new Promise(done => setTimeout(done, ms)), dialog = document.querySelector("dialog");
  await wait(1000);
  document.querySelectorAll("details").forEach(fold => { fold.open = true; });
  let cards = [];
  for (const link of document.querySelectorAll("#compounds tbody a")) {
    location.hash = link.getAttribute("href");
    await wait(30);
    cards.push(dialog.innerText);
  }
  if (dialog) dialog.close();
  const found = {
    hacked: window.hacked || null,
    attributes: document.querySelectorAll("[onerror], [onload]").length,
    widths: [...document.images].map(i => i.naturalWidth),
    missing_alt: [...document.images].filter(i => !i.alt).length,
    shown: [...document.images].map(i => i.clientWidth),
    cards: cards,
    text: document.body.innerText,
  };
  const pre = document.createElement("pre");
  pre.id = "found";
  pre.textContent = JSON.stringify(found);
  document.body.append(pre);
});
</script>
"""


def look_at(page: Path, folder: Path) -> dict:
    """What Chromium says of a page: `console` messages, the page's `requests`, and what CHECK found."""
    copy, netlog = folder / "copy.html", folder / "net.json"
    text = page.read_text(encoding="utf-8")
    text = re.sub('<meta[^>]*"Content-Security-Policy"[^>]*>', "", text)  # a page has to be harmless without it
    copy.write_text(text.replace("</body>", CHECK + "</body>"), encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={netlog}", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S).group(1)))
    events = json.loads(netlog.read_text(encoding="utf-8"))["events"]
    asked = [e["params"] for e in events if {"url", "initiator"} <= e.get("params", {}).keys()]
    urls = {p["url"] for p in asked if p["initiator"] != "not an origin"}  # that is the browser itself
    found["requests"] = sorted(url for url in urls if not url.startswith(("file:", "data:", "blob:")))
    found["console"] = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return found


def test_the_checks_can_fail(tmp_path):
    bad = f"""<body>{HOSTILE["compounds"][1]}<img src="http://localhost:9/x.png"><script>nonsense()</script></body>"""
    (tmp_path / "bad.html").write_text(bad)
    found = look_at(tmp_path / "bad.html", tmp_path)
    assert found["hacked"] == "image" and found["attributes"] == 1
    assert found["requests"] == ["http://localhost:9/x.png"]
    assert any("nonsense" in line for line in found["console"])
    assert found["widths"] == [0, 0] and found["missing_alt"] == 2


@pytest.fixture(scope="module")
def seen_report(hostile_report, tmp_path_factory):
    return look_at(hostile_report / "report.html", tmp_path_factory.mktemp("browser"))


def test_report_runs_without_errors_and_asks_for_nothing(seen_report):
    assert seen_report["console"] == []
    assert seen_report["requests"] == []


def test_hostile_names_are_read_and_run_nothing(seen_report):
    assert seen_report["hacked"] is None
    assert seen_report["attributes"] == 0
    assert len(seen_report["cards"]) == 20
    for name in HOSTILE["compounds"]:
        assert name in seen_report["text"]
        assert any(name in card for card in seen_report["cards"])


def test_pictures_are_sharp_and_have_words(seen_report):
    assert len(seen_report["widths"]) >= 10 and seen_report["missing_alt"] == 0
    sharp = [real / shown for real, shown in zip(seen_report["widths"], seen_report["shown"], strict=True) if shown]
    assert min(sharp) >= 1.9  # twice the size at which they are shown


def test_a_name_stays_a_name_in_the_list_of_experiments(hostile_report, tmp_path):
    found = look_at(hostile_report.parent / "index.html", tmp_path)
    assert found["requests"] == [] and found["hacked"] is None and found["attributes"] == 0
    assert HOSTILE["folder"] in found["text"]


def test_an_executed_notebook_opens(tmp_path):
    notebook = Path(__file__).parents[2] / "nbs" / "04_latent/07_figures.ipynb"
    render_html(notebook, tmp_path / "figures.html", show_code=True)
    found = look_at(tmp_path / "figures.html", tmp_path)
    assert found["console"] == [] and found["requests"] == []
    outputs = [
        out.get("data", {}) for cell in json.loads(notebook.read_text())["cells"] for out in cell.get("outputs", [])
    ]
    images = sum("image/png" in data for data in outputs)
    assert len(found["widths"]) == images >= 4 and min(found["widths"]) > 0
    assert "def plot_latent" in found["text"]
