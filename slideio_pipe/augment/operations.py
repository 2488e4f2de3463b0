"""Colour operations of a drawn augmentation: a few frozen records, the same for every executor.

An operation maps RGB to RGB, pixel by pixel, on the range 0 to 255. Executors chain operations in floating point, clip
to the range after each, and round once at the end, so two executors differ by at most one level. Geometry is not an
operation: it is the one affine of a ``Draw`` and is applied first.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr

from slideio_pipe.config import Record

Triple = tuple[float, float, float]
Matrix = tuple[Triple, Triple, Triple]

IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
# ITU-R BT.601 luma, as torchvision and Pillow convert to grey.
LUMA: Triple = (0.2989, 0.587, 0.114)
# A colour whose channels differ by less is grey: it has no hue, so rounding of earlier steps does not create one.
GREY_LEVELS = 0.01
# From linear sRGB (IEC 61966-2-1) to XYZ in units of white, for D65 and the 2° observer (CIE 15), in the digits of
# scikit-image.
_XYZ_OF_RGB = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
UNIT_OF_RGB = _XYZ_OF_RGB / np.array([0.95047, 1.0, 1.08883])[:, None]
# L = 116·fy − 16, a = 500·(fx − fy), b = 200·(fy − fz), from the cube roots (fx, fy, fz).
_LAB_OF_ROOTS = np.array([[0.0, 116.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]])
_LAB_SHIFT = np.array([-16.0, 0.0, 0.0])


class Tone(Record):
    """Brightness, contrast about a pivot, then gamma: 255·clip((b·x/255 − pivot)·c + pivot)^g.

    Several in a row collapse into one table.
    """

    kind: Literal["tone"] = "tone"
    brightness: float = Field(default=1.0, ge=0)
    contrast: float = Field(default=1.0, ge=0)
    pivot: float = 0.5  # of the range 0 to 1; what contrast leaves unchanged
    gamma: float = Field(default=1.0, gt=0)

    @property
    def is_identity(self) -> bool:
        """Whether no value changes."""
        return self.brightness == 1 and self.contrast == 1 and self.gamma == 1

    def curve(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the curve at ``values`` (0 to 255), clipped to 0 to 255."""
        unit = (values / 255 * self.brightness - self.pivot) * self.contrast + self.pivot
        return np.asarray(255 * np.clip(unit, 0, 1) ** self.gamma)


class Saturation(Record):
    """Blend with grey: grey + factor·(x − grey), grey by BT.601; torchvision's definition."""

    kind: Literal["saturation"] = "saturation"
    factor: float = Field(ge=0)

    @property
    def is_identity(self) -> bool:
        """Whether no value changes."""
        return self.factor == 1

    def matrix(self) -> NDArray[np.float64]:
        """Return the (3, 3) matrix for RGB columns."""
        return self.factor * np.eye(3) + (1 - self.factor) * np.tile(np.array(LUMA), (3, 1))


class Hsv(Record):
    """Rotate the hue (wrapping), shift saturation and value (clipping), in the HSV cone."""

    kind: Literal["hsv"] = "hsv"
    turn: float = 0.0  # of a full circle: 0.5 is the complementary hue
    saturation: float = 0.0  # added to saturation, -1 to 1
    value: float = 0.0  # added to value, -1 to 1

    @property
    def is_identity(self) -> bool:
        """Whether no value changes."""
        return self.turn % 1 == 0 and self.saturation == 0 and self.value == 0


class Stain(Record):
    """A linear map in optical density: od′ = M·od + offset, with od = −ln((x + 1)/256), x′ = 256·exp(−od′) − 1.

    Multiplicative and additive HED jitter (Tellez et al. 2018), Macenko and Vahadane perturbation and normalisation
    are all of this form. White has od 0: with offset 0 it stays white. M = identity is exactly the identity.
    """

    kind: Literal["stain"] = "stain"
    matrix: Matrix = IDENTITY
    offset: Triple = (0.0, 0.0, 0.0)

    @property
    def is_identity(self) -> bool:
        """Whether no value changes."""
        return self.matrix == IDENTITY and self.offset == (0.0, 0.0, 0.0)


class Lab(Record):
    """A linear map per channel in CIE Lab (D65, sRGB): L′ = gain·L + bias; the form of Reinhard's and RandStainNA."""

    kind: Literal["lab"] = "lab"
    gain: Triple = (1.0, 1.0, 1.0)
    bias: Triple = (0.0, 0.0, 0.0)

    @property
    def is_identity(self) -> bool:
        """Whether no value changes."""
        return self.gain == (1.0, 1.0, 1.0) and self.bias == (0.0, 0.0, 0.0)

    def mix(self) -> NDArray[np.float64]:
        """Return the (3, 4) affine map of the cube roots (fx, fy, fz) that is linear per channel in Lab."""
        back, gain = np.linalg.inv(_LAB_OF_ROOTS), np.array(self.gain)
        moved = back @ (gain * _LAB_SHIFT + np.array(self.bias) - _LAB_SHIFT)
        return np.column_stack([back @ np.diag(gain) @ _LAB_OF_ROOTS, moved])


class Noise(Record):
    """Independent Gaussian noise of ``sigma`` levels, seeded; executors agree in distribution, not in values."""

    kind: Literal["noise"] = "noise"
    sigma: float = Field(ge=0)
    seed: int = Field(ge=0, lt=2**31)

    @property
    def is_identity(self) -> bool:
        """Whether no value changes."""
        return self.sigma == 0


class Opaque(Record):
    """A transform that is not translated, of albumentationsxl or a user: it draws from its own seed when it runs."""

    kind: Literal["opaque"] = "opaque"
    name: str  # the transform's class
    transform: dict[str, Any]  # as A.to_dict writes it
    seed: int = Field(ge=0, lt=2**32)
    _function: Any = PrivateAttr(default=None)

    @property
    def function(self) -> Any:
        """A user's function that was drawn in this process; None if it must be found by its name."""
        return self._function

    def bind(self, function: Any) -> None:
        """Keep a user's function; it is no part of the record as it is written and compared."""
        self._function = function

    @property
    def is_identity(self) -> bool:
        """Return False: the effect is unknown."""
        return False

    def __eq__(self, other: object) -> bool:
        """Return whether the fields are equal, as they are written."""
        if not isinstance(other, Opaque):
            return NotImplemented
        return (self.name, self.transform, self.seed) == (other.name, other.transform, other.seed)


Operation = Annotated[Tone | Saturation | Hsv | Stain | Lab | Noise | Opaque, Field(discriminator="kind")]
