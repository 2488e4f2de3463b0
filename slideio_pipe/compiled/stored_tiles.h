/* Stored JPEG tiles of a slide's file, read and decoded many at a time, without the GIL.

   The decoder is the libjpeg-turbo of a package that is installed anyway. Python finds that library and passes the
   addresses of its functions; nothing is linked to it. Without it, or for tiles that it does not decode without a
   warning, Python decodes tile by tile: the same pixels. */

#ifndef STORED_TILES_H
#define STORED_TILES_H

#include "tile_program.h"

/* What the tiles of one level have in common. */
typedef struct {
  const uint8_t *head; /* what a complete stream has before a tile's own: start, Adobe's marker, tables */
  int32_t head_bytes;
  int32_t descriptor;    /* of the open file */
  int32_t width, height; /* of a tile, px; a stream of another size is not decoded */
  int32_t ycbcr;         /* 0: the colours are RGB, and a JFIF marker, which would say otherwise, is dropped */
  int32_t unused;
} Stored;

typedef struct {
  const Stored *level;
  int64_t offset, bytes; /* place in the file */
  uint8_t *out;          /* (rows, width / reduce, 3), `stride` bytes from row to row */
  int32_t stride;
  int32_t rows;   /* px of `out`; decoding stops after them */
  int32_t reduce; /* shrink factor of the DCT: 1, 2, 4, 8 */
  int32_t done;   /* set to 1 by decode_run if the tile was decoded without a warning, else to 0 */
} StoredTile;

/* The functions of libjpeg-turbo, in this order: jpeg_std_error, jpeg_CreateDecompress, jpeg_mem_src, jpeg_read_header,
   jpeg_start_decompress, jpeg_read_scanlines, jpeg_finish_decompress, jpeg_destroy_decompress. */
enum { DECODER_FUNCTIONS = 8 };

/* Use these functions from now on. Return 1; or 0 if their structs are not those that this was compiled for: then
   decode_run must not be called. */
PUBLIC int32_t decode_use(void *const *functions);

/* Decode `count` tiles. `scratch` has `size` bytes: the longest stream and its head. Return the nanoseconds that reading
   the file took. */
PUBLIC int64_t decode_run(StoredTile *tiles, int32_t count, uint8_t *scratch, int64_t size);

#endif
