"""TIFF pages that libvips reads wrongly or not at all; oracles: libtiff, tifffile and the source arrays."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from pyramids import coordinate_pixels, write_pyramid

import slideio_pipe as sp
from slideio_pipe.errors import CorruptSlideError, SlideioPipeError, UnsupportedSlideError

WIDTH, HEIGHT = 200, 150
RANDOM = np.random.default_rng(0)
PIXELS = coordinate_pixels(WIDTH, HEIGHT)
LUMA_601 = (0.299, 0.587, 0.114)
LUMA_709 = (0.2126, 0.7152, 0.0722)
FULL = (0, 255, 128, 255, 128, 255)
STUDIO = (16, 235, 128, 240, 128, 240)


def every_way(path: Path) -> dict[str, np.ndarray]:
    """Return the whole of level 0 by every reader of the package."""
    slide = sp.open_slide(path, slide_mpp=0.25)
    view = slide.view()
    (width, height), side = slide.dimensions, 64
    origins = np.array([(x, y) for y in range(0, height, side) for x in range(0, width, side)])
    tiles, bag = sp.TileReader(view, side).read(origins), np.zeros((height + side, width + side, 3), np.uint8)
    for (x, y), tile in zip(origins.tolist(), tiles, strict=True):
        bag[y : y + side, x : x + side] = tile
    return {
        "read_region": slide.read_region((0, 0), 0, (width, height)),
        "image": view.image.numpy(),
        "tiles": bag[:height, :width],
        "thumbnail": slide.thumbnail(max(width, height)),
    }


def saved(slide: sp.Slide, path: Path) -> np.ndarray:
    slide.view().save(path, quality=100, overwrite=True)
    return np.asarray(tifffile.imread(path, key=0), int)


def assert_every_way(path: Path, expected: np.ndarray, within: int = 0) -> None:
    """Compare the pixels of every reader; saved files with that of an array, because they are JPEG."""
    for way, pixels in every_way(path).items():
        off = np.abs(pixels.astype(int) - expected)
        assert off.max() <= within, f"{way}: {off.max()} off"
    of_file, of_array = (saved(sp.open_slide(source), path.with_name("saved.tif")) for source in (path, expected))
    assert np.abs(of_file - of_array).mean() <= within


def libtiff(path: Path) -> np.ndarray:
    """Return the pixels of libtiff's own conversion, through OpenSlide: tiled files only."""
    with openslide.OpenSlide(str(path)) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]


# --- YCbCr without JPEG


def rgb_of(codes: np.ndarray, luma: tuple[float, ...] = LUMA_601, reference: tuple[int, ...] = FULL) -> np.ndarray:
    """Return the RGB of Y, Cb, Cr codes in float64: TIFF 6.0, sections 20 and 21."""
    red, green, blue = luma
    ranges = (255, 127, 127)
    y, cb, cr = (
        (codes[..., k].astype(float) - reference[2 * k]) * ranges[k] / (reference[2 * k + 1] - reference[2 * k])
        for k in range(3)
    )
    r, b = y + cr * (2 - 2 * red), y + cb * (2 - 2 * blue)
    g = (y - red * r - blue * b) / green
    return np.clip(np.floor(np.stack([r, g, b], axis=-1) + 0.5), 0, 255).astype(np.uint8)


def chroma_blocks(x: int, y: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return random Y, Cb, Cr codes whose chroma is one value per ``x`` × ``y`` pixels."""
    codes = RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.concatenate([codes[..., :1], codes[::y, ::x, 1:].repeat(y, axis=0).repeat(x, axis=1)[:height, :width]], 2)


def data_units(codes: np.ndarray, x: int, y: int) -> bytes:
    """Return Y, Cb, Cr codes as TIFF stores them: the luma of a block, row by row, then its Cb and its Cr."""
    rows, width = codes.shape[:2]
    padded = np.pad(codes, ((0, -rows % y), (0, -width % x), (0, 0)), mode="edge")
    parts = []
    for top in range(0, rows, y):
        for left in range(0, width, x):
            block = padded[top : top + y, left : left + x]
            parts.append(block[..., 0].tobytes() + block[0, 0, 1:].tobytes())
    return b"".join(parts)


ENCODERS: dict[str, Any] = {
    "none": bytes,
    "lzw": imagecodecs.lzw_encode,
    "zlib": imagecodecs.zlib_encode,
    "zstd": imagecodecs.zstd_encode,
    "packbits": lambda data: imagecodecs.packbits_encode(data),
    "lzma": imagecodecs.lzma_encode,
}
NUMBERS = {"none": 1, "lzw": 5, "zlib": 8, "packbits": 32773, "zstd": 50000, "lzma": 34925}


def write_ycbcr(
    path: Path,
    codes: np.ndarray,
    codec: str,
    subsampling: tuple[int, int] | None = (1, 1),
    *,
    tile: int | None = 64,
    rows: int = 20,
    luma: tuple[float, ...] | None = None,
    reference: tuple[int, ...] | None = None,
) -> Path:
    """Write a classic little-endian TIFF of YCbCr, tiled or in strips; tags of None are left out."""
    height, width = codes.shape[:2]
    x, y = subsampling or (1, 1)
    if tile:
        padded = np.pad(codes, ((0, -height % tile), (0, -width % tile), (0, 0)), mode="edge")
        places = [(r, c) for r in range(0, height, tile) for c in range(0, width, tile)]
        pieces = [padded[r : r + tile, c : c + tile] for r, c in places]
    else:
        pieces = [codes[r : r + rows] for r in range(0, height, rows)]
    segments = [ENCODERS[codec](data_units(piece, x, y)) for piece in pieces]
    offsets, data = [], bytearray(b"II*\0\0\0\0\0")
    for segment in segments:
        offsets.append(len(data))
        data += segment + b"\0" * (len(segment) % 2)
    entries: list[tuple[int, int, list[int]]] = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, [8, 8, 8]), (259, 3, [NUMBERS[codec]]), (262, 3, [6]),
        (277, 3, [3]), (284, 3, [1]),
    ]  # fmt: skip
    counts = [len(segment) for segment in segments]
    if tile:
        entries += [(322, 4, [tile]), (323, 4, [tile]), (324, 4, offsets), (325, 4, counts)]
    else:
        entries += [(273, 4, offsets), (278, 4, [rows]), (279, 4, counts)]
    if luma is not None:
        entries.append((529, 5, [part for value in luma for part in (round(value * 10_000), 10_000)]))
    if subsampling is not None:
        entries.append((530, 3, list(subsampling)))
    if reference is not None:
        entries.append((532, 5, [part for value in reference for part in (value, 1)]))
    directory = struct.pack("<H", len(entries))
    struct.pack_into("<I", data, 4, len(data))
    extra_at, extra = len(data) + 2 + 12 * len(entries) + 4, bytearray()
    for tag, kind, values in sorted(entries):
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        count = len(values) // (2 if kind == 5 else 1)
        if len(packed) > 4:
            packed, where = struct.pack("<I", extra_at + len(extra)), packed
            extra += where
        directory += struct.pack("<HHI", tag, kind, count) + packed.ljust(4, b"\0")
    path.write_bytes(bytes(data) + directory + b"\0\0\0\0" + bytes(extra))
    return path


def test_a_tile_of_too_few_bytes_is_damaged(tmp_path: Path) -> None:
    """Uncompressed, without its last row of pixels: an error with both numbers, not another picture."""
    path = write_ycbcr(tmp_path / "a.tif", chroma_blocks(1, 1), "none", (1, 1))
    with tifffile.TiffFile(path, mode="r+") as tif:
        counts = list(tif.pages[0].databytecounts)
        tif.pages[0].tags[325].overwrite([*counts[:-1], counts[-1] - 3 * 64])
    width, height = sp.open_slide(path).dimensions
    with pytest.raises(CorruptSlideError, match=rf"{3 * 64 * 63} of {3 * 64 * 64} bytes"):
        sp.open_slide(path).read_region((width - 1, height - 1), 0, (1, 1))


def test_a_whole_large_slide_in_one_strip_is_refused(tmp_path: Path) -> None:
    """1.5 GB and more would have to be decoded at once; the file here has only a header."""
    path = write_ycbcr(tmp_path / "a.tif", chroma_blocks(1, 1), "zlib", (1, 1), tile=None, rows=64)
    with tifffile.TiffFile(path, mode="r+") as tif:
        tags = tif.pages[0].tags
        first = tags[273].value[:1], tags[279].value[:1]
        for code, value in ((256, 40_000), (257, 20_000), (278, 20_000)):
            tags[code].overwrite(value)
        for code, value in zip((273, 279), first, strict=True):
            tags[code].overwrite(value)
    with pytest.raises(UnsupportedSlideError, match=r"strips of 40000×20000 px .* are too large"):
        sp.open_slide(path)


@pytest.mark.combinations
@pytest.mark.parametrize("tile", [64, None], ids=["tiles", "strips"])
@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (1, 2), (2, 2), (4, 2), (4, 4)])
@pytest.mark.parametrize("codec", list(ENCODERS))
def test_ycbcr_of_any_codec_is_rgb(tmp_path: Path, codec: str, subsampling: tuple[int, int], tile: int | None) -> None:
    """Converted in float64; libvips takes Y, Cb, Cr for R, G, B if chroma is not subsampled."""
    codes = chroma_blocks(*subsampling)
    path = write_ycbcr(tmp_path / "a.tif", codes, codec, subsampling, tile=tile)
    assert_every_way(path, rgb_of(codes), within=1)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
@pytest.mark.parametrize(
    ("luma", "reference"), [(None, None), (LUMA_709, None), (None, STUDIO), (LUMA_709, STUDIO)],
    ids=["defaults", "coefficients", "reference", "both"],
)  # fmt: skip
def test_coefficients_and_reference_values_are_used(
    tmp_path: Path, luma: Any, reference: Any, subsampling: tuple[int, int]
) -> None:
    """By the formula, and by libtiff, which rounds scaled Y, Cb and Cr before the conversion."""
    codes = chroma_blocks(*subsampling)
    path = write_ycbcr(tmp_path / "a.tif", codes, "zlib", subsampling, luma=luma, reference=reference)
    expected = rgb_of(codes, luma or LUMA_601, reference or FULL)
    assert_every_way(path, expected, within=1)
    off = np.abs(libtiff(path).astype(int) - sp.open_slide(path).read_region((0, 0), 0, (WIDTH, HEIGHT)))
    assert off.max() <= 3
    assert off.mean() < 0.7


def test_a_missing_subsampling_tag_is_inferred_from_the_bytes(tmp_path: Path) -> None:
    """Its default is 2 × 2, but some writers omit it in files with full chroma, too."""
    codes = chroma_blocks(1, 1)
    assert_every_way(write_ycbcr(tmp_path / "full.tif", codes, "zlib", None), rgb_of(codes), within=1)


def test_files_of_tifffile_are_read(tmp_path: Path) -> None:
    """With its predictor, planes and byte orders."""
    codes = chroma_blocks(1, 1)
    options: dict[str, Any] = {"photometric": "ycbcr", "metadata": None, "tile": (64, 64), "byteorder": ">"}
    for name, more in {
        "predictor": {"compression": "zlib", "predictor": True},
        "zstd": {"compression": "zstd", "predictor": True},
        "planes": {"compression": "lzw", "planarconfig": "separate"},
    }.items():
        stored = np.moveaxis(codes, 2, 0).copy() if name == "planes" else codes
        tifffile.imwrite(tmp_path / f"{name}.tif", stored, **options, **more)
        assert_every_way(tmp_path / f"{name}.tif", rgb_of(codes), within=1)


@pytest.mark.parametrize("transformed", [False, True], ids=["YCbCr in the stream", "RGB in the stream"])
def test_colours_of_jpeg_2000_follow_the_stream(tmp_path: Path, transformed: bool) -> None:
    """A tag of YCbCr, and a codestream with or without its own component transform, which the decoder undoes."""
    codes = chroma_blocks(1, 1, 128, 128)
    segments = [
        imagecodecs.jpeg2k_encode(np.ascontiguousarray(codes[y : y + 64, x : x + 64]), reversible=True, mct=transformed)
        for y in (0, 64)
        for x in (0, 64)
    ]
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, iter(segments), shape=codes.shape, dtype=np.uint8, tile=(64, 64), compression="jpeg2000",
        photometric="ycbcr", metadata=None,
    )  # fmt: skip
    assert_every_way(path, codes if transformed else rgb_of(codes), within=1)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"luma": (0.5, 0.0, 0.5)}, "YCbCrCoefficients"),
        ({"reference": (0, 0, 128, 255, 128, 255)}, "ReferenceBlackWhite"),
        ({"subsampling": (3, 1)}, "subsampled"),
    ],
)
def test_undefined_ycbcr_is_refused(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    """At opening, with the wrong tag."""
    path = write_ycbcr(tmp_path / "a.tif", chroma_blocks(1, 1), "zlib", **options)
    with pytest.raises(UnsupportedSlideError, match=reason):
        sp.open_slide(path)


def test_damaged_ycbcr_is_an_error(tmp_path: Path) -> None:
    """Data that decompress to less than a tile."""
    path = write_ycbcr(tmp_path / "a.tif", chroma_blocks(2, 2), "none", (2, 2))
    with tifffile.TiffFile(path, mode="r+b") as tif:
        counts = list(tif.pages[0].databytecounts)
        tif.pages[0].tags["TileByteCounts"].overwrite([counts[0] // 2, *counts[1:]])
    with pytest.raises(CorruptSlideError, match=r"tile \(0, 0\).*bytes are there"):
        sp.open_slide(path).read_region((0, 0), 0, (10, 10))


# --- strips


@dataclass(frozen=True)
class Warned:
    """A change of a striped TIFF that libtiff warns of, and that changes no pixel."""

    name: str
    options: dict[str, Any]
    tag: int = 0  # that is changed
    to: tuple[int, ...] = ()  # (tag, type, count, value) instead


WARNED = [
    Warned("two descriptions", {"description": "mine", "metadata": {"axes": "YXS"}}),
    Warned("text without its null", {"software": "four"}, 305, (305, 2, 3, 0x6E6F6E)),
    Warned("a page number of one value", {"extratags": [(297, 3, 2, (0, 1), True)]}, 297, (297, 3, 1, 0)),
    Warned("orientation 0", {"extratags": [(274, 3, 1, 1, True)]}, 274, (274, 3, 1, 0)),
    Warned("an unknown tag", {"extratags": [(64_999, 3, 1, 7, True)]}),
    Warned("unsorted tags", {"extratags": [(64_999, 3, 1, 7, True)]}, 305, (65_100, 3, 1, 0)),
]


@pytest.mark.parametrize("codec", ["none", "zlib", "lzw", "packbits"])
@pytest.mark.parametrize("case", WARNED, ids=[case.name for case in WARNED])
def test_strips_are_read_despite_warnings_of_libtiff(tmp_path: Path, case: Warned, codec: str) -> None:
    """Compared with the source array and Pillow's libtiff."""
    path = tmp_path / "a.tif"
    options = {"metadata": None, "software": "four", **case.options}
    tifffile.imwrite(path, PIXELS, photometric="rgb", rowsperstrip=16, compression=codec, **options)
    if case.tag:
        with tifffile.TiffFile(path) as tif:
            at = tif.pages[0].tags[case.tag].offset
        data = bytearray(path.read_bytes())
        struct.pack_into("<HHII", data, at, *case.to)
        path.write_bytes(data)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), PIXELS)
    assert_every_way(path, PIXELS)


@pytest.mark.combinations
@pytest.mark.parametrize("rows", [1, 7, 16, 100, 400, 1000])
@pytest.mark.parametrize("codec", ["none", "lzw", "zstd", "jpeg"])
def test_strips_of_any_height_are_read(tmp_path: Path, codec: str, rows: int) -> None:
    """Higher and lower than the virtual tiles, on a large page, with tifffile as oracle."""
    if codec == "jpeg":
        rows = -(-rows // 8) * 8
    pixels = coordinate_pixels(700, 611)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=rows, compression=codec, metadata=None)
    assert_every_way(path, tifffile.imread(path))


def test_each_strip_is_decoded_once_for_a_raster_of_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though every tile needs parts of many strips, and every strip has parts of many tiles."""
    from slideio_pipe.slides.backends.tiff_decoder import TileDecoder

    path = tmp_path / "a.tif"
    tifffile.imwrite(path, coordinate_pixels(1500, 1000), photometric="rgb", rowsperstrip=10, compression="zlib")
    read, original = [], TileDecoder.read

    def counting(self: TileDecoder, column: int, row: int) -> np.ndarray:
        read.append(row)
        return original(self, column, row)

    monkeypatch.setattr(TileDecoder, "read", counting)
    view = sp.open_slide(path).view()
    sp.TileReader(view, 128).read([(x, y) for y in range(50, 872, 100) for x in range(30, 1370, 100)])
    assert len(read) == len(set(read)) == 100


@pytest.mark.parametrize("codec", ["none", "zlib", "lzw", "packbits", "zstd", "jpeg"])
def test_damaged_strips_are_refused(tmp_path: Path, codec: str) -> None:
    """In every read; neighbouring strips are read."""
    pixels = np.repeat(np.repeat(RANDOM.integers(0, 256, (75, 50, 3), dtype=np.uint8), 8, axis=0), 8, axis=1)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=64, compression=codec, metadata=None)
    good = tifffile.imread(path)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        page = tif.pages[0]
        offset, counts = page.dataoffsets[8], list(page.databytecounts)
        if codec in ("none", "packbits"):
            counts[8] //= 2
            page.tags["StripByteCounts"].overwrite(counts)
        else:
            tif.filehandle.seek(offset + counts[8] // 2)
            tif.filehandle.write(b"\x55" * (counts[8] - counts[8] // 2))
    slide = sp.open_slide(path, slide_mpp=1.0)
    for _ in range(2):
        with pytest.raises(CorruptSlideError, match="strip 8"):
            slide.read_region((0, 500), 0, (100, 90))
        with pytest.raises(SlideioPipeError):
            slide.thumbnail(100)
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (100, 400)), good[:400, :100])


def old_lzw(data: bytes) -> bytes:
    """Return data in the LZW that libtiff calls old: codes from the lowest bit, one bit longer one code later."""
    table = {bytes([value]): value for value in range(256)}
    bits, filled, out = 0, 0, bytearray()
    size, word = 9, b""

    def put(code: int) -> None:
        nonlocal bits, filled
        bits |= code << filled
        filled += size
        while filled >= 8:
            out.append(bits & 255)
            bits, filled = bits >> 8, filled - 8

    put(256)
    following = 258
    for value in data:
        longer = word + bytes([value])
        if longer in table:
            word = longer
            continue
        put(table[word])
        table[longer] = following
        following += 1
        if following > (1 << size):
            size += 1
        word = bytes([value])
        if following == 4094:
            put(table[word])
            put(256)
            table, following, size, word = {bytes([v]): v for v in range(256)}, 258, 9, b""
    if word:
        put(table[word])
    put(257)
    put(0)
    return bytes(out)


@pytest.mark.parametrize("rows", [16, 150])
def test_lzw_of_the_old_bit_order_is_read(tmp_path: Path, rows: int) -> None:
    """Pillow's libtiff, which warns of it, is the oracle."""
    segments = [old_lzw(PIXELS[y : y + rows].tobytes()) for y in range(0, HEIGHT, rows)]
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, iter(segments), shape=PIXELS.shape, dtype=np.uint8, photometric="rgb", compression="lzw",
        rowsperstrip=rows, metadata=None, predictor=False,
    )  # fmt: skip
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), PIXELS)
    assert_every_way(path, PIXELS)


# --- what a fourth sample means

FOURTH = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 1), dtype=np.uint8)


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.floor(pixels * (alpha / 255) + 255 * (1 - alpha / 255) + 0.5).astype(np.uint8)


PREMULTIPLIED = np.minimum(PIXELS, FOURTH)


@pytest.mark.combinations
@pytest.mark.parametrize("planes", [False, True], ids=["interleaved", "planes"])
@pytest.mark.parametrize("tile", [(64, 64), None], ids=["tiles", "strips"])
@pytest.mark.parametrize("codec", ["none", "zlib", "lzw", "zstd"])
@pytest.mark.parametrize(
    ("meaning", "colours", "fourth", "expected"),
    [
        ("unspecified", PIXELS, np.zeros_like(FOURTH), PIXELS),
        ("unspecified", PIXELS, FOURTH, PIXELS),
        ("unassalpha", PIXELS, FOURTH, on_white(PIXELS, FOURTH)),
        ("assocalpha", PREMULTIPLIED, FOURTH, PREMULTIPLIED + (255 - FOURTH)),
        (None, PIXELS, FOURTH, on_white(PIXELS, FOURTH)),
    ],
    ids=["unspecified, all zero", "unspecified", "straight alpha", "premultiplied", "not stated"],
)
def test_a_fourth_sample_is_alpha_unless_unspecified(
    tmp_path: Path, meaning: str | None, colours: np.ndarray, fourth: np.ndarray, expected: np.ndarray,
    codec: str, tile: Any, planes: bool,
) -> None:  # fmt: skip
    """TIFF 6.0, section 18; without the tag it is alpha, as in Pillow."""
    pixels = np.concatenate([colours, fourth], axis=2)
    if planes:
        pixels = np.moveaxis(pixels, 2, 0).copy()
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, pixels, photometric="rgb", metadata=None, compression=codec, tile=tile, rowsperstrip=None if tile else 10,
        planarconfig="separate" if planes else "contig", extrasamples=[meaning or "unassalpha"],
    )  # fmt: skip
    if meaning is None:
        rename_tag(path, 338, 65_000)
    assert_every_way(path, expected)


def rename_tag(path: Path, tag: int, to: int) -> None:
    with tifffile.TiffFile(path) as tif:
        at = tif.pages[0].tags[tag].offset
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, at, to)
    path.write_bytes(data)


def test_openslide_does_not_read_an_unspecified_sample(tmp_path: Path) -> None:
    """It would return white, or worse; with alpha it is used."""
    for meaning, refused in (("unspecified", True), ("unassalpha", False)):
        path = tmp_path / f"{meaning}.tif"
        pixels = np.concatenate([PIXELS, FOURTH], axis=2)
        tifffile.imwrite(
            path, pixels, photometric="rgb", metadata=None, compression="zlib", tile=(64, 64), extrasamples=[meaning]
        )
        if refused:
            with pytest.raises(UnsupportedSlideError, match=r'fourth sample.*pass backend="tiff"'):
                sp.open_slide(path, backend="openslide")
        else:
            assert sp.open_slide(path, backend="openslide").dimensions == (WIDTH, HEIGHT)


@pytest.mark.parametrize("codec", ["none", "zlib", "zstd"])
def test_four_grey_channels_are_refused(tmp_path: Path, codec: str) -> None:
    """Channels of fluorescence are not composed."""
    pixels = np.concatenate([PIXELS, FOURTH], axis=2)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, pixels, photometric="minisblack", planarconfig="contig", tile=(64, 64), compression=codec, metadata=None
    )
    with pytest.raises(UnsupportedSlideError, match="4 channels"):
        sp.open_slide(path)


# --- levels smaller than their tile


@pytest.mark.combinations
@pytest.mark.parametrize("codec", ["none", "lzw", "zlib", "jpeg", "zstd", "webp", "packbits"])
@pytest.mark.parametrize(("tile", "size"), [(512, (128, 100)), (1024, (60, 384)), (2048, (1500, 1200)), (1024, (1, 1))])
def test_a_tile_larger_than_its_level_is_cut(tmp_path: Path, codec: str, tile: int, size: tuple[int, int]) -> None:
    """As at the end of pyramids and on biopsies; tifffile is the oracle."""
    pixels = coordinate_pixels(*size)
    options = {"compressionargs": {"lossless": True}} if codec == "webp" else {}
    path = write_pyramid(tmp_path / "a.tif", pixels, (1,), tile=tile, compression=codec, **options)
    assert_every_way(path, tifffile.imread(path))


def test_the_last_levels_of_a_pyramid_are_read(tmp_path: Path) -> None:
    """With 1024-px tiles, down to 62 px: regions, and the overview in which tissue is found."""
    pixels = coordinate_pixels(1000, 700)
    path = write_pyramid(tmp_path / "a.tif", pixels, (1, 4, 16), tile=1024)
    slide = sp.open_slide(path)
    for level, factor in enumerate((1, 4, 16)):
        expected = pixels[::factor, ::factor][: 700 // factor, : 1000 // factor]
        np.testing.assert_array_equal(slide.read_region((0, 0), level, slide.level_dimensions[level]), expected)
    assert slide.thumbnail(62).shape == (43, 62, 3)
    overview, _ = slide.overview(4.0)
    np.testing.assert_array_equal(overview, pixels[::16, ::16][:43, :62])


@pytest.mark.parametrize("photometric", ["miniswhite", "palette"])
@pytest.mark.parametrize("codec", ["zlib", "zstd"])
def test_grey_and_palettes_are_read_in_small_levels(tmp_path: Path, codec: str, photometric: str) -> None:
    """Without libvips; also with a palette of bytes, as old writers have it."""
    grey, colours = PIXELS[..., 0], RANDOM.integers(0, 256, (3, 256)).astype(np.uint16)
    options: dict[str, Any] = {"tile": (1024, 1024), "compression": codec, "metadata": None}
    path = tmp_path / "a.tif"
    if photometric == "miniswhite":
        tifffile.imwrite(path, grey, photometric=photometric, **options)
        assert_every_way(path, np.repeat(255 - grey[..., None], 3, axis=2))
        return
    for colormap in (colours, colours * 257):
        tifffile.imwrite(path, grey, photometric=photometric, colormap=colormap, **options)
        assert_every_way(path, colours.T[grey].astype(np.uint8))


# --- what is refused, and why


@pytest.mark.parametrize(("bits", "output"), [(4, "4-bit, not 8-bit"), (1, "1-bit"), (16, "uint16, not 8-bit")])
def test_other_bit_depths_are_refused(tmp_path: Path, bits: int, output: str) -> None:
    """4-bit samples unpack into bytes, but are not 8-bit."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS[..., 0].astype(np.uint16 if bits == 16 else np.uint8), photometric="minisblack")
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[0].tags["BitsPerSample"].overwrite(bits)
    with pytest.raises(UnsupportedSlideError, match=output):
        sp.open_slide(path)


@pytest.mark.parametrize("tile", [(64, 64), None], ids=["tiles", "strips"])
def test_old_style_jpeg_is_refused_with_its_name(tmp_path: Path, tile: Any) -> None:
    """At opening, not at the first tile."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="ycbcr", compression="jpeg", tile=tile, metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[0].tags["Compression"].overwrite(6)
    with pytest.raises(UnsupportedSlideError, match=r"old-style JPEG.*; convert it"):
        sp.open_slide(path)
