"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
function make(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

// Tables: sorted by a button in each head, each group of rows by itself below its heading.
function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const now = head.getAttribute("aria-sort");
    const value = row => parseFloat(row.cells[column].dataset.v);
    const text = row => row.cells[column].textContent;
    const bodies = [...table.tBodies].map(body => [body, [...body.rows].filter(row => row.className !== "group")]);
    const numeric = bodies.some(([, rows]) => rows.some(row => row.cells[column].hasAttribute("data-v")));
    // Names and places start at the top, scores at the highest.
    const down = now ? now === "ascending" : numeric && !/^(Place|Mean rank)$/.test(head.textContent);
    const order = (a, b) => {
      if (!numeric) return (down ? -1 : 1) * text(a).localeCompare(text(b), undefined, { numeric: true });
      const x = value(a), y = value(b);
      if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y); // what is missing stays last
      return down ? y - x : x - y;
    };
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    for (const [body, rows] of bodies) body.append(...rows.sort(order));
  }));
}

// Tables: rows that hold all of the words typed, in their names or in their group's heading.
const LONG = 8;
function filterable(table) {
  const rows = all("tbody tr:not(.group)", table);
  if (rows.length < LONG) return;
  const region = table.closest(".wide");
  const input = make("input", { type: "search", autocomplete: "off", spellcheck: false });
  input.setAttribute("aria-label", `Filter rows: ${region.getAttribute("aria-label")}`);
  const shown = make("output");
  const says = row => all("th, td:not([data-v])", row).map(cell => cell.textContent).join(" ").toLowerCase();
  const apply = () => {
    const wanted = input.value.toLowerCase().split(/\s+/);
    let count = 0;
    for (const body of table.tBodies) {
      const heading = body.querySelector(".group");
      let any = false;
      for (const row of all("tr:not(.group)", body)) {
        const text = says(row) + (heading ? " " + says(heading) : "");
        row.hidden = !wanted.every(word => text.includes(word));
        if (!row.hidden) { any = true; count += 1; }
      }
      if (heading) heading.hidden = !any;
    }
    shown.textContent = `${count} of ${rows.length} rows`;
    table.dispatchEvent(new Event("filter"));
  };
  input.addEventListener("input", apply);
  apply();
  region.before(make("div", { className: "tools" }, make("label", {}, "Filter rows", input), shown));
}

// One of several tables at a time, by a menu for each thing in which they differ.
function choosable(box) {
  const parts = [...box.children];
  const facets = box.dataset.facets.split("|");
  const names = parts.map(part => part.dataset.choice.split("|"));
  const none = make("p", { textContent: "This was not measured.", hidden: true });
  const menus = facets.map((facet, i) => {
    const values = [...new Set(names.map(name => name[i]))];
    return make("select", {}, ...values.map(value => make("option", {}, value)));
  });
  const apply = () => {
    parts.forEach((part, i) => { part.hidden = !menus.every((menu, j) => menu.value === names[i][j]); });
    none.hidden = !parts.every(part => part.hidden);
  };
  const labels = facets.map((facet, i) => make("label", {}, facet, menus[i]));
  const tools = make("div", { className: "tools" }, ...labels.filter((_, i) => menus[i].length > 1));
  menus.forEach(menu => menu.addEventListener("change", apply));
  apply();
  if (tools.childElementCount) box.before(tools);
  box.append(none);
}

// What a cell or a point says when it is pointed at or focused; the arrow keys move among them.
const tip = make("div", { id: "tip", role: "tooltip", hidden: true });
document.body.append(tip);
function words(item) {
  if (!item.cellIndex) return item.dataset.tip; // a point, which has its name there
  const table = item.closest("table");
  const name = cell => cell.textContent.trim();
  const number = [name(item), item.dataset.tip].filter(Boolean).join(" ");
  return `${name(item.parentNode.cells[0])}, ${name(table.tHead.rows[0].cells[item.cellIndex])}: ${number}`;
}
let told = null; // what the tip is of
function show(item) {
  told = item;
  tip.textContent = words(item);
  tip.hidden = false;
  const at = item.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const left = at.left + at.width / 2 - own.width / 2;
  tip.style.left = `${Math.max(4, Math.min(left, document.documentElement.clientWidth - own.width - 4))}px`;
  tip.style.top = `${at.top > own.height + 4 ? at.top - own.height : at.bottom}px`; // no gap to cross
}
function hide() {
  const active = document.activeElement.closest("[data-tip]");
  if (active && active.matches(":focus-visible")) show(active);
  else tip.hidden = true;
}
function pointed(event) {
  const item = event.target.closest("[data-tip]");
  if (item) show(item);
  else if (event.target !== tip) hide();
}
function focused(event) {
  const item = event.target;
  if (!item.matches("[data-tip]")) return;
  show(item);
  if (item.matches("td")) item.setAttribute("aria-describedby", "tip");
  else item.setAttribute("aria-label", item.dataset.tip);
}
function reachable(box) {
  const table = box.matches("table");
  if (table) box.setAttribute("role", "grid");
  else box.setAttribute("role", "group"); // no longer one picture: its points can be reached
  let current = box.querySelector("[data-tip]");
  const move = (item, focus = true) => {
    current.removeAttribute("tabindex");
    current = item;
    current.setAttribute("tabindex", 0);
    if (focus) current.focus();
  };
  current.setAttribute("tabindex", 0);
  const next = key => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key] ?? 0, jump = { ArrowDown: 1, ArrowUp: -1 }[key] ?? 0;
    if (table) {
      const rows = [...current.closest("tbody").rows].filter(row => !row.hidden);
      const row = rows[rows.indexOf(current.parentNode) + jump];
      const end = { Home: 1, End: row && row.cells.length - 1 }[key];
      return row && row.cells[end ?? current.cellIndex + step];
    }
    const left = one => one.getBoundingClientRect().left;
    const points = all("[data-tip]", box).sort((a, b) => left(a) - left(b));
    return { Home: points[0], End: points.at(-1) }[key] ?? points[points.indexOf(current) + step + jump];
  };
  box.addEventListener("keydown", event => {
    if (event.target !== current || !/^(Arrow|Home$|End$)/.test(event.key)) return;
    event.preventDefault();
    const item = next(event.key);
    if (item && item.dataset.tip !== undefined) move(item);
  });
  box.addEventListener("filter", () => { // a row that is hidden cannot be reached
    const there = box.querySelector("tr:not([hidden]) [data-tip]");
    if (there && current.closest("[hidden]")) move(there, false);
  });
  box.addEventListener("pointerdown", event => {
    const item = event.target.closest("[data-tip]");
    if (item) move(item, false);
  });
}

// Pictures as files that stand alone: what they take from this page goes along.
const SVG = "http://www.w3.org/2000/svg";
const FONT = "Helvetica, Arial, sans-serif";
function element(tag, attributes, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const name in attributes) made.setAttribute(name, attributes[name]);
  made.textContent = text;
  return made;
}
function sheet(width, height, title) {
  const svg = element("svg", { xmlns: SVG, width, height, viewBox: `0 0 ${width} ${height}`, "font-family": FONT });
  svg.append(element("title", {}, title), element("rect", { width, height, fill: "#ffffff" }));
  return svg;
}
function drawn(svg) { // a plot, and the key that belongs to it
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  const key = svg.closest(".grid")?.previousElementSibling;
  const items = key?.matches(".key") ? [...key.children] : [];
  const file = sheet(width, height + 14 * Math.ceil(items.length / 2) + (items.length && 8), svg.getAttribute("aria-label"));
  const copy = svg.cloneNode(true);
  for (const name of ["style", "role", "aria-label", "data-name"]) copy.removeAttribute(name);
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  for (const item of all("[data-tip]", copy)) {
    item.prepend(element("title", {}, item.dataset.tip));
    for (const name of ["data-tip", "tabindex", "aria-label", "role"]) item.removeAttribute(name);
  }
  file.append(element("style", {}, "*{stroke-linejoin:round;stroke-linecap:butt}"), copy);
  items.forEach((item, i) => {
    const x = 8 + (i % 2) * width / 2, y = height + 12 + 14 * Math.floor(i / 2);
    const sign = item.querySelector("svg")?.firstElementChild.cloneNode() ?? mark(item.querySelector("i"));
    const place = element("g", { transform: `translate(${x} ${y - 3}) scale(5)`, color: "#5b6873" });
    place.append(sign);
    file.append(place, element("text", { x: x + 9, y, "font-size": 8.5, fill: "#22303c" }, item.textContent.trim()));
  });
  return file;
}
function mark(sign) { // of a family, of hollow points or of intervals
  if (sign.className === "line") return element("path", { d: "M-1 0H1", stroke: "#5b6873", "stroke-width": 0.2 });
  const hollow = sign.className === "hollow";
  return element("circle", { r: 0.7, fill: hollow ? "#ffffff" : sign.style.background, stroke: hollow ? "#5b6873" : "none", "stroke-width": 0.2 });
}
const pen = document.createElement("canvas").getContext("2d");
function tabled(table) { // a coloured table: cells as they stand on the page, names on one line each
  table.closest(".wide").scrollLeft = 0; // its first column moves along
  const size = 11, gap = 8;
  pen.font = `${size}px ${FONT}`;
  const name = cell => cell.innerText.replace(/\s+/g, " ").trim();
  const longest = cells => Math.max(...cells.map(cell => pen.measureText(name(cell)).width));
  const rows = all("tbody tr:not([hidden])", table), heads = [...table.tHead.rows[0].cells].slice(1);
  const left = gap + longest(rows.map(row => row.cells[0])) + gap, top = 28 + longest(heads) + gap;
  const from = rows[0].cells[1].getBoundingClientRect(), to = rows.at(-1).lastElementChild.getBoundingClientRect();
  const file = sheet(Math.ceil(left + to.right - from.left + gap), Math.ceil(top + to.bottom - from.top + gap), table.dataset.title);
  const write = (text, attributes) => file.append(element("text", { "font-size": size, fill: "#22303c", ...attributes }, text));
  write(table.dataset.title, { x: gap, y: 20, "font-size": 13, "font-weight": 600 });
  heads.forEach((head, i) => {
    const at = rows[0].cells[i + 1].getBoundingClientRect();
    write(name(head), { transform: `translate(${left + at.left - from.left + at.width / 2 + 4} ${top - gap}) rotate(-90)` });
  });
  for (const row of rows) {
    const line = row.getBoundingClientRect();
    const y = top + line.top - from.top + line.height / 2 + 4;
    write(name(row.cells[0]), { x: gap, y });
    for (const cell of [...row.cells].slice(1)) {
      const at = cell.getBoundingClientRect(), style = getComputedStyle(cell), x = left + at.left - from.left;
      file.append(element("rect", { x: x + 1, y: top + at.top - from.top + 1, width: at.width - 2, height: at.height - 2, fill: style.backgroundColor }));
      write(name(cell), { x: x + at.width / 2, y, "text-anchor": "middle", fill: style.color });
    }
  }
  return file;
}
function savable(picture) {
  const plot = picture.matches("svg");
  const title = plot ? picture.getAttribute("aria-label") : picture.dataset.title;
  const button = make("button", { type: "button", className: "save", textContent: "Save SVG" });
  button.setAttribute("aria-label", `Save SVG: ${title}`);
  button.addEventListener("click", () => {
    const text = new XMLSerializer().serializeToString(plot ? drawn(picture) : tabled(picture));
    const url = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    make("a", { href: url, download: `${plot ? picture.dataset.name : picture.id}.svg` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  });
  picture.closest("figure").append(button);
}

for (const title of all("figure svg title")) { // a tip that can be focused, instead of the browser's
  title.parentNode.dataset.tip = title.textContent;
  title.remove();
}
all("table.sortable").forEach(sortable);
all("table.sortable").forEach(filterable);
all(".choice").forEach(choosable);
for (const box of all("table, figure svg")) if (box.querySelector("[data-tip]")) reachable(box);
all("figure svg[role], table.cells").forEach(savable);
document.addEventListener("pointerover", pointed);
document.addEventListener("focusin", focused); // of a plot it would make the plot itself a stop
document.addEventListener("focusout", event => {
  event.target.removeAttribute("aria-describedby");
  tip.hidden = true;
});
document.addEventListener("keydown", event => { if (event.key === "Escape") tip.hidden = true; });
addEventListener("scroll", () => { if (!tip.hidden) show(told); }, { capture: true, passive: true });
