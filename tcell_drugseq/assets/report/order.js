// Rows of a table by one of its columns; a cell sorts by its text, or by `data-key` where it has one.
  const byText = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  function inOrder(rows, column, number, up) {
    const keyed = rows.map((row, place) => {
      const cell = row.cells[column], text = cell.dataset.key ?? cell.textContent.trim();
      return [text === "" || text === "–" ? null : number ? Number(text.replaceAll(",", "")) : text, place, row];
    });
    keyed.sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j; // nothing to compare: last, either way
      const order = number ? a - b : byText.compare(a, b);
      return (up ? order : -order) || i - j;
    });
    return keyed.map((entry) => entry[2]);
  }