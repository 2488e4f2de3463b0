"""Positions of a bag's tiles in their slide, for layouts of coordinates."""

from __future__ import annotations

from dataclasses import dataclass

from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Mpp, Size
from slideio_pipe.tiles.bag import Bag

# Tolerance for square pixels: level sizes are whole numbers, so downsamples along x and y differ slightly.
_SQUARE = 0.01


@dataclass(frozen=True, slots=True)
class Places:
    """The meaning of a bag's coordinates."""

    tile_size: int  # px of the view
    stride: int  # px of the view
    level: int  # level of the slide that tiles are read from
    resampled: bool  # whether tile pixels are resampled from that level
    downsample: tuple[float, float]  # level-0 px per tile px, along x and y
    slide_size: Size  # level 0
    slide_mpp: Mpp | None  # µm per level-0 px
    between_px: bool = False  # whether tiles begin exactly at their coordinates, also between px of the view

    @property
    def tile_size_level0(self) -> int:
        """The side of a tile in whole level-0 px."""
        return round(self.tile_size * self.downsample[0])

    @property
    def overlap(self) -> int:
        """Overlap of neighbours in px of the view."""
        return max(0, self.tile_size - self.stride)

    @classmethod
    def of(cls, bag: Bag) -> Places:
        """Return the positions of the tiles of ``bag``.

        Raise ConfigError if its tiles are not upright squares of the slide, because they are augmented or its pixels
        are not square, or their positions are unknown.
        """
        provenance = bag.provenance()
        try:
            slide, view, grid = provenance["slide"], provenance["view"], provenance["grid"]
            sx, b, c, d, sy, f = view["affine"]
            level, shrink, size = int(view["level"]), view["shrink"], Size(*slide["dimensions"])
            mpp, side = slide["mpp"], int(grid["tile_size"])
            stride = int(grid.get("stride") or side)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"the bag does not record the positions of its tiles in the slide ({error!r})"
            raise ConfigError(reason, slide=bag.name, remedy="convert a bag of this package") from error
        if provenance.get("tile_draw") is not None or any((b, c, d, f)) or sx <= 0 or sy <= 0:
            reason = "its tiles are augmented, which coordinates alone cannot describe"
            raise ConfigError(reason, slide=bag.name, remedy="convert the bag of the plain slide")
        if abs(sx / sy - 1) > _SQUARE:
            reason = f"its tiles are {side * sx:.0f} × {side * sy:.0f} px at level 0, and this layout has squares only"
            raise ConfigError(reason, slide=bag.name, remedy="export at native resolution ({mpp=None})")
        return cls(
            tile_size=side,
            stride=stride,
            level=level,
            resampled=any(s != 1 for s in shrink),
            downsample=(float(sx), float(sy)),
            slide_size=size,
            slide_mpp=None if mpp is None else Mpp.of(mpp),
            between_px=bool(grid.get("between_px", False)),
        )
