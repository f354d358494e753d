"use strict";
(() => {
  // The first compounds stand on the page. All others are in files beside it, scripts that hand over plain values: a page opened from
  // disk may not fetch. They are loaded when they are asked for. Names are other people's text: they only ever become text nodes.
  const byId = (id) => document.getElementById(id);
  const known_ = JSON.parse(byId("known").textContent), files = {};
  {% include 'elements.js' %}

  window.campaign = (file, values) => files[file].found(values); // what each file calls
  function load(file) {
    if (!files[file]) {
      files[file] = {};
      files[file].whole = new Promise((found, lost) => {
        files[file].found = found;
        const script = make("script", { src: `${known_.folder}/${file}.js`, charset: "utf-8" });
        script.onerror = () => { delete files[file]; lost(new Error(`${known_.folder}/${file}.js is not beside this page`)); };
        document.head.append(script);
      });
    }
    return files[file].whole;
  }
  const rowOf = async (place) => (await load(`rows${Math.floor(place / known_.size)}`))[place % known_.size];

  // ---- search
  const find = byId("find"), count = byId("count"), body = byId("compounds").tBodies[0], first = [...body.rows];
  let asked = 0;
  function line(place, row) {
    const name = make("a", { href: `#compound-${place}` }, row[1]);
    return make("tr", {}, make("td", { class: "number" }, row[0] === null ? "–" : String(row[0])), make("th", { scope: "row" }, name), ...[row[2], row[3]].map((n) => make("td", { class: "number" }, String(n))),
      make("td", { class: "number" }, number(row[4])), make("td", { class: "number" }, chance(row[5])), make("td", { class: "number" }, chance(row[6])), make("td", {}, row[7] ? "hit" : ""), make("td", {}, row[8]), make("td", { class: "against" }, row[13]));
  }
  async function search() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean), turn = ++asked;
    if (!words.length) { body.replaceChildren(...first); count.textContent = `the first ${first.length} of ${known_.compounds.toLocaleString("en")}`; return; }
    try {
      const names = await load("names"), places = [];
      let n = 0;
      names.forEach((name, place) => { if (words.every((word) => name.toLowerCase().includes(word)) && n++ < known_.most) places.push(place); });
      const rows = await Promise.all(places.map(rowOf));
      if (turn !== asked) return; // somebody has typed on
      body.replaceChildren(...rows.map((row, i) => line(places[i], row)));
      count.textContent = n > places.length ? `the first ${places.length} of ${n.toLocaleString("en")} found` : `${n} found`;
    } catch (error) { count.textContent = error.message; }
  }
  find.addEventListener("input", search);

  // ---- one compound, screen by screen
  const dialog = byId("card");
  async function open() {
    const found = /^#compound-(\d+)$/.exec(location.hash);
    if (!found) { if (dialog.open) dialog.close(); return; }
    try {
      const row = await rowOf(Number(found[1])), close = make("button", { type: "button" }, "close");
      close.addEventListener("click", () => dialog.close());
      const heads = ["screen", "wells", "distance", "p there", "q there", "shift", "95 % interval", ""];
      const lines = row[14].map((r) => {
        const screen = known_.screens[r[0]], link = make("a", { href: `${screen[1]}#card-${r[7]}` }, screen[0]);
        return make("tr", {}, make("td", {}, link), make("td", { class: "number" }, String(r[1])), make("td", { class: "number" }, number(r[2])), make("td", { class: "number" }, chance(r[3])), make("td", { class: "number" }, chance(r[4])),
          make("td", { class: "number" }, number(r[5])), make("td", { class: "number" }, `${number(r[6][0])} to ${number(r[6][1])}`), make("td", { class: "against" }, r[8]));
      });
      const facts = [["rank", row[0] === null ? "–" : String(row[0])], ["distance", number(row[4])], ["p", chance(row[5])], ["q", chance(row[6])], ["shift", `${number(row[9])} (${number(row[10])} to ${number(row[11])})`], ["I²", number(row[12])]];
      dialog.replaceChildren(make("header", {}, make("h2", {}, row[1]), close), make("p", {}, row[7] ? `A hit (${row[8]}).` : row[13] || "Not called."),
        make("dl", { class: "facts" }, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
        make("div", { class: "wide" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))), make("tbody", {}, ...lines))));
      if (!dialog.open) dialog.showModal();
    } catch (error) { count.textContent = error.message; }
  }
  dialog.addEventListener("close", () => { if (/^#compound-/.test(location.hash)) history.replaceState(null, "", location.pathname + location.search); });
  window.addEventListener("hashchange", open);
  byId("filters").hidden = false;
  search();
  open();
})();
