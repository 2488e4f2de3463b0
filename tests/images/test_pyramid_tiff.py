"""A view saved as a pyramid has the right pixels and resolution, and is written atomically."""

from __future__ import annotations

import _thread
import threading
from pathlib import Path

import albumentationsxl as A
import numpy as np
import pytest
import tifffile
import zarr
from counted_slide import counted_slide
from pyramids import write_pyramid

from slideio_pipe import ColorJitter, RandomAffine, SlideView, StainJitter, open_slide
from slideio_pipe.errors import ConfigError, CorruptSlideError, OutputError, OutputExistsError

y, x = np.mgrid[:900, :1300]
SMOOTH = np.stack([127 + 100 * np.sin(x / 40), 127 + 100 * np.cos(y / 30), (x + y) / 9], axis=-1).astype(np.uint8)
DRAWS = {
    "plain": None,
    "turned": RandomAffine(rotate=(30, 30), flip=False),
    "coloured": A.Compose([StainJitter(), ColorJitter(0.1, 0.1, 0.1, 0.1)]),
    "opaque": A.Compose([RandomAffine(rotate=(80, 80), scale=(0.8, 0.8)), A.Blur(p=1)]),
}


def smooth_view(transform: object = None, **options: object) -> SlideView:
    return open_slide(SMOOTH, slide_mpp=0.25).view(transform=transform, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("transform", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("mpp", [None, 0.4])
def test_a_saved_view_opens_with_the_same_pixels(tmp_path: Path, transform: object, mpp: float | None) -> None:
    """Same size and mpp, pixels within JPEG loss; no other file remains in the folder."""
    view = smooth_view(transform, mpp=mpp)
    path = view.save(tmp_path / "größe augmented.tif")
    again = open_slide(path)
    assert again.dimensions == view.size
    assert view.mpp is not None
    assert again.mpp == pytest.approx(view.mpp, rel=1e-4)
    difference = np.abs(again.read_region((0, 0), 0, view.size).astype(int) - view.image.numpy())
    assert difference.mean() < 2
    assert np.percentile(difference, 99) <= 8
    assert list(tmp_path.iterdir()) == [path]


def test_levels_are_halved_down_to_one_tile(tmp_path: Path) -> None:
    """Tiles of 256 px, as tifffile sees them; a level is the mean of the one above."""
    path = smooth_view().save(tmp_path / "a.tif", quality=95)
    with tifffile.TiffFile(path) as tif:
        pages = list(tif.pages)
        assert [page.shape[:2] for page in pages] == [(900, 1300), (450, 650), (225, 325), (112, 162)]
        assert all(page.is_tiled and page.tile == (256, 256) for page in pages)  # type: ignore[union-attr]
    expected = SMOOTH.reshape(450, 2, 650, 2, 3).mean(axis=(1, 3))
    found = open_slide(path).read_region((0, 0), 1, (650, 450))
    assert np.abs(found - expected).mean() < 2


def test_unequal_and_unknown_resolutions_are_kept(tmp_path: Path) -> None:
    """Per axis; an unknown resolution is not written."""
    unequal = open_slide(SMOOTH, slide_mpp=(0.25, 0.5)).view(transform=RandomAffine(rotate=(90, 90), flip=False))
    assert open_slide(unequal.save(tmp_path / "a.tif")).mpp == pytest.approx((0.5, 0.25), rel=1e-4)
    assert open_slide(open_slide(SMOOTH).view().save(tmp_path / "b.tif")).mpp is None


def test_an_existing_file_is_kept_without_overwrite(tmp_path: Path) -> None:
    """Refused before anything is read; replaced with overwrite=True."""
    path = tmp_path / "a.tif"
    path.write_bytes(b"mine")
    slide, requests = counted_slide((3000, 2000))
    with pytest.raises(OutputExistsError, match=r"a\.tif: is there already; pass overwrite=True"):
        slide.view().save(path)
    assert (requests, path.read_bytes()) == ([], b"mine")
    assert open_slide(smooth_view().save(path, overwrite=True)).dimensions == (1300, 900)


def test_a_slide_can_replace_itself(tmp_path: Path) -> None:
    """It is read completely before it is replaced."""
    path = write_pyramid(tmp_path / "a.tif", SMOOTH, (1,))
    open_slide(path).view(transform=A.VerticalFlip(p=1)).save(path, overwrite=True)
    found = open_slide(path).read_region((0, 0), 0, (1300, 900))
    assert np.abs(found.astype(int) - SMOOTH[::-1]).mean() < 2


@pytest.mark.parametrize("where", ["/proc/self/a.tif", "/sys/a.tif"])
def test_a_folder_that_cannot_be_written_to_is_an_output_error(where: str) -> None:
    """Not an error of the slide; also for folders that root cannot write to."""
    if not Path(where).parent.is_dir():
        pytest.skip("no such folder on this system")
    with pytest.raises(OutputError, match="cannot be written"):
        smooth_view().save(where)


def test_a_missing_folder_or_a_folder_as_target_is_an_error(tmp_path: Path) -> None:
    """With the reason; no partial file remains."""
    with pytest.raises(OutputError, match="its folder does not exist; make the folder first"):
        smooth_view().save(tmp_path / "missing" / "a.tif")
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        smooth_view().save(tmp_path / "folder.tif", overwrite=True)
    assert [found.name for found in tmp_path.iterdir()] == ["folder.tif"]


def test_the_ending_must_be_that_of_a_tiff(tmp_path: Path) -> None:
    """.jpg is refused, with the function for pictures; nothing is written."""
    with pytest.raises(ConfigError, match=r"a\.jpg: what is written is a TIFF; end it in \.tif, or .*view\.plot"):
        smooth_view().save(tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    """With the system's reason; no partial file remains."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    (tmp_path / "a.tif.partial").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left on device"):
        smooth_view().save(tmp_path / "a.tif")
    assert list(tmp_path.iterdir()) == []


def damaged_tiff(folder: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (700, 1000, 3)).astype(np.uint8)
    path = write_pyramid(folder / "damaged.tif", noise, (1,))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    path.write_bytes(data)
    return path


def damaged_zarr(folder: Path) -> Path:
    path = folder / "damaged.zarr"
    noise = np.random.default_rng(0).integers(0, 255, (700, 1000, 3)).astype(np.uint8)
    zarr.create_array(path, shape=noise.shape, chunks=(256, 256, 3), dtype="u1")[:] = noise
    sorted(file for file in path.rglob("*") if file.is_file() and file.name == "0")[5].write_bytes(b"garbage" * 10)
    return path


@pytest.mark.parametrize("transform", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("damaged", [damaged_tiff, damaged_zarr])
def test_damaged_pixels_are_never_saved(tmp_path: Path, transform: object, damaged: object) -> None:
    """In no attempt, also if libvips reports a damaged tile only once; thumbnails raise it as well."""
    view = open_slide(damaged(tmp_path), slide_mpp=0.5).view(transform=transform)  # type: ignore[operator]
    for _ in range(3):
        with pytest.raises(CorruptSlideError, match=r"damaged\.\w+: .*copy the"):
            view.save(tmp_path / "a.tif")
    with pytest.raises(CorruptSlideError):
        view.thumbnail(300)
    assert not list(tmp_path.glob("a.tif*"))


def test_progress_is_reported_and_rises(tmp_path: Path) -> None:
    """In percent."""
    reported: list[tuple[int, int]] = []
    smooth_view().save(tmp_path / "a.tif", progress=lambda done, total: reported.append((done, total)))
    assert reported == sorted(reported)
    assert {total for _, total in reported} == {100}


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError("mine"), OSError("mine too")])
def test_an_error_of_the_progress_callback_ends_the_saving(tmp_path: Path, raised: BaseException) -> None:
    """It is raised at once and unchanged; libvips would print and ignore it."""
    calls: list[int] = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        raise raised

    slide, requests = counted_slide((20_000, 20_000))
    kind = raised if isinstance(raised, type) else type(raised)
    with pytest.raises(kind):
        slide.view().save(tmp_path / "a.tif", progress=progress)
    assert len(calls) == 1
    assert len({place for place in requests if place[0] == 0}) < 79 * 79 / 2
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_the_saving(tmp_path: Path) -> None:
    """In the main thread, while libvips works; no partial file remains."""
    slide, requests = counted_slide((12_000, 12_000))
    reported = threading.Event()

    def progress(done: int, total: int) -> None:
        if not reported.is_set():
            reported.set()
            _thread.interrupt_main()

    with pytest.raises(KeyboardInterrupt):
        slide.view().save(tmp_path / "a.tif", progress=progress)
    assert reported.is_set()
    assert len({place for place in requests if place[0] == 0}) < 47 * 47 / 2
    assert list(tmp_path.iterdir()) == []
