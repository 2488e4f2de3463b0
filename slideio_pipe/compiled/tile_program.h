/* What a tile program is: how the pixels of one tile are made from decoded blocks of a slide's level.

   Python computes the programs of many tiles at once, as rows of NumPy arrays (records.py has the same structs), and one
   call runs any number of them. Nothing in these files allocates memory, takes a lock or calls Python, and ctypes
   releases the GIL for the whole call: threads run side by side.

   A program has three steps: copy the pixels that the tile reaches out of the blocks; interpolate them (bilinear, weights
   of 14 bits, rounded to a level); apply the colour operations in float32, with one rounding at the end. Every
   expression is evaluated as written (no contraction to fused operations), so each processor gives the same bytes. */

#ifndef TILE_PROGRAM_H
#define TILE_PROGRAM_H

#include <stdint.h>

#if defined(_WIN32)
#define PUBLIC __declspec(dllexport)
#else
#define PUBLIC __attribute__((visibility("default")))
#endif

/* A colour operation. The formulas are those of slideio_pipe/augment/operations.py; its numbers are prepared there. */
enum {
  OP_NONE = 0,
  OP_TONE = 1,  /* x' = p0 x + p1, then 255 (x' / 255)^p2 : brightness, contrast, gamma */
  OP_MIX = 2,   /* (r, g, b)' = 3x3 matrix p0..p8 : saturation */
  OP_HSV = 3,   /* hue + p0 sixths of the circle, saturation + p1, value + p2 levels */
  OP_STAIN = 4, /* log2(x' + 1) = 3x3 matrix p0..p8 of log2(x + 1), plus p9..p11 */
  OP_LAB = 5    /* cube roots of XYZ: 3x4 matrix p0..p11 */
};

typedef struct {
  int32_t kind;
  float p[15];
} Op;

/* Pixels of a level, decoded: a rectangle of blocks of equal size, row by row, each (height, width, 3) uint8. */
typedef struct {
  const uint8_t *const *blocks;       /* rows * columns pointers; NULL is a block that the tile does not reach */
  int32_t left, top;                  /* level px of the first block's corner */
  int32_t columns, rows;              /* number of blocks */
  int32_t block_width, block_height;  /* px */
  int32_t level_width, level_height;  /* px; beyond is the grey level `outside` */
} Source;

/* How a tile's pixels come from the level's. */
enum {
  BY_SAMPLING = 0, /* bilinear, through any affine, after a Gaussian */
  BY_COPYING = 1,  /* the affine is a shift by whole px */
  BY_SHRINKING = 2 /* a triangle filter, antialiased: tile px i covers level px [a0 (a2 + i), a0 (a2 + i + 1)), and j
                      [a4 (a5 + j), a4 (a5 + j + 1)) */
};

typedef struct {
  double affine[6]; /* x = a0 i + a1 j + a2, y = a3 i + a4 j + a5 : from tile px (i, j) to level px; centres are whole */
  Source source;
  uint8_t *out;     /* (height, width, 3) */
  const Op *ops;
  int32_t op_count;
  int32_t outside;  /* grey level, 0 to 255 */
  int32_t way;
  float sigma;      /* standard deviation of a Gaussian on the level's px before sampling; 0: none */
  int32_t left, top, right, bottom; /* of a tile that is shrunk, the px inside the slide; around them is `outside` */
} Tile;

/* Run `count` programs of tiles of `width` x `height` px. Return 0; or the bytes of scratch memory that a tile needs, if
   `size` is less, without having made that tile; or -1 if a tile reaches more than 2 GB. */
PUBLIC int64_t tile_run(const Tile *tiles, int32_t count, int32_t width, int32_t height, uint8_t *scratch, int64_t size);

/* Apply operations to `count` RGB pixels; `out` may be `in`. */
PUBLIC void colour_run(const uint8_t *in, uint8_t *out, int64_t count, const Op *ops, int32_t op_count);

/* Write `count` RGB pixels as half precision, value * scale[channel] + offset[channel]. Return 0, with nothing done, on a
   processor without that conversion. */
PUBLIC int32_t half_run(const uint8_t *in, uint16_t *out, int64_t count, const float *scale, const float *offset);

/* The instruction set in use, 2 or 3 (x86-64-v2, -v3), or 1: the only one. A number other than 0 sets it. */
PUBLIC int32_t instruction_set(int32_t chosen);

/* The digest of the sources that the library was compiled from (compile_programs.py). */
PUBLIC const char *built_from(void);

#endif
