// One deep-zoom picture of a slide: the plain slide or the slide under a draw, previewed and then exact.
//
// The middle of the slide is at the origin of the picture's world, and one unit is the width of the plain slide.

import { IDENTITY, apply, inverse, parts, scale, scaling, shift, times } from "./affine.js";
import { sharpDrawer } from "./drawer.js";
import { ColourPreview } from "./preview.js";
import { tileSource } from "./tiles.js";

export const PLAIN = { digest: "plain", affine: IDENTITY, size: null, colours: "" };

// minPixelRatio: tiles at most 1.4 times finer than the screen are fetched; the usual 0.5 fetches up to four times as many.
const OPTIONS = {
  showNavigationControl: false, showZoomControl: false, maxTilesPerFrame: 16, imageLoaderLimit: 6, animationTime: 0.3,
  springStiffness: 9, zoomPerScroll: 1.35, zoomPerClick: 2, minZoomImageRatio: 0.4, visibilityRatio: 0.2,
  minPixelRatio: 0.7, preserveImageSizeOnResize: true, maxImageCacheCount: 260, timeout: 60000, silenceMultiImageWarnings: true,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true, flickEnabled: true },
  gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true },
  gestureSettingsPen: { clickToZoom: false, dblClickToZoom: true },
};

export class Pane {
  constructor(element, { navigator = false, drawer = null } = {}) {
    this.viewer = OpenSeadragon({
      ...OPTIONS, element, drawer: drawer || sharpDrawer(), showNavigator: navigator, navigatorPosition: "BOTTOM_RIGHT",
      navigatorSizeRatio: 0.16, navigatorAutoFade: false,
    });
    this.viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; }); // keys.js has all keys
    this.element = element;
    this.preview = new ColourPreview(this.viewer);
    this.frameHandlers = [];
    this.viewer.addHandler("update-viewport", () => this.frameHandlers.forEach((handler) => handler()));
    this.onDamaged = () => {};
    this.slide = null;
    this.turn = 0;
  }

  // Show a slide from the start, as a whole, or at the same place as another pane.
  async open(slide) {
    this.turn += 1;
    this.viewer.world.removeAll();
    this.preview.stop();
    this.slide = slide;
    this.shown = PLAIN;
    this.exact = null;
    this.plain = await this.add(PLAIN, 1);
    this.viewer.viewport.maxZoomPixelRatio = 16;
    this.viewer.viewport.goHome(true);
  }

  // From level-0 px to the world under the draw that is shown.
  get toWorld() {
    const [width, height] = this.slide.size;
    const [x, y] = apply(this.shown.affine, width / 2, height / 2);
    const moved = times(shift(-x, -y), this.shown.affine);
    const [downX, downY] = this.slide.downsample;
    return times(scaling(1 / width), times(moved, scaling(1 / downX, 1 / downY)));
  }

  worldOf(x, y) {
    return apply(this.toWorld, x, y);
  }

  // From the world to px of this element.
  get toScreen() {
    const { viewport } = this.viewer;
    const at = (x, y) => viewport.viewportToViewerElementCoordinates(new OpenSeadragon.Point(x, y));
    const [origin, right, down] = [at(0, 0), at(1, 0), at(0, 1)];
    const seen = [right.x - origin.x, down.x - origin.x, origin.x, right.y - origin.y, down.y - origin.y, origin.y];
    return viewport.getFlip() ? times([-1, 0, this.element.clientWidth, 0, 1, 0], seen) : seen;
  }

  // From level-0 px to px of this element.
  get level0ToScreen() {
    return times(this.toScreen, this.toWorld);
  }

  // Level-0 px of a position in this element.
  level0At(x, y) {
    return apply(inverse(this.level0ToScreen), x, y);
  }

  // Show level-0 px (x, y) in the upper left corner, `shrink` level-0 px per px of the screen.
  lookAt([x, y], shrink) {
    const { viewport } = this.viewer;
    viewport.zoomTo(viewport.getZoom(true) / (shrink * scale(this.level0ToScreen)), null, true);
    const [left, top] = apply(this.level0ToScreen, x, y);
    viewport.panBy(viewport.deltaPointsFromPixels(new OpenSeadragon.Point(left, top), true), true);
    this.viewer.forceRedraw();
  }

  // Move level-0 px (x, y) to the middle.
  moveTo(x, y) {
    const [worldX, worldY] = this.worldOf(x, y);
    this.viewer.viewport.panTo(new OpenSeadragon.Point(worldX, worldY));
  }

  // Whether every tile of what is shown is there.
  get settled() {
    if (!this.plain || this.pending || this.waiting) return false;
    return (this.exact || this.plain).getFullyLoaded();
  }

  get middle() {
    const { clientWidth, clientHeight } = this.element;
    return this.level0At(clientWidth / 2, clientHeight / 2);
  }

  // Whether the slide is seen as a whole; a draw that turns it may reach beyond the pane.
  get whole() {
    const { x, y, width, height } = this.viewer.viewport.getBoundsNoRotate(true);
    const [right, bottom] = [0.5, (0.5 * this.slide.size[1]) / this.slide.size[0]];
    return Math.max(x + right, y + bottom, right - x - width, bottom - y - height) < 1e-6;
  }

  add(draw, opacity) {
    const [width, height] = this.slide.size;
    const size = draw.size || this.slide.size;
    const [x, y] = apply(draw.affine, width / 2, height / 2);
    // Of a draw whose preview is on the screen, only the tiles of this resolution are fetched at first.
    this.viewer.immediateRender = opacity === 0;
    return new Promise((done, failed) => this.viewer.addTiledImage({
      tileSource: tileSource(this.slide.id, draw.digest, size, (problem) => this.onDamaged(problem)),
      x: -x / width, y: -y / width, width: size[0] / width, opacity, preload: opacity === 0,
      success: ({ item }) => done(item), error: ({ message }) => failed(new Error(message)),
    }));
  }

  // Show a draw at once: plain tiles, turned by the viewer and coloured by a table. False if only the server can.
  async previewDraw(draw) {
    if (!parts(draw.affine).even) return false;
    this.turn += 1; // exact tiles of an earlier draw that still load are no longer wanted
    const { turn } = this;
    this.dropPending();
    const table = draw.colours ? await this.preview.load(draw.colours) : null;
    if (turn !== this.turn) return false;
    this.shown = draw;
    this.placePlain(draw);
    this.plain.setOpacity(1);
    if (this.exact) this.exact.setOpacity(0);
    this.preview.use(table);
    this.viewer.forceRedraw();
    return true;
  }

  // Turn, mirror and scale the plain tiles as a draw does.
  placePlain(draw) {
    const { degrees, factor, mirrored } = parts(draw.affine);
    const [width, height] = this.slide.size;
    this.plain.setWidth(factor, true);
    this.plain.setPosition(new OpenSeadragon.Point(-factor / 2, (-factor * height) / width / 2), true);
    this.plain.setRotation(degrees, true);
    this.plain.setFlip(mirrored);
  }

  dropPending() {
    this.waiting = false;
    if (this.pending) this.viewer.world.removeItem(this.pending);
    this.pending = null;
  }

  // Show a draw by its exact tiles: they load hidden, and take the place of the preview together.
  async showDraw(draw) {
    this.turn += 1;
    const { turn } = this;
    this.dropPending();
    if (draw.digest === "plain") {
      if (this.exact) this.viewer.world.removeItem(this.exact);
      this.exact = null;
      await this.previewDraw(draw);
      return true;
    }
    this.waiting = true;
    const item = await this.add(draw, 0);
    if (turn !== this.turn) {
      this.viewer.world.removeItem(item);
      return false;
    }
    this.waiting = false;
    this.pending = item;
    await loaded(item);
    if (turn !== this.turn) return false;
    this.pending = null;
    this.shown = draw;
    item.immediateRender = false;
    item.setOpacity(1);
    this.plain.setOpacity(0);
    if (this.exact) this.viewer.world.removeItem(this.exact);
    this.exact = item;
    this.preview.stop();
    return true;
  }

  // Show the plain colours in place of the exact tiles, for as long as a key is held.
  peek(on) {
    if (!this.plain || this.shown.digest === "plain") return;
    if (on) {
      this.placePlain(this.shown);
      this.preview.stop();
    }
    this.plain.setOpacity(on || !this.exact ? 1 : 0);
    if (this.exact) this.exact.setOpacity(on ? 0 : 1);
  }
}

function loaded(item) {
  return new Promise((done) => {
    if (item.getFullyLoaded()) {
      done();
      return;
    }
    const check = ({ fullyLoaded }) => {
      if (fullyLoaded) {
        item.removeHandler("fully-loaded-change", check);
        done();
      }
    };
    item.addHandler("fully-loaded-change", check);
  });
}
