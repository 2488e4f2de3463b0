/* Run tile programs: the loop over tiles and their rows. Compiled once per instruction set, with -DSUFFIX=_v2 or so;
   dispatch.c chooses. */

#include "colours.h"
#include "halves.h"
#include "rows.h"
#include "sampling.h"

#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)

/* Rows of a shift by whole px are copied, then coloured in place. */
static void run_copy(const Tile *tile, int32_t width, int32_t height, Row *row) {
  const int32_t x = (int32_t)tile->affine[2], y = (int32_t)tile->affine[5];
  for (int32_t j = 0; j < height; j++) {
    uint8_t *out = tile->out + (size_t)j * width * 3;
    copy_row(&tile->source, tile->outside, y + j, x, x + width, out);
    for (int32_t i = 0; tile->op_count && i < width; i += ROW) {
      const int32_t count = at_most(ROW, width - i);
      load_row(row, count, out + 3 * (size_t)i);
      colour_row(row, count, tile->ops, tile->op_count);
      store_row(row, count, out + 3 * (size_t)i);
    }
  }
}

/* Return 0, or the bytes of scratch that are needed, or -1, as tile_run does. */
static int64_t run_sample(const Tile *tile, int32_t width, int32_t height, uint8_t *scratch, int64_t size, Row *row) {
  Patch patch;
  const int32_t radius = blur_radius(tile->sigma);
  const int64_t bytes = place_patch(tile, width, height, radius, &patch);
  if (bytes < 0) return -1;
  const int64_t rows_at = (bytes + 63) / 64 * 64, rows = radius ? (int64_t)(2 * radius + 1) * patch.width * 6 : 0;
  if (rows_at + rows > size) return rows_at + rows;
  patch.pixels = scratch;
  gather(tile, width, height, radius, &patch);
  if (radius) blur(&patch, tile->sigma, radius, (uint16_t *)(void *)(scratch + rows_at));
  const double *m = tile->affine;
  for (int32_t j = 0; j < height; j++)
    for (int32_t i = 0; i < width; i += ROW) {
      const int32_t count = at_most(ROW, width - i);
      locate(tile, &patch, row, count, m[0] * i + m[1] * j + m[2] - patch.x, m[3] * i + m[4] * j + m[5] - patch.y);
      interpolate(&patch, row, count);
      colour_row(row, count, tile->ops, tile->op_count);
      store_row(row, count, tile->out + ((size_t)j * width + i) * 3);
    }
  return 0;
}

int64_t JOINED(tile_run, SUFFIX)(const Tile *tiles, int32_t count, int32_t width, int32_t height, uint8_t *scratch,
                                 int64_t size) {
  Row row;
  for (int32_t k = 0; k < count; k++) {
    if (tiles[k].copies) {
      run_copy(&tiles[k], width, height, &row);
      continue;
    }
    const int64_t needed = run_sample(&tiles[k], width, height, scratch, size, &row);
    if (needed) return needed;
  }
  return 0;
}

void JOINED(colour_run, SUFFIX)(const uint8_t *in, uint8_t *out, int64_t count, const Op *ops, int32_t op_count) {
  Row row;
  for (int64_t i = 0; i < count; i += ROW) {
    const int32_t part = (int32_t)(count - i < ROW ? count - i : ROW);
    load_row(&row, part, in + 3 * i);
    colour_row(&row, part, ops, op_count);
    store_row(&row, part, out + 3 * i);
  }
}

int32_t JOINED(half_run, SUFFIX)(const uint8_t *in, uint16_t *out, int64_t count, const float *scale,
                                 const float *offset) {
  return halves(in, out, count, scale, offset);
}
