"""The documentation site: the notebooks of `nbs` as they are committed, with the pages of this folder around them."""

from importlib.metadata import version as version_of
from pathlib import Path

project, author = "tcell_drugseq", "The tcell_drugseq authors"
version = release = version_of("tcell_drugseq")
extensions = ["myst_nb"]
root_doc = "docs/index"
exclude_patterns = ["analysis", "**/.ipynb_checkpoints"]
nb_execution_mode = "off"  # outputs are those that were committed, and tested
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "tcell_drugseq"
html_copy_source = False
gallery = Path(__file__).parents[2] / "build" / "gallery_pages"  # `make docs` makes the reports first
html_extra_path = [str(gallery)] if gallery.is_dir() else []
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure"]  # Pygments knows no mermaid


def _write_dictionary(folder: Path) -> None:
    """Every file of a run and every column, from the registry that the exports use."""
    from tcell_drugseq.base import data_dictionary

    table = data_dictionary().astype(str)
    lines = [
        "# Data dictionary",
        "",
        "Every file of a run and every column of its tables, from the registry that writes them.",
        "",
    ]
    for file, rows in table.groupby("file", sort=False):
        cells = rows.drop(columns="file").map(
            lambda text: " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")
        )
        lines += [f"## `{file}`", "", "| " + " | ".join(cells) + " |", "|" + "---|" * cells.shape[1]]
        lines += ["| " + " | ".join(row) + " |" for row in cells.to_numpy()] + [""]
    (folder / "data_dictionary.md").write_text("\n".join(lines), encoding="utf-8")


def setup(app):
    """Called by Sphinx."""
    _write_dictionary(Path(__file__).parent)
