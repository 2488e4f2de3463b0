"""Our transforms inside albumentationsxl: argument meanings, calls on images and masks, copies, files, bad input."""

from __future__ import annotations

import copy
import math
import pickle
import random
from pathlib import Path

import albumentationsxl as A
import numpy as np
import pytest
import pyvips
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples

from slideio_pipe.augment.affines import mirrored, quarter_turns, rotation
from slideio_pipe.augment.colour_transforms import (
    ColorJitter,
    GaussianNoise,
    RandStainNA,
    StainJitter,
    StainNormalize,
)
from slideio_pipe.augment.geometric_transforms import (
    Flip,
    RandomAffine,
    RandomResizedCrop,
    Rotate90,
)
from slideio_pipe.augment.operations import Hsv, Lab, Noise, Saturation, Stain, Tone
from slideio_pipe.augment.slide_colour import SlideColour
from slideio_pipe.augment.stain_matrices import HED, MACENKO_STRENGTH, as_matrix, named_basis, optical_density
from slideio_pipe.augment.steps import Steps
from slideio_pipe.augment.transform_base import Context, move_mask, span
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Size

SIZE = Size(40, 30)
COLOUR = SlideColour(basis=as_matrix(HED), strength=(2, 1, 1), lab_mean=(60, 20, -10), lab_std=(10, 5, 4))
COLOURS = [
    StainJitter(),
    StainJitter(basis=HED, alpha=(0.7, 1.1), beta=0.05, p=0.3),
    StainNormalize(basis="hed"),
    ColorJitter(),
    RandStainNA(source="cohort"),
    RandStainNA(source=((60, 20, -10), (10, 5, 5))),
    GaussianNoise(3),
]
GEOMETRIES = [
    RandomAffine(),
    RandomAffine(rotate=20, scale=0.3, shear=(5, 6), flip=False, translate=0.1, p=0.9),
    Rotate90(),
    Flip(),
    Flip(horizontal=False),
    RandomResizedCrop(20),
    RandomResizedCrop((20, 25), scale=1.0, ratio=(0.5, 2)),
]
OURS = [*COLOURS, *GEOMETRIES]


def names(transforms: list[A.BasicTransform]) -> list[str]:
    """Return test ids."""
    return [f"{type(each).__name__}-{index}" for index, each in enumerate(transforms)]


def steps_of(transform: A.BasicTransform, seed: int = 0, size: Size = SIZE, context: Context | None = None) -> Steps:
    """Return the steps that a transform draws for a tile."""
    return transform.draw_steps(np.random.default_rng(seed), size, context or Context())


def noise_image(width: int = 40, height: int = 30, seed: int = 0) -> tuple[pyvips.Image, np.ndarray]:
    """Return an image of random pixels, and the pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return pyvips.Image.new_from_array(pixels), pixels


# -- files and copies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", OURS, ids=names(OURS))
def test_copies_and_files_hold_the_same_transform(transform: A.BasicTransform, tmp_path: Path) -> None:
    """Pickle, deep copy, to_dict/from_dict, YAML and JSON give back the same arguments and the same draws."""
    whole = A.Compose([transform, A.OneOf([transform, A.NoOp()], p=0.5)])
    for kind in ("yaml", "json"):
        A.save(whole, str(tmp_path / kind), kind)
    loaded = [A.from_dict(A.to_dict(whole)), pickle.loads(pickle.dumps(whole)), copy.deepcopy(whole)]
    loaded += [A.load(str(tmp_path / kind), kind) for kind in ("yaml", "json")]
    for again in loaded:
        assert A.to_dict(again) == A.to_dict(whole)
        assert steps_of(again[0], 3) == steps_of(transform, 3)
        assert repr(again) == repr(whole)


# -- arguments -----------------------------------------------------------------------------------------------------


def test_span_is_a_number_or_a_range() -> None:
    """A number is a range symmetric about the neutral value; a pair may be a fixed value."""
    assert span("T", "x", 0.2, about=1) == (0.8, 1.2)
    assert span("T", "x", (0.5, 2), about=1) == (0.5, 2)
    assert span("T", "x", 7) == (7, 7)


@pytest.mark.parametrize(
    "make",
    [
        lambda: StainJitter(alpha=0),
        lambda: StainJitter(alpha=-0.1),
        lambda: StainJitter(alpha=1),
        lambda: StainJitter(alpha=(0, 1)),
        lambda: StainJitter(alpha=(1.2, 0.8)),
        lambda: StainJitter(alpha="strong"),
        lambda: StainJitter(basis="haematoxylin"),
        lambda: StainJitter(basis=[[1, 0, 0], [1, 0, 0], [0, 0, 1]]),
        lambda: StainJitter(beta=math.nan),
        lambda: StainJitter(p=1.5),
        lambda: StainNormalize(target="slide"),
        lambda: StainNormalize(strength=(1, 0, 1)),
        lambda: StainNormalize(target=[[1, 2], [3, 4]]),
        lambda: ColorJitter(hue=0.6),
        lambda: ColorJitter(brightness=-1),
        lambda: ColorJitter(saturation=(-0.5, 1)),
        lambda: ColorJitter(pivot=2),
        lambda: RandStainNA(source="image"),
        lambda: RandStainNA(mean=(1, 2, 3)),
        lambda: RandStainNA(std=((0, 1), (1, 1), (1, 1))),
        lambda: GaussianNoise(-1),
        lambda: GaussianNoise(True),
        lambda: RandomAffine(scale=1),
        lambda: RandomAffine(scale=(0, 2)),
        lambda: RandomAffine(shear=90),
        lambda: RandomAffine(flip=0.5),
        lambda: RandomResizedCrop(0),
        lambda: RandomResizedCrop((224, 224, 3)),
        lambda: RandomResizedCrop(224.5),
        lambda: RandomResizedCrop(224, scale=(0, 1)),
        lambda: Rotate90(p="always"),
    ],
)
def test_impossible_arguments_name_the_transform(make: object) -> None:
    """Every argument out of range is our error, with the transform's name and a remedy."""
    with pytest.raises(ConfigError, match=r"^(Stain(Jit|Norm)|ColorJ|RandStainNA|Gauss|Random[AR]|Rotate90)"):
        make()


# -- stains --------------------------------------------------------------------------------------------------------


@examples()
@given(st.integers(0, 10**6), st.sampled_from(["hed", "macenko", "slide"]))
def test_stain_jitter_keeps_glass_white(seed: int, basis: str) -> None:
    """With beta = 0 optical density 0 stays exactly 0, for every basis and factor."""
    (stain,) = steps_of(StainJitter(basis=basis, alpha=0.9), seed, context=Context(basis=as_matrix(HED))).operations
    assert stain.offset == (0, 0, 0)
    assert (np.array(stain.matrix) @ optical_density([255, 255, 255]) == 0).all()


def test_stain_jitter_scales_each_stain_within_its_range() -> None:
    """Alpha per stain, uniform between the ends; beta likewise."""
    transform = StainJitter(alpha=(0.5, 1.5), beta=0.1)
    drawn = [steps_of(transform, seed).operations[0] for seed in range(400)]
    basis = np.array(HED)
    alphas = np.array([np.diag(np.linalg.inv(basis.T) @ np.array(each.matrix) @ basis.T) for each in drawn])
    betas = np.array([np.linalg.solve(basis.T, each.offset) for each in drawn])
    for values, low, high in ((alphas, 0.5, 1.5), (betas, -0.1, 0.1)):
        assert values.min() >= low - 1e-9
        assert values.max() <= high + 1e-9
        assert np.allclose(values.mean(axis=0), (low + high) / 2, atol=0.06 * (high - low))
        assert np.allclose(values.std(axis=0), (high - low) / math.sqrt(12), rtol=0.1)
        assert abs(np.corrcoef(values.T)[0, 1]) < 0.15


def test_basis_slide_uses_the_measured_basis() -> None:
    """basis="slide" uses the measured one, an array is used as it is."""
    own = as_matrix(named_basis("macenko", "test"))
    by_slide = steps_of(StainJitter(basis="slide"), context=Context(basis=own))
    by_colour = steps_of(StainJitter(basis="slide"), context=Context(colour=SlideColour(basis=own)))
    assert by_slide == by_colour == steps_of(StainJitter(basis=own))
    assert StainJitter(basis="slide").needs_slide
    assert not StainJitter().needs_slide


@pytest.mark.parametrize("transform", [StainJitter("slide"), StainNormalize(), RandStainNA()], ids=repr)
def test_basis_slide_without_a_slide_is_an_error(transform: A.BasicTransform) -> None:
    """It names the transform and the remedy: an image has no tissue tiles."""
    with pytest.raises(ConfigError, match=rf'{type(transform).__name__}: .*"slide" needs a slide.*for an image'):
        steps_of(transform)


def test_stain_normalize_brings_a_slide_to_the_target() -> None:
    """The slide's strongest haematoxylin gets the target's colour and strength."""
    (stain,) = steps_of(StainNormalize(), context=Context(colour=COLOUR)).operations
    target = named_basis("macenko", "test")
    assert np.allclose(np.array(stain.matrix) @ (2 * np.array(HED[0])), MACENKO_STRENGTH[0] * target[0])
    assert np.allclose(np.array(stain.matrix) @ np.array(HED[1]), MACENKO_STRENGTH[1] * target[1])
    assert stain.offset == (0, 0, 0)


def test_stain_normalize_to_its_own_stains_is_the_identity() -> None:
    """Exactly."""
    assert steps_of(StainNormalize(target="hed", basis="hed")) == Steps()


def test_randstainna_makes_the_drawn_statistics() -> None:
    """An image with the slide's statistics gets the drawn mean and deviation, which vary as the cohort's."""
    transform = RandStainNA(mean=((60, 5), (20, 2), (-10, 1)), std=((10, 1), (5, 0.5), (4, 0.2)))
    drawn = [steps_of(transform, seed, context=Context(colour=COLOUR)).operations[0] for seed in range(500)]
    assert all(isinstance(each, Lab) for each in drawn)
    means = np.array([np.array(each.gain) * (60, 20, -10) + each.bias for each in drawn])
    spreads = np.array([np.array(each.gain) * (10, 5, 4) for each in drawn])
    assert np.allclose(means.mean(axis=0), (60, 20, -10), atol=0.7)
    assert np.allclose(means.std(axis=0), (5, 2, 1), rtol=0.12)
    assert np.allclose(spreads.std(axis=0), (1, 0.5, 0.2), rtol=0.12)


# -- colour jitter -------------------------------------------------------------------------------------------------


def test_color_jitter_is_four_operations_in_every_order() -> None:
    """All 24 orders occur; factors are torchvision's: 1.5 for brightness means 0 to 2.5."""
    transform = ColorJitter(1.5, 0.3, (0.5, 0.6), 0.1)
    orders, brightness = set(), []
    for seed in range(600):
        operations = steps_of(transform, seed).operations
        kinds = ["contrast" if isinstance(o, Tone) and o.contrast != 1 else o.kind for o in operations]
        orders.add(tuple(kinds))
        brightness += [o.brightness for o in operations if o.kind == "tone" and o.brightness != 1]
        assert all(0.5 <= o.factor <= 0.6 for o in operations if isinstance(o, Saturation))
        assert all(abs(o.turn) <= 0.1 for o in operations if isinstance(o, Hsv))
    assert len(orders) == 24
    assert 0 <= min(brightness) < 0.05
    assert 2.45 < max(brightness) <= 2.5


def test_contrast_about_the_mean_equals_torchvision() -> None:
    """factor·x + (1 − factor)·mean."""
    (tone,) = steps_of(ColorJitter(0, (1.4, 1.4), 0, 0, pivot=0.7)).operations
    values = np.arange(100.0, 200)
    assert np.allclose(tone.curve(values), np.clip(1.4 * values - 0.4 * 0.7 * 255, 0, 255))


def test_noise_has_its_sigma_and_its_own_seed() -> None:
    """Two draws have two seeds; one draw has one seed."""
    (first,), (second,) = (steps_of(GaussianNoise(4), seed).operations for seed in (1, 2))
    assert isinstance(first, Noise)
    assert (first.sigma, second.sigma) == (4, 4)
    assert first.seed != second.seed
    assert steps_of(GaussianNoise(4), 1).operations == (first,)


# -- geometry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(4))
def test_quarter_turns_equal_numpy(count: int) -> None:
    """Pixel for pixel, with sides swapped."""
    image, pixels = noise_image()
    steps = quarter_turns(count, SIZE)
    turned = image if steps.affine is None else move_mask(image, steps.affine, steps.canvas or SIZE)
    assert np.array_equal(turned.numpy(), np.rot90(pixels, count))


@pytest.mark.parametrize(("horizontal", "vertical"), [(True, False), (False, True), (True, True)])
def test_mirrors_equal_numpy(horizontal: bool, vertical: bool) -> None:
    """Pixel for pixel."""
    image, pixels = noise_image()
    affine = mirrored(SIZE, horizontal=horizontal, vertical=vertical).affine
    expected = pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1]
    assert np.array_equal(move_mask(image, affine, SIZE).numpy(), expected)


@pytest.mark.parametrize("angle", [0, 90, 180, 270, 360, -90, 450])
def test_quarter_rotations_are_exact(angle: int) -> None:
    """The sine of 90° is exactly 1, without rounding error."""
    assert set(rotation(angle).as_tuple()) <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize(("transform", "images"), [(Rotate90(), 4), (Flip(), 4), (Flip(vertical=False), 2)], ids=repr)
def test_all_exact_turns_are_equally_likely(transform: A.BasicTransform, images: int) -> None:
    """Including the identity."""
    drawn = [steps_of(transform, seed).affine for seed in range(400)]
    counts = [drawn.count(each) for each in set(drawn)]
    assert len(counts) == images
    assert min(counts) > 400 / images * 0.75
    assert None in drawn


@examples()
@given(
    st.integers(0, 10**6),
    st.floats(-180, 180),
    st.floats(0.3, 3),
    st.floats(-40, 40),
)
def test_random_affine_is_mirror_shear_scale_rotation(seed: int, angle: float, scale: float, shear: float) -> None:
    """About the centre, in this order, counter-clockwise; the oracle uses complex numbers."""
    transform = RandomAffine((angle, angle), (scale, scale), (shear, shear), flip=False)
    point = np.array([13.0, 4.0])
    moved = (steps_of(transform, seed).affine or Affine()).apply(point)
    x, y = point - (20, 15)
    sheared = complex(x + math.tan(math.radians(shear)) * y, -y)  # upwards is positive
    turned = scale * sheared * complex(math.cos(math.radians(angle)), math.sin(math.radians(angle)))
    assert np.allclose(moved, (20 + turned.real, 15 - turned.imag), atol=1e-6)


def test_random_affine_draws_within_its_ranges() -> None:
    """Angles are uniform, half of the draws are mirrored, shifts are fractions of the sides."""
    transform = RandomAffine(rotate=25, scale=(0.8, 0.8), translate=0.1)
    affines = [steps_of(transform, seed).affine for seed in range(400)]
    turned = np.array([math.degrees(math.atan2(each.b, each.e)) for each in affines])
    assert np.abs(turned).max() <= 25
    assert np.allclose(turned.std(), 50 / math.sqrt(12), rtol=0.1)
    mirrors = sum(each.a * each.e - each.b * each.d < 0 for each in affines)
    assert 150 < mirrors < 250
    middles = np.array([each.apply([20, 15]) for each in affines]) - (20, 15)
    assert (np.abs(middles).max(axis=0) <= (4, 3)).all()
    assert (np.abs(middles).max(axis=0) > (3.8, 2.8)).all()


@examples()
@given(st.integers(0, 10**6))
def test_crops_contain_the_tile_or_are_inside_it(seed: int) -> None:
    """Area and ratio are within their ranges; per side, the smaller of crop and tile is inside the other."""
    tile = Size(1024, 512)
    steps = steps_of(RandomResizedCrop(224, scale=(0.5, 1.5)), seed, tile)
    corners = steps.affine.inverse().apply([[0, 0], [224, 224]])
    width, height = corners[1] - corners[0]
    assert 0.5 - 1e-9 <= width * height / (1024 * 512) <= 1.5 + 1e-9
    assert 3 / 4 - 1e-9 <= (width / 1024) / (height / 512) <= 4 / 3 + 1e-9
    for low, high, side in zip(corners[0], corners[1], tile, strict=True):
        assert (low >= -1e-6 and high <= side + 1e-6) or (low <= 1e-6 and high >= side - 1e-6)
    assert steps.canvas == (224, 224)


def test_a_slide_cannot_be_cropped_to_a_tile() -> None:
    """The transform is for tiles only."""
    with pytest.raises(ConfigError, match="RandomResizedCrop: crops tiles"):
        steps_of(RandomResizedCrop(224), context=Context(slide_wide=True))


# -- inside A.Compose ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", OURS, ids=names(OURS))
def test_a_compose_call_runs_on_image_and_mask(transform: A.BasicTransform) -> None:
    """Images are returned as 8-bit RGB; a mask keeps its values and moves with the image."""
    image, _ = noise_image()
    mask = (image[0] > 128).ifthenelse(7, 0).cast("uchar")
    random.seed(5)
    out = A.Compose([transform])(image=image, mask=mask)
    assert (out["image"].bands, out["image"].format) == (3, "uchar")
    assert (out["mask"].width, out["mask"].height) == (out["image"].width, out["image"].height)
    assert out["image"].numpy().shape[2] == 3
    assert set(np.unique(out["mask"].numpy())) <= {0, 7}
    if isinstance(transform, A.ImageOnlyTransform):
        assert np.array_equal(out["mask"].numpy(), mask.numpy())


@pytest.mark.parametrize("transform", OURS, ids=names(OURS))
def test_a_compose_call_follows_pythons_seed(transform: A.BasicTransform) -> None:
    """As for albumentationsxl's transforms: the same ``random.seed`` gives the same image."""
    image, _ = noise_image()
    whole = A.Compose([transform])
    results = []
    for seed in (1, 1):
        random.seed(seed)
        results.append(whole(image=image)["image"].numpy())
    assert np.array_equal(*results)


def test_image_and_mask_move_together() -> None:
    """A mask drawn from the image still covers it after a rotation, away from the border."""
    y, x = np.mgrid[:200, :300]
    blob = ((x - 90) ** 2 + (y - 70) ** 2 < 40**2) | (abs(x - 220) + abs(y - 120) < 50)
    pixels = np.where(blob[..., None], np.uint8(30), np.uint8(255)).repeat(3, axis=2)
    image, mask = pyvips.Image.new_from_array(pixels), pyvips.Image.new_from_array(blob.astype(np.uint8))
    for seed in range(6):
        random.seed(seed)
        out = A.Compose([RandomAffine(scale=0.3, shear=15, translate=0.1)])(image=image, mask=mask)
        dark, marked = out["image"].numpy()[..., 0] < 142, out["mask"].numpy() > 0
        assert (dark != marked).mean() < 0.003


@pytest.mark.parametrize("affine", [Affine(1, 0, 0.3, 0, 1, 0.7), rotation(33) @ Affine.scaling(1.7, 0.9)])
def test_masks_take_the_nearest_pixel(affine: Affine) -> None:
    """Against a lookup of every output centre."""
    mask = np.random.default_rng(0).integers(0, 256, (37, 53), np.uint8)
    affine = Affine.translation(4.2, 21.3) @ affine
    canvas = Size(60, 50)
    y, x = np.mgrid[: canvas.height, : canvas.width]
    column, row = np.floor(affine.inverse().apply(np.stack([x + 0.5, y + 0.5], axis=-1))).astype(int).transpose(2, 0, 1)
    inside = (column >= 0) & (row >= 0) & (column < 53) & (row < 37)
    expected = np.zeros(x.shape, np.uint8)
    expected[inside] = mask[row[inside], column[inside]]
    assert np.array_equal(move_mask(pyvips.Image.new_from_array(mask), affine, canvas).numpy(), expected)


@pytest.mark.parametrize("transform", [StainJitter(), RandomAffine()], ids=["colour", "geometry"])
@pytest.mark.parametrize(
    "image",
    [
        pyvips.Image.black(8, 8),
        pyvips.Image.black(8, 8, bands=4),
        pyvips.Image.black(8, 8, bands=3).cast("ushort"),
        pyvips.Image.black(8, 8, bands=3).cast("float"),
        np.zeros((8, 8, 3), np.uint8),
    ],
    ids=["grey", "RGBA", "ushort", "float", "array"],
)
def test_images_that_are_not_8_bit_rgb_are_refused(transform: A.BasicTransform, image: object) -> None:
    """Grey, alpha, 16 bits and floats are not converted; the error names the transform."""
    with pytest.raises(ConfigError, match=f"{type(transform).__name__}: an image of"):
        transform(image=image)


def test_white_stays_white_and_identities_keep_every_bit() -> None:
    """Through the whole call: white glass under strong stain jitter, and jitter with no range."""
    white = pyvips.Image.black(9, 9, bands=3).linear(1, 255, uchar=True)
    assert (StainJitter(alpha=0.9)(image=white)["image"].numpy() == 255).all()
    image, pixels = noise_image()
    nothing = [
        StainJitter(alpha=(1, 1)),
        ColorJitter(0, 0, 0, 0),
        GaussianNoise(0),
        RandomAffine(rotate=0, flip=False),
    ]
    assert np.array_equal(A.Compose(nothing)(image=image)["image"].numpy(), pixels)


def test_replay_compose_repeats_a_call() -> None:
    """albumentationsxl's own replay works: the parameters of a call are one number."""
    image, _ = noise_image()
    whole = A.ReplayCompose([RandomAffine(), StainJitter(), GaussianNoise(5)])
    first = whole(image=image)
    again = A.ReplayCompose.replay(first["replay"], image=image)
    assert np.array_equal(first["image"].numpy(), again["image"].numpy())


def test_a_stain_operation_is_json() -> None:
    """It consists of plain numbers."""
    (stain,) = steps_of(StainJitter()).operations
    assert isinstance(stain, Stain)
    assert Stain.model_validate_json(stain.model_dump_json()) == stain
