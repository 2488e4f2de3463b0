"""How the page of a cohort looks, light, dark and on paper, and the few lines that filter and sort it."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6b7c; --paper: #ffffff; --panel: #f4f6f8; --line: #dde3ea;
  --link: #1d4f91; --bad: #b3261e; --bad-soft: #fdecea; --warn: #8a5a00; --warn-soft: #fff3d6; --good: #1b7f4d;
  --wait: #7a8698; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5eaf0; --soft: #9aa7b6; --paper: #14181d; --panel: #1d232a;
  --line: #323b46; --link: #8ab8f5; --bad: #ff8a80; --bad-soft: #3a1d1b; --warn: #f2c55c; --warn-soft: #362a10;
  --good: #5fce96; --wait: #8a96a6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px clamp(12px, 3vw, 40px) 60px; max-width: 1800px; background: var(--paper);
  color: var(--ink); font: 14px/1.45 system-ui, "Segoe UI", "Liberation Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 30px 0 4px; }
p { margin: 2px 0; }
a { color: var(--link); }
.soft { color: var(--soft); }
.bar { display: flex; gap: 2px; height: 12px; margin: 18px 0 6px; border-radius: 6px; overflow: hidden; }
.bar i { min-width: 3px; }
.key { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 18px; padding: 0; list-style: none; }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px; }
.f { background: var(--bad); } .w { background: var(--warn); } .d { background: var(--good); }
.n { background: var(--wait); }
dl.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(124px, 1fr)); gap: 10px; margin: 0 0 14px; }
dl.facts div { background: var(--panel); border-radius: 8px; padding: 9px 12px; display: flex;
  flex-direction: column-reverse; justify-content: flex-end; }
dl.facts dd { margin: 0; font-size: 19px; font-weight: 600; font-variant-numeric: tabular-nums; }
dl.facts dt { color: var(--soft); font-size: 12px; }
details { border: 1px solid var(--line); border-radius: 8px; padding: 7px 12px; margin: 6px 0; }
summary { cursor: pointer; font-weight: 600; }
.pairs { columns: 300px; margin: 8px 0 2px; }
.pairs div { break-inside: avoid; display: flex; gap: 10px; justify-content: space-between;
  border-bottom: 1px solid var(--line); padding: 2px 0; }
.pairs dt { color: var(--soft); } .pairs dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
.find { margin: 22px 0 0; display: flex; flex-wrap: wrap; gap: 10px; align-items: baseline; }
.find[hidden] { display: none; }
.find input { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--wait); width: 320px;
  max-width: 100%; border-radius: 6px; padding: 6px 10px; }
table { border-collapse: collapse; width: 100%; margin-top: 8px; }
th, td { padding: 8px; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
thead th { position: sticky; top: 0; background: var(--paper); color: var(--soft); font-weight: 600; font-size: 12px;
  vertical-align: bottom; z-index: 1; }
thead th button { all: unset; cursor: pointer; }
thead th button:hover { color: var(--ink); text-decoration: underline; }
th[aria-sort="ascending"] button::after { content: " ▲"; } th[aria-sort="descending"] button::after { content: " ▼"; }
:focus-visible, thead th button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
th:first-child, td:first-child, .t { text-align: left; }
td:first-child { min-width: clamp(240px, 34vw, 470px); max-width: 560px; overflow-wrap: anywhere; }
tbody tr:hover { background: var(--panel); }
.name { font-weight: 600; margin-right: 6px; }
.tag { display: inline-block; font-size: 11px; font-weight: 600; border-radius: 9px; padding: 0 8px; margin-right: 4px;
  border: 1px solid currentColor; color: var(--soft); white-space: nowrap; }
.tag.bad { color: var(--bad); background: var(--bad-soft); } .tag.warn { color: var(--warn);
  background: var(--warn-soft); }
.say { margin: 5px 0 2px; padding: 4px 9px; border-left: 3px solid var(--warn); background: var(--warn-soft); }
.say.bad { border-color: var(--bad); background: var(--bad-soft); }
.strip { display: block; width: fit-content; margin: 6px 0 2px; border-radius: 6px; overflow: hidden;
  border: 1px solid var(--line); background: #fff; }
.strip img { display: block; width: auto; height: auto; max-width: 100%; max-height: 150px; }
.small td, .small th { padding: 3px 8px; }
.later { content-visibility: auto; }
footer { margin-top: 30px; color: var(--soft); font-size: 12px; }
@page { size: landscape; margin: 12mm; }
@media print { :root { --ink: #000; --soft: #444; --paper: #fff; --panel: #f2f2f2; --line: #bbb; --bad: #8c1d18;
  --bad-soft: #fff; --warn: #6b4600; --warn-soft: #fff; --good: #1b7f4d; --wait: #777; }
  body { padding: 0; font-size: 10px; max-width: none; } .find { display: none; } thead th { position: static; }
  tr, .facts div { break-inside: avoid; } .strip img { max-height: 80px; } td:first-child { min-width: 88mm; }
  th, td { padding: 4px; } thead th, .tag { font-size: 8px; } h2 { break-after: avoid; }
  .bar, .bar i, .key i { print-color-adjust: exact; -webkit-print-color-adjust: exact; } a { color: inherit; } }
"""

# Rows are hidden or put into another order; the page says everything without it.
SCRIPT = """
const tables = [...document.querySelectorAll("table.slides")];
const rows = tables.flatMap(table => [...table.tBodies[0].rows]);
const number = text => { const n = parseFloat(text.replaceAll(",", "")); return isNaN(n) ? null : n; };
const cell = (row, k) => (row.cells[k].dataset.key ?? row.cells[k].textContent).trim();
for (const table of tables) {
  for (const [k, head] of [...table.tHead.rows[0].cells].entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const keyed = [...table.tBodies[0].rows].map(row => [cell(row, k), row]);
      const numeric = !head.classList.contains("t");
      keyed.sort(([a], [b]) => {
        const [x, y] = numeric ? [number(a), number(b)] : [a || null, b || null];
        if (x === null || y === null) return (x === null) - (y === null);  // what is unknown stays below
        const order = numeric ? x - y : x.localeCompare(y, undefined, { numeric: true });
        return up ? order : -order;
      });
      table.tBodies[0].append(...keyed.map(([, row]) => row));
    });
  }
}
const box = document.getElementById("filter"), said = document.getElementById("shown");
const filter = () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let count = 0;
  for (const row of rows) {
    const text = words.length ? row.textContent.toLowerCase() : "";
    const fits = words.every(word => text.includes(word));
    row.hidden = !fits;
    count += fits;
  }
  said.textContent = words.length ? `${count.toLocaleString("en")} of ${rows.length.toLocaleString("en")} slides` : "";
};
let soon;
box.addEventListener("input", () => { clearTimeout(soon); soon = setTimeout(filter, rows.length > 2000 ? 250 : 0); });
box.closest(".find").hidden = false;
if (box.value) filter();
"""
