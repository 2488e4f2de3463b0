/* Levels to normalised numbers of half precision: value * scale + offset per channel, rounded once. */

#ifndef HALVES_H
#define HALVES_H

#include "rows.h"

#if defined(__F16C__) || defined(__aarch64__)
enum { GROUP = 24 }; /* three vectors of eight, in which each value keeps its channel */

INLINE int32_t halves(const uint8_t *in, uint16_t *out, int64_t count, const float *scale, const float *offset) {
  float scales[GROUP], offsets[GROUP];
  for (int32_t i = 0; i < GROUP; i++) scales[i] = scale[i % 3], offsets[i] = offset[i % 3];
  _Float16 *half = (_Float16 *)(void *)out;
  int64_t at = 0;
  for (; at + GROUP <= count * 3; at += GROUP)
    for (int32_t i = 0; i < GROUP; i++) half[at + i] = (_Float16)((float)in[at + i] * scales[i] + offsets[i]);
  for (int32_t i = 0; at + i < count * 3; i++) half[at + i] = (_Float16)((float)in[at + i] * scales[i] + offsets[i]);
  return 1;
}
#else
INLINE int32_t halves(const uint8_t *in, uint16_t *out, int64_t count, const float *scale, const float *offset) {
  (void)in, (void)out, (void)count, (void)scale, (void)offset;
  return 0;
}
#endif

#endif
