/* Colour operations on one row of planes, 0 to 255 before and after each: loops that the compiler vectorises. */

#ifndef COLOURS_H
#define COLOURS_H

#include "rows.h"

/* The logarithm to base 2 of x > 0 in two parts: a whole number, returned, and the mantissa less 1, in
   [sqrt(1/2) - 1, sqrt(2) - 1]. */
INLINE float split_float(float x, float *rest) {
  int32_t bits;
  memcpy(&bits, &x, 4);
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;
  bits -= exponent << 23;
  float mantissa;
  memcpy(&mantissa, &bits, 4);
  *rest = mantissa - 1.0f;
  return (float)exponent;
}

/* Split x, limited to +-126, into a whole number and the rest in [-1/2, 1/2]; return 2 to the whole number. Adding
   1.5 * 2^23 rounds. */
INLINE float split_power(float x, float *rest) {
  x = limited(x, -126.0f, 126.0f);
  const float whole = x + 12582912.0f;
  *rest = x - (whole - 12582912.0f);
  uint32_t bits;
  memcpy(&bits, &whole, 4);
  bits = (bits << 23) + 0x3f800000u;
  float power;
  memcpy(&power, &bits, 4);
  return power;
}

/* The polynomials below are minimax ones (Chebyshev nodes); those of the logarithm are 0 at 1, so that powers of two
   are exact and white stays white. */

/* log2(x), x > 0, within 4e-6: for optical densities, where that is a thousandth of a level. */
INLINE float log2_of(float x) {
  float z;
  const float whole = split_float(x, &z);
  float sum = -0.206858124f;
  sum = sum * z + 0.318407118f;
  sum = sum * z - 0.366413259f;
  sum = sum * z + 0.479793884f;
  sum = sum * z - 0.721208468f;
  sum = sum * z + 1.4427018f;
  return whole + z * sum;
}

/* 2^x, relative error within 3e-6. */
INLINE float exp2_of(float x) {
  float z;
  const float power = split_power(x, &z);
  float sum = 0.0096760371f;
  sum = sum * z + 0.0559220356f;
  sum = sum * z + 0.240221074f;
  sum = sum * z + 0.693121034f;
  sum = sum * z + 1.00000008f;
  return sum * power;
}

/* x^exponent within 1e-6 of it, 0 for x <= 0: log2 within 2e-7 and 2^x within 1e-7. Lab takes three powers in turn, and
   dark pixels amplify their errors. */
INLINE float power_of(float x, float exponent) {
  float z;
  const float whole = split_float(x > 0 ? x : 1.0f, &z);
  float sum = -0.14620353f;
  sum = sum * z + 0.23420985f;
  sum = sum * z - 0.24882181f;
  sum = sum * z + 0.28707561f;
  sum = sum * z - 0.36024198f;
  sum = sum * z + 0.48092404f;
  sum = sum * z - 0.72135276f;
  sum = sum * z + 1.4426949f;
  const float power = split_power(exponent * (whole + z * sum), &z);
  sum = 0.0013400433f;
  sum = sum * z + 0.0096760374f;
  sum = sum * z + 0.055503272f;
  sum = sum * z + 0.24022107f;
  sum = sum * z + 0.69314718f;
  sum = sum * z + 1.0f;
  return x > 0 ? sum * power : 0;
}

INLINE void tone(Row *row, int32_t n, const float *p) {
  const float factor = p[0], lift = p[1], gamma = p[2], unit = 1.0f / 255.0f;
  for (int32_t i = 0; i < n; i++) {
    row->r[i] = limited(row->r[i] * factor + lift, 0, 255);
    row->g[i] = limited(row->g[i] * factor + lift, 0, 255);
    row->b[i] = limited(row->b[i] * factor + lift, 0, 255);
  }
  for (int32_t i = 0; gamma != 1 && i < n; i++) {
    row->r[i] = limited(255.0f * power_of(row->r[i] * unit, gamma), 0, 255);
    row->g[i] = limited(255.0f * power_of(row->g[i] * unit, gamma), 0, 255);
    row->b[i] = limited(255.0f * power_of(row->b[i] * unit, gamma), 0, 255);
  }
}

INLINE void mix(Row *row, int32_t n, const float *p) {
  for (int32_t i = 0; i < n; i++) {
    const float r = row->r[i], g = row->g[i], b = row->b[i];
    row->r[i] = limited(p[0] * r + p[1] * g + p[2] * b, 0, 255);
    row->g[i] = limited(p[3] * r + p[4] * g + p[5] * b, 0, 255);
    row->b[i] = limited(p[6] * r + p[7] * g + p[8] * b, 0, 255);
  }
}

/* The hexagonal cone (Smith 1978); hue in sixths of the circle. A chroma below 0.01 of a level is grey and has no hue. */
INLINE void hsv(Row *row, int32_t n, const float *p) {
  const float turn = p[0], saturate = p[1], lift = p[2], tiny = 1.1920929e-7f;
  const int moves = saturate != 0 || lift != 0;
  for (int32_t i = 0; i < n; i++) {
    const float r = row->r[i], g = row->g[i], b = row->b[i];
    float value = larger(r, larger(g, b)), chroma = value - smaller(r, smaller(g, b));
    const float per = 1.0f / (chroma + tiny);
    const float of_red = (g - b) * per, of_green = (b - r) * per + 2.0f, of_blue = (r - g) * per + 4.0f;
    float hue = value == r ? of_red : (value == g ? of_green : of_blue);
    hue += turn;
    hue = hue < 0.0f ? hue + 6.0f : hue;
    hue = hue >= 6.0f ? hue - 6.0f : hue;
    if (moves) {
      const float saturation = chroma / (value + tiny);
      if (saturate > 0) hue = chroma > 0.01f ? hue : turn;
      value = limited(value + lift, 0, 255);
      chroma = value * limited(saturation + saturate, 0, 1);
    }
    const float low = value - chroma;
    row->r[i] = low + chroma * limited(__builtin_fabsf(hue - 3.0f) - 1.0f, 0, 1);
    row->g[i] = low + chroma * limited(2.0f - __builtin_fabsf(hue - 2.0f), 0, 1);
    row->b[i] = low + chroma * limited(2.0f - __builtin_fabsf(hue - 4.0f), 0, 1);
  }
}

INLINE void stain(Row *row, int32_t n, const float *p) {
  for (int32_t i = 0; i < n; i++) {
    const float r = log2_of(row->r[i] + 1.0f), g = log2_of(row->g[i] + 1.0f), b = log2_of(row->b[i] + 1.0f);
    row->r[i] = limited(exp2_of(p[0] * r + p[1] * g + p[2] * b + p[9]) - 1.0f, 0, 255);
    row->g[i] = limited(exp2_of(p[3] * r + p[4] * g + p[5] * b + p[10]) - 1.0f, 0, 255);
    row->b[i] = limited(exp2_of(p[6] * r + p[7] * g + p[8] * b + p[11]) - 1.0f, 0, 255);
  }
}

/* sRGB's curve (IEC 61966-2-1) and CIE Lab's (CIE 15), with the constants of scikit-image. The matrices are
   operations.UNIT_OF_RGB and its inverse. */
static const float XYZ_OF_RGB[9] = {0.43394637f, 0.37621388f, 0.18982503f, 0.212671f, 0.715160f,
                                    0.072169f,   0.017756674f, 0.10946888f, 0.8727046f};
static const float RGB_OF_XYZ[9] = {3.0799804f,   -1.5371516f, -0.5428213f, -0.9212478f, 1.87599f,
                                    0.04524734f,  0.05289046f, -0.20404133f, 1.151232f};

INLINE float light_of(float level) {
  const float unit = level * (1.0f / 255.0f);
  return unit > 0.04045f ? power_of((unit + 0.055f) * (1.0f / 1.055f), 2.4f) : unit * (1.0f / 12.92f);
}

INLINE float level_of(float light) {
  light = larger(light, 0);
  const float unit = light > 0.0031308f ? power_of(light, 1.0f / 2.4f) * 1.055f - 0.055f : light * 12.92f;
  return limited(255.0f * unit, 0, 255);
}

INLINE float root_of(float x) { return x > 0.008856f ? power_of(x, 1.0f / 3.0f) : x * 7.787f + 16.0f / 116.0f; }

INLINE float cube_of(float x) { return x > 0.2068966f ? x * x * x : (x - 16.0f / 116.0f) * (1.0f / 7.787f); }

INLINE void lab(Row *row, int32_t n, const float *p) {
  const float *m = XYZ_OF_RGB, *k = RGB_OF_XYZ;
  for (int32_t i = 0; i < n; i++) {
    const float r = light_of(row->r[i]), g = light_of(row->g[i]), b = light_of(row->b[i]);
    const float x = root_of(m[0] * r + m[1] * g + m[2] * b), y = root_of(m[3] * r + m[4] * g + m[5] * b),
                z = root_of(m[6] * r + m[7] * g + m[8] * b);
    const float u = cube_of(p[0] * x + p[1] * y + p[2] * z + p[3]), v = cube_of(p[4] * x + p[5] * y + p[6] * z + p[7]),
                w = cube_of(larger(p[8] * x + p[9] * y + p[10] * z + p[11], 0)); /* as in scikit-image */
    row->r[i] = level_of(k[0] * u + k[1] * v + k[2] * w);
    row->g[i] = level_of(k[3] * u + k[4] * v + k[5] * w);
    row->b[i] = level_of(k[6] * u + k[7] * v + k[8] * w);
  }
}

INLINE void colour_row(Row *row, int32_t width, const Op *ops, int32_t count) {
  for (int32_t k = 0; k < count; k++) {
    const float *p = ops[k].p;
    switch (ops[k].kind) {
      case OP_TONE: tone(row, width, p); break;
      case OP_MIX: mix(row, width, p); break;
      case OP_HSV: hsv(row, width, p); break;
      case OP_STAIN: stain(row, width, p); break;
      case OP_LAB: lab(row, width, p); break;
      default: break;
    }
  }
}

#endif
