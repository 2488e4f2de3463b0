// What a place is: coordinates under the pointer, magnification, and the scale bar.

import { scale } from "./affine.js";

const element = (id) => document.getElementById(id);
const whole = (value) => Math.round(value).toLocaleString("en-US");

export class Readout {
  constructor(pane) {
    this.pane = pane;
    pane.frameHandlers.push(() => this.frame());
  }

  // Level-0 px per px of the screen.
  get shrink() {
    return 1 / scale(this.pane.level0ToScreen);
  }

  frame() {
    if (!this.pane.slide) return;
    const { shrink } = this;
    const mpp = this.pane.slide.mpp && (this.pane.slide.mpp[0] + this.pane.slide.mpp[1]) / 2;
    element("zoom").textContent = mpp
      ? `${magnification(10 / (mpp * shrink))} · ${micrometres(mpp * shrink)} per pixel`
      : `1 : ${shrink.toPrecision(3)} · resolution of the slide unknown`;
    const [length, text, perPixel] = mpp ? barOf(mpp * shrink, "µm") : barOf(shrink, "px");
    element("scale-line").style.width = `${length / perPixel}px`;
    element("scale-text").textContent = text;
  }

  // Show the place under the pointer, px of the pane; nothing outside the slide.
  pointer(x, y) {
    const { slide } = this.pane;
    if (!slide) return;
    const [left, top] = this.pane.level0At(x, y);
    const [width, height] = slide.level0;
    const inside = left >= 0 && top >= 0 && left < width && top < height;
    const micro = slide.mpp && ` · x ${whole(left * slide.mpp[0])} µm, y ${whole(top * slide.mpp[1])} µm`;
    element("at").textContent = inside
      ? `x ${whole(Math.floor(left))}, y ${whole(Math.floor(top))} px${micro || ""}`
      : "outside the slide";
  }
}

export function magnification(value) {
  return `${value >= 10 ? Math.round(value) : Number(value.toPrecision(2))}×`;
}

export function micrometres(value) {
  if (value >= 1000) return `${Number((value / 1000).toPrecision(3))} mm`;
  return `${Number(value.toPrecision(3))} µm`;
}

// A round length between 70 and 175 px of the screen: its length, its text, and its unit per px.
function barOf(perPixel, unit) {
  const most = perPixel * 175;
  const power = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].map((step) => step * power).find((step) => step <= most);
  const text = unit === "µm" ? micrometres(length) : `${length.toLocaleString("en-US")} px`;
  return [length, text, perPixel];
}
