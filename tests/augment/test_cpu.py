"""Colour operations on decoded tiles, against their definitions in float64 and against scikit-image."""

from __future__ import annotations

import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import augment_reference as reference
import cv2
import numpy as np
import pytest
from augment_reference import COLOURS, random_chain
from batch_colours import apply_cpu
from skimage import color

from slideio_pipe.augment.executors.cpu import ColourProgram
from slideio_pipe.augment.operations import Hsv, Lab, Noise, Opaque, Saturation, Stain, Tone
from slideio_pipe.errors import ConfigError

pytestmark = pytest.mark.usefixtures("executor")
STAIN = Stain(matrix=((1.1, 0.05, 0.0), (0.02, 0.9, 0.01), (0.0, 0.1, 1.05)), offset=(0.01, -0.02, 0.03))
HSV = Hsv(turn=0.07, saturation=-0.1, value=0.05)
JITTER = (Tone(contrast=1.2), HSV, STAIN)


def difference(tiles: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference in grey levels."""
    return float(np.abs(tiles - expected).max())


@pytest.mark.parametrize("seed", range(60))
def test_a_random_chain_is_within_a_level_of_its_definition(seed: int) -> None:
    """Any order of up to five operations differs by at most one level from float64, over the whole colour cube."""
    chain = random_chain(seed)
    assert difference(ColourProgram(chain).apply(COLOURS), reference.apply(COLOURS, chain)) <= 1, chain


@pytest.mark.combinations
@pytest.mark.parametrize("seed", range(10))
def test_a_random_chain_on_real_tissue(seed: int, shared_data: Path) -> None:
    """The same on the pixels of real slides."""
    for name in ("ihc.png", "tcga-lung-rgb.png"):
        tissue = cv2.cvtColor(cv2.imread(str(shared_data / "images" / name)), cv2.COLOR_BGR2RGB)[:256, :256]
        chain = random_chain(seed)
        assert difference(ColourProgram(chain).apply(tissue), reference.apply(tissue, chain)) <= 1, chain


@pytest.mark.parametrize(("turn", "saturation", "value"), [(0.3, 0, 0), (-0.07, 0.2, -0.1), (0.5, -1, 0), (0, 0, 1)])
def test_hsv_equals_scikit_image(turn: float, saturation: float, value: float) -> None:
    """Hue wraps, saturation and value are clipped, in scikit-image's HSV."""
    hsv = color.rgb2hsv(COLOURS)
    hsv[..., 0] = (hsv[..., 0] + turn) % 1
    hsv[..., 1:] = np.clip(hsv[..., 1:] + [saturation, value], 0, 1)
    out = ColourProgram((Hsv(turn=turn, saturation=saturation, value=value),)).apply(COLOURS)
    assert difference(out, 255 * color.hsv2rgb(hsv)) < 0.51


def test_lab_equals_scikit_image() -> None:
    """Gain and bias act on scikit-image's Lab."""
    lab = color.rgb2lab(COLOURS) * [1.05, 0.9, 1.1] + [2, -3, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of colours outside sRGB
        expected = 255 * np.clip(color.lab2rgb(lab), 0, 1)
    out = ColourProgram((Lab(gain=(1.05, 0.9, 1.1), bias=(2, -3, 1)),)).apply(COLOURS)
    assert difference(out, expected) < 0.51


def test_a_stain_is_the_jitter_of_the_literature() -> None:
    """Stain amounts in scikit-image's HED basis, scaled and shifted, are the record's linear map."""
    basis = color.rgb_from_hed
    alpha, beta = np.array([1.2, 0.8, 1.05]), np.array([0.02, -0.01, 0.03])
    density = -np.log((COLOURS.astype(np.float64) + 1) / 256)
    amounts = density @ np.linalg.inv(basis) * alpha + beta
    expected = np.clip(256 * np.exp(-amounts @ basis) - 1, 0, 255)
    matrix = basis.T @ np.diag(alpha) @ np.linalg.inv(basis.T)
    stain = Stain(matrix=tuple(map(tuple, matrix.tolist())), offset=tuple((beta @ basis).tolist()))
    assert difference(ColourProgram((stain,)).apply(COLOURS), expected) < 0.51


@pytest.mark.parametrize("alpha", [0.05, 0.7, 1.4, 5.0])
def test_glass_stays_white(alpha: float) -> None:
    """White is white under every stain without offset, wherever it stands in a chain."""
    glass = np.full((1, 8, 8, 3), 255, np.uint8)
    stain = Stain(matrix=((alpha, 0.1, -0.2), (0.0, 1.0, 0.3), (-0.4, 0.0, alpha)))
    for chain in ((stain,), (stain, stain), (Saturation(factor=1.3), stain), (stain, Tone(contrast=1.1))):
        assert (apply_cpu(glass, chain) == 255).all()


def test_grey_after_an_earlier_step_has_the_hue_of_grey() -> None:
    """Rounding in floating point gives no tint: the hue of every grey is 0 (red)."""
    greys = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    out = ColourProgram((Saturation(factor=1.3), Hsv(saturation=0.3))).apply(greys).astype(int)
    assert (out[..., 0] >= out[..., 1]).all()
    assert np.abs(out[..., 1] - out[..., 2]).max() <= 1


@pytest.mark.parametrize("chain", [(), (Tone(),), (Stain(),), (Hsv(turn=2.0), Saturation(factor=1.0), Lab())])
def test_identities_return_the_same_bytes(chain: tuple) -> None:
    """Operations that change nothing do not round."""
    assert np.array_equal(ColourProgram(chain).apply(COLOURS), COLOURS)


@pytest.mark.parametrize("chain", [(Tone(gamma=1.3),), JITTER, (Noise(sigma=3, seed=1),)])
def test_the_output_argument_and_the_batch_size_do_not_change_pixels(chain: tuple) -> None:
    """In place, into a view, one tile or a batch."""
    tiles = COLOURS.reshape(4, -1, 64, 3)
    expected = np.stack([ColourProgram(chain).apply(tile) for tile in tiles])
    inside, strided = tiles.copy(), np.zeros((4, *tiles.shape[1:3], 6), np.uint8)[..., ::2]
    assert apply_cpu(inside, chain, out=inside) is inside
    apply_cpu(tiles, chain, out=strided)
    per_tile = apply_cpu(tiles, [chain] * 4)
    for result in (inside, strided, per_tile):
        assert np.array_equal(result, expected)


def test_a_draw_per_tile() -> None:
    """Each tile gets its own operations."""
    tiles = np.full((3, 4, 4, 3), 100, np.uint8)
    out = apply_cpu(tiles, [(Tone(brightness=0.5),), (), (HSV, Tone(brightness=2.0))])
    assert out[:2, 0, 0, 0].tolist() == [50, 100]
    assert np.array_equal(out[2], ColourProgram((HSV, Tone(brightness=2.0))).apply(tiles[2]))


def test_a_program_can_be_shared_by_threads_and_pickled() -> None:
    """Four threads and its pickle give the same result as one thread."""
    program = ColourProgram(JITTER)
    tiles = np.random.default_rng(0).integers(0, 256, (16, 200, 200, 3), dtype=np.uint8)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(program.apply, tiles))
    assert np.array_equal(np.stack(together), pickle.loads(pickle.dumps(program)).apply(tiles))


def test_noise_has_its_standard_deviation_and_is_seeded() -> None:
    """The same tile has the same noise; another tile or seed has other noise."""
    tiles = np.full((2, 256, 256, 3), 120, np.uint8)
    tiles[1, 0, 0] = 121
    noise = Noise(sigma=4, seed=7)
    out = apply_cpu(tiles, (noise,))
    assert out.std() == pytest.approx(np.hypot(4, 1 / np.sqrt(12)), rel=0.02)
    assert np.array_equal(out[1], ColourProgram((noise,)).apply(tiles[1]))
    assert not np.array_equal(out[0, 1:], out[1, 1:])
    assert not np.array_equal(out[0], ColourProgram((Noise(sigma=4, seed=8),)).apply(tiles[0]))


@pytest.mark.parametrize(
    ("tiles", "named"),
    [
        (np.zeros((4, 4), np.uint8), "grey"),
        (np.zeros((4, 4, 1), np.uint8), "grey"),
        (np.zeros((2, 4, 4, 4), np.uint8), "RGBA"),
        (np.zeros((4, 4, 3), np.uint16), "uint16"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        ([[[1, 2, 3]]], "list"),
    ],
)
def test_images_that_are_not_uint8_rgb_are_refused(tiles: object, named: str) -> None:
    """The error names what was found."""
    with pytest.raises(ConfigError, match=named):
        apply_cpu(tiles, JITTER)  # type: ignore[arg-type]


def test_opaque_operations_are_refused_by_name() -> None:
    """They run lazily only."""
    with pytest.raises(ConfigError, match="Blur does not run on decoded tiles"):
        ColourProgram((Opaque(name="Blur", transform={}, seed=0),))


def test_draws_and_outputs_that_do_not_fit_are_refused() -> None:
    """There is one draw per tile, and the output has the shape of the tiles."""
    tiles = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ConfigError, match="3 draws"):
        apply_cpu(tiles, [JITTER] * 3)
    with pytest.raises(ConfigError, match="out is float32"):
        apply_cpu(tiles, JITTER, out=np.zeros(tiles.shape, np.float32))  # type: ignore[arg-type]
