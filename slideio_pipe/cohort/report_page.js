// Filters and sorts the rows; the page shows everything without it.
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
        if (x === null || y === null) return (x === null) - (y === null);  // unknown values are always last
        const order = numeric ? x - y : x.localeCompare(y, undefined, { numeric: true });
        return up ? order : -order;
      });
      table.tBodies[0].append(...keyed.map(([, row]) => row));
    });
  }
}
const box = document.getElementById("filter"), summary = document.getElementById("shown");
const filter = () => {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const row of rows) {
    const text = words.length ? row.textContent.toLowerCase() : "";
    const fits = words.every(word => text.includes(word));
    row.hidden = !fits;
    count += fits;
  }
  summary.textContent = words.length ? `${count.toLocaleString("en")} of ${rows.length.toLocaleString("en")} slides` : "";
};
let soon;
box.addEventListener("input", () => { clearTimeout(soon); soon = setTimeout(filter, rows.length > 2000 ? 250 : 0); });
box.closest(".find").hidden = false;
if (box.value) filter();
