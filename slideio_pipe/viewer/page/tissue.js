// Tissue by sliders and by hand: settings of the mask, regions that are added or erased, and what is saved.

import { ask, send } from "./api.js";
import { apply } from "./affine.js";
import { notify } from "./notice.js";

const SLIDERS = [
  ["threshold", "Threshold", 0.01, 0.6, 0.005, (value) => value.toFixed(3)],
  ["min_area_um2", "Smallest piece", 0, 1000, 2, (value) => `${value.toFixed(0)} µm wide`],
  ["max_hole_um2", "Holes filled up to", 0, 1000, 2, (value) => `${value.toFixed(0)} µm wide`],
];
const COLOURS = { add: "#00966e", erase: "#d6200c", region: "#1757a6" };

export class Tissue {
  constructor(body, viewer, { saves, tissue }) {
    this.body = body;
    this.viewer = viewer;
    this.layers = viewer.layers;
    this.edits = new Map(); // by slide
    this.unsaved = new Set(); // ids of slides with something drawn since the last file
    this.settings = {};
    this.first = tissue;
    this.build(saves);
    this.layers.edits = () => this.current.filter(({ kind }) => kind !== "region");
    this.layers.onTissue = (facts) => this.take(facts);
    this.layers.extra.push((context, frame) => this.paint(context, frame));
    this.drawing = null;
    this.listen();
  }

  get current() {
    const { slide } = this.viewer;
    if (!slide) return [];
    if (!this.edits.has(slide.id)) this.edits.set(slide.id, []);
    return this.edits.get(slide.id);
  }

  build(saves) {
    this.body.innerHTML = `
      <label class="row">Method <select id="tissue-method"><option value="otsu">density and texture (otsu)</option>
        <option value="threshold">saturation (threshold)</option></select></label>
      <label class="row check"><input type="checkbox" id="tissue-auto" checked> Automatic threshold, for each slide</label>
      <div id="tissue-sliders"></div>
      <label class="row check"><input type="checkbox" id="tissue-pen" checked> Leave out pen marks</label>
      <h3>By hand</h3>
      <div class="row tools" role="group" aria-label="Draw on the slide">
        <button type="button" data-tool="add" aria-pressed="false" title="Draw around tissue that was missed">Add tissue</button>
        <button type="button" data-tool="erase" aria-pressed="false" title="Draw around what is no tissue">Erase tissue</button>
        <button type="button" data-tool="region" aria-pressed="false" title="Draw around a region of a class">Region</button></div>
      <label class="row" id="class-row" hidden>Class <input type="text" id="region-class" value="Tumor" list="region-classes"></label>
      <datalist id="region-classes"><option>Tumor</option><option>Stroma</option><option>Necrosis</option>
        <option>Immune cells</option><option>Artefact</option></datalist>
      <p class="soft" id="draw-hint" hidden>Hold the mouse button and draw around it on the slide. Esc: move the slide again.</p>
      <p class="soft" id="edit-count">Nothing is drawn.</p>
      <div class="row"><button type="button" id="undo" disabled>Undo</button>
        <button type="button" id="mask-download" title="The mask, for QuPath">Mask as GeoJSON</button>
        <button type="button" id="regions-download" title="Regions with a class, for QuPath" disabled>Regions as GeoJSON</button></div>
      <div class="row" id="save-row"><button type="button" class="main" id="save">Save settings and mask</button></div>
      <div id="saved" hidden><p class="soft">To export with this mask:</p><code></code></div>`;
    const find = (id) => this.body.querySelector(`#${id}`);
    find("save-row").hidden = !saves;
    this.sliders = Object.fromEntries(SLIDERS.map((slider) => [slider[0], this.slider(find("tissue-sliders"), slider)]));
    find("tissue-method").addEventListener("change", (event) => this.set("method", event.target.value));
    find("tissue-pen").addEventListener("change", (event) => this.set("ignore_pen", event.target.checked));
    find("tissue-auto").addEventListener("change", (event) => {
      const { input } = this.sliders.threshold;
      this.set("threshold", event.target.checked ? "" : input.value);
    });
    find("tissue-auto").checked = this.first.threshold === null;
    find("tissue-pen").checked = this.first.ignore_pen;
    find("tissue-method").value = this.first.method === "threshold" ? "threshold" : "otsu";
    this.body.querySelectorAll("[data-tool]").forEach((button) => button.addEventListener("click", () =>
      this.use(this.drawing === button.dataset.tool ? null : button.dataset.tool)));
    find("undo").addEventListener("click", () => this.undo());
    find("mask-download").addEventListener("click", () => this.download("tissue"));
    find("regions-download").addEventListener("click", () => this.download("regions"));
    find("save").addEventListener("click", () => this.save());
    this.find = find;
    this.body.parentElement.addEventListener("toggle", () => this.unfolded());
  }

  // On a small screen the part of augmentation makes room.
  unfolded() {
    const part = this.body.parentElement;
    if (part.open && part.scrollHeight > part.clientHeight) document.getElementById("augment").open = false;
  }

  // A slider whose area is shown, and moved, as the side of a square.
  slider(box, [name, text, low, high, step, words]) {
    const row = document.createElement("div");
    row.className = "control";
    row.innerHTML = `<label></label><output></output><span></span><input type="range">`;
    const [label, output, , input] = row.children;
    label.textContent = text;
    label.htmlFor = input.id = `tissue-${name}`;
    const area = name.endsWith("um2");
    const first = area ? Math.sqrt(this.first[name]) : this.first.threshold ?? 0.1;
    Object.assign(input, { min: low, max: high, step, value: first });
    const show = () => {
      output.textContent = words(Number(input.value));
      input.style.setProperty("--high", `${(100 * (input.value - low)) / (high - low)}%`);
    };
    input.addEventListener("input", () => {
      show();
      if (name === "threshold") this.find("tissue-auto").checked = false;
      this.set(name, area ? Number(input.value) ** 2 : Number(input.value));
    });
    show();
    box.append(row);
    return { input, show };
  }

  set(name, value) {
    this.settings[name] = value;
    this.layers.query.tissue = this.settings;
    this.refresh();
  }

  // Show the mask, and compute it again; while it is computed, only the last wish is kept.
  async refresh() {
    if (!this.layers.rows.tissue) return;
    this.layers.state.tissue.on = true;
    this.layers.rows.tissue.check.checked = true;
    this.layers.rows.tissue.opacity.hidden = this.layers.rows.tissue.legend.hidden = false;
    this.again = true;
    if (this.busy) return;
    this.busy = true;
    while (this.again) {
      this.again = false;
      await this.layers.load("tissue");
    }
    this.busy = false;
    if (this.layers.state.grid.on) this.layers.load("grid");
    else delete this.layers.loaded.grid;
  }

  take({ threshold }) {
    const { input, show } = this.sliders.threshold;
    if (threshold === null || !this.find("tissue-auto").checked) return;
    input.value = threshold;
    show();
  }

  open() {
    this.use(null);
    this.count();
    this.find("saved").hidden = true;
  }

  // -- by hand --------------------------------------------------------------------------------------------------

  use(tool) {
    this.drawing = tool;
    this.body.querySelectorAll("[data-tool]").forEach((button) =>
      button.setAttribute("aria-pressed", String(button.dataset.tool === tool)));
    this.find("class-row").hidden = tool !== "region";
    this.find("draw-hint").hidden = !tool;
    this.viewer.main.viewer.setMouseNavEnabled(!tool);
    this.viewer.main.element.classList.toggle("drawing", Boolean(tool));
  }

  listen() {
    const { element } = this.viewer.main;
    const at = (event) => {
      const box = element.getBoundingClientRect();
      return this.viewer.main.level0At(event.clientX - box.left, event.clientY - box.top);
    };
    element.addEventListener("pointerdown", (event) => {
      if (!this.drawing || event.button) return;
      this.ring = [at(event)];
      event.stopPropagation();
    }, true);
    window.addEventListener("pointermove", (event) => {
      if (!this.ring) return;
      this.ring.push(at(event));
      this.layers.redraw();
    });
    window.addEventListener("pointerup", () => {
      const { ring } = this;
      this.ring = null;
      if (ring && ring.length > 3) this.add(ring);
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.drawing) {
        this.ring = null;
        this.use(null);
        this.layers.redraw();
      }
      const typing = event.target.matches("input[type=text], input[type=search], input[type=number], textarea");
      if (event.key === "z" && (event.ctrlKey || event.metaKey) && !typing && this.current.length) {
        event.preventDefault(); // else the browser also takes back what was typed
        this.undo();
      }
    });
    window.addEventListener("beforeunload", (event) => {
      if (this.unsaved.size) event.preventDefault();
    });
  }

  add(ring) {
    const edit = { kind: this.drawing, ring };
    if (edit.kind === "region") edit.class = this.find("region-class").value.trim();
    this.current.push(edit);
    this.changed(edit);
  }

  undo() {
    this.changed(this.current.pop());
  }

  changed(edit) {
    const { id } = this.viewer.slide;
    if (this.current.length) this.unsaved.add(id);
    else this.unsaved.delete(id);
    this.count();
    this.layers.redraw();
    if (edit && edit.kind !== "region") this.refresh();
  }

  count() {
    const kinds = { add: 0, erase: 0, region: 0 };
    for (const { kind } of this.current) kinds[kind] += 1;
    const said = [];
    if (kinds.add) said.push(`${kinds.add} added`);
    if (kinds.erase) said.push(`${kinds.erase} erased`);
    if (kinds.region) said.push(`${kinds.region} with a class`);
    this.find("edit-count").textContent = said.length ? `Drawn: ${said.join(", ")}.` : "Nothing is drawn.";
    this.find("undo").disabled = !this.current.length;
    this.find("regions-download").disabled = !kinds.region;
  }

  paint(context, { affine, ratio }) {
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = "600 13px sans-serif";
    for (const { kind, ring, class: name } of this.current) if (kind === "region") outline(context, affine, ring, kind, name);
    if (this.ring) outline(context, affine, this.ring, this.drawing);
  }

  // -- files ----------------------------------------------------------------------------------------------------

  get sent() {
    return { settings: { ...this.settings, ...this.layers.query.grid }, edits: this.current };
  }

  async save() {
    try {
      const { slide } = this.viewer;
      const { files } = await send(`slides/${slide.id}/save`, this.sent);
      this.unsaved.delete(slide.id);
      notify(`Saved: ${files.join(", ")}`, { good: true });
      const [settings, mask] = files.map(quoted);
      const saved = this.find("saved");
      saved.hidden = false;
      saved.querySelector("code").textContent =
        `slideio-pipe export ${quoted(slide.name)} --config ${settings} --mask ${mask}`;
      saved.scrollIntoView({ block: "nearest" });
    } catch (error) {
      notify(error.message);
    }
  }

  async download(what) {
    try {
      const { slide } = this.viewer;
      const options = { method: "POST", body: JSON.stringify(this.sent), headers: { "Content-Type": "application/json" } };
      const reply = await ask(`slides/${slide.id}/${what}.geojson`, options);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await reply.blob());
      link.download = `${slide.name.replace(/\.[^.]*$/, "")}${what === "regions" ? ".regions" : ""}.geojson`;
      link.click();
      this.unsaved.delete(slide.id);
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    } catch (error) {
      notify(error.message);
    }
  }
}

// A word of a command line, which no shell takes for anything else.
function quoted(word) {
  if (/^[\w./:-]+$/.test(word)) return word;
  return /["$`!]/.test(word) ? `'${word.replaceAll("'", "'\\''")}'` : `"${word}"`;
}

function outline(context, affine, ring, kind, name) {
  context.beginPath();
  ring.forEach(([x, y], k) => {
    const [atX, atY] = apply(affine, x, y);
    if (k) context.lineTo(atX, atY);
    else context.moveTo(atX, atY);
  });
  context.closePath();
  context.strokeStyle = context.fillStyle = COLOURS[kind];
  context.lineWidth = 2.5;
  context.globalAlpha = 0.15;
  context.fill();
  context.globalAlpha = 1;
  context.stroke();
  if (!name) return;
  const [x, y] = apply(affine, ...ring[0]);
  context.lineWidth = 4; // a white rim: the name is read on dark tissue too
  context.lineJoin = "round";
  context.strokeStyle = "#fff";
  context.strokeText(name, x, y - 7);
  context.fillText(name, x, y - 7);
}
