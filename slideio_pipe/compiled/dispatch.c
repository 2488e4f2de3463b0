/* The functions that Python calls. On x86-64 there are two copies of the code: this file chooses the one that the
   processor can run. Both give the same bytes. */

#include "tile_program.h"

PUBLIC const char *built_from(void) { return BUILT_FROM; }

#define COPIES(SUFFIX)                                                                      \
  int64_t tile_run##SUFFIX(const Tile *, int32_t, int32_t, int32_t, uint8_t *, int64_t);    \
  void colour_run##SUFFIX(const uint8_t *, uint8_t *, int64_t, const Op *, int32_t);        \
  int32_t half_run##SUFFIX(const uint8_t *, uint16_t *, int64_t, const float *, const float *);

#if defined(__x86_64__)
#include <cpuid.h>

COPIES(_v2)
COPIES(_v3)

/* AVX2, FMA, BMI1, BMI2, F16C, and an operating system that saves the wide registers. */
static int has_v3(void) {
  const unsigned in_one = 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29, in_seven = 1u << 3 | 1u << 5 | 1u << 8;
  unsigned a, b, c, d, low, high;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & in_one) != in_one) return 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & 6) != 6) return 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & in_seven) == in_seven;
}

static int32_t level = 0;

PUBLIC int32_t instruction_set(int32_t chosen) {
  if (chosen == 2 || (chosen == 3 && has_v3())) level = chosen;
  if (!level) level = has_v3() ? 3 : 2;
  return level;
}

PUBLIC int64_t tile_run(const Tile *tiles, int32_t count, int32_t width, int32_t height, uint8_t *scratch,
                        int64_t size) {
  if (instruction_set(0) == 3) return tile_run_v3(tiles, count, width, height, scratch, size);
  return tile_run_v2(tiles, count, width, height, scratch, size);
}

PUBLIC void colour_run(const uint8_t *in, uint8_t *out, int64_t count, const Op *ops, int32_t op_count) {
  if (instruction_set(0) == 3)
    colour_run_v3(in, out, count, ops, op_count);
  else
    colour_run_v2(in, out, count, ops, op_count);
}

PUBLIC int32_t half_run(const uint8_t *in, uint16_t *out, int64_t count, const float *scale, const float *offset) {
  if (instruction_set(0) == 3) return half_run_v3(in, out, count, scale, offset);
  return half_run_v2(in, out, count, scale, offset);
}

#else

COPIES(_any)

PUBLIC int32_t instruction_set(int32_t chosen) {
  (void)chosen;
  return 1;
}

PUBLIC int64_t tile_run(const Tile *tiles, int32_t count, int32_t width, int32_t height, uint8_t *scratch,
                        int64_t size) {
  return tile_run_any(tiles, count, width, height, scratch, size);
}

PUBLIC void colour_run(const uint8_t *in, uint8_t *out, int64_t count, const Op *ops, int32_t op_count) {
  colour_run_any(in, out, count, ops, op_count);
}

PUBLIC int32_t half_run(const uint8_t *in, uint16_t *out, int64_t count, const float *scale, const float *offset) {
  return half_run_any(in, out, count, scale, offset);
}

#endif
