"""Several draws of one tile, for self-supervised training: large crops and small ones, as in DINO."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from slideio_pipe.augment.draw import hashed
from slideio_pipe.errors import ConfigError
from slideio_pipe.images.lettering import PAPER
from slideio_pipe.images.picture import beside, finished, fit, montage
from slideio_pipe.tiles.drawn_bag import DrawnBag

Range = tuple[float, float]
BagT = TypeVar("BagT", bound=DrawnBag)

GLOBAL, LOCAL = "global", "local"
_MOST = 64  # views of a kind: more are a mistake
_GAP = 12  # px, in pictures


class ViewKind(NamedTuple):
    """The views of one size."""

    name: str
    side: int  # px
    transforms: tuple[Any, ...]  # one per view

    @property
    def pixels(self) -> int:
        """Pixels of all of its views of a tile."""
        return len(self.transforms) * self.side**2


class MultiCrop:
    """Several views of each tile: large crops and small ones, each with a draw of its own, as in DINO and DINOv2.

    Each view is a ``RandomResizedCrop`` of the tile, then a transform. All of its geometry samples the slide: what a
    turned crop shows beside the tile are the neighbouring pixels. A draw depends on (seed, epoch, slide, tile, view)
    alone.

    Parameters
    ----------
    global_, local : int
        Number of large and of small views.
    global_size, local_size : int
        Their sides in px.
    global_scale, local_scale : (low, high)
        Area of a crop relative to the tile; the defaults are those of DINOv2.
    ratio : (low, high)
        Width by height of a crop.
    global_transform, local_transform : an albumentationsxl transform, or a list with one for each view, optional
        Applied to the crops. By default they are turned by any angle, mirrored in half of the draws, and coloured by
        ``StainJitter()`` and, in 0.8 of the draws, DINO's ``ColorJitter(0.4, 0.4, 0.2, 0.1)``. ``A.NoOp()``: crops
        alone. They must not change the size.

    Raises
    ------
    ConfigError
        A number is out of its range, or the number of transforms is not that of the views.

    Examples
    --------
    >>> import numpy as np
    >>> from slideio_pipe import Normalize, TileBag, TileGrid, open_slide, stream
    >>> view = open_slide(np.full((600, 900, 3), 90, np.uint8), slide_mpp=0.5).view()
    >>> bag = TileBag(view, TileGrid(view, tile_size=256))
    >>> batch = next(stream(bag, views=MultiCrop(), device="cpu", normalize=Normalize.imagenet()))
    >>> {name: tuple(views.shape) for name, views in batch.views.items()}
    {'global': (6, 2, 3, 224, 224), 'local': (6, 8, 3, 96, 96)}
    """

    def __init__(
        self,
        global_: int = 2,
        local: int = 8,
        *,
        global_size: int = 224,
        local_size: int = 96,
        global_scale: Range = (0.32, 1.0),
        local_scale: Range = (0.05, 0.32),
        ratio: Range = (3 / 4, 4 / 3),
        global_transform: Any = None,
        local_transform: Any = None,
    ) -> None:
        counts = {"global_": global_, "local": local}
        for name, count in counts.items():
            if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _MOST:
                raise ConfigError(f"MultiCrop: {name}={count!r}", remedy=f"pass a whole number from 0 to {_MOST}")
        if not global_ + local:
            raise ConfigError("MultiCrop: no view", remedy="pass global_=2, local=8")
        large = _transforms(GLOBAL, global_, global_size, global_scale, ratio, global_transform)
        small = _transforms(LOCAL, local, local_size, local_scale, ratio, local_transform)
        kinds = (ViewKind(GLOBAL, global_size, large), ViewKind(LOCAL, local_size, small))
        self.kinds = tuple(kind for kind in kinds if kind.transforms)

    def bag_of(self, bag: BagT, kind: str, number: int) -> BagT:
        """Return the bag of one view: its tiles are this view of the bag's tiles, also to look at.

        Parameters
        ----------
        bag : TileBag or AugmentedBag
            Without a transform per tile.
        kind : {"global", "local"}
        number : int
            From 0.

        Raises
        ------
        ConfigError
            There is no such view, the bag has a transform per tile, or the view's transform changes its size.

        Examples
        --------
        >>> import numpy as np
        >>> from slideio_pipe import TileBag, TileGrid, open_slide
        >>> view = open_slide(np.full((600, 900, 3), 90, np.uint8), slide_mpp=0.5).view()
        >>> MultiCrop().bag_of(TileBag(view, TileGrid(view, tile_size=256)), "local", 3).shape
        (6, 96, 96, 3)
        """
        found = {each.name: each for each in self.kinds}.get(kind)
        if found is None or not 0 <= number < len(found.transforms):
            there = ", ".join(f"{len(each.transforms)} {each.name}" for each in self.kinds)
            raise ConfigError(f"no {kind} view {number!r} of a tile", remedy=f"there are {there}")
        return self.bags_of(bag, found)[number]

    def bags_of(self, bag: BagT, kind: ViewKind) -> list[BagT]:
        """Return the bag of each view of a kind."""
        if bag.tile_transform is not None:
            reason = "views of tiles that have a transform of their own"
            remedy = "leave out tile_transform=…, and pass it as MultiCrop(global_transform=…, local_transform=…)"
            raise ConfigError(reason, slide=bag.name, remedy=remedy)
        bags = []
        for number, transform in enumerate(kind.transforms):
            drawn = bag.redrawn(transform, hashed(bag.seed, kind.name, number, digest_bytes=6))
            if drawn.canvas != (kind.side, kind.side):
                reason = f"the transform of {kind.name} views makes {drawn.canvas.width}×{drawn.canvas.height} px"
                reason += f" of {kind.side}×{kind.side}"
                raise ConfigError(reason, slide=bag.name, remedy=f"keep the size, or pass {kind.name}_size=…")
            bags.append(drawn)
        return bags

    def plot(self, bag: DrawnBag, tile: int = 0) -> Image.Image:
        """Return a picture of the views of a tile: the plain tile and the large views, then the small ones."""
        rows = [
            montage(
                np.stack([each[tile] for each in self.bags_of(bag, kind)]), columns=len(kind.transforms), tile_px=224
            )
            for kind in self.kinds
        ]
        rows[0] = beside([fit(bag[tile], rows[0].height), rows[0]], gap=_GAP)
        sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height + _GAP for row in rows) - _GAP), PAPER)
        top = 0
        for row in rows:
            sheet.paste(row, (0, top))
            top += row.height + _GAP
        return finished(sheet, f"{bag.name}: views of tile {tile}", titled=True)

    @property
    def packed_shape(self) -> tuple[int, int, int]:
        """Shape of the views of one tile, one after the other: (pixels, 1, 3)."""
        return sum(kind.pixels for kind in self.kinds), 1, 3

    def unpacked(self, packed: Any) -> dict[str, Any]:
        """Return the views of n tiles by their kind, (n, views, 3, side, side), of a tensor (n, 3, pixels, 1).

        They are views of its memory, each channels_last.
        """
        pixels, start, found = packed.permute(0, 2, 3, 1).squeeze(2), 0, {}
        for kind in self.kinds:
            part = pixels[:, start : start + kind.pixels]
            shape = (len(kind.transforms), kind.side, kind.side)
            found[kind.name] = part.unflatten(1, shape).permute(0, 1, 4, 2, 3)
            start += kind.pixels
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return what the views are, JSON values: of each kind the side and the transforms."""
        described = {}
        for kind in self.kinds:
            written = [transform.to_dict()["transform"] for transform in kind.transforms]
            described[kind.name] = {"side": kind.side, "transforms": json.loads(json.dumps(written))}
        return described

    def __repr__(self) -> str:
        each = (f"{len(kind.transforms)} {kind.name} of {kind.side} px" for kind in self.kinds)
        return f"MultiCrop({', '.join(each)})"


def _transforms(kind: str, count: int, side: int, scale: Range, ratio: Range, own: Any) -> tuple[Any, ...]:
    """Return the whole transform of each view of a kind."""
    # albumentationsxl takes three seconds to import, so it is imported only for draws.
    import albumentationsxl as A

    from slideio_pipe.augment.compose import check
    from slideio_pipe.augment.geometric_transforms import RandomResizedCrop

    crop = RandomResizedCrop(side, scale, ratio)
    if isinstance(own, Sequence) and not hasattr(own, "transforms"):
        if len(own) != count:
            reason = f"MultiCrop: {len(own)} transforms for {count} {kind} views"
            raise ConfigError(reason, remedy="pass one transform, or one for each view")
        after = list(own)
    else:
        after = [_usual() if own is None else own] * count
    made = tuple(A.Compose([crop, each]) for each in after)
    for transform in made:
        check(transform)
    return made


def _usual() -> Any:
    """Return what is applied to crops by default."""
    import albumentationsxl as A

    from slideio_pipe.augment.colour_transforms import ColorJitter, StainJitter
    from slideio_pipe.augment.geometric_transforms import RandomAffine

    return A.Sequential([RandomAffine(), StainJitter(), ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8)])
