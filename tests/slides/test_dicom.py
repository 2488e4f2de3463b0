"""DICOM through OpenSlide, and what OpenSlide lacks: offsets of padded levels, and reasons for refusals."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from dicom_files import element, write_dicom, write_series
from pyramids import coordinate_pixels

from slideio_pipe import errors
from slideio_pipe.errors import CorruptSlideError, UnsupportedSlideError
from slideio_pipe.slides.slide import open_slide

# 700 / 4 is 175, padded to 256: OpenSlide's downsample of that level is 3, which is wrong.
PIXELS = coordinate_pixels(700, 500)


def test_padded_levels_are_placed_by_their_pixel_spacing(tmp_path: Path) -> None:
    """And end where the slide ends; the oracle is the picture they were made of."""
    paths = write_series(tmp_path, PIXELS, (1, 2, 4), padded=True, spacing=(0.0005, 0.00025))
    with openslide.OpenSlide(str(paths[0])) as plain:
        assert plain.level_downsamples == (1.0, 2.0, 3.5)
    for path in paths:
        slide = open_slide(path)
        assert slide.mpp == pytest.approx((0.5, 0.25))
        assert slide.level_dimensions == ((768, 512), (384, 256), (192, 128))
        assert slide.pyramid.downsamples == ((1, 1), (2, 2), (4, 4))
    for level, step in enumerate((1, 2, 4)):
        for x, y in ((0, 0), (640, 480), (200, 400)):
            assert slide.read_region((x, y), level, (1, 1))[0, 0].tolist() == PIXELS[y, x].tolist()
        whole = slide.read_region((0, 0), level, (700 // step, 500 // step))
        assert np.array_equal(whole, PIXELS[::step, ::step][: whole.shape[0], : whole.shape[1]])


@pytest.mark.parametrize("tile", [144, 240])
def test_a_view_of_padded_levels_is_the_picture(tmp_path: Path, tile: int) -> None:
    """Half, a quarter, and between: never from a level of another extent."""
    rows, columns = np.mgrid[:500, :700]
    smooth = np.stack([columns // 4, rows // 3, (columns + rows) // 6], axis=-1).astype(np.uint8)
    slide = open_slide(write_series(tmp_path, smooth, (1, 2, 4), padded=True, tile=tile)[0])
    for mpp in (1.0, 1.25, 2.0, 2.5):
        step = mpp / 0.5
        seen = slide.view(mpp=mpp).image.numpy()
        y, x = np.mgrid[4 : int(480 / step) : 9, 4 : int(680 / step) : 9]
        at_level0 = smooth[(y * step + step / 2).astype(int), (x * step + step / 2).astype(int)].astype(int)
        assert np.abs(seen[y, x].astype(int) - at_level0).max() <= 2


def test_levels_that_are_not_padded_are_unchanged(tmp_path: Path) -> None:
    """If spacing is missing or equal at all levels, they are as in OpenSlide."""
    slide = open_slide(write_series(tmp_path / "a", PIXELS)[1])
    assert slide.level_dimensions == ((700, 500), (350, 250), (175, 125))
    for spacing in (None, (0.0005, 0.0005)):
        folder = tmp_path / str(spacing)
        folder.mkdir()
        for number, step in enumerate((1, 2)):
            level = PIXELS[::step, ::step]
            write_dicom(folder / f"{number}.dcm", level, number=number + 1, spacing=spacing)
        with openslide.OpenSlide(str(folder / "0.dcm")) as plain:
            theirs = plain.level_downsamples
        assert open_slide(folder / "0.dcm").pyramid.downsamples == tuple((d, d) for d in theirs)


def test_a_padded_level_without_spacing_is_not_used(tmp_path: Path) -> None:
    """With a warning: the finer level is read."""
    padded = np.pad(PIXELS[::2, ::2], ((0, 6), (0, 34), (0, 0)), constant_values=255)
    base = np.pad(PIXELS, ((0, 140), (0, 68), (0, 0)), constant_values=255)
    for number, level in enumerate((base[:640, :640], np.pad(padded, ((0, 128), (0, 0), (0, 0))))):
        write_dicom(tmp_path / f"{number}.dcm", level, number=number + 1, spacing=None)
    with pytest.warns(errors.LeftOutLevelsWarning, match="384 × 384 px are not used"):
        slide = open_slide(tmp_path / "0.dcm")
    assert slide.level_dimensions == ((640, 640),)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pixels": PIXELS[..., 0]}, "MONOCHROME2 of 1 sample, not RGB"),
        ({"pixels": PIXELS.astype(np.uint16)}, "16-bit, not 8-bit"),
        ({"syntax": "1.2.840.10008.1.2.4.80"}, r"1\.2\.840\.10008\.1\.2\.4\.80 \(JPEG-LS\) is not supported"),
        ({"syntax": "1.2.840.10008.1.2.4.201"}, "high-throughput JPEG 2000"),
        ({"syntax": "1.2.840.10008.1.2.4.70"}, "lossless JPEG"),
        ({"syntax": "1.2.840.10008.1.2.5"}, "run lengths"),
        ({"syntax": "1.2.840.10008.1.2.4.110"}, "JPEG XL"),
        ({"syntax": "1.2.840.10008.1.2.4.999"}, "an unknown one"),
        (
            {"extra": [element(0x00209161, "UI", "1.2.9"), element(0x00209163, "US", 2)]},
            "in several files",
        ),
    ],
)
def test_the_remedy_of_an_unsupported_codec_is_to_convert(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    """The file is not damaged; names of codecs are those of DICOM part 6."""
    encoded = {"encoded": [b"abcd"] * 24} if "syntax" in options else {}
    path = write_dicom(tmp_path / "a.dcm", **{"pixels": PIXELS, **encoded, **options})
    with pytest.raises(UnsupportedSlideError, match=words) as caught:
        open_slide(path)
    assert "convert it once" in str(caught.value)


def test_several_focal_planes_are_refused(tmp_path: Path) -> None:
    """In separate files OpenSlide would take one of them; a copy of a file is no plane."""
    path = write_dicom(tmp_path / "a.dcm", PIXELS)
    (tmp_path / "a (1).dcm").write_bytes(path.read_bytes())
    assert open_slide(path).dimensions == (700, 500)
    write_dicom(tmp_path / "b.dcm", PIXELS, number=2)
    with pytest.raises(UnsupportedSlideError, match="2 files of the series show 700 × 500 px"):
        open_slide(path)


def test_a_label_alone_is_refused(tmp_path: Path) -> None:
    """The files of its levels are missing."""
    path = write_dicom(tmp_path / "a.dcm", PIXELS, kind="ORIGINAL\\PRIMARY\\LABEL\\NONE")
    with pytest.raises(CorruptSlideError, match=r"\(VOLUME\) is beside it, only ORIGINAL\\PRIMARY\\LABEL"):
        open_slide(path)


def test_a_missing_full_resolution_is_a_warning(tmp_path: Path) -> None:
    """Only resampled levels were copied: they are read at their own resolution."""
    paths = write_series(tmp_path, PIXELS, (1, 2, 4))
    paths[0].unlink()
    with pytest.warns(errors.IncompleteSlideWarning, match=r"l1\.dcm \(350 × 250 px\), is itself resampled"):
        slide = open_slide(paths[2])
    assert slide.mpp == pytest.approx((1.0, 1.0))
    assert slide.dimensions == (350, 250)


def test_a_radiological_image_is_refused(tmp_path: Path) -> None:
    """It is DICOM, but no slide."""
    path = write_dicom(tmp_path / "a.dcm", PIXELS, sop_class="1.2.840.10008.5.1.4.1.1.2")
    with pytest.raises(UnsupportedSlideError, match="no whole-slide image"):
        open_slide(path)


def _undefined(data: bytes) -> bytes:
    """Return the shared groups with undefined lengths, as some writers have them."""
    measures = element(0x00280030, "DS", "0.002\\0.001")
    end_item, end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)

    def sequence(tag: int, inner: bytes) -> bytes:
        head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + b"SQ" + struct.pack("<HI", 0, 0xFFFFFFFF)
        return head + item + inner + end_item + end

    return data + sequence(0x52009229, sequence(0x00289110, measures))


@pytest.mark.parametrize("damage", [_undefined, lambda data: data[:300], lambda data: data[:-2], lambda data: b""])
def test_damaged_headers_raise_only_our_errors(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """They are read to their end or to the damage."""
    from slideio_pipe.slides.backends.dicom_header import read_instance

    path = write_dicom(tmp_path / "a.dcm", PIXELS)
    data = path.read_bytes()
    place = data.index(struct.pack("<HH", 0x5200, 0x9229))
    path.write_bytes(damage(data[:place]))
    found = read_instance(path)
    assert found is None or found.spacing in (None, (0.001, 0.002))
    if damage is _undefined:
        assert found is not None
        assert found.spacing == (0.001, 0.002)
