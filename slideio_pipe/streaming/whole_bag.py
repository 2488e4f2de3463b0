"""All tiles of one slide or patient in one tensor, at once or gathered from chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError
from slideio_pipe.streaming.chunks import Chunk
from slideio_pipe.streaming.views import tiles_and_views
from slideio_pipe.tiles.bag import Label
from slideio_pipe.tiles.marks.targets import Targets
from slideio_pipe.tiles.multi_crop import MultiCrop
from slideio_pipe.tiles.patient_bag import no_slides


@dataclass(frozen=True, slots=True, eq=False)
class WholeBag:
    """The selected tiles of one slide, or of a patient's slides, in one tensor.

    Examples
    --------
    >>> whole = WholeBag(torch.zeros(2, 3, 64, 64), np.array([[0, 0], [256, 0]]), np.array([0, 1]), bag="a", label=1)
    >>> len(whole), whole.coords[1].tolist(), whole.label
    (2, [256, 0], 1)
    """

    # (n, 3, H, W) channels_last; with ``views``, the first view of each tile; (n, S, 3, H, W) with S magnifications
    tiles: torch.Tensor
    coords: NDArray[np.int64]  # (n, 2) level-0 px of the tile's slide, x and y
    index: NDArray[np.int64]  # (n,) position in the bag, ascending
    bag: str  # name of the slide or patient in the cohort
    label: Label = None
    patient: str | None = None  # patient of the slide, if known
    slide_index: NDArray[np.int64] = field(default_factory=no_slides)  # (n,) number of each tile's slide in ``slides``
    slides: tuple[str, ...] = ()  # names of the slides
    views: Mapping[str, torch.Tensor] = field(default_factory=dict)  # as those of a ``TileBatch``
    nominal_mpps: tuple[float, ...] = ()  # of a ``ContextBag``: µm per px of each of its magnifications, as asked for
    targets: tuple[Targets, ...] | None = None  # boxes and points of each tile, if the bag has annotations

    def __len__(self) -> int:
        return len(self.index)

    def by_mpp(self) -> dict[float, torch.Tensor]:
        """Return the tiles of each magnification of a ``ContextBag``, (n, 3, H, W), by its µm per px; no copies."""
        return tiles_by_mpp(self.tiles, self.nominal_mpps)

    def __repr__(self) -> str:
        kind = f"{tuple(self.tiles.shape)} {str(self.tiles.dtype).removeprefix('torch.')} on {self.tiles.device}"
        return f"WholeBag({self.bag}: {kind}{'' if self.label is None else f', label {self.label}'})"


class BagAssembler:
    """Gathers the chunks of a bag."""

    def __init__(self, first: Chunk, tiles: torch.Tensor) -> None:
        shape = (first.total, *tiles.movedim(-3, -1).shape[1:])
        self._tiles = torch.empty(shape, dtype=tiles.dtype, device=tiles.device)
        self._coords = np.zeros((first.total, 2), np.int64)
        self._index = np.full(first.total, -1, np.int64)
        self._slide_index = np.zeros(first.total, np.int64)
        self._targets: dict[int, Targets] = {}

    def add(self, item: Chunk, tiles: torch.Tensor) -> None:
        """Add a chunk."""
        places = torch.from_numpy(item.places).to(tiles.device, non_blocking=True)
        self._tiles.index_copy_(0, places, tiles.movedim(-3, -1))
        self._coords[item.places], self._index[item.places] = item.coords, item.index
        self._slide_index[item.places] = item.slide_index
        if item.targets is not None:
            self._targets |= zip(item.places.tolist(), item.targets, strict=True)

    def bag(self, last: Chunk, views: MultiCrop | None = None) -> WholeBag:
        """Return the bag, without tiles that were skipped."""
        tiles, came = self._tiles, self._index >= 0
        if not came.all():
            tiles = tiles[torch.from_numpy(came).to(tiles.device)]
        shown, of_views = tiles_and_views(tiles.movedim(-1, -3), views)
        found = None if last.targets is None else tuple(self._targets[k] for k in np.flatnonzero(came).tolist())
        return WholeBag(
            shown, self._coords[came], self._index[came], last.bag, last.label, last.patient,
            self._slide_index[came], last.slides, of_views, last.nominal_mpps, found,
        )  # fmt: skip


def tiles_by_mpp(tiles: torch.Tensor, mpps: Sequence[float]) -> dict[float, torch.Tensor]:
    """Return (n, S, 3, H, W) tiles as a dictionary of (n, 3, H, W), by the µm per px of each magnification.

    Raise ConfigError for tiles of one magnification, of which no resolution is given.
    """
    if tiles.ndim != 5:
        remedy = "use .tiles, or make a ContextBag"
        raise ConfigError(f"tiles of one magnification, {tuple(tiles.shape)}", remedy=remedy)
    return dict(zip(mpps, tiles.unbind(1), strict=True))
