/* The pixels that a tile reaches, copied out of the decoded blocks, blurred where the tile shrinks them, interpolated.

   Interpolating directly from the blocks would take longer: neighbouring pixels of a turned tile are far apart there,
   and each would wait for memory. */

#ifndef SAMPLING_H
#define SAMPLING_H

#include "rows.h"

/* The reached pixels: a rectangle of level px in scratch memory. Rows have margins of unset bytes. */
typedef struct {
  uint8_t *pixels;
  int32_t stride, x, y, width, height;
} Patch;

enum { MOST_RADIUS = 8 };

/* Return the radius of the Gaussian, px: three standard deviations, as OpenCV for 8 bits. */
INLINE int32_t blur_radius(float sigma) {
  return sigma > 0 ? at_most(MOST_RADIUS, at_least(1, (int32_t)(3 * sigma + 0.5f))) : 0;
}

INLINE double floor_of(double v) { return __builtin_floor(v); }
INLINE double ceil_of(double v) { return __builtin_ceil(v); }

/* Set the patch's rectangle: the bounds of the tile's four corners, one pixel around, and the radius of the blur. Return
   its bytes. */
static int64_t place_patch(const Tile *tile, int32_t width, int32_t height, int32_t radius, Patch *patch) {
  const double *m = tile->affine;
  double left = 1e30, right = -1e30, top = 1e30, bottom = -1e30;
  for (int k = 0; k < 4; k++) {
    const double i = k & 1 ? width - 1 : 0, j = k & 2 ? height - 1 : 0;
    const double x = m[0] * i + m[1] * j + m[2], y = m[3] * i + m[4] * j + m[5];
    left = lower_of(left, x), right = higher_of(right, x);
    top = lower_of(top, y), bottom = higher_of(bottom, y);
  }
  const int near = left >= -1e9 && top >= -1e9 && right <= 1e9 && bottom <= 1e9; /* not so for a NaN */
  if (!near || right - left > 1e5 || bottom - top > 1e5) return -1;
  patch->x = (int32_t)floor_of(left) - 1 - radius;
  patch->y = (int32_t)floor_of(top) - 1 - radius;
  patch->width = (int32_t)ceil_of(right) + 3 + radius - patch->x;
  patch->height = (int32_t)ceil_of(bottom) + 3 + radius - patch->y;
  /* An odd number of cache lines, so that a column's pixels are in different sets of the cache. */
  int32_t stride = patch->width * 3 + 16;
  stride += 64 - stride % 64;
  patch->stride = stride / 64 % 2 ? stride : stride + 64;
  const int64_t bytes = (int64_t)patch->stride * patch->height + 64;
  return bytes > 0x7fffffff ? -1 : bytes;
}

/* Find the columns from *left to *right that the tile reaches within `slack` rows of row y: its parallelogram, cut by
   that strip. *left is above *right if there are none. */
INLINE void reach(const Tile *tile, int32_t width, int32_t height, double y, double slack, double *left, double *right) {
  const double *m = tile->affine;
  const double is[4] = {0, width - 1, width - 1, 0}, js[4] = {0, 0, height - 1, height - 1};
  double px[4], py[4];
  *left = 1e30, *right = -1e30;
  for (int k = 0; k < 4; k++) {
    px[k] = m[0] * is[k] + m[1] * js[k] + m[2];
    py[k] = m[3] * is[k] + m[4] * js[k] + m[5];
  }
  for (int k = 0; k < 4; k++) {
    const int next = (k + 1) & 3;
    if (py[k] >= y - slack && py[k] <= y + slack) *left = lower_of(*left, px[k]), *right = higher_of(*right, px[k]);
    const double rise = py[next] - py[k];
    if (rise == 0) continue;
    for (int side = -1; side <= 1; side += 2) {
      const double part = (y + side * slack - py[k]) / rise;
      if (part < 0 || part > 1) continue;
      const double x = px[k] + part * (px[next] - px[k]);
      *left = lower_of(*left, x), *right = higher_of(*right, x);
    }
  }
}

/* Copy px [x, end) of row y of the level to `out`; grey beyond the level. */
INLINE void copy_row(const Source *source, int32_t outside, int32_t y, int32_t x, int32_t end, uint8_t *out) {
  const int32_t wide = source->block_width, high = source->block_height, below = y - source->top;
  const int32_t row = below / high, inner_y = below % high;
  if (y < 0 || y >= source->level_height || below < 0 || row >= source->rows) {
    memset(out, outside, (size_t)(end - x) * 3);
    return;
  }
  const int32_t first = at_most(end, at_least(0, source->left));
  if (x < first) {
    memset(out, outside, (size_t)(first - x) * 3);
    out += (size_t)(first - x) * 3, x = first;
  }
  const int32_t stop = at_most(end, source->level_width);
  while (x < stop) {
    const int32_t across = x - source->left, column = across / wide, inner_x = across % wide;
    const int32_t count = at_most(stop - x, wide - inner_x);
    const uint8_t *block = column < source->columns ? source->blocks[(size_t)row * source->columns + column] : NULL;
    if (block)
      memcpy(out, block + ((size_t)inner_y * wide + inner_x) * 3, (size_t)count * 3);
    else
      memset(out, outside, (size_t)count * 3);
    out += (size_t)count * 3, x += count;
  }
  if (end > x) memset(out, outside, (size_t)(end - x) * 3);
}

INLINE void gather(const Tile *tile, int32_t width, int32_t height, int32_t radius, const Patch *patch) {
  for (int32_t j = 0; j < patch->height; j++) {
    double left, right;
    reach(tile, width, height, patch->y + j, 2 + radius, &left, &right);
    if (left > right) continue;
    const int32_t x = at_least(patch->x, (int32_t)floor_of(left) - 1 - radius);
    const int32_t end = at_most(patch->x + patch->width, (int32_t)ceil_of(right) + 3 + radius);
    uint8_t *out = patch->pixels + (size_t)j * patch->stride + (size_t)(x - patch->x) * 3;
    copy_row(&tile->source, tile->outside, patch->y + j, x, end, out);
  }
}

/* Blur the patch in place: a Gaussian with weights of 8 bits that sum to 256, rows first, one rounding. The patch's
   margin of `radius` px is not blurred. `rows` has 2 radius + 1 rows of 3 width. */
static void blur(const Patch *patch, float sigma, int32_t radius, uint16_t *rows) {
  int32_t weight[MOST_RADIUS + 1], total = 0;
  double bell[MOST_RADIUS + 1], sum = 0;
  for (int32_t k = 0; k <= radius; k++) {
    bell[k] = __builtin_exp(-0.5 * k * k / ((double)sigma * sigma));
    sum += k ? 2 * bell[k] : bell[k];
  }
  for (int32_t k = radius; k > 0; k--) {
    weight[k] = (int32_t)(bell[k] / sum * 256 + 0.5);
    total += 2 * weight[k];
  }
  weight[0] = 256 - total;
  const int32_t n = patch->width * 3, taps = 2 * radius + 1;
  for (int32_t y = 0; y < patch->height + radius; y++) {
    if (y < patch->height) {
      uint16_t *out = rows + (size_t)(y % taps) * n;
      const uint8_t *in = patch->pixels + (size_t)y * patch->stride;
      for (int32_t x = 0; x < n; x++) out[x] = (uint16_t)(weight[0] * in[x]);
      for (int32_t k = 1; k <= radius; k++)
        for (int32_t x = 3 * k; x < n - 3 * k; x++)
          out[x] = (uint16_t)(out[x] + weight[k] * (in[x - 3 * k] + in[x + 3 * k]));
    }
    const int32_t middle = y - radius;
    if (middle < radius || middle >= patch->height - radius) continue;
    uint8_t *out = patch->pixels + (size_t)middle * patch->stride;
    for (int32_t start = 0; start < n; start += ROW) {
      uint32_t sums[ROW];
      const int32_t count = at_most(ROW, n - start);
      const uint16_t *own = rows + (size_t)(middle % taps) * n + start;
      for (int32_t x = 0; x < count; x++) sums[x] = (uint32_t)weight[0] * own[x] + 32768;
      for (int32_t k = 1; k <= radius; k++) {
        const uint16_t *above = rows + (size_t)((middle - k) % taps) * n + start;
        const uint16_t *below = rows + (size_t)((middle + k) % taps) * n + start;
        for (int32_t x = 0; x < count; x++) sums[x] += (uint32_t)weight[k] * ((uint32_t)above[x] + below[x]);
      }
      for (int32_t x = 0; x < count; x++) out[start + x] = (uint8_t)(sums[x] >> 16);
    }
  }
}

/* For `width` px from (x, y) of the patch on: where each is, and its four weights of 14 bits, which sum to 16384. */
INLINE void locate(const Tile *tile, const Patch *patch, Row *row, int32_t width, double x, double y) {
  const float across = (float)tile->affine[0], down = (float)tile->affine[3], left = (float)x, top = (float)y;
  const int32_t stride = patch->stride;
  for (int32_t i = 0; i < width; i++) {
    const float px = across * (float)i + left, py = down * (float)i + top; /* positive */
    const int32_t ix = (int32_t)px, iy = (int32_t)py;
    const int32_t w = (int32_t)((px - (float)ix) * 16384.0f + 0.5f), h = (int32_t)((py - (float)iy) * 16384.0f + 0.5f);
    const int32_t w11 = (w * h + 8192) >> 14, w01 = w - w11, w10 = h - w11, w00 = 16384 - w - h + w11;
    row->offset[i] = iy * stride + ix * 3;
    row->upper[i] = w00 | w01 << 16;
    row->lower[i] = w10 | w11 << 16;
  }
}

#if defined(__SSE4_1__)
/* The weighted sum of four pixels, per channel. */
INLINE __m128i mix4(const uint8_t *upper, const uint8_t *lower, const int32_t *upper_weights,
                    const int32_t *lower_weights) {
  const __m128i pairs = _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
  const __m128i above = _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)upper), pairs);
  const __m128i below = _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)lower), pairs);
  const __m128i wu = _mm_castps_si128(_mm_load1_ps((const float *)upper_weights));
  const __m128i wl = _mm_castps_si128(_mm_load1_ps((const float *)lower_weights));
  return _mm_add_epi32(_mm_madd_epi16(above, wu), _mm_madd_epi16(below, wl));
}
#else
typedef int32_t Four __attribute__((vector_size(16)));
INLINE Four mix4(const uint8_t *upper, const uint8_t *lower, const int32_t *upper_weights,
                 const int32_t *lower_weights) {
  const int32_t a = *upper_weights & 0xffff, b = *upper_weights >> 16;
  const int32_t c = *lower_weights & 0xffff, d = *lower_weights >> 16;
  Four sum = {a * upper[0] + b * upper[3] + c * lower[0] + d * lower[3],
              a * upper[1] + b * upper[4] + c * lower[1] + d * lower[4],
              a * upper[2] + b * upper[5] + c * lower[2] + d * lower[5], 0};
  return sum;
}
#endif

/* Interpolate a row of located pixels, rounded half up to a level: colours begin at levels in every executor. */
INLINE void interpolate(const Patch *patch, Row *row, int32_t width) {
  const int32_t stride = patch->stride;
  const uint8_t *base = patch->pixels;
  int32_t i = 0;
#define PIXEL(I) \
  mix4(base + row->offset[I], base + stride + row->offset[I], &row->upper[I], &row->lower[I])
#if defined(__SSE4_1__)
  const __m128i half = _mm_set1_epi32(8192);
  for (; i + 4 <= width; i += 4) {
    const __m128i a = PIXEL(i), b = PIXEL(i + 1), c = PIXEL(i + 2), d = PIXEL(i + 3);
    const __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
    const __m128i blue = _mm_unpacklo_epi64(_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
    const __m128i red = _mm_unpacklo_epi64(ab, cd), green = _mm_unpackhi_epi64(ab, cd);
#define PUT(P, V) _mm_store_ps(&row->P[i], _mm_cvtepi32_ps(_mm_srli_epi32(_mm_add_epi32(V, half), 14)))
    PUT(r, red);
    PUT(g, green);
    PUT(b, blue);
#undef PUT
  }
#endif
  for (; i < width; i++) {
    int32_t sum[4];
#if defined(__SSE4_1__)
    _mm_storeu_si128((__m128i *)sum, PIXEL(i));
#else
    const Four four = PIXEL(i);
    memcpy(sum, &four, 16);
#endif
    row->r[i] = (float)((sum[0] + 8192) >> 14);
    row->g[i] = (float)((sum[1] + 8192) >> 14);
    row->b[i] = (float)((sum[2] + 8192) >> 14);
  }
#undef PIXEL
}

#endif
