// Draws tiles at whole px of the screen: OpenSeadragon stretches each by a pixel to hide seams, which blurs them.

export function sharpDrawer() {
  return class SharpDrawer extends OpenSeadragon.CanvasDrawer {
    minimumOverlapRequired(image) {
      return this.turned(image);
    }

    turned(image) {
      return image.getRotation(true) % 360 !== 0 || this.viewport.getRotation(true) % 360 !== 0;
    }

    _drawTile(tile, image, ...rest) {
      if (!this.turned(image)) {
        const ratio = OpenSeadragon.pixelDensityRatio;
        const whole = (value) => Math.round(value * ratio) / ratio;
        const { x, y } = tile.position;
        const [left, top] = [whole(x), whole(y)];
        tile.position = new OpenSeadragon.Point(left, top);
        tile.size = new OpenSeadragon.Point(whole(x + tile.size.x) - left, whole(y + tile.size.y) - top);
      }
      super._drawTile(tile, image, ...rest);
    }
  };
}
