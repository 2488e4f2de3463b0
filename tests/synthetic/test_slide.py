"""Generated slides: readable by all readers, reproducible, true to their ground truth, and stained like H&E."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import pytest
import pyvips
import skimage.color
import tifffile

from slideio_pipe.errors import ConfigError, OutputError, OutputExistsError
from slideio_pipe.synthetic import aperio
from slideio_pipe.synthetic import stain as laboratory
from slideio_pipe.synthetic.anatomy import Anatomy
from slideio_pipe.synthetic.histology import Histology
from slideio_pipe.synthetic.slide import SyntheticSlide, write_synthetic_slide

SIZE = (2211, 1499)  # neither whole tiles nor whole pixels of the lower levels


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    """A slide of odd size with two lesions, shared by tests that only read it."""
    path = tmp_path_factory.mktemp("synthetic") / "a.svs"
    return write_synthetic_slide(path, size=SIZE, seed=5, lesions=2, pieces=2)


@pytest.fixture(scope="module")
def levels(slide: SyntheticSlide) -> list[np.ndarray]:
    """Return the pixels of every level by tifffile."""
    with tifffile.TiffFile(slide.path) as tif:
        return [page.asarray() for page in tif.pages if page.is_tiled]


def test_openslide_recognises_an_aperio_slide(slide: SyntheticSlide) -> None:
    """Vendor, mpp, power, levels, tiles and associated images are those of an Aperio scan."""
    with openslide.OpenSlide(slide.path) as opened:
        assert opened.properties["openslide.vendor"] == "aperio"
        assert float(opened.properties["openslide.mpp-x"]) == float(opened.properties["openslide.mpp-y"]) == 0.25
        assert float(opened.properties["openslide.objective-power"]) == 40
        assert opened.properties["openslide.level[0].tile-width"] == "256"
        assert opened.level_dimensions == (SIZE, (552, 374), (138, 93))
        sizes = {name: image.size for name, image in opened.associated_images.items()}
    assert sizes["label"] == (387, 463)
    assert sizes["macro"] == (1280, 431)
    assert max(sizes["thumbnail"]) == 1024


def test_three_readers_agree_on_every_pixel(slide: SyntheticSlide, levels: list[np.ndarray]) -> None:
    """OpenSlide, libvips and tifffile decode the same pixels at every level."""
    with openslide.OpenSlide(slide.path) as opened:
        for number, (page, expected) in enumerate(zip((0, 2, 3), levels, strict=True)):
            size = opened.level_dimensions[number]
            ours = np.asarray(opened.read_region((0, 0), number, size).convert("RGB"))
            np.testing.assert_array_equal(ours, expected)
            vips = pyvips.Image.tiffload(str(slide.path), page=page)
            np.testing.assert_array_equal(vips.numpy(), expected)


def test_pages_are_tagged_like_a_scan(slide: SyntheticSlide) -> None:
    """Level pages are YCbCr 4:2:0 tiles with shared tables; thumbnail, label and macro are strips."""
    with tifffile.TiffFile(slide.path) as tif:
        assert not tif.is_bigtiff
        assert [page.is_tiled for page in tif.pages] == [True, False, True, True, False, False]
        assert [int(page.subfiletype) for page in tif.pages] == [0, 0, 0, 0, 1, 9]
        level0 = tif.pages[0]
        assert level0.photometric == tifffile.PHOTOMETRIC.YCBCR
        assert tuple(level0.tags["YCbCrSubSampling"].value) == (2, 2)
        assert level0.jpegtables is not None
        assert level0.description.splitlines()[0] == "Aperio Image Library v12.0.0"
        assert "AppMag = 40|MPP = 0.2500" in level0.description
        assert [p.description.splitlines()[1] for p in tif.pages[-2:]] == ["label 387x463", "macro 1280x431"]


@pytest.mark.parametrize(("fine", "coarse"), [(0, 1), (1, 2)])
def test_lower_levels_are_area_means(levels: list[np.ndarray], fine: int, coarse: int) -> None:
    """A level equals the 4 x 4 means of the level above, except for JPEG noise."""
    height, width = levels[coarse].shape[:2]
    above = levels[fine][: height * 4, : width * 4].astype(np.float64)
    expected = above.reshape(height, 4, width, 4, 3).mean(axis=(1, 3))
    difference = np.abs(levels[coarse] - expected)
    assert np.abs((levels[coarse] - expected).mean(axis=(0, 1))).max() < 0.6  # not shifted in colour
    assert difference.mean() < 4
    # A shift by one pixel differs far more: the means are at the right position.
    assert difference.mean() < 0.6 * np.abs(levels[coarse][:, 1:] - expected[:, :-1]).mean()


@pytest.mark.slow
def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    """The seed determines the file; another seed gives another slide."""
    files = [tmp_path / f"{n}.svs" for n in range(3)]
    for path, seed in zip(files, (3, 3, 4), strict=True):
        write_synthetic_slide(path, size=(640, 400), seed=seed, lesions=1, pieces=1)
    first, same, other = (path.read_bytes() for path in files)
    assert first == same
    pixels = [tifffile.imread(path, key=0).astype(float) for path in (files[0], files[2])]
    assert first != other
    assert np.abs(pixels[0] - pixels[1]).mean() > 10


def test_a_block_does_not_depend_on_how_the_slide_is_cut() -> None:
    """A rectangle rendered whole or in four parts has the same pixels to one rounding: no seams."""
    plan = Anatomy((400.0, 400.0), seed=2, pieces=1, lesions=1)
    painter = Histology(plan, mpp=0.25, seed=2, glass_period=256)
    whole = painter.render(512, 512, 512, 512)
    assert whole is not None
    for y in (0, 256):
        for x in (0, 256):
            part = painter.render(512 + x, 512 + y, 256, 256)
            assert part is not None
            difference = np.abs(whole[y : y + 256, x : x + 256].astype(int) - part)
            assert difference.mean() < 0.02
            assert (difference > 2).mean() < 1e-4


def test_tissue_mask_is_where_the_pixels_are_stained(slide: SyntheticSlide, levels: list[np.ndarray]) -> None:
    """The analytic tissue mask and a threshold of the image agree on nearly every pixel."""
    mask = slide.tissue_mask(16)
    assert mask.shape == levels[2].shape[:2]
    saturation = levels[2].max(axis=2).astype(int) - levels[2].min(axis=2)
    assert ((saturation > 18) == mask).mean() > 0.93
    assert saturation[~slide.tissue_mask(16)].mean() < 8
    assert slide.tissue_fraction == pytest.approx(mask.mean(), abs=0.02)
    assert 0.2 < slide.tissue_fraction < 0.6


def test_glass_is_slightly_off_white(levels: list[np.ndarray]) -> None:
    """The corners of the slide are glass of about 243, nearly grey and nearly flat."""
    corner = levels[0][:128, :128].astype(float)
    assert corner.mean() == pytest.approx(243, abs=1)
    assert np.abs(corner - 243).max() <= 6


def test_lesions_are_darker_tissue(slide: SyntheticSlide, levels: list[np.ndarray]) -> None:
    """Lesions are inside tissue and inside their boxes, and are darker and bluer than the tissue around them."""
    lesion, tissue = slide.lesion_mask(4), slide.tissue_mask(4)
    assert lesion.any()
    assert (lesion & tissue).sum() == lesion.sum()
    level1 = levels[1].astype(float)
    inside, around = level1[lesion], level1[tissue & ~lesion]
    assert inside.mean() < around.mean() - 20
    assert (inside[:, 2] - inside[:, 0]).mean() > (around[:, 2] - around[:, 0]).mean() + 20
    boxed = np.zeros_like(lesion)
    for x, y, width, height in slide.lesion_boxes:
        boxed[y // 4 : (y + height) // 4 + 1, x // 4 : (x + width) // 4 + 1] = True
    assert boxed[lesion].all()
    assert len(slide.lesion_boxes) == len(slide.lesion_outlines) == 2


def test_stain_deconvolution_finds_haematoxylin_in_lesions(slide: SyntheticSlide, levels: list[np.ndarray]) -> None:
    """scikit-image's H&E deconvolution finds eosin in tissue, none on glass, and more haematoxylin in lesions."""
    stains = skimage.color.rgb2hed(levels[1])
    lesion, tissue = slide.lesion_mask(4), slide.tissue_mask(4)
    assert stains[..., 0][lesion].mean() > 2 * stains[..., 0][tissue & ~lesion].mean()
    assert stains[..., 1][tissue].mean() > 5 * abs(stains[..., 1][~tissue].mean())


def test_stain_vectors_are_the_published_ones() -> None:
    """Colours are mixed by the matrix that scikit-image publishes."""
    vectors = (laboratory.HAEMATOXYLIN, laboratory.EOSIN, laboratory.RESIDUAL)
    np.testing.assert_allclose(vectors, skimage.color.rgb_from_hed, atol=1e-9)


def test_slides_without_lesions_or_without_tissue(tmp_path: Path) -> None:
    """No lesions: label 0 and an empty lesion mask. No pieces: only glass."""
    healthy = write_synthetic_slide(tmp_path / "h.svs", size=(640, 400), lesions=0)
    empty = write_synthetic_slide(tmp_path / "e.svs", size=(640, 400), lesions=0, pieces=0)
    assert (healthy.label, healthy.lesion_boxes, healthy.lesion_mask(8).any()) == (0, (), np.False_)
    assert healthy.tissue_fraction > 0.1
    assert empty.tissue_fraction == 0
    assert tifffile.imread(empty.path, key=0).min() > 235


def test_slides_of_other_levels_tiles_and_mpp_are_valid(tmp_path: Path) -> None:
    """One level, small tiles, another mpp, a non-ASCII name."""
    path = tmp_path / "Präparat 1.svs"
    write_synthetic_slide(path, size=(700, 300), mpp=0.5, levels=(1,), tile_size=112, lesions=0)
    with openslide.OpenSlide(path) as opened:
        assert opened.level_dimensions == ((700, 300),)
        assert float(opened.properties["openslide.mpp-x"]) == 0.5
        assert float(opened.properties["openslide.objective-power"]) == 20
        expected = np.asarray(opened.read_region((0, 0), 0, (700, 300)).convert("RGB"))
    np.testing.assert_array_equal(tifffile.imread(path, key=0), expected)


def test_large_slides_are_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that might exceed 4 GiB is a BigTIFF, which all readers open."""
    monkeypatch.setattr(aperio, "_CLASSIC_TIFF_BYTES", 100_000)
    path = write_synthetic_slide(tmp_path / "b.svs", size=(640, 400), lesions=0).path
    with tifffile.TiffFile(path) as tif:
        assert tif.is_bigtiff
    assert openslide.OpenSlide.detect_format(path) == "aperio"


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    """It is reported once per row of blocks, up to the total."""
    seen: list[tuple[int, int]] = []
    write_synthetic_slide(tmp_path / "p.svs", size=(300, 1400), lesions=0, progress=lambda *step: seen.append(step))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    """Without overwrite it is an error."""
    path = tmp_path / "a.svs"
    path.write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match="overwrite"):
        write_synthetic_slide(path, size=(320, 320), lesions=0)
    assert path.read_bytes() == b"precious"
    write_synthetic_slide(path, size=(320, 320), lesions=0, overwrite=True)
    assert openslide.OpenSlide.detect_format(path) == "aperio"


def test_a_failure_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And an old file is kept."""

    def full(self: object) -> Iterator[bytes]:
        yield b"\xff\xd8\xff\xd9"
        raise OSError(28, "No space left on device")

    old = tmp_path / "a.svs"
    old.write_bytes(b"old")
    monkeypatch.setattr(aperio._Painter, "tiles", full)
    with pytest.raises(OutputError, match="No space left"):
        write_synthetic_slide(old, size=(640, 400), lesions=0, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.svs"]
    assert old.read_bytes() == b"old"


def test_an_unwritable_folder_is_an_output_error(tmp_path: Path) -> None:
    """For a folder that does not exist or is a file, with the path."""
    (tmp_path / "file").write_bytes(b"")
    for folder in ("missing", "file"):
        with pytest.raises(OutputError, match=folder):
            write_synthetic_slide(tmp_path / folder / "a.svs", size=(320, 320), lesions=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (0, 100)},
        {"size": (100, -1)},
        {"size": (12, 12)},  # level 16 would have no pixel
        {"mpp": 0},
        {"mpp": float("nan")},
        {"seed": -1},
        {"lesions": -1},
        {"lesions": 1, "pieces": 0},
        {"pieces": -1},
        {"levels": ()},
        {"levels": (2, 4)},
        {"levels": (1, 3)},
        {"levels": (1, 4, 4)},
        {"tile_size": 100},
        {"tile_size": 0},
        {"quality": 0},
        {"quality": 101},
    ],
)
def test_invalid_arguments_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    """With a ConfigError, before anything is written."""
    arguments: dict[str, object] = {"size": (320, 320), "lesions": 0, **wrong}
    with pytest.raises(ConfigError):
        write_synthetic_slide(tmp_path / "a.svs", **arguments)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("downsample", [0, -1, float("inf"), float("nan")])
def test_masks_need_a_positive_downsample(slide: SyntheticSlide, downsample: float) -> None:
    """Others are a ConfigError."""
    with pytest.raises(ConfigError):
        slide.tissue_mask(downsample)


@pytest.mark.slow
def test_a_stain_changes_only_colours(tmp_path: Path) -> None:
    """The default changes nothing; more haematoxylin darkens red, a turn of the hue does not change glass."""
    size, made = (512, 384), {}
    for name, stain in {"usual": (1, 1, 0), "blue": (1.5, 1, 0), "turned": (1, 1, 0.2)}.items():
        slide = write_synthetic_slide(tmp_path / f"{name}.svs", size=size, seed=2, stain=stain)
        made[name] = tifffile.imread(slide.path, level=0)
    plain = write_synthetic_slide(tmp_path / "plain.svs", size=size, seed=2)
    assert plain.path.read_bytes() == (tmp_path / "usual.svs").read_bytes()
    tissue = plain.tissue_mask(1)
    assert made["blue"][tissue][:, 0].mean() < made["usual"][tissue][:, 0].mean() - 3
    glass = made["usual"].min(axis=2) > 240
    assert abs(made["turned"][glass].astype(int) - made["usual"][glass]).mean() < 1
    assert abs(made["turned"][tissue].astype(int) - made["usual"][tissue]).mean() > 3


@pytest.mark.parametrize("stain", [(0, 1, 0), (1, -1, 0), (1, 1, float("nan"))])
def test_impossible_stains_are_refused(stain: tuple[float, float, float], tmp_path: Path) -> None:
    """A strength of 0 or less, or an invalid angle."""
    with pytest.raises(ConfigError, match="stain"):
        write_synthetic_slide(tmp_path / "a.svs", size=(64, 64), levels=(1,), stain=stain)
