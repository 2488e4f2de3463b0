"""Bags of views, and the views of the tensors that come of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from slideio_pipe.errors import ConfigError
from slideio_pipe.store.augmented_bag import AugmentedBag
from slideio_pipe.store.stored_bag import StoredBag
from slideio_pipe.streaming.device import Colours, ViewColours
from slideio_pipe.tiles.bag import Bag
from slideio_pipe.tiles.drawn_bag import DrawnBag
from slideio_pipe.tiles.multi_crop import MultiCrop
from slideio_pipe.tiles.patient_bag import PatientBag
from slideio_pipe.tiles.views_bag import ViewsBag


def with_views(bag: Bag, views: MultiCrop | None) -> Bag:
    """Return the bag whose tiles are the packed views of a bag's tiles; without views, the bag itself.

    Raise ConfigError if the bag's pixels cannot be drawn.
    """
    if views is None:
        return bag
    if isinstance(bag, PatientBag):
        slides = [with_views(slide, views) for slide in bag.slides]
        return PatientBag(slides, patient=bag.patient, label=bag.label)
    if len(bag.shape) == 5:
        remedy = "leave out view.context, or pass the bag of one magnification: bag.at(0)"
        raise ConfigError("views of tiles at several magnifications", slide=bag.name, remedy=remedy)
    if isinstance(bag, StoredBag):
        return ViewsBag(AugmentedBag(bag), views)
    if not isinstance(bag, DrawnBag):
        remedy = "pass the bag of a slide, or a stored bag"
        raise ConfigError(f"views of the tiles of a {type(bag).__name__}", slide=bag.name, remedy=remedy)
    return ViewsBag(bag, views)


def tiles_and_views(packed: Tensor, views: MultiCrop | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the tiles of a batch and their views: without views, the tiles; else also the first view of each."""
    if views is None:
        return packed, {}
    found = views.unpacked(packed)
    return next(iter(found.values()))[:, 0], found


def view_colours(bag: ViewsBag, index: NDArray[np.int64]) -> ViewColours:
    """Return the colour operations of the views of some tiles that the device must compute."""
    kinds = []
    for kind, columns in zip(bag.views.kinds, bag.colour_columns(index), strict=True):
        views = len(kind.transforms)
        kinds.append((Colours(columns, np.repeat(index, views).tolist()), views, kind.side))
    return ViewColours(kinds)


def check_views(views: Any) -> None:
    """Raise ConfigError for views that are none."""
    if views is not None and not isinstance(views, MultiCrop):
        raise ConfigError(f"views are a {type(views).__name__}", remedy="pass sp.MultiCrop(global_=2, local=8)")
