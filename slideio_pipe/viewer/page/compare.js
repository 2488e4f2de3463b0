// Original and augmented: side by side, or with a line between them; eight draws of one place.

import { base, send } from "./api.js";
import { parts } from "./affine.js";
import { Pane } from "./pane.js";

const element = (id) => document.getElementById(id);

export class Comparison {
  constructor(main, augmentation) {
    this.main = main;
    this.augmentation = augmentation;
    this.mode = "one";
    this.stage = element("stage");
    document.querySelectorAll("#modes button").forEach((button) =>
      button.addEventListener("click", () => this.use(button.dataset.mode)));
    main.frameHandlers.push(() => this.follow(this.main, this.original));
    this.useWipe();
  }

  async open(slide) {
    this.slide = slide;
    if (this.original) await this.original.open(slide);
    this.use(this.mode === "eight" ? "one" : this.mode);
  }

  async use(mode) {
    const { middle, whole } = this.main; // before the pane has another width
    this.mode = mode;
    this.arranged = false;
    this.stage.dataset.mode = mode;
    document.querySelectorAll("#modes button").forEach((button) =>
      button.setAttribute("aria-pressed", String(button.dataset.mode === mode)));
    element("wipe").hidden = mode !== "wipe";
    element("eight").hidden = mode !== "eight";
    if (mode === "eight") {
      await this.eight(middle);
      return;
    }
    if (mode !== "one" && !this.original) {
      this.original = new Pane(element("original"));
      this.original.frameHandlers.push(() => this.follow(this.original, this.main));
      this.original.onDamaged = this.main.onDamaged;
      this.onOriginal?.(this.original);
      await this.original.open(this.slide);
    }
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))); // the new widths
    for (const pane of [this.main, this.original]) if (pane) pane.viewer.forceResize();
    if (whole) this.main.viewer.viewport.goHome(true); // what was seen as a whole stays whole
    this.follow(this.main, this.original);
    this.main.viewer.forceRedraw();
    this.arranged = true;
  }

  // Show in one pane the tissue that is in the middle of the other, as large. In a wipe it is turned alike.
  follow(from, to) {
    if (this.mode === "one" || this.mode === "eight" || this.moving || !from?.plain || !to?.plain) return;
    if (from === this.original && this.mode === "wipe") return;
    this.moving = true;
    const { viewport } = to.viewer;
    if (to === this.original) this.turnAlike(viewport);
    const { clientWidth, clientHeight } = from.element;
    const [x, y] = from.level0At(clientWidth / 2, clientHeight / 2);
    const zoom = Math.sqrt(Math.abs(area(from.level0ToScreen) / area(to.level0ToScreen)));
    if (Math.abs(zoom - 1) > 1e-9) viewport.zoomTo(viewport.getZoom(true) * zoom, null, true);
    const [worldX, worldY] = to.worldOf(x, y);
    viewport.panTo(new OpenSeadragon.Point(worldX, worldY), true);
    this.moving = false;
  }

  // In a wipe, turn and mirror the original as the draw does. A viewport turns before it mirrors, a draw after.
  turnAlike(viewport) {
    const { degrees, mirrored } = parts(this.main.shown.affine);
    const wipe = this.mode === "wipe";
    const turn = wipe ? (mirrored ? -degrees : degrees) : 0;
    if (viewport.getRotation() !== turn) viewport.setRotation(turn, true);
    if (viewport.getFlip() !== (wipe && mirrored)) viewport.setFlip(wipe && mirrored);
  }

  useWipe() {
    const line = element("wipe");
    const move = (share) => {
      this.share = Math.min(0.99, Math.max(0.01, share));
      this.stage.style.setProperty("--wipe", `${100 * this.share}%`);
      line.setAttribute("aria-valuenow", Math.round(100 * this.share));
    };
    line.addEventListener("pointerdown", (event) => {
      line.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    line.addEventListener("pointermove", (event) => {
      if (!line.hasPointerCapture(event.pointerId)) return;
      const box = this.stage.getBoundingClientRect();
      move((event.clientX - box.left) / box.width);
    });
    line.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") move(this.share + (event.key === "ArrowLeft" ? -0.02 : 0.02));
    });
    move(0.5);
  }

  // Eight draws with the next seeds, of the place in the middle; a click takes one.
  async eight([x, y]) {
    const box = element("eight");
    const side = Math.max(64, Math.round(box.clientWidth / 4));
    const tall = Math.max(64, Math.round(box.clientHeight / 2));
    const down = (this.slide.downsample[0] + this.slide.downsample[1]) / 2;
    const shrink = Math.max(1, 1 / Math.sqrt(Math.abs(area(this.main.level0ToScreen))) / down);
    const first = Number(this.augmentation.seed.value);
    const epoch = Number(this.augmentation.epoch.value);
    const turn = (this.turn || 0) + 1;
    this.turn = turn;
    box.replaceChildren();
    for (let k = 0; k < 8; k += 1) {
      const seed = first + k;
      const locked = Object.fromEntries([...this.augmentation.locked].map((id) => [id, this.augmentation.values[id]]));
      const draw = await send(`slides/${this.slide.id}/draws`, { seed, epoch, locked });
      if (turn !== this.turn) return;
      const button = document.createElement("button");
      button.type = "button";
      button.title = draw.summary;
      const image = document.createElement("img");
      image.alt = `Seed ${seed}: ${draw.summary}`;
      image.src = `${base}slides/${this.slide.id}/region/${draw.digest}.jpg?x=${x}&y=${y}&shrink=${shrink}&width=${side}&height=${tall}`;
      const name = document.createElement("span");
      name.textContent = `seed ${seed}`;
      button.append(image, name);
      button.addEventListener("click", () => {
        this.augmentation.seed.value = seed;
        this.use("one");
        this.augmentation.draw();
      });
      box.append(button);
    }
  }
}

function area([a, b, , d, e]) {
  return a * e - b * d;
}

