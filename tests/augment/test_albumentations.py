"""Verdicts on albumentationsxl's transforms; oracles: its own graphs, albumentations' formulas, scikit-image."""

from __future__ import annotations

import colorsys
import inspect
import math

import albumentationsxl as A
import numpy as np
import pytest
import pyvips

from slideio_pipe.augment import albumentations as adopt
from slideio_pipe.augment.albumentations import LOWERINGS, VERDICTS, verdict
from slideio_pipe.augment.compose import draw
from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.operations import Hsv, Noise, Opaque, Stain, Tone
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Size

SIZE = Size(40, 30)
ABSTRACT = {"BasicTransform", "DualTransform", "ImageOnlyTransform"}


class Tinted(A.ImageOnlyTransform):
    """A user's own transform, written as albumentationsxl requires."""

    def __init__(self, level: int = 3, always_apply: bool = False, p: float = 1.0) -> None:
        super().__init__(always_apply, p)
        self.level = level

    def apply(self, img: pyvips.Image, **params: object) -> pyvips.Image:
        return img

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        return ("level",)


class Unwritten(A.ImageOnlyTransform):
    """A user's own transform that does not list its arguments."""

    def apply(self, img: pyvips.Image, **params: object) -> pyvips.Image:
        return img


class Warped(A.DualTransform):
    """A user's own transform that moves pixels."""


def on_tile(transform: object, seed: int = 0, size: Size = SIZE) -> Draw:
    """One draw for a tile."""
    return draw(transform, seed=seed, tile=0, size=size)


def moved(drawn: Draw, points: object) -> np.ndarray:
    """Return where a draw maps points."""
    return Affine.from_tuple(drawn.affine).apply(points)


def exported() -> dict[str, type]:
    """Every transform that albumentationsxl exports."""
    return {
        name: value
        for name, value in vars(A).items()
        if inspect.isclass(value) and issubclass(value, A.BasicTransform) and name not in ABSTRACT
    }


# -- the table -----------------------------------------------------------------------------------------------------


def test_every_exported_transform_has_a_verdict() -> None:
    """A transform without a verdict would be lowered by accident."""
    assert set(exported()) == set(VERDICTS)


def test_every_verdict_is_kept() -> None:
    """Right and corrected transforms can be lowered; refused ones name an alternative."""
    for name, judged in VERDICTS.items():
        assert (judged.kind in ("right", "corrected")) == (name in LOWERINGS), name
        assert (judged.kind == "refused") == bool(judged.instead), name
        assert judged.why or judged.kind == "right", name


def _made(name: str) -> object:
    if name == "Lambda":  # its constructor always fails
        made = A.Lambda.__new__(A.Lambda)
        A.BasicTransform.__init__(made, p=1)
        return made
    arguments = {
        "Normalize": {"mean": [0.5], "std": [0.5]},
        "ToDtype": {"dtype": "float", "scale": True},
    }
    return exported()[name](**arguments.get(name, {}), p=1)


@pytest.mark.parametrize("name", [name for name, judged in VERDICTS.items() if judged.kind == "refused"])
def test_refused_transforms_are_named_with_reason_and_alternative(name: str) -> None:
    """The error comes at the first draw and names the transform."""
    with pytest.raises(ConfigError, match=name) as caught:
        on_tile(A.Compose([_made(name)]))
    assert VERDICTS[name].instead in str(caught.value)


@pytest.mark.parametrize("name", ["ToTensor", "Normalize"])
def test_normalisation_in_a_slide_transform_is_refused_with_a_remedy(name: str) -> None:
    """The error of this common mistake names what to use on the device."""
    with pytest.raises(ConfigError, match=r"needs pixels.*normalize=Normalize"):
        draw(A.Compose([A.HorizontalFlip(), _made(name)]), size=SIZE)


# -- geometry ------------------------------------------------------------------------------------------------------


def _by_own_graph(transform: A.BasicTransform, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(transform(image=pyvips.Image.new_from_array(pixels))["image"].numpy())


def _by_affine(drawn: Draw, pixels: np.ndarray) -> np.ndarray:
    """The plain image sampled at exact pixel centres; only for affines that hit them."""
    y, x = np.mgrid[: drawn.canvas.height, : drawn.canvas.width]
    back = Affine.from_tuple(drawn.affine).inverse().apply(np.stack([x + 0.5, y + 0.5], axis=-1))
    column, row = (np.rint(back - 0.5)).astype(int).transpose(2, 0, 1)
    inside = (column >= 0) & (row >= 0) & (column < pixels.shape[1]) & (row < pixels.shape[0])
    out = np.full((*x.shape, 3), 255, np.uint8)
    out[inside] = pixels[row[inside], column[inside]]
    return out


@pytest.mark.parametrize(
    "transform",
    [
        A.HorizontalFlip(p=1),
        A.VerticalFlip(p=1),
        A.CenterCrop(11, 20, p=1),
        A.CenterCrop(12, 21, p=1),
        A.Crop(3, 5, 17, 25, p=1),
        A.CropOrPad(50, 51, p=1),
        A.CropOrPad(21, 50, p=1),
        A.CropOrPad(33, 35, p=1, direction="north-east"),
        A.CropOrPad(33, 35, p=1, direction="south-west"),
        A.CropOrPad(33, 35, p=1, direction="west"),
        A.NoOp(p=1),
    ],
    ids=repr,
)
def test_exact_geometry_equals_albumentationsxls_own_graph(transform: A.BasicTransform) -> None:
    """Flips and crops move every pixel as albumentationsxl does."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    assert np.array_equal(_by_affine(on_tile(transform), pixels), _by_own_graph(transform, pixels))


def test_random_crop_is_inside_the_image_and_uniform() -> None:
    """Offsets are whole pixels, inside the image and uniform."""
    corners = np.array([moved(on_tile(A.RandomCrop(10, 30), seed), [0, 0]) for seed in range(300)])
    assert (corners == np.rint(corners)).all()
    assert (-corners).min(axis=0).tolist() == [0, 0]
    assert (-corners).max(axis=0).tolist() == [9, 19]


def test_crop_larger_than_the_image_names_the_transform() -> None:
    """A crop that does not fit is an error."""
    with pytest.raises(ConfigError, match="CenterCrop: a crop of 50x10"):
        on_tile(A.CenterCrop(10, 50))


def test_transpose_exchanges_rows_and_columns() -> None:
    """As numpy's transpose, and not as a rotation."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    assert np.array_equal(_by_affine(on_tile(A.Transpose(p=1)), pixels), pixels.transpose(1, 0, 2))


def test_random_rotate90_makes_all_four_turns() -> None:
    """Each of numpy's four quarter turns, in about a quarter of the draws."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    turns = [np.rot90(pixels, k).tobytes() for k in range(4)]
    drawn = [_by_affine(on_tile(A.RandomRotate90(p=1), seed), pixels).tobytes() for seed in range(400)]
    counts = [drawn.count(turn) for turn in turns]
    assert sum(counts) == 400
    assert min(counts) > 70


def test_flip_makes_its_three_mirror_images() -> None:
    """Left-right, top-bottom and both, equally likely, never none."""
    affines = [on_tile(A.Flip(p=1), seed).affine for seed in range(300)]
    counts = [affines.count(each) for each in set(affines)]
    assert len(counts) == 3
    assert min(counts) > 70


@pytest.mark.parametrize("size", [SIZE, Size(33, 33)])
@pytest.mark.parametrize(
    "arguments",
    [
        {"rotate": 30},
        {"scale": {"x": 0.8, "y": 1.3}},
        {"shear": {"x": 10, "y": 0.0}},
        {"shear": {"x": 0.0, "y": -12}},
        {"rotate": -70, "scale": 1.2, "shear": {"x": 8, "y": 5}},
        {"rotate": 20, "scale": {"x": 0.8, "y": 1.3}, "shear": {"x": 8, "y": 5}, "translate_px": {"x": 3, "y": -4}},
        {"rotate": 20, "translate_percent": {"x": 0.1, "y": -0.2}},
        {"scale": (1.1, 1.1), "keep_ratio": True},
    ],
    ids=str,
)
def test_affine_is_albumentationsxls_matrix(arguments: dict[str, object], size: Size) -> None:
    """Its own matrix, which counts from pixel centres, and ours put the corners into the same place."""
    transform = A.Affine(**arguments, p=1)
    drawn = on_tile(transform, size=size)
    own = transform.get_params_dependent_on_targets({"image": pyvips.Image.black(*size, bands=3)})["matrix"]
    corners = np.array([[0, 0], [size.width, 0], [0, size.height], [7.25, 3.5]])
    assert np.allclose(moved(drawn, corners), own(corners - 0.5) + 0.5, atol=1e-9)


@pytest.mark.parametrize("argument", ["translate_px", "shear"])
def test_affine_does_not_move_the_other_axis(argument: str) -> None:
    """{"x": 5} moves x only; albumentationsxl also moves y by 1."""
    _, b, c, d, e, f = on_tile(A.Affine(**{argument: {"x": 5}}, p=1)).affine
    assert (d, e, f) == (0, 1, 0)
    assert (b, c) != (0, 0)


@pytest.mark.parametrize("transform", [A.Rotate(limit=(30, 30), p=1), A.Affine(rotate=(30, 30), p=1)], ids=["R", "A"])
def test_rotations_are_counter_clockwise_and_grow_the_canvas_of_slides_only(transform: A.BasicTransform) -> None:
    """A slide keeps all of its content, a tile its size; the right edge moves up."""
    slide, tile = draw(transform, size=(512, 384)), on_tile(transform, size=Size(512, 384))
    cosine, sine = math.cos(math.pi / 6), math.sin(math.pi / 6)
    assert slide.canvas == (math.ceil(512 * cosine + 384 * sine), math.ceil(512 * sine + 384 * cosine))
    assert tile.canvas == (512, 384)
    for drawn in (slide, tile):
        middle, right = moved(drawn, [[256, 192], [257, 192]])
        assert np.allclose(right - middle, [cosine, -sine])
    assert np.allclose(moved(tile, [256, 192]), [256, 192])


@pytest.mark.parametrize(
    "transform",
    [
        A.Rotate(crop_border=True, p=1),
        A.Rotate(value=0, p=1),
        A.Affine(rotate=3, cval=0, p=1),
        A.Affine(rotate=3, mode="mirror", p=1),
        A.GaussNoise(per_channel=False, p=1),
        A.RandomGamma(gamma_limit=(-10, -5), p=1),
        A.RandomScale(scale_limit=(-1, -1), p=1),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_options_that_cannot_be_kept_are_refused(transform: A.BasicTransform) -> None:
    """An option is kept or refused by the transform's name, never ignored."""
    with pytest.raises(ConfigError, match=type(transform).__name__):
        on_tile(transform)


@pytest.mark.parametrize(
    ("transform", "canvas"),
    [
        (A.Resize(15, 80), (80, 15)),
        (A.LongestMaxSize(20), (20, 15)),
        (A.SmallestMaxSize(60), (80, 60)),
        (A.RandomScale((0.5, 0.5), p=1), (60, 45)),
    ],
    ids=["Resize", "Longest", "Smallest", "Scale"],
)
def test_resizing_maps_corners_to_corners(transform: A.BasicTransform, canvas: tuple[int, int]) -> None:
    """The whole image fills the whole canvas, of the size albumentationsxl makes."""
    drawn = on_tile(transform)
    assert drawn.canvas == canvas
    assert np.allclose(moved(drawn, SIZE), canvas)
    own = transform(image=pyvips.Image.black(*SIZE, bands=3))["image"]
    assert (own.width, own.height) == canvas


# -- colour --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_max", [True, False])
def test_brightness_contrast_is_relative_to_the_maximum(by_max: bool) -> None:
    """alpha·x + beta·255, as in albumentations, for every brightness_by_max."""
    transform = A.RandomBrightnessContrast((0.1, 0.1), (-0.3, -0.3), brightness_by_max=by_max, p=1)
    (tone,) = on_tile(transform).operations
    values = np.arange(256.0)
    assert isinstance(tone, Tone)
    assert np.allclose(tone.curve(values), np.clip(0.7 * values + 25.5, 0, 255))


def test_gamma_has_the_direction_of_albumentations() -> None:
    """Gamma 150 % darkens: x^1.5."""
    (tone,) = on_tile(A.RandomGamma((150, 150), p=1)).operations
    assert isinstance(tone, Tone)
    assert np.allclose(tone.curve(np.array([64.0])), 255 * (64 / 255) ** 1.5)


def test_hue_is_in_units_of_two_degrees() -> None:
    """90 of albumentations' 180 units turn red into cyan; saturation and value are of 255."""
    (hsv,) = on_tile(A.HueSaturationValue((90, 90), (51, 51), (-51, -51), p=1)).operations
    assert hsv == Hsv(turn=0.5, saturation=0.2, value=-0.2)
    assert colorsys.hsv_to_rgb(hsv.turn, 1, 1) == (0, 1, 1)


def test_hed_shift_leaves_glass_white_and_stains_as_albumentationsxl_at_density_one() -> None:
    """Glass stays white; a pure stain of optical density 1 changes by the shift, to first order."""
    (stain,) = on_tile(A.HEDShift((0.001, 0.001), (0, 0), (0, 0), p=1)).operations
    assert isinstance(stain, Stain)
    assert stain.offset == (0, 0, 0)
    haematoxylin = np.array([0.65, 0.70, 0.29])
    shifted = haematoxylin * (1 + 0.001 * math.log(1e6))
    assert np.allclose(np.array(stain.matrix) @ haematoxylin, shifted, rtol=2e-4)


def test_gauss_noise_has_the_given_variance() -> None:
    """The standard deviation is the square root of the variance; noise is added once."""
    (noise,) = on_tile(A.GaussNoise((25, 25), p=1)).operations
    assert isinstance(noise, Noise)
    assert noise.sigma == 5
    tone, _ = on_tile(A.GaussNoise((25, 25), mean=10, p=1)).operations
    assert np.allclose(tone.curve(np.array([100.0])), 110)


# -- opaque transforms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, judged in VERDICTS.items() if judged.kind == "opaque"])
def test_opaque_transforms_are_recorded_with_a_seed(name: str) -> None:
    """The record holds all that is needed to apply them again."""
    (operation,) = on_tile(_made(name)).operations
    assert isinstance(operation, Opaque)
    assert operation.name == name
    again = A.from_dict(operation.transform)
    assert type(again).__name__ == name
    assert (again.p, again.always_apply) == (1, True)
    assert not on_tile(_made(name)).lowered


def test_a_users_colour_transform_is_opaque() -> None:
    """An unknown transform that can be serialised is run lazily."""
    (operation,) = on_tile(Tinted(level=7)).operations
    assert operation.transform["transform"]["level"] == 7
    assert verdict(Tinted()).kind == "opaque"


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (Unwritten(p=1), "cannot be written down"),
        (Warped(p=1), "moves pixels"),
        (Tinted(level={3}), "cannot be written down"),
    ],
    ids=["no arguments", "geometry", "no JSON"],
)
def test_a_transform_that_cannot_be_replayed_is_refused_by_name(transform: A.BasicTransform, reason: str) -> None:
    """So is one whose geometry is unknown."""
    with pytest.raises(ConfigError, match=f"{type(transform).__name__}: {reason}"):
        on_tile(transform)


def test_a_class_with_the_same_name_as_albumentationsxls_has_no_verdict() -> None:
    """Verdicts belong to classes, not to names."""
    assert verdict(type("Blur", (Tinted,), {})()).why != VERDICTS["Blur"].why
    assert adopt.verdict(A.Blur()) is VERDICTS["Blur"]
