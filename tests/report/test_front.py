"""The first screen and the cards: what stands where, what a name may not do, what a reader of any kind can use."""

import html
import json
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from conftest import HOSTILE
from sklearn.decomposition import PCA
from test_browser import CHROMIUM, FLAGS, look_at

from tcell_drugseq.base.defaults import SimConfig
from tcell_drugseq.biology.differential import differential_expression
from tcell_drugseq.biology.enrichment import enrich_hits
from tcell_drugseq.biology.kinds import compound_kinds
from tcell_drugseq.counts.gene_sets import known_gene_sets
from tcell_drugseq.data.simulate import simulate_screen
from tcell_drugseq.evidence.verdict import Reason, decide_claims
from tcell_drugseq.latent.distances import add_distances
from tcell_drugseq.latent.hits import compound_hits
from tcell_drugseq.report.front import front_values
from tcell_drugseq.report.notebooks import render_html
from tcell_drugseq.report.page import fill_template

browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def results():
    """Two plates on which many compounds act, some of them with names that try to run a script."""
    cfg = SimConfig(n_batches=1, n_plates=2, n_compounds=60, n_controls=24, n_genes=1200, strength=3)
    sim = simulate_screen(cfg)
    results, truth = sim.screen.copy(), sim.compounds.set_index("compound")["strength"].abs().sort_values()
    far = list(truth.index[::-1])
    named = dict(zip(far, HOSTILE["compounds"], strict=False))
    results.obs["compound"] = results.obs["compound"].astype(str).replace(named)
    results.obsm["X_latent"] = PCA(8, svd_solver="covariance_eigh").fit_transform(results.X.astype(float))
    add_distances(results)
    score = results.obsm["scores"]["Tscore"].to_numpy()
    results.uns["hits"] = hits = compound_hits(results.obsm["X_latent"], results.obs, score)
    results.uns["compound_enrichment"] = enrich_hits(results, known_gene_sets())
    results.uns["compound_kinds"] = compound_kinds(results.uns["compound_enrichment"], hits)
    results.uns["differential"] = differential_expression(results, hits["compound"][hits["hit"]].tolist())
    return results


def page_of(results, folder: Path, status: str) -> Path:
    """The page of a verdict: its first screen, a section that is folded and one that is empty."""
    reason = ("", "") if status == "claim" else ("DMSO wells stand in blocks", "spread DMSO wells over the plates")
    claims = [Reason(c, status, "why", *reason) for c in ("prediction", "ranking", "hits", "gene importance")]
    results.uns["verdict"] = decide_claims(claims)
    new, front = nbformat.v4, fill_template("front.html.j2", **front_values(results, "screen <i>"))
    shown = [[new.new_output("display_data", {"text/html": text})] for text in (front, "<p>R2 of the scores</p>")]
    cells = [new.new_markdown_cell("# A question?"), new.new_code_cell("front", outputs=shown[0])]
    fold = {"tags": ["fold"]}
    cells += [new.new_markdown_cell("## Statistics", metadata=fold), new.new_code_cell("x", outputs=shown[1])]
    cells += [new.new_markdown_cell("## Doses", metadata=fold), new.new_code_cell("if False: x")]
    nbformat.write(new.new_notebook(cells=cells), folder / "page.ipynb")
    render_html(folder / "page.ipynb", folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    return page_of(results, tmp_path_factory.mktemp("claim"), "claim")


@pytest.fixture(scope="module")
def barred(results, tmp_path_factory):
    return page_of(results, tmp_path_factory.mktemp("barred"), "no claim")


def values_of(page: Path) -> dict:
    (text,) = re.findall(r'<script [^>]*id="values"[^>]*>(.*?)</script>', page.read_text(), re.S)
    return json.loads(text)


def test_hits_stand_before_any_statistics(page):
    text = page.read_text()
    places = [
        text.index(part) for part in ("<h1", 'class="claimed', 'class="hits', '<tr class="hit', "R2 of the scores")
    ]
    assert places == sorted(places)
    assert text.count("<h1") == 1 and text.index('<details class="fold"') > places[3]


def test_a_section_without_content_is_absent(page):
    text = page.read_text()
    assert 'id="Statistics"' in text and "#Statistics" in text
    assert "Doses" not in re.sub("<style>.*?</style>|<script.*?</script>", "", text, flags=re.S)


def test_every_compound_has_a_card_and_a_line(results, page):
    cards = values_of(page)["cards"]
    names = set(results.obs["compound"][~results.obs["is_control"]].astype(str))
    assert {card["name"] for card in cards} == names and len(cards) == len(names)
    hits = set(results.uns["hits"]["compound"][results.uns["hits"]["hit"]])
    assert {card["name"] for card in cards if card["hit"]} == hits == {c["name"] for c in cards if "volcano" in c}
    links = re.findall(r'<th scope="row"><a href="#card-(\d+)">', page.read_text())
    assert sorted(map(int, links)) == sorted([*range(len(cards)), *(i for i, c in enumerate(cards) if c["hit"])])


def test_where_hits_are_barred_none_is_coloured_and_the_reason_stands_above(page, barred):
    text = barred.read_text()
    assert "No hit may be claimed: DMSO wells stand in blocks" in text
    assert text.index("No hit may be claimed") < text.index('class="hits no-claim"')
    assert '<rect class="bar activating"' in page.read_text() and '<rect class="bar activating"' not in text
    assert text.count("spread DMSO wells over the plates") == 1  # one cause, once


def test_nothing_is_loaded_and_the_page_is_small(page):
    text = page.read_text()
    assert re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", text) == []
    assert len(text.encode()) < 1_000_000


# Opens every card, sorts and filters the table, and writes down what came of it.
ACT = """
<script>
window.addEventListener("load", async () => {
  const wait = ms => new Promise(done => setTimeout(done, ms)), dialog = document.querySelector("dialog");
  const rows = () => [...document.querySelectorAll("#compounds tbody tr")].filter(row => !row.hidden);
  const first = () => rows()[0].cells[1].textContent, cards = [];
  await wait(300);
  const links = [...document.querySelectorAll("#compounds tbody a")];
  for (const link of links) {
    location.hash = link.getAttribute("href");
    await wait(20);
    cards.push([link.textContent, dialog.open, dialog.innerText, dialog.querySelectorAll("svg").length]);
  }
  [...dialog.querySelectorAll("button")].at(-1).click();
  await wait(50);
  const closed = !dialog.open, heads = [...document.querySelectorAll("#compounds thead th")];
  const order = [first()];
  heads[3].firstElementChild.click(); order.push(first(), heads[3].getAttribute("aria-sort"));
  heads[3].firstElementChild.click(); order.push(first(), heads[3].getAttribute("aria-sort"));
  const find = document.getElementById("find");
  find.value = "hyperlink"; find.dispatchEvent(new Event("input"));
  const attributes = document.querySelectorAll("[onerror], [onmouseover]").length;
  const left = rows().map(row => row.cells[1].textContent);
  const found = {cards, closed, order, left, attributes, hacked: window.hacked || null};
  const pre = document.createElement("pre");
  pre.id = "acted";
  pre.textContent = JSON.stringify(found);
  document.body.append(pre);
});
</script>
"""


def run_in(page: Path, folder: Path, script: str, name: str, *flags: str, fragment: str = "") -> dict:
    """What a script writes down into the element `name` of a copy of the page without its policy."""
    text = re.sub('<meta[^>]*"Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    copy = folder / f"{name}.html"
    copy.write_text(text.replace("</body>", script + "</body>"), encoding="utf-8")
    command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", copy.as_uri() + fragment]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
    return json.loads(html.unescape(re.search(rf'<pre id="{name}">(.*?)</pre>', done.stdout, re.S)[1]))


@browser
def test_cards_open_for_every_name_and_run_nothing(results, page, tmp_path):
    found = run_in(page, tmp_path, ACT, "acted")
    names = set(results.obs["compound"][~results.obs["is_control"]].astype(str))
    assert {name for name, *_ in found["cards"]} == names
    for name, is_open, text, pictures in found["cards"]:
        assert is_open and " ".join(name.split()) in " ".join(text.split()) and pictures >= 3
    assert found["closed"] and found["hacked"] is None and found["attributes"] == 0
    ranked = results.uns["hits"]["compound"].tolist()
    assert found["order"] == [ranked[0], ranked[-1], "ascending", ranked[0], "descending"]
    assert found["left"] == [HOSTILE["compounds"][2]]


@browser
def test_the_page_asks_for_nothing_and_is_silent(page, tmp_path):
    found = look_at(page, tmp_path)
    assert found["requests"] == [] and found["console"] == [] and found["hacked"] is None


@browser
def test_a_phone_shows_it_without_scrolling_sideways(page, tmp_path):
    script = """<script>window.addEventListener("load", () => setTimeout(() => {
      const pre = document.createElement("pre"), inner = document.querySelector("iframe").contentWindow;
      const wide = inner.document.documentElement.scrollWidth;
      pre.id = "wide"; pre.textContent = JSON.stringify({wide, at: inner.innerWidth});
      document.body.append(pre); }, 1000));</script>"""
    (tmp_path / "report.html").write_text(page.read_text())
    frame = tmp_path / "frame.html"
    frame.write_text('<body><iframe src="report.html" style="width:390px;height:800px;border:0"></iframe></body>')
    found = run_in(frame, tmp_path, script, "wide", "--allow-file-access-from-files")
    assert found["at"] == 390 and found["wide"] <= 390


@browser
@pytest.mark.parametrize("flags", [(), ("--force-dark-mode",)], ids=["light", "dark"])
@pytest.mark.parametrize("fragment", ["", "#card-0"], ids=["page", "card"])
def test_axe_finds_nothing(page, tmp_path, flags, fragment):
    axe_core = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    axe = (Path(axe_core.__file__).parent / "axe.min.js").read_text(encoding="utf-8").replace("</script", "<\\/script")
    script = (
        f"<script>{axe}</script>"
        + """<script>window.addEventListener("load", async () => {
      document.querySelectorAll("details").forEach(fold => { fold.open = true; });
      await new Promise(done => setTimeout(done, 500));
      const said = await axe.run(), pre = document.createElement("pre");
      pre.id = "axe";
      const found = said.violations.map(one => [one.id, one.nodes.map(node => node.html.slice(0, 200))]);
      const dark = matchMedia("(prefers-color-scheme: dark)").matches;
      pre.textContent = JSON.stringify({dark, passed: said.passes.length, found});
      document.body.append(pre); });</script>"""
    )
    found = run_in(page, tmp_path, script, "axe", *flags, fragment=fragment)
    assert found["dark"] == bool(flags) and found["passed"] > 20
    assert found["found"] == []


@browser
def test_paper_holds_it_on_few_pages_and_a_card_alone(page, tmp_path):
    pages = {}
    for fragment in ("", "#card-0"):
        pdf = tmp_path / f"page{fragment[1:]}.pdf"
        command = [CHROMIUM, *[f for f in FLAGS if f != "--dump-dom"], f"--user-data-dir={tmp_path / 'profile'}"]
        subprocess.run([*command, f"--print-to-pdf={pdf}", page.as_uri() + fragment], timeout=120, check=True)
        pages[fragment] = len(re.findall(rb"/Type\s*/Page[^s]", pdf.read_bytes()))
    assert 1 <= pages[""] <= 4 and 1 <= pages["#card-0"] <= 2
