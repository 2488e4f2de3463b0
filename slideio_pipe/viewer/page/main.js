// Starts the page: opens the first slide and connects the parts.

import { json, whenGone } from "./api.js";
import { Augmentation } from "./augment.js";
import { showAbout } from "./about.js";
import { Comparison } from "./compare.js";
import { useKeys } from "./keys.js";
import { Layers } from "./layers.js";
import { notify } from "./notice.js";
import { Pane } from "./pane.js";
import { Place } from "./place.js";
import { Readout, micrometres } from "./readout.js";
import { SlideList } from "./slides.js";
import { Tissue } from "./tissue.js";

const element = (id) => document.getElementById(id);

function surround(name) {
  document.documentElement.dataset.surround = name;
  element("surround").textContent = name === "dark" ? "Light" : "Dark";
  try {
    localStorage.setItem("slideio-pipe-surround", name);
  } catch { /* not kept in a sandbox */ }
}

function firstSurround() {
  try {
    const kept = localStorage.getItem("slideio-pipe-surround");
    if (kept) return kept;
  } catch { /* not kept in a sandbox */ }
  return matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark";
}

function factsText(slide) {
  const [width, height] = slide.level0;
  const parts = [`${width.toLocaleString("en-US")} × ${height.toLocaleString("en-US")} px`];
  if (slide.mpp) {
    const [x, y] = slide.mpp;
    parts.push(`${Number(((x + y) / 2).toPrecision(4))} µm per pixel`);
    parts.push(`${micrometres(width * x)} × ${micrometres(height * y)}`);
  } else parts.push("resolution unknown: lengths are in pixels");
  if (slide.vendor) parts.push(slide.vendor);
  if (slide.label !== null) parts.push(`label ${slide.label}`);
  return parts.join(" · ");
}

class Viewer {
  constructor(scene) {
    this.scene = scene;
    const drawer = new URLSearchParams(location.search).get("drawer");
    this.main = new Pane(element("augmented"), { navigator: true, drawer });
    this.readout = new Readout(this.main);
    this.list = new SlideList(scene.slides, (slide) => this.show(slide));
    this.main.onDamaged = (problem) => notify(problem);
    this.augmentation = new Augmentation(element("augment").querySelector(".body"), scene, (draw, exact) =>
      this.showDraw(draw, exact));
    this.comparison = new Comparison(this.main, this.augmentation);
    this.layers = new Layers(element("layers").querySelector(".body"), this.main);
    this.comparison.onOriginal = (pane) => this.layers.over(pane);
    this.regions = new Tissue(element("tissue").querySelector(".body"), this, scene);
    this.place = new Place(element("place").querySelector(".body"), this);
    this.fresh = true;
    const pointer = (event) => {
      const box = this.main.element.getBoundingClientRect();
      this.at = [event.clientX - box.left, event.clientY - box.top];
      this.readout.pointer(...this.at);
    };
    this.main.element.addEventListener("pointermove", pointer);
    this.main.element.addEventListener("pointerleave", () => {
      this.at = null;
      element("at").textContent = "";
    });
  }

  async show(slide) {
    this.list.mark(slide);
    element("name").textContent = document.title = slide.name;
    element("facts").textContent = "";
    try {
      const facts = await json(`slides/${slide.id}/facts.json`);
      const { size, downsample } = facts;
      facts.level0 = facts.levels[0] || size.map((side, k) => Math.round(side * downsample[k]));
      this.slide = facts;
      notify(facts.note, { good: true });
      element("facts").textContent = factsText(facts);
      element("facts").title = factsText(facts);
      showAbout(element("about").querySelector(".body"), facts);
      this.augmentation.open(facts);
      await this.main.open(facts);
      this.layers.open(facts);
      element("tissue").hidden = !facts.layers.includes("tissue");
      this.regions.open();
      this.place.clear();
      await this.comparison.open(facts);
      if (facts.draw) await this.augmentation.own();
      else if (this.fresh && this.scene.start === "seed") await this.augmentation.draw();
      else if (this.augmentation.last) await this.augmentation.repeat();
      this.fresh = false;
    } catch (error) {
      notify(error.message);
    }
  }

  // Show a draw: at once as a preview, or by its exact tiles, which take the preview's place.
  async showDraw(draw, exact) {
    try {
      if (exact) await this.main.showDraw(draw);
      else await this.main.previewDraw(draw);
    } catch (error) {
      notify(error.message);
    }
  }

  // Full resolution; what is under the pointer stays there.
  full() {
    const { viewport } = this.main.viewer;
    const fixed = this.at && viewport.pointFromPixel(new OpenSeadragon.Point(...this.at));
    viewport.zoomTo(viewport.getZoom() * this.readout.shrink, fixed || undefined);
  }
}

function toggle(id) {
  element(id).hidden = !element(id).hidden;
}

async function start() {
  surround(firstSurround());
  element("surround").addEventListener("click", () => actions.d());
  element("help-open").addEventListener("click", () => element("help").showModal());
  element("panel-toggle").addEventListener("click", () => toggle("panel"));
  whenGone((gone) => notify(gone ? "The viewer has ended, or cannot be reached. Start it again, and open its new link." : ""));
  const viewer = new Viewer(await json("scene.json"));
  window.viewer = viewer; // for tests, and for the console
  const actions = {
    "?": () => element("help").showModal(),
    d: () => surround(document.documentElement.dataset.surround === "dark" ? "light" : "dark"),
    f: () => viewer.full(),
    " ": () => viewer.augmentation.again(),
    t: () => viewer.layers.toggle("tissue"),
    g: () => viewer.layers.toggle("grid"),
    a: () => viewer.layers.toggle("annotations"),
    b: () => viewer.layers.toggle("tiles"),
    s: () => viewer.layers.toggle("scores"),
    1: () => viewer.comparison.use("one"),
    2: () => viewer.comparison.use("side"),
    3: () => viewer.comparison.use("wipe"),
    4: () => viewer.comparison.use("eight"),
    l: () => viewer.list.toggle(),
    p: () => toggle("panel"),
    "[": () => viewer.list.step(-1),
    "]": () => viewer.list.step(1),
    peek: (on) => viewer.main.peek(on),
  };
  useKeys(viewer.main, actions);
  await viewer.show(viewer.scene.slides[0]);
}

// A notebook around this page shows it once it is there.
start().then(() => window.parent.postMessage("slideio-pipe: shown", "*")).catch((error) => notify(error.message));
