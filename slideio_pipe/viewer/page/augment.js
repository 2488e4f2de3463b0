// The augmentation: controls, the draw that they mean, "draw again", and copies of it.

import { send } from "./api.js";
import { notify } from "./notice.js";

// After this long without a change the exact tiles are fetched.
const REST_MS = 140;

export class Augmentation {
  constructor(body, { controls, notes, seed }, show) {
    this.controls = controls;
    this.show = show; // called with a draw, and whether exact tiles are wanted
    this.values = this.neutral();
    this.locked = new Set();
    this.rows = new Map();
    this.build(body, notes, seed);
  }

  neutral() {
    return Object.fromEntries(this.controls.map(({ id, neutral }) => [id, neutral]));
  }

  build(body, notes, seed) {
    body.innerHTML = `
      <div class="row"><button type="button" class="main" id="draw-again" title="Draw with the next seed (Space)">Draw again</button>
        <button type="button" id="as-scanned" title="Take every change back">As scanned</button>
        <button type="button" id="own-draw" title="The draw that this view or bag came with" hidden>Own draw</button></div>
      <div class="row"><label>Seed <input type="number" id="seed" min="0" step="1"></label>
        <label>Epoch <input type="number" id="epoch" min="0" step="1" value="0"></label></div>
      <p id="summary" class="soft" aria-live="polite">as scanned</p>
      <div id="controls"></div>
      <div class="row copies"><span class="soft">Copy as</span>
        <button type="button" data-copy="python" title="Python that makes this view">Python</button>
        <button type="button" data-copy="yaml" title="A configuration, as in configs/">YAML</button>
        <button type="button" data-copy="json" title="The draw itself">JSON</button></div>
      <details class="load"><summary>Load a draw</summary>
        <textarea id="draw-text" rows="4" spellcheck="false" aria-label="JSON of a draw" placeholder="JSON of a draw"></textarea>
        <button type="button" id="draw-load">Show it</button></details>`;
    const find = (selector) => body.querySelector(selector);
    for (const note of notes) {
      const line = document.createElement("p");
      line.className = "note";
      line.textContent = note;
      find("#summary").after(line);
    }
    this.seed = find("#seed");
    this.epoch = find("#epoch");
    this.seed.value = seed;
    this.summary = find("#summary");
    find("#draw-again").addEventListener("click", () => this.again());
    find("#as-scanned").addEventListener("click", () => this.reset());
    this.ownButton = find("#own-draw");
    this.ownButton.addEventListener("click", () => this.own());
    for (const field of [this.seed, this.epoch]) field.addEventListener("change", () => this.draw());
    body.querySelectorAll("[data-copy]").forEach((button) =>
      button.addEventListener("click", () => this.copy(button.dataset.copy)));
    find("#draw-load").addEventListener("click", () => this.load(find("#draw-text").value));
    this.buildControls(find("#controls"));
  }

  buildControls(box) {
    let group = null;
    for (const control of this.controls) {
      if (control.group !== group) {
        group = control.group;
        const heading = document.createElement("h3");
        heading.textContent = group;
        box.append(heading);
        if (control.label === group && control.kind === "switch") {
          heading.append(this.toggle(control));
          continue;
        }
      }
      box.append(control.kind === "range" ? this.slider(control) : this.choice(control));
    }
  }

  // The switch of a whole transform, beside its name.
  toggle(control) {
    const box = document.createElement("input");
    box.type = "checkbox";
    box.title = `${control.group} on or off`;
    box.setAttribute("aria-label", box.title);
    box.addEventListener("change", () => this.set(control.id, box.checked ? 1 : 0, true));
    this.rows.set(control.id, (value) => { box.checked = value >= 0.5; });
    return box;
  }

  slider(control) {
    const row = document.createElement("div");
    row.className = "control";
    row.dataset.control = control.id;
    const name = `control-${control.id}`;
    row.innerHTML = `<label></label><output></output><button type="button" class="lock" aria-pressed="false"></button>
      <input type="range">`;
    const [label, output, lock, input] = row.children;
    label.textContent = control.label;
    label.htmlFor = input.id = name;
    const step = (control.high - control.low) / 400;
    Object.assign(input, { min: control.low, max: control.high, step });
    input.title = "Double-click: the value that changes nothing";
    input.addEventListener("input", () => this.set(control.id, Number(input.value), false));
    input.addEventListener("change", () => this.rest(0));
    input.addEventListener("dblclick", () => this.set(control.id, control.neutral, true));
    this.lockButton(lock, control);
    this.rows.set(control.id, (value) => {
      input.value = value;
      output.textContent = shown(value, control);
      const share = (x) => (100 * (x - control.low)) / (control.high - control.low);
      const [low, high] = [value, control.neutral].sort((a, b) => a - b).map(share);
      input.style.setProperty("--low", `${low}%`);
      input.style.setProperty("--high", `${high}%`);
    });
    return row;
  }

  choice(control) {
    const row = document.createElement("div");
    row.className = "control";
    row.dataset.control = control.id;
    row.innerHTML = `<label></label><span></span><button type="button" class="lock" aria-pressed="false"></button>`;
    const [label, , lock] = row.children;
    const input = document.createElement(control.kind === "switch" ? "input" : "select");
    if (control.kind === "switch") input.type = "checkbox";
    else for (let k = control.low; k <= control.high; k += 1) input.add(new Option(String(k), String(k)));
    input.id = label.htmlFor = `control-${control.id}`;
    label.textContent = control.label;
    const read = () => (control.kind === "switch" ? Number(input.checked) : Number(input.value));
    input.addEventListener("change", () => this.set(control.id, read(), true));
    row.children[1].append(input);
    this.lockButton(lock, control);
    this.rows.set(control.id, (value) => {
      if (control.kind === "switch") input.checked = value >= 0.5;
      else input.value = String(Math.round(value));
    });
    return row;
  }

  lockButton(button, control) {
    const mark = () => {
      const locked = this.locked.has(control.id);
      button.setAttribute("aria-pressed", String(locked));
      button.textContent = locked ? "locked" : "lock";
      button.title = locked ? "Draw this value again as well" : "Keep this value when drawing again";
    };
    button.addEventListener("click", () => {
      if (!this.locked.delete(control.id)) this.locked.add(control.id);
      mark();
    });
    mark();
  }

  set(id, value, rested) {
    this.values[id] = value;
    const group = this.controls.find((each) => each.id === id.split(".")[0]);
    if (group && group.kind === "switch" && id.includes(".")) this.values[group.id] = 1; // moving a slider turns it on
    this.mark();
    this.ask({ values: this.values }, false);
    this.rest(rested ? 0 : REST_MS);
  }

  mark() {
    for (const [id, row] of this.rows) row(this.values[id]);
  }

  // Fetch the exact tiles when nothing has changed for a while.
  rest(after) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.rested = true;
      this.deliver();
    }, after);
  }

  // Ask for a draw. While one is asked for, only the last further wish is kept.
  async ask(wanted, exact) {
    this.wanted = wanted;
    this.rested = exact;
    if (this.asking) return;
    this.asking = true;
    try {
      while (this.wanted) {
        const now = this.wanted;
        this.wanted = null;
        const draw = await send(`slides/${this.slide.id}/draws`, now);
        this.draws = (this.draws || 0) + 1;
        this.latest = draw;
        this.last = now;
        this.exactShown = false;
        if (!now.values) this.take(draw);
        this.summary.textContent = draw.summary;
        if (!this.wanted) await this.show(draw, false);
      }
    } catch (error) {
      notify(error.message);
    } finally {
      this.asking = false;
    }
    this.deliver();
  }

  deliver() {
    if (!this.rested || this.asking || this.exactShown || !this.latest) return;
    this.exactShown = true;
    this.show(this.latest, true);
  }

  take(draw) {
    this.values = { ...this.neutral(), ...draw.values };
    this.mark();
  }

  open(slide) {
    this.slide = slide;
    this.latest = null;
    this.exactShown = false;
    this.ownButton.hidden = !slide.draw;
    this.mark();
  }

  // Show the draw that a view or a bag came with.
  own() {
    return this.ask({ draw: this.slide.draw, own: true }, true);
  }

  again() {
    this.seed.value = Number(this.seed.value) + 1;
    return this.draw();
  }

  draw() {
    const locked = Object.fromEntries([...this.locked].map((id) => [id, this.values[id]]));
    return this.ask({ seed: Number(this.seed.value), epoch: Number(this.epoch.value), locked }, true);
  }

  // What was last asked for, on another slide: the same seed draws other values there, as in a training.
  repeat() {
    if (this.last?.own) return this.reset();
    if (this.last?.draw) return this.ask(this.last, true);
    return this.last?.values ? this.ask({ values: this.values }, true) : this.draw();
  }

  reset() {
    this.values = this.neutral();
    this.mark();
    return this.ask({ values: this.values }, true);
  }

  load(text) {
    let draw;
    try {
      draw = JSON.parse(text);
    } catch {
      notify("This is no JSON. Paste what \"Copy as JSON\" copied, or Draw.to_json() printed.");
      return;
    }
    notify("");
    this.ask({ draw }, true);
  }

  async copy(kind) {
    if (!this.latest) await this.ask({ values: this.values }, true);
    await copyText(this.latest[kind], `${kind === "python" ? "Python" : kind.toUpperCase()} copied`);
  }
}

export async function copyText(text, said) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not allowed here: the old way
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  window.lastCopied = text; // for tests
  notify(said, { good: true, stays: 1600 });
}

function shown(value, { low, high, unit }) {
  const digits = high - low >= 50 ? 0 : high - low >= 8 ? 1 : 2;
  const text = (Math.abs(value) < 10 ** -digits / 2 ? 0 : value).toFixed(unit === "turns" ? 3 : digits);
  return unit === "°" ? `${text}°` : unit ? `${text} ${unit}` : text;
}
