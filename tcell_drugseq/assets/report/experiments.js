"use strict";
(() => {
  // Rows come sorted, the newest first. All that is done here is to put them in order, to hide and to show them.
  const body = document.querySelector("tbody"), rows = [...body.rows], heads = [...document.querySelectorAll("thead th")];
  const bar = document.querySelector(".filters"), fields = [...bar.querySelectorAll("input, select")];
  const search = fields[0], choices = fields.slice(1), count = document.getElementById("count");
  const reset = bar.querySelector("button"), texts = rows.map((row) => row.textContent.toLowerCase());
  {% include 'order.js' %}
  const initial = heads.findIndex((head) => head.hasAttribute("aria-sort"));
  let sorted = [initial, false];

  function sort(column, up) {
    body.append(...inOrder(rows, column, "number" in heads[column].dataset, up));
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
    sorted = [column, up];
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/);
    let shown = 0;
    rows.forEach((row, place) => {
      const cell = (choice) => (row.cells[choice.dataset.column].dataset.is ?? "").split(";");
      const fits = choices.every((choice) => choice.value === "" || cell(choice).includes(choice.value));
      row.hidden = !(fits && words.every((word) => texts[place].includes(word)));
      shown += !row.hidden;
    });
    reset.hidden = fields.every((field) => field.value === "");
    count.textContent = `${shown} of ${rows.length} rows`;
  }

  // The address keeps order and filters, so that they are there again after a look at a report, or from a bookmark.
  function keep() {
    const state = new URLSearchParams(fields.filter((field) => field.value).map((field) => [field.name, field.value]));
    const [column, up] = sorted;
    if (column !== initial || up) state.set("sort", (up ? "" : "-") + heads[column].dataset.name);
    history.replaceState(null, "", "#" + state);
  }

  function restore() {
    const state = new URLSearchParams(location.hash.slice(1));
    fields.forEach((field) => {
      field.value = state.get(field.name) ?? "";
      if (field.selectedIndex === -1) field.value = "";
    });
    const wanted = state.get("sort") ?? "", up = !wanted.startsWith("-");
    const column = heads.findIndex((head) => head.dataset.name === wanted.slice(up ? 0 : 1));
    const order = column < 0 ? [initial, false] : [column, up];
    if (order.join() !== sorted.join()) sort(...order);
    filter();
  }

  heads.forEach((head, column) =>
    head.querySelector("button").addEventListener("click", () => {
      const first = !("number" in head.dataset); // text from A, numbers from the largest
      sort(column, sorted[0] === column ? !sorted[1] : first);
      keep();
    }),
  );
  fields.forEach((field) => field.addEventListener("input", () => (filter(), keep())));
  reset.addEventListener("click", () => (fields.forEach((field) => (field.value = "")), filter(), keep(), search.focus()));
  window.addEventListener("hashchange", restore);
  restore();
  bar.hidden = false;
})();
