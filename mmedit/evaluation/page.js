"use strict";
// Shows the answers that the page holds as data: some at a time, filtered, sorted. All text goes in as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const results = data.results.map((result) => ({
    ...data.probes[result.probe],
    ...result,
    edit: data.reports[result.report],
    kindTitle: data.kinds[data.probes[result.probe].kind],
    after: result.words.filter(([change]) => change >= 0).map(([, text]) => text).join(""),
  }));
  const ofProbe = data.probes.map(() => []);
  for (const result of results) ofProbe[result.probe].push(result);
  const PER_PAGE = { cards: 24, rows: 50 };
  const MARKS = { true: "✓", false: "✗", null: "–" };
  const TAGS = { "1": "ins", "-1": "del" };
  const form = document.querySelector(".toolbar");
  const boxes = [...document.querySelectorAll("input[name=report]")];
  const heads = [...document.querySelectorAll(".probes th")];
  const order = { key: null, down: false };
  const pages = new Map(); // of each pager, its page

  const make = (tag, props, ...children) => {
    const node = Object.assign(document.createElement(tag), props);
    node.append(...children.flat().filter((child) => child !== null));
    return node;
  };
  const sentence = (words) => words.map(([change, text]) => {
    const space = change ? text.match(/^\s*/)[0] : "";
    return change ? [space, make(TAGS[change], {}, text.slice(space.length))] : text;
  }).flat();
  const outcome = (result) => make("span", { className: `outcome ${result.right}` }, `${MARKS[result.right]} ${result.verdict}`);
  const figure = (value) => value === null ? "" : typeof value !== "number" ? value
    : value !== 0 && Math.abs(value) < 5e-4 ? value.toExponential(1) : value.toFixed(3);
  const image = (number, alt) => {
    const { uri, width, height } = data.pictures[number];
    return make("img", { loading: "lazy", src: uri, width, height, alt, className: width <= 128 ? "drawn" : "" });
  };

  const isChosen = (report) => !boxes.length || boxes[report].checked;

  const isFound = (result) => {
    const words = form.words.value.trim().toLowerCase();
    return isChosen(result.report)
      && (!form.outcome.value || String(result.right) === form.outcome.value)
      && (!form.kind.value || result.kind === form.kind.value)
      && (!words || [result.name, result.prompt, result.before, result.after, result.case].join("\n").toLowerCase().includes(words));
  };

  // Numbers before words, whatever is missing last in both directions; equal ones stay as they are, for sort() is stable.
  const compare = (a, b) => {
    const absent = (value) => value === null || value === "";
    const [x, y] = [a, b].map((result) => order.key === "kind" ? result.kindTitle : result[order.key]);
    if (absent(x) || absent(y)) return absent(x) - absent(y);
    const kinds = (typeof y === "number") - (typeof x === "number");
    const way = order.down ? -1 : 1;
    return way * (kinds || (typeof x === "number" ? x - y : x.localeCompare(y, undefined, { numeric: true })));
  };

  const card = (probe) => make("figure", { className: "card" },
    probe.picture === null ? null : make("div", { className: "picture" }, image(probe.picture, probe.name)),
    make("div", { className: "text" },
      probe.usual ? null : make("p", { className: "prompt" }, probe.prompt),
      make("p", { className: "before" }, make("span", { className: "label" }, "before"), probe.before || "(nothing)"),
      ofProbe[probe.number].filter((result) => isChosen(result.report)).map((result) => make("div", { className: "result" },
        make("p", {}, make("span", { className: "label" }, boxes.length ? result.edit : "after"), sentence(result.words)),
        result.expected !== null && result.expected !== result.after
          ? make("p", { className: "expected" }, make("span", { className: "label" }, "expected"), result.expected) : null,
        outcome(result))),
      make("footer", {}, [probe.name, probe.case].filter(Boolean).join(" · "))));

  const cells = {
    edit: (r) => make("td", { className: "aside" }, r.edit),
    case: (r) => make("td", { className: "aside" }, r.case),
    name: (r) => make("td", {}, make("div", { className: "thumb" }, r.picture === null ? null : image(r.picture, ""), r.name)),
    kind: (r) => make("td", { className: "aside" }, r.kindTitle),
    prompt: (r) => make("td", { className: "aside" }, r.usual ? "caption prompt" : r.prompt),
    before: (r) => make("td", { className: "answer" }, r.before),
    after: (r) => make("td", { className: "answer" }, sentence(r.words)),
    verdict: (r) => make("td", {}, outcome(r)),
  };
  const cell = (result, key) => cells[key]?.(result) ?? make("td", { className: "number" }, figure(result[key]));

  // One page of a list into its place, with buttons to the others where there are more.
  const list = (place, pager, items, size, draw) => {
    const last = Math.max(0, Math.ceil(items.length / size) - 1);
    const page = Math.min(pages.get(pager) ?? 0, last);
    const turn = (step) => () => {
      pages.set(pager, page + step);
      list(place, pager, items, size, draw);
      pager.querySelectorAll("button")[step > 0 ? 1 : 0].focus();
      place.closest("section").scrollIntoView({ block: "start" });
    };
    place.replaceChildren(...items.slice(page * size, (page + 1) * size).map(draw));
    pager.hidden = !last;
    pager.replaceChildren(
      make("button", { type: "button", disabled: page === 0, onclick: turn(-1) }, "← Back"),
      `${page * size + 1} to ${Math.min(items.length, (page + 1) * size)} of ${items.length}`,
      make("button", { type: "button", disabled: page === last, onclick: turn(1) }, "Next →"));
  };

  const show = () => {
    const found = results.filter(isFound);
    const asTable = form.view.value === "table";
    document.getElementById("cards").hidden = asTable;
    document.getElementById("table").hidden = !asTable;
    form.found.value = `${found.length} of ${results.length}`;
    for (const node of document.querySelectorAll("[data-report]")) node.hidden = !isChosen(node.dataset.report);
    if (asTable) {
      if (order.key) found.sort(compare);
      const table = document.getElementById("table");
      list(table.querySelector("tbody"), table.querySelector(".pager"), found, PER_PAGE.rows,
        (result) => make("tr", {}, heads.map((head) => cell(result, head.dataset.key))));
      return;
    }
    const chosen = new Set(found.map((result) => result.probe));
    for (const section of document.querySelectorAll(".kind")) {
      const probes = data.probes.filter((probe) => probe.kind === section.dataset.kind && chosen.has(probe.number));
      section.hidden = !probes.length;
      list(section.querySelector(".cards"), section.querySelector(".pager"), probes, PER_PAGE.cards, card);
    }
  };

  const changed = () => { pages.clear(); show(); };
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const box of boxes) box.addEventListener("change", changed);
  for (const head of heads) {
    head.querySelector("button").addEventListener("click", () => {
      Object.assign(order, { key: head.dataset.key, down: order.key === head.dataset.key && !order.down });
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      changed();
    });
  }
  form.hidden = false;
  show();
})();
