/* Read and decode stored tiles: libjpeg's steps, see its documentation (libjpeg.txt, "Decompression details"). */

#include "stored_tiles.h"

#if !defined(_WIN32) && UINTPTR_MAX == 0xffffffffffffffff

#include <setjmp.h>
#include <stddef.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* The structs of libjpeg 8 (jpeglib.h of libjpeg-turbo, JPEG_LIB_VERSION 80), as far as they are used here.
   jpeg_CreateDecompress compares version and size. */
enum { LIBJPEG = 80, JCS_RGB = 2 };

typedef struct Decoder Decoder;

typedef struct {
  void (*error_exit)(Decoder *);
  void (*emit_message)(Decoder *, int);
  void *output_message;
  void (*format_message)(Decoder *, char *);
  void *reset;
  int32_t code;
  char parameters[80];
  int32_t trace_level;
  long warnings;
  void *texts[4];
  jmp_buf back; /* ours, as is the first warning */
  char first[256];
} Errors;

struct Decoder {
  Errors *errors;
  void *memory, *progress, *client;
  int32_t is_decompressor, state;
  void *source;
  uint32_t image_width, image_height;
  int32_t num_components, jpeg_color_space, out_color_space;
  uint32_t scale_num, scale_denom;
  double output_gamma;
  int32_t buffered_image, raw_data_out, dct_method, do_fancy_upsampling, do_block_smoothing, colours[7];
  uint32_t output_width, output_height;
  int32_t out_color_components, output_components, rec_outbuf_height, actual_number_of_colors;
  void *colormap;
  uint32_t output_scanline;
  uint8_t rest[484];
};

_Static_assert(offsetof(Decoder, image_width) == 48 && offsetof(Decoder, output_width) == 136, "as in jpeglib.h");
_Static_assert(offsetof(Decoder, output_scanline) == 168 && sizeof(Decoder) == 656, "as in jpeglib.h");
_Static_assert(offsetof(Errors, warnings) == 128 && offsetof(Errors, back) >= 168, "as in jpeglib.h");

static struct {
  Errors *(*std_error)(Errors *);
  void (*create)(Decoder *, int, size_t);
  void (*mem_src)(Decoder *, const uint8_t *, unsigned long);
  int (*read_header)(Decoder *, int);
  int (*start)(Decoder *);
  uint32_t (*read_scanlines)(Decoder *, uint8_t **, uint32_t);
  int (*finish)(Decoder *);
  void (*destroy)(Decoder *);
} jpeg;

_Static_assert(sizeof(jpeg) == DECODER_FUNCTIONS * sizeof(void *), "one pointer for each");

static void leave(Decoder *decoder) { longjmp(decoder->errors->back, 1); }

static void keep_warning(Decoder *decoder, int level) {
  Errors *errors = decoder->errors;
  if (level < 0 && errors->warnings++ == 0) errors->format_message(decoder, errors->first);
}

/* Set up a decoder; errors return to `errors->back`. */
static void create(Decoder *decoder, Errors *errors) {
  decoder->errors = jpeg.std_error(errors);
  errors->error_exit = leave;
  errors->emit_message = keep_warning;
  jpeg.create(decoder, LIBJPEG, sizeof(Decoder));
}

int32_t decode_use(void *const *functions) {
  Decoder decoder;
  Errors errors;
  memset(&decoder, 0, sizeof(decoder));
  memset(&errors, 0, sizeof(errors));
  memcpy(&jpeg, functions, sizeof(jpeg));
  if (setjmp(errors.back)) return 0;
  create(&decoder, &errors);
  jpeg.destroy(&decoder);
  return 1;
}

/* Read a tile's complete stream into `scratch`. Return its start, or NULL. */
static uint8_t *read_stream(const StoredTile *tile, uint8_t *scratch, int64_t size, int64_t *bytes) {
  const Stored *level = tile->level;
  const int64_t head = level->head_bytes;
  if (tile->bytes < 6 || tile->offset <= 0 || tile->bytes > size - head) return NULL;
  uint8_t *data = scratch + head; /* after room for the head */
  if (pread(level->descriptor, data, (size_t)tile->bytes, tile->offset) != tile->bytes) return NULL;
  int64_t own = 2; /* its start is in the head */
  if (!level->ycbcr && data[2] == 0xff && data[3] == 0xe0) own = 4 + (data[4] << 8 | data[5]);
  if (own >= tile->bytes) return NULL;
  memcpy(data + own - head, level->head, (size_t)head);
  *bytes = head + tile->bytes - own;
  return data + own - head;
}

/* Make a sequential stream state fewer rows, a multiple of 16; return whether it is one, of the level's tiles. */
static int cut(uint8_t *stream, int64_t bytes, const Stored *level, int32_t rows) {
  for (int64_t at = 2; at + 9 < bytes && stream[at] == 0xff;) {
    const uint8_t marker = stream[at + 1];
    uint8_t *height = stream + at + 5;
    if (marker == 0xff) {
      at++; /* a fill byte */
      continue;
    }
    if (marker == 0xc0 || marker == 0xc1) {
      if ((height[0] << 8 | height[1]) != level->height) return 0;
      height[0] = (uint8_t)(rows >> 8), height[1] = (uint8_t)rows;
      return 1;
    }
    if (marker == 0x01 || (marker >= 0xd0 && marker <= 0xd8)) /* without a length */
      at += 2;
    else if (marker == 0xda)
      return 0;
    else
      at += 2 + (stream[at + 2] << 8 | stream[at + 3]);
  }
  return 0;
}

static void read_rows(Decoder *decoder, const StoredTile *tile) {
  enum { AT_ONCE = 8 };
  uint8_t *rows[AT_ONCE];
  while (decoder->output_scanline < (uint32_t)tile->rows) {
    const uint32_t first = decoder->output_scanline;
    uint32_t count = 0;
    for (; count < AT_ONCE && first + count < (uint32_t)tile->rows; count++)
      rows[count] = tile->out + (size_t)(first + count) * tile->stride;
    if (!jpeg.read_scanlines(decoder, rows, count)) leave(decoder);
  }
}

/* Decode a complete stream; return whether there was no error and no warning. */
static int decode(const StoredTile *tile, uint8_t *stream, int64_t bytes) {
  const Stored *level = tile->level;
  const int32_t rows = tile->rows * tile->reduce, partly = rows < level->height;
  if (partly && !cut(stream, bytes, level, rows)) return 0;
  Decoder decoder;
  Errors errors;
  memset(&decoder, 0, sizeof(decoder));
  memset(&errors, 0, sizeof(errors));
  if (setjmp(errors.back)) {
    jpeg.destroy(&decoder);
    return 0;
  }
  create(&decoder, &errors);
  jpeg.mem_src(&decoder, stream, (unsigned long)bytes);
  jpeg.read_header(&decoder, 1);
  if (decoder.image_width != (uint32_t)level->width || decoder.image_height != (uint32_t)rows ||
      decoder.num_components != 3)
    leave(&decoder);
  decoder.out_color_space = JCS_RGB;
  decoder.scale_num = 1, decoder.scale_denom = (uint32_t)tile->reduce;
  jpeg.start(&decoder);
  if (decoder.output_width != (uint32_t)(level->width / tile->reduce) ||
      decoder.output_height != (uint32_t)tile->rows || decoder.output_components != 3)
    leave(&decoder);
  read_rows(&decoder, tile);
  jpeg.finish(&decoder);
  jpeg.destroy(&decoder);
  /* Of the rows that were cut off, whose bytes are all before the end; there was no warning before this one. */
  return errors.warnings == 0 || (partly && strstr(errors.first, "extraneous bytes before marker 0xd9"));
}

static int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

int64_t decode_run(StoredTile *tiles, int32_t count, uint8_t *scratch, int64_t size) {
  int64_t reading = 0;
  for (int32_t k = 0; k < count; k++) {
    const int64_t begun = now();
    int64_t bytes = 0;
    uint8_t *stream = read_stream(&tiles[k], scratch, size, &bytes);
    reading += now() - begun;
    tiles[k].done = stream && decode(&tiles[k], stream, bytes);
  }
  return reading;
}

#else

int32_t decode_use(void *const *functions) {
  (void)functions;
  return 0;
}

int64_t decode_run(StoredTile *tiles, int32_t count, uint8_t *scratch, int64_t size) {
  (void)scratch, (void)size;
  for (int32_t k = 0; k < count; k++) tiles[k].done = 0;
  return 0;
}

#endif
