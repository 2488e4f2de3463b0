/* Run tile programs: the loop over tiles and their rows. Compiled once per instruction set, with -DSUFFIX=_v2 or so;
   dispatch.c chooses. */

#include "colours.h"
#include "halves.h"
#include "rows.h"
#include "sampling.h"
#include "shrinking.h"

#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)

/* Colour pixels that are in the tile already. */
static void colour_in_place(const Tile *tile, uint8_t *pixels, int32_t width, Row *row) {
  for (int32_t i = 0; tile->op_count && i < width; i += ROW) {
    const int32_t count = at_most(ROW, width - i);
    load_row(row, count, pixels + 3 * (size_t)i);
    colour_row(row, count, tile->ops, tile->op_count);
    store_row(row, count, pixels + 3 * (size_t)i);
  }
}

static void run_copy(const Tile *tile, int32_t width, int32_t height, Row *row) {
  const int32_t x = (int32_t)tile->affine[2], y = (int32_t)tile->affine[5];
  for (int32_t j = 0; j < height; j++) {
    uint8_t *out = tile->out + (size_t)j * width * 3;
    copy_row(&tile->source, tile->outside, y + j, x, x + width, out);
    colour_in_place(tile, out, width, row);
  }
}

/* Make the columns from `from` to `to` of the rows that are inside the slide. */
static int64_t run_columns(const Tile *tile, int32_t width, int32_t from, int32_t to, uint8_t *scratch, int64_t size,
                           Row *row) {
  Shrinker s;
  const double x = tile->affine[2] + from, y = tile->affine[5];
  const int32_t columns = to - from;
  const int64_t needed = place_shrinker(tile, x, columns, scratch, &s);
  if (needed > size) return needed;
  prepare_columns(tile, x, columns, &s);
  int32_t next = -1; /* the level row that is filtered next */
  for (int32_t j = tile->top; j < tile->bottom; j++) {
    const Taps taps = find_taps(y + j, tile->affine[4], tile->source.level_height, s.taps);
    next = at_least(next, taps.first);
    for (; next < taps.first + taps.count; next++) {
      copy_row(&tile->source, tile->outside, next, s.x, s.end, s.line);
      filter_line(&s, columns, &s.rows[next % s.row_count]);
    }
    sum_rows(&s, taps, s.taps, columns, row);
    colour_row(row, columns, tile->ops, tile->op_count);
    store_row(row, columns, tile->out + ((size_t)j * width + from) * 3);
  }
  return 0;
}

static int64_t run_shrink(const Tile *tile, int32_t width, int32_t height, uint8_t *scratch, int64_t size, Row *row) {
  const int32_t left = tile->left, right = tile->right, top = tile->top, bottom = tile->bottom;
  for (int32_t j = 0; j < height; j++) {
    uint8_t *out = tile->out + (size_t)j * width * 3;
    const int inside = j >= top && j < bottom && left < right;
    if (inside && left == 0 && right == width) continue;
    memset(out, tile->outside, (size_t)width * 3);
    if (!inside) colour_in_place(tile, out, width, row);
    if (inside && left > 0) colour_in_place(tile, out, left, row);
    if (inside && right < width) colour_in_place(tile, out + 3 * (size_t)right, width - right, row);
  }
  for (int32_t i = left; i < right && top < bottom; i += ROW) {
    const int64_t needed = run_columns(tile, width, i, at_most(right, i + ROW), scratch, size, row);
    if (needed) return needed;
  }
  return 0;
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
    const Tile *tile = &tiles[k];
    int64_t needed = 0;
    switch (tile->way) {
      case BY_COPYING: run_copy(tile, width, height, &row); break;
      case BY_SHRINKING: needed = run_shrink(tile, width, height, scratch, size, &row); break;
      default: needed = run_sample(tile, width, height, scratch, size, &row);
    }
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
