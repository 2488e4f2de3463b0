// Tiles of a slide for OpenSeadragon: fetched so that they can be given up; a damaged tile shows its message.

import { answered, base } from "./api.js";

const SIDE = 512;

export function tileSource(slide, digest, [width, height], onDamaged = () => {}) {
  const zooms = Math.max(0, Math.ceil(Math.log2(Math.max(width, height) / SIDE)));
  const source = new OpenSeadragon.TileSource({ width, height, tileSize: SIDE, minLevel: 0, maxLevel: zooms });
  source.getTileUrl = (level, column, row) =>
    `${base}slides/${slide}/tiles/${digest}/${zooms - level}/${column}_${row}.jpg`;
  source.downloadTileStart = (job) => {
    job.userData.abort = new AbortController();
    load(job, onDamaged);
  };
  source.downloadTileAbort = (job) => job.userData.abort.abort();
  return source;
}

async function load(job, onDamaged) {
  const { signal } = job.userData.abort;
  try {
    const reply = await fetch(job.src, { signal });
    answered(true);
    if (reply.ok) {
      job.finish(await createImageBitmap(await reply.blob()), null, "imageBitmap");
      return;
    }
    const { problem } = await reply.json();
    if (reply.status === 410) {
      job.fail(problem, null);
      return;
    }
    onDamaged(problem);
    job.finish(damaged(problem), null, "imageBitmap");
  } catch (error) {
    if (error.name !== "AbortError") answered(false);
    job.fail(String(error.message), null);
  }
}

function damaged(problem) {
  const canvas = new OffscreenCanvas(SIDE, SIDE);
  const context = canvas.getContext("2d");
  context.fillStyle = "#f3d9d6";
  context.fillRect(0, 0, SIDE, SIDE);
  context.strokeStyle = "#a92219";
  context.lineWidth = 2;
  for (let x = -SIDE; x < SIDE; x += 32) {
    context.moveTo(x, SIDE);
    context.lineTo(x + SIDE, 0);
  }
  context.globalAlpha = 0.25;
  context.stroke();
  context.globalAlpha = 1;
  context.fillStyle = "#fff";
  context.fillRect(24, 150, SIDE - 48, 212);
  context.fillStyle = "#7c1710";
  context.font = "600 22px sans-serif";
  context.fillText("This tile cannot be read", 40, 190);
  context.font = "17px sans-serif";
  wrapped(context, problem, SIDE - 80).slice(0, 7).forEach((line, k) => context.fillText(line, 40, 220 + 20 * k));
  return canvas.transferToImageBitmap();
}

function wrapped(context, text, width) {
  const lines = [""];
  for (const word of text.split(/\s+/)) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (context.measureText(longer).width > width && lines.at(-1)) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}
