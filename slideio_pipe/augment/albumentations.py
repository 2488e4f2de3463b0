"""Support for albumentationsxl's own transforms: translated as is, translated with corrections, run lazily, or refused.

Every verdict has a reason that ``explain`` shows; measurements are of albumentationsxl 0.1.2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import albumentationsxl as A
import numpy as np
from albumentationsxl.core.serialization import SERIALIZABLE_REGISTRY

from slideio_pipe.augment.affines import (
    about_middle,
    mirrored,
    quarter_turns,
    resized,
    rotation,
    scaled,
    shifted,
)
from slideio_pipe.augment.elementwise import Number, every, floor, maximum, minimum, sqrt, tangent, trunc, where
from slideio_pipe.augment.operation_columns import operation
from slideio_pipe.augment.operations import Hsv, Noise, Opaque, Tone
from slideio_pipe.augment.stain_matrices import HED, as_stain, jitter
from slideio_pipe.augment.steps import Steps, coloured
from slideio_pipe.augment.transform_base import Context, OurTransform, uniform, whole
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Affine, Size

Kind = Literal["right", "corrected", "opaque", "refused"]
Lowering = Callable[[Any, np.random.Generator, Size, Context], Steps]

# albumentationsxl writes optical density in units of −ln(1e-6).
_HED_UNIT = -math.log(1e-6)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a transform is handled, and why."""

    kind: Kind
    why: str = ""
    instead: str = ""  # replacement for a refused transform


_right, _corrected, _refused = partial(Verdict, "right"), partial(Verdict, "corrected"), partial(Verdict, "refused")


def _opaque(why: str) -> Verdict:
    return Verdict("opaque", f"{why}; runs lazily only, after all geometry")


_DEVICE = "put it last, or leave it out: tiles are normalised on the device, with normalize=Normalize(...)"

_RESIZED = (
    "bilinear, antialiased where it shrinks; of a tile, from the coarsest level that is fine enough; of a whole slide, "
    "from the view's own resolution: a coarser mpp reads less"
)

VERDICTS: Mapping[str, Verdict] = {
    "NoOp": _right("does nothing"),
    "HorizontalFlip": _right(),
    "VerticalFlip": _right(),
    "Flip": _right(),
    "Crop": _right(),
    "CenterCrop": _right(),
    "RandomCrop": _right(),
    "CropOrPad": _right("white outside"),
    "Resize": _right(_RESIZED),
    "RandomScale": _right(_RESIZED),
    "LongestMaxSize": _right(_RESIZED),
    "SmallestMaxSize": _right(_RESIZED),
    "RandomBrightnessContrast": _corrected(
        "brightness_by_max=True, as the image's mean would decode the whole slide; rounds, where it cut fractions off"
    ),
    "RandomGamma": _corrected("gamma g gives x^g: it gave x^(1/g)"),
    "HueSaturationValue": _corrected(
        "hue wraps, where it stopped at red; 180 units per turn, as in albumentations, where it had 255"
    ),
    "HEDShift": _corrected(
        "glass stays white: each stain changes in proportion, by what the shift does to a stain of optical density 1"
    ),
    "GaussNoise": _corrected("the requested variance, where noise was added twice; seeded, where it could not be"),
    "Affine": _corrected(
        "white outside; a slide's canvas grows; an axis left out of translate_px or shear is 0, where it was 1"
    ),
    "Rotate": _corrected("counter-clockwise, as Affine, where it was clockwise; a tile keeps its size"),
    "RandomRotate90": _corrected("all four turns, where it had three and failed in a quarter of its calls"),
    "Transpose": _corrected("rows and columns exchanged, where it was a rotation by 90°"),
    "ChannelDropout": _opaque("right"),
    "CoarseDropout": _opaque("right; its holes are those of the whole image"),
    "Blur": _opaque("right"),
    "MotionBlur": _opaque("right"),
    "MedianBlur": _opaque("right, and slow: 2 million pixels per second"),
    "GaussianBlur": _opaque("its kernel is cut short, and its default does nothing: pass sigma_limit"),
    "Sharpen": _opaque("right"),
    "Emboss": _opaque("right; prints its kernel"),
    "AdvancedBlur": _refused("kills the interpreter in 0.5 % of draws", "A.Blur or A.GaussianBlur(sigma_limit=...)"),
    "ElasticTransform": _refused(
        "takes degrees for radians, and image and mask get different fields", "slideio_pipe.RandomAffine(shear=...)"
    ),
    "GridDropout": _refused("fails for some sizes of image", "A.CoarseDropout"),
    "Lambda": _refused("always fails, and could not be replayed", "a class derived from A.ImageOnlyTransform"),
    "PadIfNeeded": _refused("fails with its defaults", "A.CropOrPad, or edge='pad' of the tile grid"),
    "Normalize": _refused("needs pixels, and does not divide by 255", _DEVICE),
    "ToDtype": _refused("needs pixels", _DEVICE),
    "ToTensor": _refused("needs pixels, and would decode the whole slide", _DEVICE),
}


def verdict(transform: Any) -> Verdict:
    """Return how ``draw`` handles a transform.

    >>> verdict(A.HorizontalFlip()).kind, verdict(A.AdvancedBlur()).kind
    ('right', 'refused')
    """
    if isinstance(transform, OurTransform):
        return _right() if transform.lowered else Verdict("opaque", transform.opaque_because)
    name = type(transform).__name__
    if type(transform) is getattr(A, name, None):
        return VERDICTS[name]
    if isinstance(transform, A.ImageOnlyTransform):
        return _opaque("not one of albumentationsxl's or ours")
    return _refused(
        "moves pixels in ways that masks and coordinates could not follow",
        "a class derived from A.ImageOnlyTransform, or from slideio_pipe's GeometricTransform",
    )


def name_of(transform: Any) -> str:
    """Return the name of a transform in messages and tables."""
    return transform.label if isinstance(transform, OurTransform) else type(transform).__name__


def adopted(transform: Any, rng: np.random.Generator, size: Size, context: Context) -> Steps:
    """Return the steps of one transform of albumentationsxl or a user, drawn from ``rng``.

    Raise ConfigError if the transform or one of its options is refused, or it cannot be serialised.
    """
    name, judged = type(transform).__name__, verdict(transform)
    if judged.kind == "refused":
        raise ConfigError(f"{name}: {judged.why}", remedy=f"instead: {judged.instead}")
    if judged.kind == "opaque":
        return Steps(operations=(_serialised(transform, rng),))
    return LOWERINGS[name](transform, rng, size, context)


def _serialised(transform: Any, rng: np.random.Generator) -> Opaque:
    """Return the transform as JSON with ``p=1``: whether it runs was decided here."""
    name = type(transform).__name__
    try:
        written = json.loads(json.dumps(A.to_dict(transform)))
    except Exception as error:  # a user's class may raise anything
        raise ConfigError(
            f"{name}: cannot be written down ({type(error).__name__}: {error})",
            remedy="give it get_transform_init_args_names(), with plain numbers",
        ) from error
    if written["transform"]["__class_fullname__"] not in SERIALIZABLE_REGISTRY:
        raise ConfigError(f"{name}: cannot be read back", remedy="make it a class of a module")
    written["transform"] |= {"p": 1.0, "always_apply": True}
    return Opaque(name=name, transform=written, seed=int(rng.integers(2**32)))


# -- geometry ------------------------------------------------------------------------------------------------------


def _flip(transform: Any, rng: np.random.Generator, size: Size, context: Context) -> Steps:
    drawn = whole(rng, 3)  # top-bottom, left-right, both
    return mirrored(size, horizontal=drawn >= 1, vertical=drawn != 1)


def _affine(transform: Any, rng: np.random.Generator, size: Size, context: Context) -> Steps:
    """Draw the same affine as ``A.Affine``: shear along y, scale, shear along x, rotate, shift."""
    _check_outside(transform, "cval")
    shift = _translation(transform, rng, size)
    shear_x, shear_y = (uniform(rng, _axis_range(transform.shear, axis)) for axis in "xy")
    scale_x, scale_y = (uniform(rng, transform.scale[axis]) for axis in "xy")
    if transform.keep_ratio:
        scale_y = scale_x
    turn = uniform(rng, transform.rotate)
    # As scikit-image's AffineTransform, to which albumentationsxl passes every angle with inverted sign.
    slant_x, slant_y = tangent(shear_x), -tangent(shear_y)
    linear = rotation(turn) @ Affine(b=slant_x) @ scaled(scale_x, scale_y) @ Affine(d=slant_y)
    fit = bool(transform.fit_output or context.slide_wide)
    return Steps(about_middle(linear, size, shift), size, fit=fit)


def _translation(transform: Any, rng: np.random.Generator, size: Size) -> tuple[Number, Number]:
    if transform.translate_percent is not None:
        x, y = (uniform(rng, transform.translate_percent[axis]) for axis in "xy")
        return x * size.width, y * size.height
    ranges = (_axis_range(transform.translate_px, axis) for axis in "xy")
    x, y = (1.0 * (int(low) + whole(rng, int(high) - int(low) + 1)) for low, high in ranges)
    return x, y


def _axis_range(ranges: Mapping[str, tuple[float, float]], axis: str) -> tuple[float, float]:
    """Return the range of an axis; 0 if only the other axis was given (albumentationsxl would use 1.0)."""
    low, high = ranges[axis]
    other = ranges["y" if axis == "x" else "x"]
    left_out = isinstance(low, float) and (low, high) == (1.0, 1.0) and other != (1.0, 1.0)
    return (0, 0) if left_out else (low, high)


def _rotate(transform: Any, rng: np.random.Generator, size: Size, context: Context) -> Steps:
    _check_outside(transform, "value")
    if transform.crop_border:
        raise ConfigError("Rotate: crop_border=True crops the wrong place", remedy="leave crop_border out")
    turn = uniform(rng, transform.limit)
    return Steps(about_middle(rotation(turn), size), size, fit=context.slide_wide)


def _check_outside(transform: Any, argument: str) -> None:
    name, colour = type(transform).__name__, getattr(transform, argument)
    if np.any(np.asarray(colour) != 255):
        raise ConfigError(f"{name}: {argument}={colour!r}", remedy="leave it out: outside the slide it is white")
    if getattr(transform, "mode", "background") != "background":
        raise ConfigError(f'{name}: mode="{transform.mode}"', remedy="leave it out: outside the slide it is white")


def _random_scale(transform: Any, rng: np.random.Generator, size: Size, context: Context) -> Steps:
    return _scaled(size, uniform(rng, transform.scale_limit), "RandomScale")


def _longest(transform: Any, rng: np.random.Generator, size: Size, context: Context) -> Steps:
    return _scaled(size, _one_of(transform.max_size, rng) / maximum(*size), "LongestMaxSize")


def _smallest(transform: Any, rng: np.random.Generator, size: Size, context: Context) -> Steps:
    return _scaled(size, _one_of(transform.max_size, rng) / minimum(*size), "SmallestMaxSize")


def _one_of(sizes: Any, rng: np.random.Generator) -> Number:
    if isinstance(sizes, int):
        return int(sizes)
    drawn = whole(rng, len(sizes))
    return np.array(sizes, np.int64)[drawn] if isinstance(drawn, np.ndarray) else int(sizes[drawn])


def _scaled(size: Size, factor: Number, owner: str) -> Steps:
    if not every(factor > 0):
        raise ConfigError(f"{owner}: a scale of {np.min(factor):g}", remedy="pass limits that keep the scale above 0")
    return resized(size, Size(*(maximum(floor(side * factor + 0.5), 1) for side in size)))


def _cropped(size: Size, x: Number, y: Number, canvas: Size, owner: str) -> Steps:
    inside = (x >= 0) & (y >= 0) & (x + canvas.width <= size.width) & (y + canvas.height <= size.height)
    if not every(inside) or min(canvas) < 1:
        place, (width, height) = f"({np.min(x):g}, {np.min(y):g})", (np.min(side) for side in size)
        raise ConfigError(
            f"{owner}: a crop of {canvas.width}x{canvas.height} px at {place} of {width}x{height} px",
            remedy="pass a crop inside the image, or use A.CropOrPad",
        )
    return Steps(shifted(-x, -y), canvas)


def _crop(transform: Any, rng: np.random.Generator, size: Size, context: Context) -> Steps:
    left, top = transform.x_min, transform.y_min
    return _cropped(size, left, top, Size(transform.x_max - left, transform.y_max - top), "Crop")


def _center_crop(transform: Any, rng: np.random.Generator, size: Size, context: Context) -> Steps:
    canvas = Size(transform.width, transform.height)
    return _cropped(size, (size.width - canvas.width) // 2, (size.height - canvas.height) // 2, canvas, "CenterCrop")


def _random_crop(transform: Any, rng: np.random.Generator, size: Size, context: Context) -> Steps:
    canvas = Size(transform.width, transform.height)
    # As in albumentationsxl: the last position is used only if it is the only one.
    x, y = (floor((side - part) * rng.random()) for side, part in zip(size, canvas, strict=True))
    return _cropped(size, x, y, canvas, "RandomCrop")


def _crop_or_pad(transform: Any, rng: np.random.Generator, size: Size, context: Context) -> Steps:
    canvas, direction = Size(transform.width, transform.height), str(transform.direction)
    spare = (canvas.width - size.width, canvas.height - size.height)
    x = 0 if "west" in direction else spare[0] if "east" in direction else trunc(spare[0] / 2)
    y = 0 if "north" in direction else spare[1] if "south" in direction else trunc(spare[1] / 2)
    return Steps(shifted(x, y), canvas)


# -- colour --------------------------------------------------------------------------------------------------------


def _linear_tone(factor: Number, shift: Number) -> Any:
    """Return factor·x + shift, x from 0 to 1, as a ``Tone``: half the contrast about twice the shift."""
    changes = (factor != 1) | (shift != 0)
    brightness, contrast = where(changes, 2.0 * factor, 1.0), where(changes, 0.5, 1.0)
    return operation(Tone, brightness=brightness, contrast=contrast, pivot=where(changes, 2.0 * shift, 0.5))


def _brightness_contrast(transform: Any, rng: np.random.Generator, size: Size, context: Context) -> Steps:
    factor = maximum(0.0, 1 + uniform(rng, transform.contrast_limit))
    return coloured(_linear_tone(factor, uniform(rng, transform.brightness_limit)))


def _gamma(transform: Any, rng: np.random.Generator, size: Size, context: Context) -> Steps:
    gamma = uniform(rng, transform.gamma_limit) / 100
    if not every(gamma > 0):
        raise ConfigError(
            f"RandomGamma: gamma={np.min(gamma):g}", remedy="pass gamma_limit=(80, 120), in percent, above 0"
        )
    return coloured(operation(Tone, gamma=gamma))


def _hsv(transform: Any, rng: np.random.Generator, size: Size, context: Context) -> Steps:
    turn = uniform(rng, transform.hue_shift_limit) / 180
    saturation, value = uniform(rng, transform.sat_shift_limit) / 255, uniform(rng, transform.val_shift_limit) / 255
    return coloured(operation(Hsv, turn=turn, saturation=saturation, value=value))


def _hed_shift(transform: Any, rng: np.random.Generator, size: Size, context: Context) -> Steps:
    limits = (transform.h_shift_limit, transform.e_shift_limit, transform.d_shift_limit)
    # The exponential keeps the factor above 0 and is 1 + shift for small shifts.
    alpha = np.exp(np.array([uniform(rng, limit) * _HED_UNIT for limit in limits])).T
    return coloured(as_stain(*jitter(HED, alpha, owner="HEDShift")))


def _gauss_noise(transform: Any, rng: np.random.Generator, size: Size, context: Context) -> Steps:
    if not transform.per_channel:
        raise ConfigError("GaussNoise: per_channel=False", remedy="leave it out: noise is drawn for each channel")
    sigma = minimum(sqrt(uniform(rng, transform.var_limit)), 255.0)
    noise = operation(Noise, sigma=sigma, seed=whole(rng, 2**31))
    return coloured(_linear_tone(1, transform.mean / 255), noise)


LOWERINGS: Mapping[str, Lowering] = {
    "NoOp": lambda transform, rng, size, context: Steps(),
    "HorizontalFlip": lambda transform, rng, size, context: mirrored(size, horizontal=True, vertical=False),
    "VerticalFlip": lambda transform, rng, size, context: mirrored(size, horizontal=False, vertical=True),
    "Flip": _flip,
    "Transpose": lambda transform, rng, size, context: Steps(Affine(0, 1, 0, 1, 0, 0), Size(size.height, size.width)),
    "RandomRotate90": lambda transform, rng, size, context: quarter_turns(whole(rng, 4), size),
    "Rotate": _rotate,
    "Affine": _affine,
    "RandomScale": _random_scale,
    "LongestMaxSize": _longest,
    "SmallestMaxSize": _smallest,
    "Resize": lambda transform, rng, size, context: resized(size, Size(transform.width, transform.height)),
    "Crop": _crop,
    "CenterCrop": _center_crop,
    "RandomCrop": _random_crop,
    "CropOrPad": _crop_or_pad,
    "RandomBrightnessContrast": _brightness_contrast,
    "RandomGamma": _gamma,
    "HueSaturationValue": _hsv,
    "HEDShift": _hed_shift,
    "GaussNoise": _gauss_noise,
}
