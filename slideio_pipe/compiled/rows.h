/* One row of pixels as three planes of float, and the arithmetic that the other files share. */

#ifndef ROWS_H
#define ROWS_H

#include "tile_program.h"
#include <stddef.h>
#include <string.h>
#if defined(__SSE4_1__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64)))

enum { ROW = 1024 };
/* No multiple of 4 KB between planes: they would share the same sets of the cache. */
enum { PLANE = ROW + 16 };

typedef struct {
  ALIGNED float r[PLANE];
  ALIGNED float g[PLANE];
  ALIGNED float b[PLANE];
  ALIGNED int32_t offset[PLANE];       /* of the upper left of four pixels, bytes */
  ALIGNED int32_t upper[PLANE];        /* weights of the upper two, 16 bits each */
  ALIGNED int32_t lower[PLANE];
} Row;

INLINE float smaller(float a, float b) { return a < b ? a : b; }
INLINE float larger(float a, float b) { return a > b ? a : b; }
INLINE float limited(float v, float low, float high) { return smaller(larger(v, low), high); }
INLINE int32_t at_most(int32_t a, int32_t b) { return a < b ? a : b; }
INLINE int32_t at_least(int32_t a, int32_t b) { return a > b ? a : b; }
INLINE double lower_of(double a, double b) { return a < b ? a : b; }
INLINE double higher_of(double a, double b) { return a > b ? a : b; }

INLINE void load_row(Row *row, int32_t width, const uint8_t *in) {
  for (int32_t x = 0; x < width; x++) {
    row->r[x] = (float)in[3 * x];
    row->g[x] = (float)in[3 * x + 1];
    row->b[x] = (float)in[3 * x + 2];
  }
}

/* Round half up to levels; the planes are from 0 to 255. */
INLINE void store_row(const Row *row, int32_t width, uint8_t *out) {
  int32_t x = 0;
#if defined(__SSE4_1__)
  /* Sixteen pixels of each plane become bytes, and three shuffles put them in turn. */
  const __m128 half = _mm_set1_ps(0.5f);
#define LEVELS(P, K) _mm_cvttps_epi32(_mm_add_ps(_mm_load_ps(&row->P[x + 4 * (K)]), half))
#define SIXTEEN(P) \
  _mm_packus_epi16(_mm_packs_epi32(LEVELS(P, 0), LEVELS(P, 1)), _mm_packs_epi32(LEVELS(P, 2), LEVELS(P, 3)))
#define PICK(V, ...) _mm_shuffle_epi8(V, _mm_setr_epi8(__VA_ARGS__))
#define JOIN(A, B, C) _mm_or_si128(_mm_or_si128(A, B), C)
  for (; x + 16 <= width; x += 16) {
    const __m128i r = SIXTEEN(r), g = SIXTEEN(g), b = SIXTEEN(b);
    const __m128i first = JOIN(PICK(r, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1, -1, 5),
                               PICK(g, -1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1, -1),
                               PICK(b, -1, -1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1));
    const __m128i second = JOIN(PICK(r, -1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1, 10, -1),
                                PICK(g, 5, -1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1, 10),
                                PICK(b, -1, 5, -1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1));
    const __m128i third = JOIN(PICK(r, -1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15, -1, -1),
                               PICK(g, -1, -1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15, -1),
                               PICK(b, 10, -1, -1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15));
    _mm_storeu_si128((__m128i *)(out + 3 * x), first);
    _mm_storeu_si128((__m128i *)(out + 3 * x + 16), second);
    _mm_storeu_si128((__m128i *)(out + 3 * x + 32), third);
  }
#undef LEVELS
#undef SIXTEEN
#undef PICK
#undef JOIN
#endif
  for (; x < width; x++) {
    out[3 * x] = (uint8_t)(row->r[x] + 0.5f);
    out[3 * x + 1] = (uint8_t)(row->g[x] + 0.5f);
    out[3 * x + 2] = (uint8_t)(row->b[x] + 0.5f);
  }
}

#endif
