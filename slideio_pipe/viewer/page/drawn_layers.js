// The kinds of layers: how each is drawn over the slide, in level-0 px, and what it has at a place.

import { apply, inverse, scale } from "./affine.js";
import { colourAt, floats, rangeOf, rounded } from "./values.js";

const OUTLINE = "#102a6b";

// Prepare a canvas so that what is drawn is in level-0 px.
function inLevel0(context, affine, ratio) {
  const [a, b, c, d, e, f] = affine;
  context.setTransform(a * ratio, d * ratio, b * ratio, e * ratio, c * ratio, f * ratio);
}

function small(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

export class MaskLayer {
  static async load({ picture, affine, ...facts }, colour) {
    const image = new Image();
    image.src = picture;
    await image.decode();
    return Object.assign(new MaskLayer(), { affine, facts, image: tinted(image, colour) });
  }

  draw(context, { affine, ratio }) {
    const [a, , c, , e, f] = this.affine;
    inLevel0(context, affine, ratio);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.image, c, f, a * this.image.width, e * this.image.height);
  }

  has(x, y) {
    const [column, row] = apply(inverse(this.affine), x, y).map(Math.floor);
    const inside = column >= 0 && row >= 0 && column < this.image.width && row < this.image.height;
    return inside && this.image.getContext("2d").getImageData(column, row, 1, 1).data[3] > 0;
  }

  at(x, y) {
    return { rows: [["Tissue mask", this.has(x, y) ? "tissue" : "no tissue"]] };
  }
}

function tinted(image, colour) {
  const canvas = small(image.width, image.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = colour;
  context.fillRect(0, 0, canvas.width, canvas.height);
  return canvas;
}

export class GridLayer {
  constructor(grid) {
    Object.assign(this, grid);
    this.fractions = floats(grid.fractions);
    this.image = small(Math.max(1, this.columns), Math.max(1, this.rows));
    const context = this.image.getContext("2d");
    const pixels = context.createImageData(this.image.width, this.image.height);
    this.fractions.forEach((fraction, k) => {
      const kept = fraction >= this.min_tissue - 1e-6;
      const [red, green, blue] = kept ? colourAt((fraction - this.min_tissue) / (1 - this.min_tissue || 1), "tissue") : [110, 110, 110];
      pixels.data.set([red, green, blue, kept ? 190 : fraction > 0 ? 90 : 0], 4 * k);
    });
    context.putImageData(pixels, 0, 0);
  }

  draw(context, { affine, ratio, seen }) {
    inLevel0(context, affine, ratio);
    context.imageSmoothingEnabled = false;
    const [width, height] = this.step;
    const side = width * scale(affine);
    const { globalAlpha } = context;
    context.globalAlpha = globalAlpha * Math.min(1, Math.max(0.1, 1.25 - side / 120)); // near by, tissue is seen
    context.drawImage(this.image, 0, 0, this.columns * width, this.rows * height);
    context.globalAlpha = globalAlpha;
    if (side < 10) return;
    const [left, top, right, bottom] = seen;
    const clamp = (value, most) => Math.min(most, Math.max(0, value));
    context.beginPath();
    for (let row = clamp(Math.floor(top / height) - 1, this.rows); row < clamp(Math.ceil(bottom / height) + 1, this.rows); row += 1) {
      for (let column = clamp(Math.floor(left / width) - 1, this.columns); column < clamp(Math.ceil(right / width) + 1, this.columns); column += 1) {
        if (this.kept_at(column, row)) context.rect(column * width, row * height, ...this.side);
      }
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.strokeStyle = OUTLINE;
    context.lineWidth = side < 60 ? 0.75 : 1.5;
    context.stroke();
  }

  kept_at(column, row) {
    return this.fractions[row * this.columns + column] >= this.min_tissue - 1e-6;
  }

  at(x, y) {
    const [column, row] = [Math.floor(x / this.step[0]), Math.floor(y / this.step[1])];
    if (column < 0 || row < 0 || column >= this.columns || row >= this.rows) return null;
    const fraction = this.fractions[row * this.columns + column];
    const [left, top] = [column * this.step[0], row * this.step[1]];
    return {
      rows: [["Tile of the grid", `column ${column}, row ${row}`], ["Tissue", `${Math.round(100 * fraction)} %, ${this.kept_at(column, row) ? "kept" : "dropped"}`]],
      outline: [[left, top], [left + this.side[0], top], [left + this.side[0], top + this.side[1]], [left, top + this.side[1]]],
      python: `slide.region(${Math.round(left)}, ${Math.round(top)}, mpp=${this.mpp ?? "None"}, size=${this.tile_size})`,
    };
  }
}

export class RegionLayer {
  constructor({ classes, regions, ...marks }) {
    this.classes = classes;
    this.colours = Object.fromEntries(classes.map(({ name, colour }) => [name, colour]));
    this.regions = regions.map(({ rings, ...rest }) => {
      const path = new Path2D();
      for (const ring of rings) {
        ring.forEach(([x, y], k) => (k ? path.lineTo(x, y) : path.moveTo(x, y)));
        path.closePath();
      }
      return { ...rest, rings, path };
    });
    for (const name of ["points", "point_classes", "boxes", "box_classes"]) this[name] = floats(marks[name] || "");
    this.hidden = new Set();
    this.probe = small(1, 1).getContext("2d");
  }

  draw(context, { affine, ratio, seen }) {
    this.drawRegions(context, { affine, ratio });
    inLevel0(context, affine, ratio);
    this.classes.forEach(({ name, colour }, number) => {
      if (this.hidden.has(name)) return;
      context.fillStyle = context.strokeStyle = colour;
      this.drawBoxes(context, number, affine, seen);
      this.drawPoints(context, number, affine, seen);
    });
  }

  drawBoxes(context, number, affine, [left, top, right, bottom]) {
    context.lineWidth = 1.5 / scale(affine);
    const path = new Path2D();
    for (let k = 0; k < this.box_classes.length; k += 1) {
      const [x, y, endX, endY] = this.boxes.subarray(4 * k, 4 * k + 4);
      if (this.box_classes[k] !== number || endX < left || endY < top || x > right || y > bottom) continue;
      path.rect(x, y, endX - x, endY - y);
    }
    context.stroke(path);
  }

  // Dots, 6 px wide near by and 2 px from afar, where there may be 100,000.
  drawPoints(context, number, affine, [left, top, right, bottom]) {
    const radius = Math.min(3, Math.max(1, 8 * scale(affine))) / scale(affine);
    for (let k = 0; k < this.point_classes.length; k += 1) {
      const [x, y] = [this.points[2 * k], this.points[2 * k + 1]];
      if (this.point_classes[k] !== number || x < left || y < top || x > right || y > bottom) continue;
      context.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
    }
  }

  drawRegions(context, { affine, ratio }) {
    for (const { class: name, path } of this.regions) {
      if (this.hidden.has(name)) continue;
      inLevel0(context, affine, ratio);
      context.fillStyle = context.strokeStyle = this.colours[name] || "#ee6677";
      const alpha = context.globalAlpha;
      context.globalAlpha = alpha * 0.25;
      context.fill(path, "evenodd");
      context.globalAlpha = alpha;
      context.lineWidth = 2 / scale(affine);
      context.stroke(path);
    }
  }

  at(x, y) {
    const names = this.regions.filter(({ path }) => this.probe.isPointInPath(path, x, y, "evenodd")).map((each) => each.class);
    return { rows: [["Annotation", names.length ? [...new Set(names)].join(", ") : "none"]] };
  }
}

export class TileLayer {
  // Tiles with positions and, if there are some, scores; tiles below the cut are not drawn.
  constructor({ count, coords, edges, values }) {
    this.count = count;
    this.coords = floats(coords);
    this.edges = edges;
    this.values = Object.fromEntries(Object.entries(values).map(([name, text]) => [name, floats(text)]));
    this.names = Object.keys(this.values);
    this.chosen = this.names[0];
    this.cut = this.usualCut();
    this.outlines = false;
    this.filled = true;
  }

  // Where scores begin to be drawn at first: above the mean of attention, in the upper half of others.
  usualCut() {
    const [low, high] = this.range;
    return this.chosen === "attention" ? Math.max(0, (1 - low) / (high - low)) : 0.5;
  }

  get range() {
    return this.chosen ? rangeOf(this.values[this.chosen]) : [0, 1];
  }

  get limit() {
    const [low, high] = this.range;
    return low + this.cut * (high - low);
  }

  draw(context, { affine, ratio, seen }) {
    const [[ux, uy], [vx, vy]] = this.edges;
    const [left, top, right, bottom] = seen;
    const reach = Math.abs(ux) + Math.abs(vx) + Math.abs(uy) + Math.abs(vy);
    const values = this.filled && this.chosen ? this.values[this.chosen] : null;
    const [low, high] = this.range;
    const { limit } = this;
    const straight = uy === 0 && vx === 0;
    const large = Math.hypot(ux, uy) * scale(affine) > 10;
    inLevel0(context, affine, ratio);
    const outline = new Path2D();
    for (let k = 0; k < this.count; k += 1) {
      const [x, y] = [this.coords[2 * k], this.coords[2 * k + 1]];
      if (x + reach < left || y + reach < top || x - reach > right || y - reach > bottom) continue;
      if (values) {
        if (!(values[k] >= limit)) continue;
        const [red, green, blue] = colourAt((values[k] - low) / (high - low || 1));
        context.fillStyle = `rgb(${red} ${green} ${blue})`;
        if (straight) context.fillRect(x, y, ux, vy);
        else {
          context.beginPath();
          corner(context, x, y, this.edges);
          context.fill();
        }
      }
      if (large || !values) corner(outline, x, y, this.edges);
    }
    if (this.outlines) {
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      const seenPath = new Path2D();
      const [a, b, c, d, e, f] = affine;
      seenPath.addPath(outline, new DOMMatrix([a, d, b, e, c, f]));
      context.strokeStyle = OUTLINE;
      context.lineWidth = large ? 1.5 : 0.5;
      context.stroke(seenPath);
      if (Math.hypot(ux, uy) * scale(affine) > 60) this.number(context, affine, seen);
    }
  }

  number(context, affine, [left, top, right, bottom]) {
    context.font = "600 12px sans-serif";
    context.fillStyle = OUTLINE;
    for (let k = 0; k < this.count; k += 1) {
      const [x, y] = [this.coords[2 * k], this.coords[2 * k + 1]];
      if (x < left || y < top || x > right || y > bottom) continue;
      const [atX, atY] = apply(affine, x, y);
      context.fillText(String(k), atX + 4, atY + 14);
    }
  }

  outlineOf(k) {
    const [[ux, uy], [vx, vy]] = this.edges;
    const [x, y] = [this.coords[2 * k], this.coords[2 * k + 1]];
    return [[x, y], [x + ux, y + uy], [x + ux + vx, y + uy + vy], [x + vx, y + vy]];
  }

  find(x, y) {
    const [[ux, uy], [vx, vy]] = this.edges;
    const back = inverse([ux, vx, 0, uy, vy, 0]);
    for (let k = this.count - 1; k >= 0; k -= 1) {
      const [s, t] = apply(back, x - this.coords[2 * k], y - this.coords[2 * k + 1]);
      if (s >= 0 && t >= 0 && s < 1 && t < 1) return k;
    }
    return -1;
  }

  at(x, y) {
    const k = this.find(x, y);
    if (k < 0) return null;
    const scores = this.names.map((name) => [name[0].toUpperCase() + name.slice(1), rounded(this.values[name][k])]);
    return { rows: [["Tile", String(k)], ...scores], outline: this.outlineOf(k), tile: k };
  }
}

function corner(path, x, y, [[ux, uy], [vx, vy]]) {
  path.moveTo(x, y);
  path.lineTo(x + ux, y + uy);
  path.lineTo(x + ux + vx, y + uy + vy);
  path.lineTo(x + vx, y + vy);
  path.closePath();
}
