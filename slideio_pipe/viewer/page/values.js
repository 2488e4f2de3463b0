// Numbers and colours of layers.

// Numbers that came as base64 of float32.
export function floats(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

const STOPS = {
  // Few to many: readable on pink tissue, and in order for the colour-blind.
  heat: ["#2b0a52", "#6b1d81", "#b5367a", "#ee605e", "#fb9d5c", "#fcf3b0"],
  tissue: ["#c9d6e6", "#8fc0d8", "#45a3b5", "#0f7f86", "#005a52"],
};

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

// The colour of a share from 0 to 1.
export function colourAt(share, name = "heat") {
  const stops = STOPS[name];
  const place = Math.min(1, Math.max(0, share)) * (stops.length - 1);
  const first = Math.min(stops.length - 2, Math.floor(place));
  const [low, high] = [channels(stops[first]), channels(stops[first + 1])];
  return low.map((value, k) => Math.round(value + (high[k] - value) * (place - first)));
}

export function gradient(name = "heat") {
  return `linear-gradient(to right, ${STOPS[name].join(", ")})`;
}

// The range of values that is drawn: from the lowest to the highest.
export function rangeOf(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low < high ? [low, high] : [Math.min(low, 0), Math.max(high, low + 1, 1)];
}

export function rounded(value) {
  if (Number.isNaN(value)) return "–";
  return Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}
