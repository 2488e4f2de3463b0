// Affines (a, b, c, d, e, f): x' = a·x + b·y + c, y' = d·x + e·y + f, as in the package's geometry.

export const IDENTITY = [1, 0, 0, 0, 1, 0];

export const scaling = (x, y = x) => [x, 0, 0, 0, y, 0];

export const shift = (x, y) => [1, 0, x, 0, 1, y];

// The affine that first does `second`, then `first`.
export function times(first, second) {
  const [a, b, c, d, e, f] = first;
  const [g, h, i, j, k, l] = second;
  return [a * g + b * j, a * h + b * k, a * i + b * l + c, d * g + e * j, d * h + e * k, d * i + e * l + f];
}

export function inverse([a, b, c, d, e, f]) {
  const area = a * e - b * d;
  return [e / area, -b / area, (b * f - c * e) / area, -d / area, a / area, (c * d - a * f) / area];
}

export function apply([a, b, c, d, e, f], x, y) {
  return [a * x + b * y + c, d * x + e * y + f];
}

// How much longer lengths become, on average.
export const scale = ([a, b, , d, e]) => Math.sqrt(Math.abs(a * e - b * d));

// Turn, clockwise degrees; scale; and whether it mirrors left-right before it turns. `even` is false if it shears.
export function parts([a, b, , d, e]) {
  const mirrored = a * e - b * d < 0;
  const factor = Math.sqrt(Math.abs(a * e - b * d));
  const degrees = (Math.atan2(-b, e) * 180) / Math.PI;
  const sign = mirrored ? -1 : 1;
  const rest = Math.hypot(a - sign * e, d + sign * b);
  return { degrees, factor, mirrored, even: rest < 1e-6 * factor + 1e-9 };
}
