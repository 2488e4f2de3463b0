// What the file says about a slide, and its other images; label and macro only if the viewer was started with --labels.

import { base } from "./api.js";
import { rounded } from "./values.js";

export function showAbout(body, slide) {
  const number = (value) => value.toLocaleString("en-US");
  const rows = [
    ["Resolution", slide.mpp ? `${slide.mpp.map(rounded).join(" × ")} µm per pixel, from ${slide.mpp_source}` : "unknown"],
    ["Objective", slide.objective_power ? `${slide.objective_power}×` : "not stated"],
    ["Format", slide.vendor || "not stated"],
    ...slide.levels.map(([width, height], k) => [`Level ${k}`, `${number(width)} × ${number(height)} px`]),
  ];
  if (slide.note) rows.push(["Note", slide.note]);
  if (slide.label !== null) rows.push(["Label", slide.label]);
  if (slide.split !== null) rows.push(["Split", slide.split]);
  const table = document.createElement("table");
  table.className = "facts";
  for (const [name, value] of rows) {
    const row = table.insertRow();
    row.insertCell().textContent = name;
    row.insertCell().textContent = value;
  }
  const images = slide.associated.map((name) => {
    const figure = document.createElement("figure");
    const image = Object.assign(document.createElement("img"), { alt: name, loading: "lazy" });
    image.src = `${base}slides/${slide.id}/associated/${name}.jpg`;
    const caption = document.createElement("figcaption");
    caption.textContent = name;
    figure.append(image, caption);
    return figure;
  });
  body.replaceChildren(table, ...images);
}
