"use strict";
(() => {
  // Everything stands on the page already; here it is sorted, filtered, unfolded, and a card is drawn when it is asked for.
  // Names are other people's text: they only ever become text nodes.
  const byId = (id) => document.getElementById(id);

  function unfold() {
    const target = byId(decodeURIComponent(location.hash.slice(1)));
    const fold = target && target.closest("details");
    if (fold) { fold.open = true; target.scrollIntoView(); }
  }

  {% include 'order.js' %}

  // ---- the table of all compounds
  function tableOf(table) {
    const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
    const find = byId("find"), kind = byId("kind"), count = byId("count"), texts = rows.map((row) => row.textContent.toLowerCase());
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      body.append(...inOrder(rows, column, "number" in head.dataset, up));
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
    }));
    function filter() {
      const words = find.value.toLowerCase().split(/\s+/), wanted = kind ? kind.value : "";
      let shown = 0;
      rows.forEach((row, place) => {
        row.hidden = !(words.every((word) => texts[place].includes(word)) && (!wanted || row.cells[2].textContent === wanted));
        shown += !row.hidden;
      });
      count.textContent = `${shown} of ${rows.length}`;
    }
    [find, kind].forEach((field) => field && field.addEventListener("input", filter));
    filter();
  }

  // ---- elements, numbers
  {% include 'elements.js' %}

  function draw(tag, attributes = {}, ...inside) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...inside);
    return element;
  }
  const words = (set) => set.replaceAll("_", " ");
  const titled = (element, text) => { element.append(draw("title", {}, text)); return element; };

  // ---- pictures of a card; each has a frame of width x height with margins for its axes
  const W = 360, H = 220, LEFT = 38, TOP = 10, BOTTOM = 34;
  function frame(label, x, y, range) {
    const [x0, x1, y0, y1] = range, picture = draw("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label });
    const at = { x: (v) => LEFT + (v - x0) / (x1 - x0 || 1) * (W - LEFT - 8), y: (v) => H - BOTTOM - (v - y0) / (y1 - y0 || 1) * (H - BOTTOM - TOP) };
    picture.append(draw("path", { class: "axis", d: `M${LEFT},${TOP}V${H - BOTTOM}H${W - 8}` }));
    picture.append(draw("text", { x: (LEFT + W) / 2, y: H - 4, "text-anchor": "middle" }, x));
    picture.append(draw("text", { x: -(H - BOTTOM) / 2, y: 10, "text-anchor": "middle", transform: "rotate(-90)" }, y));
    return { picture, at };
  }
  function ticks(low, high) {
    const step = 10 ** Math.floor(Math.log10((high - low) || 1)), fine = (high - low) / step > 5 ? 2 : (high - low) / step > 2 ? 1 : 0.5, found = [];
    for (let v = Math.ceil(low / step / fine) * step * fine; v <= high + 1e-9; v += step * fine) found.push(Number(v.toPrecision(6)));
    return found;
  }
  function scale({ picture, at }, xs, ys) {
    for (const v of xs) picture.append(draw("text", { x: at.x(v), y: H - BOTTOM + 13, "text-anchor": "middle" }, String(v).replace("-", "−")));
    for (const v of ys) picture.append(draw("text", { x: LEFT - 4, y: at.y(v) + 4, "text-anchor": "end" }, String(v).replace("-", "−")));
  }

  function volcano(card, genes) {
    const v = card.volcano, reach = Math.max(1, ...v.fold.map(Math.abs)), top = Math.max(2, ...v.p);
    const drawn = frame(`Volcano of ${v.tested} genes: log2 fold change against DMSO and -log10 p; ${v.called} with q below 0.05`, "log2 fold change against DMSO", "−log10 p", [-reach, reach, 0, top * 1.05]);
    scale(drawn, ticks(-reach, reach), ticks(0, top));
    const { picture, at } = drawn;
    for (let i = v.gene.length - 1; i >= 0; i--) {
      const sure = i < v.sure, x = at.x(v.fold[i]), y = at.y(v.p[i]);
      picture.append(titled(draw("circle", { class: sure ? (v.fold[i] > 0 ? "rises" : "falls") : "mark", cx: x.toFixed(1), cy: y.toFixed(1), r: sure ? 3 : 1.8 }), genes[v.gene[i]]));
    }
    const used = [];
    for (let i = 0; i < Math.min(v.sure, 10); i++) {
      const x = at.x(v.fold[i]), y = at.y(v.p[i]), left = v.fold[i] < 0;
      if (used.some(([a, b, l]) => Math.abs(b - y) < 10 && Math.abs(a - x) < 60)) continue;
      used.push([x, y, left]);
      picture.append(draw("text", { class: "name", x: x + (left ? 5 : -5), y: y - 4, "text-anchor": left ? "start" : "end" }, genes[v.gene[i]].slice(0, 14)));
    }
    return picture;
  }

  function strip(wells, own, controls) {
    const d = wells.distance, top = Math.max(...[...own, ...controls].map((i) => d[i] ?? 0), 2);
    const drawn = frame("Distance of its wells beside the DMSO wells", "", "well distance (DMSO = 1)", [0, 3, 0, top * 1.05]);
    scale(drawn, [], ticks(0, top));
    const { picture, at } = drawn, spread = (k) => ((k * 0.618) % 1 - 0.5) * 0.6;
    for (const [x, members, name, kind, r] of [[0.8, controls, "DMSO", "control", 2.5], [2.2, own, "this compound", "own", 5]]) {
      members.forEach((i, k) => known(d[i]) && picture.append(titled(draw("circle", { class: kind, cx: at.x(x + (members.length > 1 ? spread(k) : 0)).toFixed(1), cy: at.y(d[i]).toFixed(1), r }), `${wells.id[i]}: ${number(d[i])}`)));
      picture.append(draw("text", { x: at.x(x), y: H - BOTTOM + 14, "text-anchor": "middle" }, `${name} (${members.length})`));
    }
    return picture;
  }

  function map(wells, own) {
    const drawn = frame("Its wells on the map of all wells", "first principal component of the latent", "second", [-1.05, 1.05, -1.05, 1.05]);
    const { picture, at } = drawn, mine = new Set(own);
    const dot = (i, kind, r) => titled(draw("circle", { class: kind, cx: at.x(wells.x[i]).toFixed(1), cy: at.y(wells.y[i]).toFixed(1), r }), wells.id[i]);
    const order = wells.id.map((_, i) => i), step = Math.ceil(order.length / 3000);
    order.filter((i) => wells.compound[i] >= 0 && !mine.has(i) && i % step === 0).forEach((i) => picture.append(dot(i, "empty", 1.8)));
    order.filter((i) => wells.compound[i] < 0).forEach((i) => picture.append(dot(i, "control", 2)));
    own.forEach((i) => picture.append(dot(i, "own", 5)));
    return picture;
  }

  function plates(wells, own) {
    const box = make("div", { class: "plates" });
    for (const plate of [...new Set(own.map((i) => wells.plate[i]))]) {
      const all = wells.id.map((_, i) => i).filter((i) => wells.plate[i] === plate && known(wells.row[i]) && known(wells.column[i]));
      if (!all.length) continue;
      const rows = Math.max(7, ...all.map((i) => wells.row[i])) + 1, columns = Math.max(12, ...all.map((i) => wells.column[i]));
      const picture = draw("svg", { viewBox: `0 0 ${columns * 10 + 2} ${rows * 10 + 2}`, role: "img", "aria-label": `Plate ${wells.plates[plate]}: its wells` });
      for (const i of all) {
        const kind = own.includes(i) ? "own" : wells.compound[i] < 0 ? "control" : "empty";
        picture.append(titled(draw("circle", { class: kind, cx: wells.column[i] * 10 - 4, cy: wells.row[i] * 10 + 6, r: 4 }), wells.id[i]));
      }
      box.append(make("figure", {}, picture, make("figcaption", {}, `plate ${wells.plates[plate]}`)));
    }
    return box;
  }

  function doses(card, wells, own, controls) {
    const at0 = own.filter((i) => known(wells.dose[i]) && wells.dose[i] > 0 && known(wells.distance[i]));
    const x = at0.map((i) => Math.log10(wells.dose[i])), low = Math.min(...x) - 0.2, high = Math.max(...x) + 0.2, c = card.dose;
    const top = Math.max(2, ...at0.map((i) => wells.distance[i]), ...controls.map((i) => wells.distance[i] ?? 0));
    const drawn = frame(`Well distance by dose: ${c.verdict}`, `log10 dose, ${wells.unit}`, "well distance (DMSO = 1)", [low, high, 0, top * 1.05]);
    scale(drawn, ticks(low, high), ticks(0, top));
    const { picture, at } = drawn;
    if (["ec50", "open", "above", "below", "unbounded"].includes(c.status) && known(c.midpoint)) {
      const points = [];
      for (let s = 0; s <= 60; s++) {
        const v = low + (high - low) * s / 60, share = 1 / (1 + Math.exp(-Math.log(10) * c.hill * (v - Math.log10(c.midpoint))));
        points.push(`${at.x(v).toFixed(1)},${at.y(Math.sqrt(c.bottom ** 2 + (c.top ** 2 - c.bottom ** 2) * share ** 2)).toFixed(1)}`);
      }
      picture.append(draw("polyline", { class: "curve", points: points.join(" ") }));
    }
    at0.forEach((i, k) => picture.append(titled(draw("circle", { class: "own", cx: at.x(x[k]).toFixed(1), cy: at.y(wells.distance[i]).toFixed(1), r: 4 }), `${wells.id[i]}: ${wells.dose[i]} ${wells.unit}`)));
    return picture;
  }

  // ---- tables of a card
  function rowsOf(heads, rows) {
    const side = (k) => heads[k][1] ? { class: "number" } : {};
    return make("table", {},
      make("thead", {}, make("tr", {}, ...heads.map(([name], k) => make("th", { scope: "col", ...side(k) }, name)))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell, k) => make("td", side(k), cell))))));
  }
  const part = (title, ...inside) => make("div", {}, make("h3", {}, title), ...inside);
  const note = (text) => make("p", { class: "quiet" }, text);

  function changed(card) {
    const v = card.volcano, rows = (v ? [...v.up, ...v.down] : [...card.shifts.up, ...card.shifts.down]);
    if (!v) return part("Largest shifts of expression", note("In SD of control wells; only hits and the farthest compounds are tested gene by gene."), rowsOf([["gene"], ["shift", 1]], rows.map(([gene, shift]) => [gene, number(shift, 1)])));
    if (!rows.length) return part("Changed genes", note(`None of ${v.tested.toLocaleString("en")} genes has q < 0.05.`));
    return part("Changed genes", note(`${v.called} of ${v.tested.toLocaleString("en")} genes at q < 0.05; the first in each direction.`), rowsOf([["gene"], ["log2 fold change", 1], ["q", 1]], rows.map(([gene, fold, q]) => [gene, number(fold), chance(q)])));
  }

  function behind(card) {
    const b = card.behind, of = b.shared === undefined ? "" : ` ${b.shared} of the first ${b.listed} are among its ${b.called} changed genes (marked •).`;
    const rest = known(b.explained) ? ` All genes together explain ${number(100 * b.explained, 0)} % of it.` : "";
    return part("Genes behind the distance", note(`Their change carries the compound away from DMSO in the latent space.${of}${rest}`), rowsOf([["gene"], ["share", 1], ["change", 1]], b.genes.map(([gene, share, change, both]) => [both ? `${gene} •` : gene, `${number(100 * share, 1)} %`, number(change)])));
  }

  function sets(card) {
    return part("Gene sets", note("NES: how far the set lies from random sets; p and q over wells; this q is over all sets, the one that names the kind over those few that may."), rowsOf([["gene set"], ["NES", 1], ["p", 1], ["q", 1]], card.sets.map(([set, , nes, p, q]) => [words(set), number(nes, 1), chance(p), chance(q)])));
  }

  function treatments(card, unit) {
    const rows = card.treatments, strata = new Set(rows.map((row) => row.stratum)).size > 1, genes = rows.some((row) => known(row.genes_changed));
    const doses = rows.some((row) => known(row.dose));
    const heads = [...(strata ? [["stratum"]] : []), doses ? [unit ? `dose, ${unit}` : "dose", 1] : ["treatment"], ["distance", 1], ["p", 1], ["acts"], ["activation"], ...(genes ? [["changed genes", 1]] : [])];
    const chance95 = rows.map((row) => row.genes_by_chance).find(known);
    const said = genes && known(chance95) ? ` By chance DMSO wells change up to ${number(chance95, 0)} genes.` : "";
    return part(doses ? "Dose by dose" : "Treatment by treatment", note(`p of each treatment by itself. The p of the compound pays for having looked at all of them.${said}`),
      rowsOf(heads, rows.map((row) => [...(strata ? [row.stratum] : []), known(row.dose) ? String(row.dose) : row.treatment, number(row.distance), chance(row.p), row.active ? "yes" : "–", row.direction === "none" ? "–" : row.direction, ...(genes ? [known(row.genes_changed) ? number(row.genes_changed, 0) : "–"] : [])])));
  }

  // ---- the card itself
  function fill(dialog, values, place) {
    const { wells, cards } = values, card = cards[place];
    const own = [], controls = [];
    wells.compound.forEach((c, i) => { if (c === place) own.push(i); else if (c < 0) controls.push(i); });
    const go = (where, name) => {
      const button = make("button", { type: "button" }, name);
      button.addEventListener("click", () => { if (where === null) dialog.close(); else location.hash = `card-${where}`; });
      return button;
    };
    const facts = [["distance", number(card.distance)], ["rank", known(card.rank) ? `${card.rank} of ${cards.length} (${card.rank_low} to ${card.rank_high})` : null], ["p", chance(card.p)], ["q", chance(card.q)],
      [values.by ? `shift of ${values.by}` : "shift", known(card.shift) ? `${number(card.shift)} (${number(card.low)} to ${number(card.high)})` : null], ["agreement of its wells", known(card.agreement) ? number(card.agreement) : null], ["wells", String(own.length)], ["best treatment", card.best ?? null], ["acts from dose", known(card.lowest) ? `${card.lowest} ${wells.unit ?? ""}` : null],
      ["strata in which it moves the cells", card.strata ? `${card.strata[0]} of ${card.strata[1]}${known(card.differ) && card.differ < 0.05 ? ", which differ" : ""}` : null]];
    const called = card.hit === undefined ? null : card.hit ? (values.claim === "no claim" ? "By p-values alone it would be a hit, but no hit may be claimed on this screen." : values.claim === "limited" ? "A hit, with the limits that stand on the first screen." : "A hit.") : `Not a hit${card.against ? `: ${card.against}` : known(card.q) ? `: q is ${chance(card.q)}` : ""}.`;
    const floor = known(card.smallest_q) && card.smallest_q > 0.05 && known(card.q) ? ` With ${own.length} wells a lone compound can't reach a q below ${chance(card.smallest_q)}; others with a small p bring it down.` : "";
    const grid = make("div", { class: "grid" });
    if (wells.row) grid.append(part("Its wells", plates(wells, own), note("Orange: its wells; blue: DMSO.")));
    if (wells.distance) grid.append(part("Distance of its wells", strip(wells, own, controls)));
    if (card.treatments) grid.append(treatments(card, wells.unit));
    if (card.dose && wells.dose) grid.append(part("Dose", card.dose.status === "too few doses" ? null : doses(card, wells, own, controls), note(`${card.dose.verdict}.`)));
    if (card.volcano) grid.append(part("Every gene", volcano(card, values.genes), card.volcano.gene.length < card.volcano.tested ? note(`${card.volcano.gene.length.toLocaleString("en")} of ${card.volcano.tested.toLocaleString("en")} genes are drawn: all with p < 0.01, and some of the others.`) : null));
    if (card.sets) grid.append(sets(card));
    if (card.volcano || card.shifts) grid.append(changed(card));
    else grid.append(note("Genes stand on the cards of the hits and of the farthest compounds; the tables beside this page have all."));
    if (card.behind) grid.append(behind(card));
    if (wells.x) grid.append(part("Among all wells", map(wells, own)));
    if (card.alike) grid.append(part("Compounds with the most similar effect", note("Correlation of signatures on the genes on which replicates agree."), rowsOf([["compound"], ["correlation", 1]], card.alike.map(([c, r]) => [make("a", { href: `#card-${c}` }, cards[c].name), number(r)]))));
    const title = make("h2", { id: "card-title", tabindex: "-1" }, card.name);
    const print = make("button", { type: "button" }, "print");
    print.addEventListener("click", () => window.print());
    dialog.replaceChildren(make("div", { class: "card" },
      make("header", {}, title, place > 0 ? go(place - 1, "‹ farther") : null, place + 1 < cards.length ? go(place + 1, "nearer ›") : null, print, go(null, "close")),
      card.kind ? make("p", {}, make("span", { class: `dot ${card.kind}` }), `${card.kind}: ${card.because}`) : null,
      called ? make("p", {}, called + (card.hit ? "" : floor)) : null,
      make("dl", { class: "facts" }, ...facts.filter(([, value]) => value !== null && value !== "–").map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
      grid));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    title.focus();
  }

  // ---- on paper stand the folds that a meeting needs
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = ["What-may-be-claimed", "For-the-laboratory", "Glossary"].map(byId).filter((fold) => fold && !fold.open);
    opened.forEach((fold) => { fold.open = true; });
  });
  window.addEventListener("afterprint", () => opened.forEach((fold) => { fold.open = false; }));

  const dialog = byId("card"), table = byId("compounds");
  let values = null;
  function turn() {
    const found = /^#card-(\d+)$/.exec(location.hash);
    if (!found || !dialog) { if (dialog && dialog.open) dialog.close(); unfold(); return; }
    values ??= JSON.parse(byId("values").textContent);
    if (Number(found[1]) < values.cards.length) fill(dialog, values, Number(found[1]));
  }
  if (table) tableOf(table);
  if (dialog) {
    document.body.append(dialog); // so that a card can be printed alone
    dialog.addEventListener("close", () => { if (/^#card-/.test(location.hash)) history.replaceState(null, "", location.pathname + location.search); });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }
  window.addEventListener("hashchange", turn);
  turn();
})();
