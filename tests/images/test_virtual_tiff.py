"""Virtual TIFFs: a function that returns tiles, as a lazy image that libvips reads like a file."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import pyvips
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples
from paths import ROOT, SUPPORT
from pyramids import coordinate_pixels
from virtual_tiles import Tiles, virtual

from slideio_pipe.geometry import Rect, Size
from slideio_pipe.images.virtual_tiff import VirtualTiff


@examples(60)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    tile_width=st.sampled_from([16, 48, 128, 256]),
    tile_height=st.sampled_from([16, 64, 256]),
)
def test_every_size_is_bit_exact(width: int, height: int, tile_width: int, tile_height: int) -> None:
    """One pixel, one tile, many tiles, tiles larger than the image."""
    pixels = coordinate_pixels(width, height)
    made, _ = virtual(pixels, Size(tile_width, tile_height))
    assert (made.image.width, made.image.height, made.image.bands) == (width, height, 3)
    assert (made.image.format, made.image.interpretation) == ("uchar", "srgb")
    assert np.array_equal(made.image.numpy(), pixels)


@examples(30)
@given(st.integers(0, 299), st.integers(0, 199), st.data())
def test_a_crop_decodes_only_its_tiles(x: int, y: int, data: st.DataObject) -> None:
    """The right pixels, and only tiles that overlap it."""
    pixels = coordinate_pixels(300, 200)
    made, tiles = virtual(pixels, Size(64, 32))
    width, height = data.draw(st.integers(1, 300 - x)), data.draw(st.integers(1, 200 - y))
    fetched = np.frombuffer(pyvips.Region.new(made.image).fetch(x, y, width, height), np.uint8)
    assert np.array_equal(fetched.reshape(height, width, 3), pixels[y : y + height, x : x + width])
    columns, rows = (range(x // 64, (x + width - 1) // 64 + 1), range(y // 32, (y + height - 1) // 32 + 1))
    assert set(tiles.calls) == {(c, r) for c in columns for r in rows}
    assert len(tiles.calls) == len(set(tiles.calls))


def test_opening_reads_no_tile() -> None:
    """The image is made from the header only."""
    _, tiles = virtual(coordinate_pixels(500, 400))
    assert tiles.calls == []


def test_graphs_of_a_virtual_tiff_are_exact() -> None:
    """Rotation, flip and crop give the same pixels as in numpy."""
    pixels = coordinate_pixels(333, 217)
    made, _ = virtual(pixels)
    turned = made.image.rot90().crop(10, 20, 150, 250).fliphor().numpy()
    assert np.array_equal(turned, np.rot90(pixels, -1)[20:270, 10:160][:, ::-1])


def test_threads_share_one_image() -> None:
    """Eight threads read a region each; all tiles are right."""
    pixels = coordinate_pixels(1024, 768)
    made, _ = virtual(pixels)
    wrong: list[tuple[int, int]] = []

    def work(seed: int) -> None:
        region = pyvips.Region.new(made.image)
        for x, y in np.random.default_rng(seed).integers(0, [1024 - 100, 768 - 100], (60, 2)).tolist():
            got = np.frombuffer(region.fetch(x, y, 100, 100), np.uint8).reshape(100, 100, 3)
            if not np.array_equal(got, pixels[y : y + 100, x : x + 100]):
                wrong.append((x, y))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_failed_tile_raises_for_every_read_that_overlaps_it() -> None:
    """Each time, not only the first; other tiles are right."""
    pixels = coordinate_pixels(512, 256)
    made, _ = virtual(pixels, Size(128, 128), failing=frozenset({(1, 0)}))
    region = pyvips.Region.new(made.image)
    for _ in range(3):
        for rect, touches in [
            (Rect(128, 0, 128, 128), True),
            (Rect(100, 50, 29, 10), True),
            (Rect(0, 0, 512, 256), True),
            (Rect(0, 0, 128, 128), False),
            (Rect(256, 0, 256, 256), False),
            (Rect(100, 128, 200, 128), False),
        ]:
            try:
                got = np.frombuffer(region.fetch(*rect), np.uint8).reshape(rect.height, rect.width, 3)
            except pyvips.Error:
                assert touches
                continue
            failure = made.failure(rect)
            if touches:
                assert isinstance(failure, ValueError)
                assert str(failure) == "no tile (1, 0)"
            else:
                assert failure is None
                assert np.array_equal(got, pixels[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width])


def test_a_tile_of_the_wrong_shape_is_a_failure() -> None:
    """It would shift every pixel after it."""
    made = VirtualTiff(Size(256, 128), Size(128, 128), lambda column, row: np.zeros((128, 100, 3), np.uint8))
    with contextlib.suppress(pyvips.Error):
        pyvips.Region.new(made.image).fetch(0, 0, 128, 128)
    assert "shape (128, 100, 3)" in str(made.failure(Rect(0, 0, 1, 1)))


def test_an_interrupt_is_raised_once_and_leaves_no_blank_tile() -> None:
    """After Ctrl-C the next attempt reads the right pixels."""
    pixels = coordinate_pixels(256, 128)
    tiles = Tiles(pixels, Size(128, 128))
    interrupts = [KeyboardInterrupt()]

    def read(column: int, row: int) -> np.ndarray:
        if interrupts:
            raise interrupts.pop()
        return tiles(column, row)

    made = VirtualTiff(Size(256, 128), Size(128, 128), read)
    region = pyvips.Region.new(made.image)
    region.fetch(0, 0, 128, 128)
    rect = Rect(0, 0, 128, 128)
    assert isinstance(made.failure(rect), KeyboardInterrupt)
    assert made.failure(rect) is None
    assert np.array_equal(np.frombuffer(region.fetch(*rect), np.uint8).reshape(128, 128, 3), pixels[:, :128])


def test_a_slide_of_200_000_px_is_addressed() -> None:
    """Its last tile is at an offset of 120 GB in the virtual file."""

    def read(column: int, row: int) -> np.ndarray:
        return np.full((256, 256, 3), (column % 256, row % 256, (column + row) % 256), np.uint8)

    made = VirtualTiff(Size(200_000, 200_000), Size(256, 256), read)
    region = pyvips.Region.new(made.image)
    for x, y in [(0, 0), (123_456, 98_765), (199_999, 0), (199_999, 199_999)]:
        column, row = x // 256, y // 256
        assert list(region.fetch(x, y, 1, 1)) == [
            bytes([value]) for value in (column % 256, row % 256, (column + row) % 256)
        ]


@pytest.mark.parametrize("keep", ["made.image", "made.image.rotate(90)", "made.image.crop(5, 5, 90, 90).invert()"])
def test_images_remain_valid_after_their_source_is_dropped(keep: str) -> None:
    """In any order of garbage collection. A fault would end the process, so another process runs it."""
    code = f"""
import gc, sys
sys.path[:0] = [{str(ROOT)!r}, {str(SUPPORT)!r}]
from virtual_tiles import virtual
from pyramids import coordinate_pixels
made, tiles = virtual(coordinate_pixels(300, 200))
kept = {keep}
del made, tiles
gc.collect()
junk = [bytearray(200) for _ in range(50_000)]
print(kept.numpy().shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-500:]


def test_dropping_an_image_frees_its_memory() -> None:
    """Without the garbage collector: libvips' tiles and the decoder are freed at once."""
    made, tiles = virtual(coordinate_pixels(300, 200))
    made.image.crop(0, 0, 50, 50).numpy()
    watched = weakref.ref(tiles)
    gc.disable()
    try:
        del made, tiles
        assert watched() is None
    finally:
        gc.enable()
