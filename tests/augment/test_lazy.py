"""Draws as lazy images: geometry, equality of both executors, laziness, and refusals."""

from __future__ import annotations

import random
from pathlib import Path

import albumentationsxl as A
import augment_reference as reference
import cv2
import numpy as np
import pytest
import pyvips
import scipy.ndimage
import torch
from augment_reference import COLOURS, random_chain
from batch_colours import apply_cpu
from PIL import Image

from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.executors.lazy import apply_lazy
from slideio_pipe.augment.operations import Hsv, Lab, Noise, Opaque, Operation, Saturation, Stain, Tone
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Size
from slideio_pipe.images.virtual_tiff import VirtualTiff
from slideio_pipe.slides.slide import open_slide
from slideio_pipe.synthetic.slide import write_synthetic_slide

STAIN = Stain(matrix=((1.1, 0.05, 0.0), (0.02, 0.9, 0.01), (0.0, 0.1, 1.05)), offset=(0.01, -0.02, 0.03))
SINGULAR = Stain(matrix=((0.5, 0.5, 0.0), (0.5, 0.5, 0.0), (0.0, 0.0, 1.0)), offset=(0.05, -0.02, 0.0))
CHAIN = (Tone(contrast=1.2), Hsv(turn=0.05), STAIN)


def lazily(pixels: np.ndarray) -> pyvips.Image:
    """(H, W, 3) uint8 as an image."""
    return pyvips.Image.new_from_array(pixels).copy(interpretation="srgb")


def drawn(
    pixels: np.ndarray | Size, *operations: Operation, affine: Affine | None = None, canvas: Size | None = None
) -> Draw:
    """The draw of an affine and operations for an image."""
    size = pixels if isinstance(pixels, Size) else Size(pixels.shape[1], pixels.shape[0])
    return Draw(size=size, canvas=canvas or size, affine=(affine or Affine()).as_tuple(), operations=operations)


def augmented(pixels: np.ndarray, *operations: Operation, **geometry: object) -> np.ndarray:
    """The whole augmented image."""
    return apply_lazy(lazily(pixels), drawn(pixels, *operations, **geometry)).numpy()  # type: ignore[arg-type]


def smooth(width: int, height: int) -> np.ndarray:
    """Blurred noise over the whole range."""
    noise = cv2.GaussianBlur(np.random.default_rng(0).random((height, width, 3)), (0, 0), 2)
    return (255 * (noise - noise.min()) / (noise.max() - noise.min())).astype(np.uint8)


def rotation(degrees: float, scale: float, size: Size, canvas: Size) -> Affine:
    """About the centre, onto the centre of the canvas."""
    cos, sin = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    centre = Affine.translation(-size.width / 2, -size.height / 2)
    return Affine.translation(canvas.width / 2 + 0.3, canvas.height / 2) @ Affine(cos, -sin, 0, sin, cos, 0) @ centre


# -- geometry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("degrees", "scale"), [(30, 1.0), (-12.3, 0.85), (171, 1.6), (0, 2.0)])
def test_an_affine_equals_scipy_including_the_border(degrees: float, scale: float) -> None:
    """Bilinear sampling at pixel centres, white around: within a level of SciPy in float64."""
    pixels, canvas = smooth(200, 150), Size(260, 240)
    affine = rotation(degrees, scale, Size(200, 150), canvas)
    back = affine.inverse()
    # SciPy indexes (y, x) with centres on whole numbers.
    matrix = [[back.e, back.d], [back.b, back.a]]
    x, y = back.apply([0.5, 0.5])
    padded = np.pad(pixels.astype(np.float64), ((8, 8), (8, 8), (0, 0)), constant_values=255)
    expected = np.stack(
        [
            scipy.ndimage.affine_transform(
                padded[..., band], matrix, (y - 0.5 + 8, x - 0.5 + 8), (240, 260), order=1, mode="constant", cval=255
            )
            for band in range(3)
        ],
        axis=-1,
    )
    assert np.abs(augmented(pixels, affine=affine, canvas=canvas) - expected).max() <= 1


def test_an_affine_equals_opencv_away_from_the_border() -> None:
    """Within a level of ``cv2.remap`` on float pixels."""
    pixels, canvas = smooth(200, 150), Size(200, 150)
    affine = rotation(25, 1.1, canvas, canvas)
    x, y = np.moveaxis(affine.inverse().apply(np.stack(np.meshgrid(np.arange(200), np.arange(150)), -1) + 0.5), -1, 0)
    maps = (x - 0.5).astype(np.float32), (y - 0.5).astype(np.float32)
    expected = cv2.remap(pixels.astype(np.float32), *maps, cv2.INTER_LINEAR)
    inside = (x > 1) & (x < 199) & (y > 1) & (y < 149)
    difference = np.abs(augmented(pixels, affine=affine) - expected)[inside]
    assert difference.max() <= 1.5  # OpenCV has 32 positions within a pixel
    assert np.mean(difference <= 1) > 0.99


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_flips_and_quarter_turns_copy_pixels(turns: int, mirrored: bool) -> None:
    """All eight orientations of an image are exact, and agree with the affine."""
    pixels = smooth(30, 20)
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][turns]
    affine = Affine(cos, -sin, 0, sin, cos, 0) @ (Affine(a=-1) if mirrored else Affine())
    corners = affine.apply([[0, 0], [30, 20]])
    affine = Affine.translation(*-corners.min(axis=0)) @ affine
    width, height = (20, 30) if turns % 2 else (30, 20)
    out = augmented(pixels, affine=affine, canvas=Size(width, height))
    expected = np.empty_like(out)
    for row, column in np.ndindex(20, 30):
        x, y = np.floor(affine.apply([column + 0.5, row + 0.5])).astype(int)
        expected[y, x] = pixels[row, column]
    assert np.array_equal(out, expected)


def test_a_shift_by_whole_pixels_copies_pixels_and_fills_white() -> None:
    """For a canvas larger than the image, and for one that cuts it."""
    pixels = smooth(30, 20)
    out = augmented(pixels, affine=Affine.translation(-4, 5), canvas=Size(40, 22))
    assert np.array_equal(out[5:, :26], pixels[:17, 4:])
    assert (out[:5] == 255).all()
    assert (out[:, 26:] == 255).all()


# -- colour --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", ["tsd", "tshld"])
@pytest.mark.parametrize("seed", range(40))
def test_random_chains_agree_with_the_definition_and_between_executors(seed: int, kinds: str) -> None:
    """Lazily, on tiles and in float64: at most one level between any two, over the colour cube."""
    chain = random_chain(seed, kinds)
    image, tiles = augmented(COLOURS, *chain), apply_cpu(COLOURS, chain)
    assert np.abs(image - reference.apply(COLOURS, chain)).max() <= 1, chain
    assert np.abs(image.astype(int) - tiles).max() <= 1, chain


@pytest.mark.parametrize("seed", range(6))
def test_executors_agree_on_real_tissue(seed: int, shared_data: Path) -> None:
    """The same on the pixels of real slides."""
    for name in ("ihc.png", "tcga-lung-rgb.png"):
        tissue = pyvips.Image.new_from_file(str(shared_data / "images" / name))[:3].numpy()[:400, :300]
        chain = random_chain(seed, "tsd" if seed % 2 else "tshld")
        image, tiles = augmented(tissue, *chain), apply_cpu(tissue, chain)
        assert np.abs(image.astype(int) - tiles).max() <= 1, chain
        assert np.abs(image[:64, :64] - reference.apply(tissue[:64, :64], chain)).max() <= 1, chain


@pytest.mark.slow
def test_executors_agree_on_a_turned_generated_slide(tmp_path: Path) -> None:
    """The lazy slide, turned and coloured, equals the turned slide with its decoded pixels coloured."""
    path = tmp_path / "slide.svs"
    write_synthetic_slide(path, size=(1600, 1200), seed=2, levels=(1,))
    size = Size(1600, 1200)
    image = open_slide(path).view().image
    affine = rotation(20, 1.0, size, size)
    turned = apply_lazy(image, drawn(size, affine=affine)).numpy()
    for seed in range(6):
        chain = random_chain(seed)
        coloured = apply_lazy(image, drawn(size, *chain, affine=affine)).numpy()
        assert np.abs(coloured.astype(int) - apply_cpu(turned, chain)).max() <= 1, chain


@pytest.mark.parametrize("stain", [SINGULAR, Stain(offset=(0.1, 0.0, -0.1)), Stain(matrix=((0.0,) * 3,) * 3)])
def test_stain_matrices_without_inverse_are_within_a_level_of_the_definition(stain: Stain) -> None:
    """So are offsets alone."""
    assert np.abs(augmented(COLOURS, stain) - reference.apply(COLOURS, (stain,))).max() <= 1


@pytest.mark.parametrize(
    "chain",
    [(STAIN.model_copy(update={"offset": (0.0, 0.0, 0.0)}),), (Tone(contrast=1.3), Stain(), Saturation(factor=0.5))],
)
def test_glass_stays_white(chain: tuple[Operation, ...]) -> None:
    """White is white under a stain without offset."""
    assert (augmented(np.full((8, 8, 3), 255, np.uint8), *chain) == 255).all()


@pytest.mark.parametrize("chain", [(), (Tone(), Hsv(turn=1.0), Stain(), Lab(), Noise(sigma=0, seed=1))])
def test_an_identity_is_the_image_itself(chain: tuple[Operation, ...]) -> None:
    """Nothing to do adds nothing to the graph."""
    image = lazily(COLOURS)
    assert apply_lazy(image, drawn(COLOURS, *chain)) is image


def test_noise_has_its_deviation() -> None:
    """Noise of σ levels has σ levels, in every channel, independent between channels and tiles."""
    out = augmented(np.full((512, 512, 3), 120, np.uint8), Noise(sigma=4, seed=7)).astype(float)
    assert out.std() == pytest.approx(np.hypot(4, 1 / np.sqrt(12)), rel=0.02)
    assert np.abs(np.corrcoef(out.reshape(-1, 3).T) - np.eye(3)).max() < 0.02
    assert abs(np.corrcoef(out[:256, :256].ravel(), out[256:, 256:].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("chain", [(STAIN,), CHAIN, (Noise(sigma=4, seed=7),)])
def test_regions_of_a_turned_image_do_not_depend_on_the_order_of_reads(chain: tuple[Operation, ...]) -> None:
    """Whole, twice, or in other tiles: the same pixels."""
    pixels = smooth(900, 700)
    affine = rotation(20, 1.0, Size(900, 700), Size(900, 700))
    whole = augmented(pixels, *chain, affine=affine)
    image = apply_lazy(lazily(pixels), drawn(pixels, *chain, affine=affine))
    region = pyvips.Region.new(image)
    for x, y, width, height in [(300, 200, 256, 256), (0, 0, 700, 90), (300, 200, 256, 256), (511, 255, 130, 300)]:
        fetched = np.frombuffer(region.fetch(x, y, width, height), np.uint8).reshape(height, width, 3)
        assert np.array_equal(fetched, whole[y : y + height, x : x + width])


# -- laziness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", [(STAIN,), CHAIN, (Noise(sigma=4, seed=7), Lab(gain=(1.1, 1.0, 1.0)))])
def test_building_decodes_nothing_and_a_fetch_decodes_few_tiles(chain: tuple[Operation, ...]) -> None:
    """A turned and coloured 100,000² image is built without reading a tile."""
    read: list[tuple[int, int]] = []

    def read_tile(column: int, row: int) -> np.ndarray:
        read.append((column, row))
        return np.full((512, 512, 3), 200, np.uint8)

    size = Size(100_000, 100_000)
    source = VirtualTiff(size, Size(512, 512), read_tile)
    image = apply_lazy(source.image, drawn(size, *chain, affine=rotation(30, 1, size, size)))
    assert (image.width, image.height, image.bands, image.format) == (100_000, 100_000, 3, "uchar")
    assert read == []
    pyvips.Region.new(image).fetch(51_200, 51_200, 256, 256)
    assert 1 <= len(set(read)) <= 9


def test_a_tile_that_cannot_be_read_is_an_error() -> None:
    """An error of libvips in the source image is raised by the augmented one, by tiles or not."""
    for chain in ((STAIN,), CHAIN):
        source = VirtualTiff(Size(600, 600), Size(256, 256), lambda column, row: 1 / 0, fail_on="warning")  # type: ignore[arg-type]
        image = apply_lazy(source.image, drawn(Size(600, 600), *chain))
        with pytest.raises(pyvips.Error):
            pyvips.Region.new(image).fetch(300, 300, 50, 50)


# -- transforms that are not lowered -------------------------------------------------------------------------------


def opaque(transform: object, seed: int = 5) -> Opaque:
    """The record of an albumentationsxl transform."""
    return Opaque(name=type(transform).__name__, transform=A.to_dict(transform), seed=seed)


def test_an_opaque_transform_equals_albumentationsxl_with_the_same_seed() -> None:
    """The state of Python's ``random`` is unchanged."""
    pixels, transform = smooth(80, 60), A.Blur(blur_limit=(3, 9), p=1.0)
    random.seed(11)
    before = random.getstate()
    out = augmented(pixels, opaque(transform), Tone(brightness=0.5))
    assert random.getstate() == before
    random.seed(5)
    blurred = transform.apply(lazily(pixels), **transform.get_params()).numpy()
    assert np.array_equal(out, apply_cpu(blurred, (Tone(brightness=0.5),)))
    assert np.array_equal(out, augmented(pixels, opaque(transform), Tone(brightness=0.5)))


class Brightened(A.ImageOnlyTransform):
    """A user's own transform, which draws from the given generator, when parameters or when pixels are made."""

    def __init__(self, source: str = "random", late: bool = False, always_apply: bool = False, p: float = 1.0) -> None:
        super().__init__(always_apply, p)
        self.source, self.late = source, late

    def drawn(self) -> float:
        sources = {
            "random": random.random,
            "numpy": np.random.rand,  # what users write
            "torch": lambda: float(torch.rand(())),
            "own": np.random.default_rng().random,
        }
        return float(sources[self.source]())

    def get_params(self) -> dict[str, float]:
        return {"up": self.drawn()}

    def apply(self, img: pyvips.Image, up: float = 0.0, **params: object) -> pyvips.Image:
        return (img + 100 * (self.drawn() if self.late else up)).cast("uchar")

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        return ("source", "late")


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("source", ["random", "numpy", "torch"])
def test_a_users_transform_replays_for_every_generator_it_uses(source: str, late: bool) -> None:
    """The same record gives the same pixels, and the process's generators do not change."""
    pixels, transform = smooth(40, 30) // 2, Brightened(source, late)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    one, again, other = (augmented(pixels, opaque(transform, seed)) for seed in (5, 5, 6))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, pixels)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert after == states


def test_a_transform_with_a_generator_of_its_own_is_refused() -> None:
    """Its draws could not be replayed."""
    with pytest.raises(ConfigError, match="Brightened: two draws under one seed differ"):
        augmented(smooth(40, 30), opaque(Brightened("own")))


def test_an_opaque_transform_that_changes_the_size_is_refused() -> None:
    """A colour transform must not change geometry."""
    with pytest.raises(ConfigError, match="CenterCrop made 3 bands of uchar, 16×16 px"):
        augmented(smooth(80, 60), opaque(A.CenterCrop(height=16, width=16, p=1.0)))


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (pyvips.Image.black(4, 4), "grey, uchar"),
        (pyvips.Image.black(4, 4, bands=4), "RGBA"),
        (pyvips.Image.black(4, 4, bands=3).cast("ushort"), "ushort"),
        (pyvips.Image.black(4, 4, bands=3).cast("float"), "float"),
        (np.zeros((4, 4, 3), np.uint8), "ndarray"),
    ],
)
def test_images_that_are_not_8_bit_rgb_are_refused(image: object, named: str) -> None:
    """The error names what was found."""
    with pytest.raises(ConfigError, match=named):
        apply_lazy(image, drawn(Size(4, 4), STAIN))


def test_an_image_of_another_size_is_refused_except_for_operations_only() -> None:
    """A draw is for one size; its colour operations are not."""
    pixels = smooth(30, 20)
    draw = drawn(Size(60, 40), STAIN, affine=Affine.scaling(2, 2))
    with pytest.raises(ConfigError, match="30×20 px, the draw was made for 60×40"):
        apply_lazy(lazily(pixels), draw)
    assert np.array_equal(apply_lazy(lazily(pixels), draw, operations_only=True).numpy(), augmented(pixels, STAIN))


def shrinking(size: Size, canvas: Size, turn: float = 0.0) -> Draw:
    """Return the draw that scales an image to a canvas and turns it about its middle."""
    middle = Affine.translation(canvas.width / 2, canvas.height / 2)
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    turned = middle @ Affine(c, s, 0, -s, c, 0) @ middle.inverse()
    scaled = Affine.scaling(canvas.width / size.width, canvas.height / size.height)
    return Draw(size=size, canvas=canvas, affine=(turned @ scaled).as_tuple())


@pytest.mark.parametrize("canvas", [Size(160, 120), Size(101, 77), Size(40, 30), Size(640, 60), Size(26, 480)])
def test_shrinking_averages_instead_of_skipping(canvas: Size) -> None:
    """Noise shrunk whole is Pillow's antialiased resize, at most a level apart away from the border, per axis."""
    noise = np.random.default_rng(1).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    found = apply_lazy(lazily(noise), shrinking(Size(640, 480), canvas)).numpy().astype(int)
    expected = np.asarray(Image.fromarray(noise).resize(canvas, Image.Resampling.BILINEAR)).astype(int)
    inner = (slice(1, -1), slice(1, -1))
    assert found.shape == expected.shape
    assert np.abs(found - expected)[inner].max() <= 1


@pytest.mark.parametrize("turn", [20, -70, 135])
def test_a_turned_and_shrunk_image_is_antialiased(turn: float) -> None:
    """Stripes of two pixels at a quarter of their size become grey, without moiré."""
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    found = apply_lazy(lazily(stripes), shrinking(Size(400, 400), Size(100, 100), turn)).numpy()
    middle = found[30:70, 30:70].astype(int)
    assert np.abs(middle - 127.5).max() <= 3


def test_shrinking_does_not_shift() -> None:
    """A ramp of coordinates keeps its positions, turned and scaled by factors that leave a remainder."""
    y, x = np.mgrid[:501, :701] + 0.5
    ramp = np.stack([x / 701 * 250, y / 501 * 250, 250 - x / 701 * 250], axis=-1)
    for turn in (0, 30, -100):
        drawn = shrinking(Size(701, 501), Size(233, 178), turn)
        found = apply_lazy(lazily((ramp + 0.5).astype(np.uint8)), drawn).numpy()
        rows, columns = np.mgrid[:178, :233] + 0.5
        place = Affine.from_tuple(drawn.affine).inverse().apply(np.stack([columns, rows], axis=-1))
        inside = ((place > 12) & (place < (689, 489))).all(axis=-1)
        right, down = np.moveaxis(place / (701, 501) * 250, -1, 0)
        difference = (found - np.stack([right, down, 250 - right], axis=-1))[inside]
        assert inside.mean() > 0.3
        assert np.abs(difference).max() <= 1.25  # a rounding before and one after
        bias = difference.mean(axis=0)
        assert abs(bias[0] - bias[2]) / 2 < 0.02  # a shift by one pixel is 0.36


@pytest.mark.parametrize("factor", [1.2, 1.02])
def test_shrinking_by_less_than_a_quarter_is_not_blurred(factor: float) -> None:
    """It is interpolated only, as for tiles."""
    noise = np.random.default_rng(1).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    side = round(300 / factor)
    found = apply_lazy(lazily(noise), shrinking(Size(300, 300), Size(side, side))).numpy().astype(int)
    at = (np.arange(side) + 0.5) * 300 / side - 0.5
    rows, columns = np.meshgrid(at, at, indexing="ij")
    expected = scipy.ndimage.map_coordinates(noise[..., 0].astype(float), [rows, columns], order=1, mode="nearest")
    assert np.abs(found[..., 0] - expected)[2:-2, 2:-2].max() <= 1
