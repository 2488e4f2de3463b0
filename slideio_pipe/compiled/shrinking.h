/* A level shrunk by any factor: a triangle filter, antialiased, cropped and normalised at the level's edge. As in Pillow's
   BILINEAR resize, rows are filtered first and rounded to levels, then columns: the results are Pillow's but for a few
   roundings. A plain pixel's weights depend on its place in the slide alone: neighbouring tiles fit. */

#ifndef SHRINKING_H
#define SHRINKING_H

#include "rows.h"
#include "sampling.h"

/* The level px that one plain px is made of. */
typedef struct {
  int32_t first, count;
} Taps;

INLINE double triangle(double x) {
  x = __builtin_fabs(x);
  return x < 1 ? 1 - x : 0;
}

/* Most level px of a plain px, of a level of `size` px: an interval of length n holds at most n centres, rounded up, and
   rounding errors could hold one more. */
INLINE int32_t most_taps(double shrink, int32_t size) {
  return (int32_t)lower_of(size, ceil_of(2 * (shrink > 1 ? shrink : 1) + 1e-3));
}

/* Find the taps of the plain px at `place` of a level of `size` px, and their weights, which sum to 1. */
static Taps find_taps(double place, double shrink, int32_t size, double *weights) {
  const double reach = shrink > 1 ? shrink : 1, centre = (place + 0.5) * shrink;
  /* At least one pixel, also beyond the edge. */
  const int32_t first = (int32_t)lower_of(size - 1, higher_of(0, floor_of(centre - reach + 0.5)));
  const int32_t end = (int32_t)higher_of(first + 1, lower_of(size, floor_of(centre + reach + 0.5)));
  double sum = 0;
  for (int32_t x = first; x < end; x++) sum += weights[x - first] = triangle((x + 0.5 - centre) / reach);
  for (int32_t x = first; x < end; x++) weights[x - first] = sum > 0 ? weights[x - first] / sum : 1.0 / (end - first);
  return (Taps){first, end - first};
}

/* Make 14-bit pairs of `count` weights; they sum to 16384, so that white stays white. */
static void pack_weights(const double *weights, int32_t count, int32_t pairs, int32_t *packed) {
  int32_t sum = 0, largest = 0, fixed;
  for (int32_t k = 0; k < count; k++) {
    sum += (int32_t)(weights[k] * 16384 + 0.5);
    if (weights[k] > weights[largest]) largest = k;
  }
  for (int32_t k = 0; k < 2 * pairs; k++) {
    fixed = k < count ? (int32_t)(weights[k] * 16384 + 0.5) + (k == largest ? 16384 - sum : 0) : 0;
    packed[k / 2] = k % 2 ? packed[k / 2] | fixed << 16 : fixed;
  }
}

/* One row of the level, filtered: three planes. */
typedef struct {
  ALIGNED float r[PLANE];
  ALIGNED float g[PLANE];
  ALIGNED float b[PLANE];
} Filtered;

/* What the columns [from, to) of a tile need, in scratch memory. */
typedef struct {
  int32_t *offsets; /* of the first tap in the line, bytes */
  int32_t *weights; /* `pairs` for each column */
  int32_t pairs, x, end; /* the level px of the line */
  uint8_t *line;
  Filtered *rows;
  int32_t row_count;
  double *taps;
} Shrinker;

#if defined(__SSE4_1__)
typedef __m128i Sums;
INLINE Sums add_pair(Sums sums, const uint8_t *pixels, int32_t weights) {
  const __m128i order = _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
  const __m128i two = _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)pixels), order);
  return _mm_add_epi32(sums, _mm_madd_epi16(two, _mm_set1_epi32(weights)));
}
INLINE Sums half_of_one(void) { return _mm_set1_epi32(8192); }
#else
typedef int32_t Sums __attribute__((vector_size(16)));
INLINE Sums add_pair(Sums sums, const uint8_t *p, int32_t weights) {
  const int32_t a = weights & 0xffff, b = weights >> 16;
  const Sums pair = {a * p[0] + b * p[3], a * p[1] + b * p[4], a * p[2] + b * p[5], 0};
  return sums + pair;
}
INLINE Sums half_of_one(void) { return (Sums){8192, 8192, 8192, 8192}; }
#endif

/* Return the weighted sum of the level px of column i, per channel, in 14 bits, with a half for rounding. */
INLINE Sums filter_px(const Shrinker *s, int32_t i, int32_t pairs) {
  const uint8_t *pixels = s->line + s->offsets[i];
  const int32_t *weights = s->weights + (size_t)i * pairs;
  Sums sums = half_of_one();
  for (int32_t k = 0; k < pairs; k++) sums = add_pair(sums, pixels + 6 * k, weights[k]);
  return sums;
}

INLINE void filter_columns(const Shrinker *s, int32_t columns, Filtered *out, int32_t pairs) {
  int32_t i = 0;
#if defined(__SSE4_1__)
  /* Four pixels of three channels become three planes of four. */
  for (; i + 4 <= columns; i += 4) {
    const __m128i a = filter_px(s, i, pairs), b = filter_px(s, i + 1, pairs);
    const __m128i c = filter_px(s, i + 2, pairs), d = filter_px(s, i + 3, pairs);
    const __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
    const __m128i blue = _mm_unpacklo_epi64(_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
#define PUT(P, V) _mm_store_ps(&out->P[i], _mm_cvtepi32_ps(_mm_srli_epi32(V, 14)))
    PUT(r, _mm_unpacklo_epi64(ab, cd));
    PUT(g, _mm_unpackhi_epi64(ab, cd));
    PUT(b, blue);
#undef PUT
  }
#endif
  for (; i < columns; i++) {
    const Sums sums = filter_px(s, i, pairs);
    int32_t sum[4];
    memcpy(sum, &sums, 16);
    out->r[i] = (float)(sum[0] >> 14);
    out->g[i] = (float)(sum[1] >> 14);
    out->b[i] = (float)(sum[2] >> 14);
  }
}

static void filter_line(const Shrinker *s, int32_t columns, Filtered *out) {
  switch (s->pairs) { /* loops of known length are unrolled */
    case 1: filter_columns(s, columns, out, 1); break;
    case 2: filter_columns(s, columns, out, 2); break;
    case 3: filter_columns(s, columns, out, 3); break;
    default: filter_columns(s, columns, out, s->pairs);
  }
}

/* Add weighted rows from `k` on to one plane that begins with 0.5; `last`: then cut to whole levels. */
INLINE void sum_plane(const float *const *in, const float *weights, int32_t count, int32_t columns, float *restrict out,
                      int first, int last) {
  for (int32_t i = 0; i < columns; i++) {
    float sum = first ? 0.5f : out[i];
    for (int32_t k = 0; k < count; k++) sum += weights[k] * in[k][i];
    out[i] = last ? (float)(int32_t)sum : sum;
  }
}

/* Sum filtered rows by their weights, rounded half up to levels, into the planes of `row`. */
static void sum_rows(const Shrinker *s, Taps taps, const double *weights, int32_t columns, Row *row) {
  enum { AT_ONCE = 4 };
  for (int32_t k = 0; k < taps.count; k += AT_ONCE) {
    const int32_t count = at_most(AT_ONCE, taps.count - k), first = k == 0, last = k + count == taps.count;
    const Filtered *in[AT_ONCE];
    float weight[AT_ONCE];
    for (int32_t n = 0; n < count; n++) {
      in[n] = &s->rows[(taps.first + k + n) % s->row_count];
      weight[n] = (float)weights[k + n];
    }
#define PLANE_OF(P, COUNT, LAST)                                                       \
  {                                                                                    \
    const float *planes[COUNT];                                                        \
    for (int32_t n = 0; n < (COUNT); n++) planes[n] = in[n]->P;                        \
    sum_plane(planes, weight, COUNT, columns, row->P, first, LAST);                    \
  }
#define PLANES(COUNT, LAST) PLANE_OF(r, COUNT, LAST) PLANE_OF(g, COUNT, LAST) PLANE_OF(b, COUNT, LAST)
    if (!last) {
      PLANES(AT_ONCE, 0)
      continue;
    }
    switch (count) {
      case 1: PLANES(1, 1) break;
      case 2: PLANES(2, 1) break;
      case 3: PLANES(3, 1) break;
      default: PLANES(AT_ONCE, 1)
    }
#undef PLANES
#undef PLANE_OF
  }
}

/* Prepare columns of plain px from x on, in `scratch`; return the bytes that this takes. */
static int64_t place_shrinker(const Tile *tile, double x, int32_t columns, uint8_t *scratch, Shrinker *s) {
  const double across = tile->affine[0], down = tile->affine[4];
  const int32_t size = tile->source.level_width;
  const int32_t taps = most_taps(across, size), row_taps = most_taps(down, tile->source.level_height);
  s->pairs = (taps + 1) / 2;
  s->row_count = row_taps;
  const double reach = ceil_of(across) + 2;
  s->x = (int32_t)higher_of(0, lower_of(size, floor_of(x * across) - reach));
  s->end = (int32_t)lower_of(size, higher_of(0, ceil_of((x + columns) * across) + reach));
  const int64_t line = (int64_t)(s->end - s->x) * 3 + 12 * s->pairs + 16;
  int64_t at = 0;
#define PART(FIELD, TYPE, BYTES) (s->FIELD = (TYPE *)(void *)(scratch + at), at = (at + (BYTES) + 63) / 64 * 64)
  PART(rows, Filtered, (int64_t)row_taps * (int64_t)sizeof(Filtered));
  PART(taps, double, (int64_t)(taps > row_taps ? taps : row_taps) * 8);
  PART(offsets, int32_t, (int64_t)columns * 4);
  PART(weights, int32_t, (int64_t)columns * s->pairs * 4);
  PART(line, uint8_t, line);
#undef PART
  return at;
}

INLINE void prepare_columns(const Tile *tile, double x, int32_t columns, Shrinker *s) {
  for (int32_t i = 0; i < columns; i++) {
    const Taps taps = find_taps(x + i, tile->affine[0], tile->source.level_width, s->taps);
    s->offsets[i] = (taps.first - s->x) * 3;
    pack_weights(s->taps, taps.count, s->pairs, s->weights + (size_t)i * s->pairs);
  }
  memset(s->line + (size_t)(s->end - s->x) * 3, 0, (size_t)s->pairs * 12 + 16);
}

#endif
