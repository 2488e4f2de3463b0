// A place that was clicked: where it is, what the layers have there, and the Python that reads it.

import { base, json } from "./api.js";
import { copyText } from "./augment.js";

const SIDE = 512; // px of the region whose middle is the place
const whole = (value) => Math.round(value).toLocaleString("en-US");

export class Place {
  constructor(body, viewer) {
    this.body = body;
    this.viewer = viewer;
    viewer.main.viewer.addHandler("canvas-click", (event) => {
      if (!event.quick || viewer.regions?.drawing) return;
      const [x, y] = viewer.main.level0At(event.position.x, event.position.y);
      this.show(x, y);
    });
  }

  clear() {
    this.body.innerHTML = '<p class="soft">Click the slide.</p>';
  }

  show(x, y) {
    const { slide, layers } = this.viewer;
    const found = layers.at(x, y);
    const rows = [["Level 0", `x ${whole(Math.floor(x))}, y ${whole(Math.floor(y))} px`]];
    if (slide.mpp) rows.push(["From the corner", `x ${whole(x * slide.mpp[0])}, y ${whole(y * slide.mpp[1])} µm`]);
    for (const each of found) rows.push(...each.rows);
    const table = document.createElement("table");
    table.className = "facts";
    for (const [name, value] of rows) {
      const row = table.insertRow();
      row.insertCell().textContent = name;
      row.insertCell().textContent = value;
    }
    const tile = found.find(({ outline }) => outline);
    layers.marked = tile ? tile.outline : null;
    const python = tile?.python || this.python(x, y, tile);
    const code = document.createElement("code");
    code.textContent = python;
    const copy = Object.assign(document.createElement("button"), { type: "button", textContent: "Copy Python" });
    copy.id = "copy-place";
    copy.addEventListener("click", () => copyText(python, "Python copied"));
    this.body.replaceChildren(table, code, copy);
    const bag = found.find(({ id, tile: number }) => id === "tiles" && number !== undefined);
    if (bag && slide.encoders?.length) this.nearest(bag.tile);
    layers.redraw();
  }

  python(x, y, tile) {
    if (tile?.id === "tiles") return `bag[${tile.tile}]`;
    if (tile?.outline) {
      const [[left, top], [right]] = tile.outline;
      return `slide.region(${Math.round(left)}, ${Math.round(top)}, size=${Math.round(right - left)})`;
    }
    const [left, top] = [x, y].map((middle) => Math.floor(middle) - SIDE / 2);
    return `slide.region(${left}, ${top}, size=${SIDE})`;
  }

  // The tiles of the bag that look most alike, by their features.
  async nearest(tile) {
    const { slide, layers } = this.viewer;
    const { encoder, tiles, cosines } = await json(`slides/${slide.id}/nearest.json?tile=${tile}`);
    const layer = layers.loaded.tiles;
    const box = document.createElement("div");
    box.className = "alike";
    tiles.forEach((number, k) => {
      const corners = layer.outlineOf(number);
      const [x, y] = [0, 1].map((axis) => (corners[0][axis] + corners[2][axis]) / 2);
      const side = Math.hypot(corners[1][0] - corners[0][0], corners[1][1] - corners[0][1]);
      const button = Object.assign(document.createElement("button"), { type: "button", title: `tile ${number}` });
      const image = Object.assign(document.createElement("img"), { alt: `tile ${number}` });
      const shrink = Math.max(1, side / slide.downsample[0] / 96);
      image.src = `${base}slides/${slide.id}/region/plain.jpg?x=${x}&y=${y}&shrink=${shrink}&width=96&height=96`;
      button.append(image, cosines[k].toFixed(2));
      button.addEventListener("click", () => {
        layers.marked = corners;
        this.viewer.main.moveTo(x, y);
        layers.redraw();
      });
      box.append(button);
    });
    const heading = document.createElement("p");
    heading.className = "soft";
    heading.textContent = `Most alike (cosine of ${encoder}):`;
    this.body.append(heading, box);
  }
}
