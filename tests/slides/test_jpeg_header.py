"""The header of JPEG streams, and their colours, in streams of other libraries."""

from __future__ import annotations

import io
import struct

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from slideio_pipe.slides.backends.jpeg_header import JpegFrame, holds_ycbcr, read_frame

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def pillow(subsampling: int = 2, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "jpeg", subsampling=subsampling, **options)
    return file.getvalue()


def codecs(outcolorspace: str, subsampling: str = "444") -> bytes:
    return imagecodecs.jpeg8_encode(PIXELS, colorspace="RGB", outcolorspace=outcolorspace, subsampling=subsampling)


def without(stream: bytes, marker: int) -> bytes:
    """Return the stream without the segments of one marker."""
    at, kept = 2, stream[:2]
    while stream[at + 1] != 0xDA:
        end = at + 2 + struct.unpack_from(">H", stream, at + 2)[0]
        if stream[at + 1] != marker:
            kept += stream[at:end]
        at = end
    return kept + stream[at:]


APP14 = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("stream", "tagged", "holds"),
    [
        (pillow(), False, True),  # JFIF has no RGB
        (codecs("YCBCR"), False, True),
        (codecs("RGB"), True, False),  # Adobe's marker, transform 0, or ids "RGB"
        (without(without(pillow(subsampling=0), 0xE0), 0xEE), False, False),  # states nothing: the tag decides
        (without(without(pillow(subsampling=0), 0xE0), 0xEE), True, True),
        (without(pillow(subsampling=2), 0xE0), False, True),  # chroma subsampling
        (pillow()[:2] + APP14 + b"\x01" + pillow()[2:], False, True),
        (without(pillow(), 0xE0)[:2] + APP14 + b"\x00" + without(pillow(), 0xE0)[2:], True, False),
        (pillow(progressive=True), False, True),
    ],
    ids=[
        "jfif",
        "codecs-ycc",
        "codecs-rgb",
        "silent-rgb",
        "silent-ycc",
        "subsampled",
        "adobe-1",
        "adobe-0",
        "progressive",
    ],
)
def test_the_stream_states_its_colours_before_the_tiff_tag(stream: bytes, tagged: bool, holds: bool) -> None:
    """Adobe, JFIF, component ids, subsampling, and only then the TIFF tag."""
    frame = read_frame(stream)
    assert frame is not None
    assert holds_ycbcr(frame, tagged_ycbcr=tagged) is holds


@pytest.mark.parametrize(("subsampling", "factors"), [(0, (1, 1)), (1, (2, 1)), (2, (2, 2))])
def test_the_frame_header_is_read(subsampling: int, factors: tuple[int, int]) -> None:
    """Size, components and their sampling."""
    frame = read_frame(pillow(subsampling))
    assert frame == JpegFrame(64, 48, (1, 2, 3), (factors, (1, 1), (1, 1)), jfif=True, adobe_transform=None)


def test_fill_bytes_are_skipped() -> None:
    """T.81 allows any number of 0xFF before a marker."""
    stream = pillow()
    assert read_frame(stream[:2] + b"\xff\xff\xff" + stream[2:]) == read_frame(stream)


@pytest.mark.parametrize("stream", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff", b"GIF89a....", b"\xff\xd8\xff\xe0\x00"])
def test_data_without_a_jpeg_header_has_no_frame(stream: bytes) -> None:
    """Too short or of another format: None, no exception."""
    assert read_frame(stream) is None


@given(st.data())
def test_damaged_streams_never_raise(data: st.DataObject) -> None:
    """Truncated or with flipped bytes anywhere: a frame or None."""
    stream = bytearray(pillow())[: data.draw(st.integers(0, 700))]
    for _ in range(data.draw(st.integers(0, 8))):
        if stream:
            stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    frame = read_frame(bytes(stream))
    assert frame is None or len(frame.component_ids) == len(frame.sampling)
