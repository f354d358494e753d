"""The report draws every picture that is registered, and only such."""

import ast
import json
import re
from pathlib import Path

import pytest

from tcell_drugseq.base.style import PICTURES, SECTIONS
from tcell_drugseq.report.page import FIGURES, pictures_of

ROOT = Path(__file__).parents[2]
FOUND = [picture for section in SECTIONS for picture in pictures_of(section)]


def test_every_section_is_drawn_once_and_in_order():
    cells = json.loads((ROOT / "nbs/analysis/10_experiment.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert tuple(re.findall(r'show_pictures\(results, "(.+?)"\)', code)) == SECTIONS
    assert {picture.section for picture in FOUND} == set(SECTIONS)


@pytest.mark.parametrize("picture", FOUND, ids=lambda picture: picture.alt)
def test_a_picture_has_words_and_a_chapter(picture):
    assert len(picture.alt.split()) > 3 and picture.section in SECTIONS
    assert picture.plot.__module__ in {f"tcell_drugseq.{chapter}.figures" for chapter in FIGURES}


def test_no_picture_is_forgotten():
    """One in a chapter that is not listed would never be drawn, one with the alt text of another would replace it."""
    marked = 0
    for path in (ROOT / "tcell_drugseq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for line in getattr(node, "decorator_list", ()):
                marked += isinstance(line, ast.Call) and getattr(line.func, "id", "") == "picture"
    assert marked == len(FOUND) == len(PICTURES)
