// The layers over the slide: switches, opacity, legends; drawn over every pane.

import { json, send } from "./api.js";
import { apply, inverse } from "./affine.js";
import { GridLayer, MaskLayer, RegionLayer, TileLayer } from "./drawn_layers.js";
import { gradient, rounded } from "./values.js";

const TISSUE = "#00966e";
const KINDS = {
  tissue: { name: "Tissue mask", key: "T", opacity: 0.4 },
  grid: { name: "Grid of tiles", key: "G", opacity: 0.7 },
  annotations: { name: "Annotations", key: "A", opacity: 1 },
  tiles: { name: "Tiles of the bag", key: "B", opacity: 1 },
  scores: { name: "Scores", key: "S", opacity: 0.6 },
};

export class Layers {
  constructor(body, main) {
    this.body = body;
    this.overlays = [];
    this.state = Object.fromEntries(Object.entries(KINDS).map(([id, kind]) => [id, { on: false, opacity: kind.opacity }]));
    this.query = { tissue: {}, grid: {} };
    this.extra = []; // drawn on top: functions of a context and a frame
    this.over(main);
  }

  over(pane) {
    this.overlays.push(new Overlay(pane, this));
  }

  open(slide) {
    this.slide = slide;
    this.loaded = {};
    this.marked = null;
    this.body.replaceChildren();
    this.rows = {};
    for (const id of Object.keys(KINDS)) {
      if (!slide.layers.includes(id)) continue;
      this.rows[id] = this.row(id);
      this.body.append(this.rows[id].box);
    }
    if (!Object.keys(this.rows).length) {
      this.body.textContent = slide.mpp ? "This slide has no layers." : "Tissue and grid need the slide's resolution: start with --slide-mpp.";
    }
    for (const id of Object.keys(this.rows)) if (this.state[id].on) this.load(id);
    this.redraw();
  }

  row(id) {
    const kind = KINDS[id];
    const box = document.createElement("div");
    box.className = "layer";
    box.dataset.layer = id;
    box.innerHTML = `<label><input type="checkbox"><span></span><kbd></kbd></label>
      <input type="range" min="0" max="1" step="0.01" title="Opacity"><div class="legend"></div>`;
    const [check, opacity] = box.querySelectorAll("input");
    box.querySelector("span").textContent = kind.name;
    box.querySelector("kbd").textContent = kind.key;
    opacity.setAttribute("aria-label", `Opacity of ${kind.name.toLowerCase()}`);
    check.checked = this.state[id].on;
    opacity.value = this.state[id].opacity;
    check.addEventListener("change", () => this.use(id, check.checked));
    const fill = () => opacity.style.setProperty("--high", `${100 * opacity.value}%`);
    opacity.addEventListener("input", () => {
      this.state[id].opacity = Number(opacity.value);
      fill();
      this.redraw();
    });
    fill();
    const legend = box.querySelector(".legend");
    opacity.hidden = legend.hidden = !this.state[id].on;
    return { box, check, opacity, legend };
  }

  toggle(id) {
    if (this.rows?.[id]) this.use(id, !this.state[id].on);
  }

  async use(id, on) {
    this.state[id].on = on;
    const row = this.rows[id];
    row.check.checked = on;
    row.opacity.hidden = row.legend.hidden = !on;
    if (on && !this.loaded[id]) await this.load(id);
    this.redraw();
  }

  // Fetch a layer. If it is asked for again meanwhile, with other settings, the last one counts.
  async load(id) {
    const { slide } = this;
    const turn = (this.state[id].turn || 0) + 1;
    this.state[id].turn = turn;
    const row = this.rows[id];
    if (!this.loaded[id]) row.legend.textContent = "computing…";
    try {
      const found = await this.fetch(id);
      const made = await this.made(id, found);
      if (slide !== this.slide || turn !== this.state[id].turn) return;
      this.loaded[id] = made;
      this.legend(id, row.legend, made);
    } catch (error) {
      if (slide === this.slide && turn === this.state[id].turn) row.legend.textContent = error.message;
    }
    this.redraw();
  }

  // Corrections by hand are sent with the settings; without any the address says everything.
  fetch(id) {
    const path = `slides/${this.slide.id}/layers/${id}.json`;
    const settings = id === "grid" ? { ...this.query.tissue, ...this.query.grid } : this.query[id] || {};
    const edits = id === "tissue" || id === "grid" ? this.edits?.() || [] : [];
    return edits.length ? send(path, { settings, edits }) : json(`${path}?${new URLSearchParams(settings)}`);
  }

  async made(id, found) {
    if (id === "tissue") return MaskLayer.load(found, TISSUE);
    if (id === "grid") return new GridLayer(found);
    if (id === "annotations") return new RegionLayer(found);
    if (!found.count) return null;
    const layer = new TileLayer(found);
    layer.outlines = id === "tiles";
    layer.filled = id === "scores";
    return layer;
  }

  legend(id, box, layer) {
    box.replaceChildren();
    if (!layer) box.textContent = "none for this slide";
    else if (id === "tissue") this.tissueLegend(box, layer);
    else if (id === "grid") this.gridLegend(box, layer);
    else if (id === "annotations") this.classLegend(box, layer);
    else if (id === "tiles") this.tileLegend(box, layer);
    else this.scoreLegend(box, layer);
  }

  tissueLegend(box, { facts }) {
    const area = facts.area_mm2 === null ? "" : `, ${facts.area_mm2} mm²`;
    box.append(line("swatch", `tissue: ${(100 * facts.fraction).toFixed(1)} % of the slide${area}`, TISSUE));
    this.onTissue?.(facts);
  }

  gridLegend(box, layer) {
    const total = layer.fractions.length;
    const number = (value) => value.toLocaleString("en-US");
    box.append(bar("tissue", `${Math.round(100 * layer.min_tissue)} %`, "100 %", "tissue in a tile"));
    box.append(line("swatch", `${number(total - layer.kept)} dropped, ${number(layer.kept)} kept of ${number(total)}`, "rgb(110 110 110 / .5)"));
    box.append(this.fields("grid", [
      ["tile_size", "Tile", layer.tile_size, "px", 16],
      ["tile_mpp", "µm per px", layer.mpp, "", 0.01],
      ["min_tissue", "Min. tissue", layer.min_tissue, "", 0.05],
    ]));
  }

  fields(id, list) {
    const box = document.createElement("div");
    box.className = "fields";
    for (const [name, text, value, unit, step] of list) {
      if (value === null) continue;
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "number", step, min: 0, value });
      input.dataset.setting = name;
      label.append(`${text}${unit ? `, ${unit}` : ""}`, input);
      input.addEventListener("change", () => {
        this.query[id][name] = input.value;
        this.load(id);
      });
      box.append(label);
    }
    return box;
  }

  classLegend(box, layer) {
    if (!layer.classes.length) box.textContent = "none for this slide";
    for (const { name, colour } of layer.classes) {
      const label = document.createElement("label");
      label.className = "line";
      const check = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
      check.addEventListener("change", () => {
        if (check.checked) layer.hidden.delete(name);
        else layer.hidden.add(name);
        this.redraw();
      });
      label.append(check, line("swatch", name, colour));
      box.append(label);
    }
  }

  // Outlines, or filled with one of the numbers of the tiles, such as their focus.
  tileLegend(box, layer) {
    box.append(line("swatch outline", `${layer.count.toLocaleString("en-US")} tiles`));
    if (layer.names.length < 2) return;
    const choice = document.createElement("select");
    choice.setAttribute("aria-label", "Colour of the tiles");
    for (const name of ["", ...layer.names]) {
      choice.add(new Option(name || "outlines", name, false, name === (layer.filled ? layer.chosen : "")));
    }
    choice.addEventListener("change", () => {
      layer.filled = choice.value !== "";
      layer.chosen = choice.value || layer.names[0];
      layer.cut = 0;
      this.legend("tiles", box, layer);
      this.redraw();
    });
    box.append(choice);
    if (layer.filled) this.cutLegend(box, layer, "tile-cut");
  }

  scoreLegend(box, layer) {
    if (layer.names.length > 1) {
      const choice = document.createElement("select");
      choice.setAttribute("aria-label", "Which score");
      for (const name of layer.names) choice.add(new Option(name, name, false, name === layer.chosen));
      choice.addEventListener("change", () => {
        layer.chosen = choice.value;
        layer.cut = layer.usualCut();
        this.legend("scores", box, layer);
        this.redraw();
      });
      box.append(choice);
    }
    this.cutLegend(box, layer, "score-cut");
  }

  // The colours of the chosen number, and from where it is drawn.
  cutLegend(box, layer, id) {
    const [low, high] = layer.range;
    const what = layer.chosen === "attention" ? "attention, times its mean" : layer.chosen || "";
    box.append(bar("heat", rounded(low), rounded(high), what));
    const cut = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 1, step: "any", value: layer.cut });
    cut.id = id;
    const said = document.createElement("p");
    said.className = "soft";
    const show = () => {
      layer.cut = Number(cut.value);
      cut.style.setProperty("--high", `${100 * layer.cut}%`);
      const values = layer.values[layer.chosen];
      const drawn = values.reduce((sum, value) => sum + (value >= layer.limit ? 1 : 0), 0);
      said.textContent = `from ${rounded(layer.limit)}: ${drawn.toLocaleString("en-US")} of ${layer.count.toLocaleString("en-US")} tiles`;
      this.redraw();
    };
    cut.setAttribute("aria-label", "Draw scores from");
    cut.addEventListener("input", show);
    box.append(cut, said);
    show();
  }

  // What the visible layers have at a place, the topmost first.
  at(x, y) {
    const found = [];
    for (const id of Object.keys(KINDS).reverse()) {
      const layer = this.state[id].on && this.loaded?.[id];
      const here = layer && layer.at(x, y);
      if (here) found.push({ id, ...here });
    }
    return found;
  }

  redraw() {
    for (const overlay of this.overlays) overlay.draw();
  }
}

// A canvas over one pane.
class Overlay {
  constructor(pane, layers) {
    this.pane = pane;
    this.layers = layers;
    this.canvas = document.createElement("canvas");
    this.canvas.className = "overlay";
    pane.viewer.canvas.append(this.canvas);
    pane.frameHandlers.push(() => this.draw());
  }

  draw() {
    const { canvas, layers, pane } = this;
    if (!pane.slide || !pane.plain) return;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(pane.element.clientWidth * ratio), Math.round(pane.element.clientHeight * ratio)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    const affine = pane.level0ToScreen;
    const frame = { affine, ratio, seen: seenBy(affine, width / ratio, height / ratio) };
    for (const id of Object.keys(KINDS)) {
      const layer = layers.state[id].on && layers.loaded?.[id];
      if (!layer) continue;
      context.globalAlpha = layers.state[id].opacity;
      layer.draw(context, frame);
    }
    context.globalAlpha = 1;
    if (layers.marked) mark(context, frame, layers.marked);
    for (const extra of layers.extra) extra(context, frame);
  }
}

// Bounds of what is on the screen, level-0 px.
function seenBy(affine, width, height) {
  const back = inverse(affine);
  const corners = [[0, 0], [width, 0], [0, height], [width, height]].map(([x, y]) => apply(back, x, y));
  const [xs, ys] = [corners.map(([x]) => x), corners.map(([, y]) => y)];
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

function mark(context, { affine, ratio }, corners) {
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.beginPath();
  corners.forEach(([x, y], k) => {
    const [atX, atY] = apply(affine, x, y);
    if (k) context.lineTo(atX, atY);
    else context.moveTo(atX, atY);
  });
  context.closePath();
  for (const [colour, width] of [["#fff", 5], ["#d6200c", 2.5]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke();
  }
}

function line(kind, text, colour) {
  const box = document.createElement("span");
  box.className = "line";
  const swatch = document.createElement("i");
  swatch.className = kind;
  if (colour) swatch.style.background = colour;
  box.append(swatch, text);
  return box;
}

function bar(name, low, high, text) {
  const box = document.createElement("div");
  box.className = "bar-legend";
  box.innerHTML = "<i></i><span></span><span></span><span></span>";
  const [scale, first, middle, last] = box.children;
  scale.style.background = gradient(name);
  [first.textContent, middle.textContent, last.textContent] = [low, text, high];
  return box;
}

