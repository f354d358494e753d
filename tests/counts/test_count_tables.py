"""Tables of counts: genes are told from wells by their names, and every bad one is one InputError that says where."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from count_files import GENES, RAW, SYMBOLS, WELLS, content, cut, small

from tcell_drugseq.base.settings import InputError
from tcell_drugseq.counts.matrices import check_symbols, read_counts


def test_names_not_shape_tell_genes_from_wells(tmp_path: Path):
    genes = ["C3", "F8", "C5", "F3", "F5", "F7", "F12", "IL2", "novel1", "novel2", "novel3", "novel4"]
    square = pd.DataFrame(np.arange(144).reshape(12, 12), index=WELLS, columns=genes)
    for name, table in (("a.csv", square), ("b.csv", square.T)):
        table.to_csv(tmp_path / name)
        assert (read_counts(tmp_path / name).to_df() == square).all(axis=None)
    unnamed = small().set_axis([f"s{i}" for i in range(12)]).set_axis([f"g{i}" for i in range(5)], axis=1)
    unnamed.to_csv(tmp_path / "c.csv")
    with pytest.raises(InputError, match="`orientation`: wells_by_genes or genes_by_wells"):
        read_counts(tmp_path / "c.csv")
    unnamed.set_axis([*GENES[:1], *unnamed.columns[1:]], axis=1).to_csv(tmp_path / "d.csv")
    assert read_counts(tmp_path / "d.csv", "wells_by_genes").shape == (12, 5)


def table(
    change: Callable[[pd.DataFrame], pd.DataFrame], name: str = "counts.csv", **options
) -> Callable[[Path], Path]:
    """A table of genes x wells after a change of wells x genes."""

    def make(folder: Path) -> Path:
        change(small().astype(object)).T.to_csv(folder / name, **options)
        return folder / name

    return make


def cell(value: object, well: str = "P1_A02", gene: str = "IFNG") -> Callable[[Path], Path]:
    return table(lambda t: t.where((t.index.to_numpy()[:, None] != well) | (t.columns != gene), value))


def cut_table(folder: Path) -> Path:
    path = table(lambda t: t, "counts.csv.gz")(folder)
    cut(path)
    return path


BAD = {
    "normalised": (cell(3.17), ["counts.csv: well 'P1_A02', gene 'IFNG': found 3.17 (1 of", "look normalised", RAW]),
    "negative": (cell(-3), ["counts.csv: well 'P1_A02', gene 'IFNG': found -3 (1 of", "are negative", RAW]),
    "empty cell": (cell(""), ["counts.csv: row 'IFNG', column 'P1_A02': found ''", "expected a count"]),
    "NaN": (cell("nan"), ["counts.csv: row 'IFNG', column 'P1_A02': found 'nan'", "expected a count"]),
    "infinite": (cell("inf"), ["counts.csv: row 'IFNG', column 'P1_A02': found 'inf'", "expected a count"]),
    "text": (cell("1,234"), ["counts.csv: row 'IFNG', column 'P1_A02': found '1,234'", "expected a count"]),
    "true": (table(lambda t: t.assign(IFNG=True)), ["counts.csv: row 'IFNG', column 'P1_A01': found 'True' (12 cells"]),
    "all zero": (table(lambda t: t * 0), ["counts.csv: found no count other than zero", RAW]),
    "twin genes": (
        table(lambda t: t.set_axis(["IL2", "IL2", *GENES[2:]], axis=1)),
        ["counts.csv: gene names: found 'IL2' more than once, expected each gene once"],
    ),
    "twin wells": (
        table(lambda t: t.set_axis([*WELLS[:11], WELLS[0]])),
        ["counts.csv: well names: found 'P1_A01' more than once, expected each well once"],
    ),
    "nameless gene": (
        table(lambda t: t.set_axis(["IL2", "", *GENES[2:]], axis=1)),
        ["counts.csv: gene 2 of 5: found an empty name, expected the name of a gene"],
    ),
    "cut gzip": (cut_table, ["counts.csv.gz: found a gzip archive that is cut short", "expected a whole one"]),
    "damaged gzip": (
        content("counts.csv.gz", gzip.compress(small().to_csv().encode() * 50)[:40] + b"\0" * 400),
        ["counts.csv.gz: found a gzip archive that is cut short or damaged", "expected a whole one"],
    ),
    "false gzip": (
        content("counts.csv.gz", b"\x1f\x8b\x01" + bytes(20)),
        ["counts.csv.gz: found a gzip archive", "expected a whole"],
    ),
    "empty": (content("counts.csv", b""), ["counts.csv: found an empty file, expected a header and rows"]),
    "empty gzip": (content("counts.tsv.gz", gzip.compress(b"")), ["counts.tsv.gz: found an empty file", "expected"]),
    "header only": (
        content("counts.csv", b"gene,A01,A02\n"),
        ["counts.csv: found a header and no rows", "expected one"],
    ),
    "one column": (
        content("counts.csv", b"gene\nIL2\n"),
        ["counts.csv: header: found one column only ('gene')", "comma"],
    ),
    "long row": (
        content("counts.csv", b"gene,A01,A02\nIL2,1,2\nIFNG,1,2,3\n"),
        ["counts.csv: data row 2 ('IFNG'", "found 4 fields", "expected 3"],
    ),
    "all rows long": (
        content("counts.csv", b"gene,A01,A02\nIL2,1,2,3,4\nIFNG,1,2,3,4\n"),
        ["counts.csv: data row 1 ('IL2'", "found 5 fields", "expected 3"],
    ),
    "short row": (
        content("counts.csv", b"gene,A01,A02\nIL2,1,2\nIFNG,1\n"),
        ["counts.csv: data row 2 ('IFNG'", "found 2 fields", "expected 3"],
    ),
    "open quote": (
        content("counts.csv", b'gene,A01\nIL2,1\n"IFNG,1\n'),
        ["counts.csv: line 3: found broken", "a table"],
    ),
    "workbook": (
        content("counts.csv", b"PK\x03\x04abc"),
        ["counts.csv: found a zip archive or .xlsx", "expected text"],
    ),
    "UTF-16": (
        content("counts.csv", "g,A1\nIL2,1".encode("utf-16")),
        ["counts.csv: found UTF-16 text", "expected text"],
    ),
    "Latin-1": (content("counts.csv", b"g,A1\nIL2\xb5,1\n"), ["counts.csv: line 2: found byte 0xb5", "expected text"]),
    "absent": (lambda folder: folder / "counts.csv", ["counts.csv: found no such file or folder", "expected a count"]),
    "unknown type": (content("counts.rds", b"x"), ["counts.rds: found a file of type '.rds'", "expected CSV, TSV"]),
    "Ensembl": (
        table(lambda t: t.set_axis([f"ENSG9{i:010d}" for i in range(5)], axis=1)),
        ["counts.csv: found Ensembl ids instead of symbols: 'ENSG90000000000'", "(5 of 5 names)", SYMBOLS],
    ),
    "Ensembl with versions": (
        table(lambda t: t.set_axis([f"ENSG9{i:010d}.12" for i in range(5)], axis=1)),
        ["counts.csv: found Ensembl ids instead of symbols: 'ENSG90000000000.12'", SYMBOLS],
    ),
    "mouse": (
        table(lambda t: t.set_axis(["Il2", "Ifng", "mt-Co1", "Rpl3", "Actb"], axis=1)),
        ["counts.csv: found symbols of mouse or rat, or not in capitals: 'Il2'", SYMBOLS],
    ),
    "strangers": (
        table(lambda t: t.set_axis(["7157", "207", "5290", "7422", "1956"], axis=1)),
        ["counts.csv: found no known human symbol among 5 names: '7157'", SYMBOLS],
    ),
    "undecidable": (
        table(lambda t: t.set_axis(range(12)).set_axis(list("vwxyz"), axis=1)),
        ["counts.csv: found no way to tell genes from wells", "expected the setting `orientation`"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_one_clear_error(case: str, tmp_path: Path):
    make, parts = BAD[case]
    with pytest.raises(InputError) as error:
        read_counts(make(tmp_path))
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("orientation", ["wells_by_genes", "genes_by_wells"])
def test_a_setting_against_the_names_is_an_error(orientation: str, tmp_path: Path):
    other = {"wells_by_genes": "genes_by_wells", "genes_by_wells": "wells_by_genes"}[orientation]
    (small() if orientation == "wells_by_genes" else small().T).to_csv(tmp_path / "counts.csv")
    assert read_counts(tmp_path / "counts.csv", orientation).shape == (12, 5)
    with pytest.raises(InputError, match=f"counts.csv: found a matrix that is {orientation} .*expected {other}"):
        read_counts(tmp_path / "counts.csv", other)
    with pytest.raises(InputError, match="orientation: found 'rows', expected auto"):
        read_counts(tmp_path / "counts.csv", "rows")


def test_names_a_spreadsheet_has_spoilt_are_kept_and_said():
    notes = check_symbols(["IL2", "1-Mar", "Sep-02", "NA", "ENSG00000278869"], "counts.csv")
    assert [note.split(": ")[0] for note in notes] == ["counts.csv"] * 3
    for part in ("'1-Mar', 'Sep-02'", "'NA'", "'ENSG00000278869'"):
        assert any(part in note for note in notes)
