"""The bags of a cohort as input of a training: precomputed features, or tiles."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideio_pipe.augment.draw import seeded
from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.patients import slides_of_row
from slideio_pipe.errors import ConfigError, SlideioPipeError
from slideio_pipe.features.feature_bag import FeatureBag, open_features
from slideio_pipe.features.scales import SCALE, in_words
from slideio_pipe.mil.bag_tiles import PixelBag, room_for_tiles
from slideio_pipe.mil.config import TrainConfig
from slideio_pipe.mil.feature_files import tiling_of
from slideio_pipe.mil.fingerprints import features_fingerprint, file_of
from slideio_pipe.mil.models.slides_apart import slides_apart
from slideio_pipe.store.stored_bag import StoredBag
from slideio_pipe.streaming.config import LoaderConfig
from slideio_pipe.streaming.dataset import BagDataset
from slideio_pipe.streaming.loader import BagLoader
from slideio_pipe.streaming.slide_opener import is_slide
from slideio_pipe.tiles.bag import nominal_mpps_of

_LOG = logging.getLogger(__name__)

# Features of a cohort up to this size are kept in memory; above it they are read again in each epoch.
_KEPT_BYTES = 4 * 2**30
_SHOWN = 20


@dataclass(slots=True)
class Example:
    """A bag of the cohort: features, or tiles to encode."""

    number: int  # number of its slide in the cohort
    features: Tensor | None  # (N, D), on the device
    pixels: PixelBag | None
    places: NDArray[np.int64] | None = None  # of the features' tiles, (N, 2)

    @property
    def coords(self) -> NDArray[np.int64] | None:
        """Level-0 px of the tiles, (N, 2), of patients see ``slides_apart``; for pixels, available after encoding."""
        return self.places if self.pixels is None else self.pixels.coords


class Source(Protocol):
    """The source of a training's bags."""

    cohort: Cohort
    mpps: tuple[float | None, ...]  # µm per px of the tiles' magnifications, if there are several; None: native

    def contents(self) -> list[list[str | None]]:
        """Return a fingerprint of the content of each row's slides."""

    def epoch(self, epoch: int, *, shuffle: bool, state: Mapping[str, Any] | None = None) -> Generator[Example]:
        """Yield this process's bags of an epoch, or those that remain after ``state``."""

    def state(self) -> dict[str, Any]:
        """Return the position in the epoch, between two bags, as JSON values."""

    def close(self) -> None:
        """Stop threads and close files."""


class FeatureSource:
    """Features from stores, or from files of TRIDENT, CLAM or STAMP.

    Raise ConfigError with all errors together: files without features, with several widths or encoders, with NaN,
    without tiles.

    Parameters
    ----------
    cohort : Cohort
        Its column "slide" has sources of ``open_features``.
    encoder : str, optional
        Name of the encoder, if a file has several.
    max_tiles : int, optional
        Per bag, drawn again in each epoch.
    """

    def __init__(
        self,
        cohort: Cohort,
        device: torch.device,
        *,
        encoder: str | None = None,
        max_tiles: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.cohort, self._device = cohort, device
        self._encoder, self._max_tiles, self._seed = encoder, max_tiles, seed
        self._rank, self._world_size = rank, world_size
        self._kept: dict[int, tuple[Tensor, NDArray[np.int64] | None]] = {}
        self._position = 0
        self._moments: list[tuple[int, Tensor, Tensor]] = []
        self._contents: list[list[str | None]] = []
        self.mpps: tuple[float | None, ...] = ()
        self.width, self.encoder = self._check()
        first = self._open(slides_of_row(cohort[0])[0])
        self.tiling = tiling_of(first.provenance)  # that of the first slide
        self.scale: float | None = first.encoder_facts.get(SCALE)  # of features of one magnification of several

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of every feature over all tiles, (D,) each, float64."""
        count = sum(n for n, _, _ in self._moments)
        mean = torch.stack([mean * n for n, mean, _ in self._moments]).sum(0) / count
        spread = torch.stack([(square + (m - mean) ** 2) * n for n, m, square in self._moments]).sum(0) / count
        return mean, spread.sqrt()

    def contents(self) -> list[list[str | None]]:
        return self._contents

    def epoch(self, epoch: int, *, shuffle: bool, state: Mapping[str, Any] | None = None) -> Generator[Example]:
        order = np.arange(len(self.cohort))
        if shuffle:
            order = seeded(self._seed, epoch, "order").permutation(len(self.cohort))
        self._position = 0 if state is None else int(state["position"])
        for number in order[self._rank :: self._world_size][self._position :].tolist():
            features, coords = self._kept[number] if number in self._kept else self._read(number)
            if shuffle and self._max_tiles is not None and len(features) > self._max_tiles:
                rng = seeded(self._seed, epoch, self.cohort[number].name)
                chosen = np.sort(rng.choice(len(features), self._max_tiles, replace=False))
                features, coords = features[torch.from_numpy(chosen)], None if coords is None else coords[chosen]
            self._position += 1
            yield Example(number, features.to(self._device), None, coords)

    def state(self) -> dict[str, Any]:
        return {"position": self._position}

    def close(self) -> None:
        self._kept.clear()

    def _check(self) -> tuple[int, str | None]:
        """Read all features once, keep those that fit in memory, and return their width and encoder."""
        problems, widths, encoders, room = [], dict[int, str](), dict[str | None, str](), _KEPT_BYTES
        magnifications = dict[tuple[float, ...], str]()
        self._moments.clear()
        self._contents = [[] for _ in self.cohort]
        for number, slide in enumerate(self.cohort):
            parts, contents = [], list[str | None]()
            for part in slides_of_row(slide):
                try:
                    found = self._read_slide(part)
                except SlideioPipeError as error:
                    problems.append(f"{part.name}: {error.reason}")
                    continue
                problems += _problems(part.name, found.features)
                if not len(found.features):
                    continue
                widths.setdefault(found.features.shape[1], part.name)
                encoders.setdefault(found.encoder, part.name)
                magnifications.setdefault(found.mpps, part.name)
                self._moments.append(_moments(found.features))
                contents.append(features_fingerprint(found.features.numpy()))
                parts.append(found)
            if problems or len(widths) > 1:  # raised below, with those of the other slides
                continue
            self._contents[number] = contents
            joined = _joined(parts)
            room -= joined.features.numel() * joined.features.itemsize
            if room >= 0:
                self._kept[number] = joined.features, joined.places
        if len(widths) > 1:
            problems.append("features of several widths: " + _each(widths))
        if len(encoders) > 1:
            problems.append("features of several encoders: " + _each(encoders))
        if len(magnifications) > 1:
            each = {in_words(mpps): name for mpps, name in magnifications.items()}
            problems.append("features of different magnifications: " + _each(each))
        if problems:
            shown = "; ".join(problems[:_SHOWN])
            more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            raise ConfigError(f"{shown}{more}", remedy="leave these slides out, or compute their features again")
        _LOG.info("features of %d of %d slides are kept in memory", len(self._kept), len(self.cohort))
        self.mpps = next(iter(magnifications))
        return next(iter(widths)), next(iter(encoders))

    def _read(self, number: int) -> tuple[Tensor, NDArray[np.int64] | None]:
        joined = _joined([self._read_slide(slide) for slide in slides_of_row(self.cohort[number])])
        return joined.features, joined.places

    def _read_slide(self, slide: CohortSlide) -> _SlideFeatures:
        opened = self._open(slide)
        places = None if opened.coords is None else np.asarray(opened.coords)
        values = torch.from_numpy(np.array(opened.features))
        return _SlideFeatures(opened.encoder, values, places, opened.nominal_mpps)

    def _open(self, slide: CohortSlide) -> FeatureBag:
        if not isinstance(slide.source, Path):
            raise ConfigError("is an open bag, no file of features", remedy="save it and compute its features")
        return open_features(slide.source, self._encoder)


class PixelSource:
    """Tiles of slides or bags, through a ``BagLoader``."""

    def __init__(
        self,
        cohort: Cohort,
        device: torch.device,
        config: TrainConfig,
        prepare: Callable[[Tensor], Tensor],
        *,
        augment: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        plain = {} if augment else {"slide_transform": None, "tile_transform": None, "max_tiles": None}
        self.cohort = cohort
        self.mpps = magnifications(cohort, config.loader)
        self._dataset = BagDataset(cohort, config.loader.model_copy(update=plain))
        if self._dataset.ending is not None and self._dataset.ending.normalises:
            remedy = "leave out the end of the transform: the encoder normalises tiles as it was trained"
            raise ConfigError("a transform that ends in a normalisation, and an encoder with its own", remedy=remedy)
        self._prepare = prepare
        self._keep_bytes = room_for_tiles(device, config.encoder.keep_gb) if augment else 0
        self._numbers = {slide.name: number for number, slide in enumerate(cohort)}
        self._loaders = {
            shuffle: BagLoader(
                self._dataset,
                device=device,
                normalize=None,
                chunk_size=chunk_size_of(config, self.mpps),
                workers=config.encoder.workers,
                ordered=True,
                shuffle=shuffle,
                max_failures=config.fit.max_failures,
                rank=rank,
                world_size=world_size,
                even="none",  # training makes equally many steps in all processes, and validation uses every slide
            )
            for shuffle in (True, False)
        }
        self._running = self._loaders[True]

    def contents(self) -> list[list[str | None]]:
        return [[file_of(slide) for slide in slides_of_row(row)] for row in self.cohort]

    def epoch(self, epoch: int, *, shuffle: bool, state: Mapping[str, Any] | None = None) -> Generator[Example]:
        loader = self._running = self._loaders[shuffle]
        loader.set_epoch(epoch)
        if state is not None:
            loader.load_state_dict(state)
            if loader.epoch > epoch:  # it was taken after the last bag
                return
        with closing(iter(loader)) as chunks:
            for first in chunks:
                if first.error is not None:
                    continue
                number = self._numbers[first.bag]
                bag = PixelBag(first, chunks, self._dataset, number, epoch, self._prepare, self._keep_bytes)
                yield Example(number, None, bag)
                bag.drain()

    def state(self) -> dict[str, Any]:
        return self._running.state_dict(whole_bags=True)

    def close(self) -> None:
        for loader in self._loaders.values():
            loader.close()


def magnifications(cohort: Cohort, config: LoaderConfig) -> tuple[float | None, ...]:
    """Return the µm per px of the tiles' magnifications, if there are several: as set, or those of the first bag."""
    first = slides_of_row(cohort[0])[0]
    if is_slide(first):
        return (config.view.mpp, *config.view.context) if config.view.context else ()
    if not isinstance(first.source, Path):
        return nominal_mpps_of(first.source)
    try:
        with StoredBag(first.source) as bag:
            return nominal_mpps_of(bag)
    except SlideioPipeError:  # reported with the other slides, when it is read
        return ()


def chunk_size_of(config: TrainConfig, mpps: Sequence[float | None]) -> int:
    """Return the tiles of a chunk: those of all magnifications count."""
    return max(1, config.encoder.chunk_size // max(1, len(mpps)))


@dataclass(frozen=True, slots=True)
class _SlideFeatures:
    """The features of a slide, or of all slides of a patient."""

    encoder: str | None
    features: Tensor  # (N, D)
    places: NDArray[np.int64] | None  # (N, 2)
    mpps: tuple[float, ...] = ()  # of the magnifications, if there are several


def _joined(parts: Sequence[_SlideFeatures]) -> _SlideFeatures:
    """Return the features of a patient: those of its slides, one after another."""
    if len(parts) == 1:
        return parts[0]
    places = [part.places for part in parts if part.places is not None]
    counts = [len(part.features) for part in parts]
    apart = None
    if len(places) == len(parts):
        apart = slides_apart(np.concatenate(places), np.repeat(np.arange(len(parts)), counts))
    return _SlideFeatures(parts[0].encoder, torch.cat([part.features for part in parts]), apart)


def _problems(name: str, features: Tensor) -> Iterator[str]:
    if not len(features):
        yield f"{name}: has no tile"
    elif not bool(torch.isfinite(features).all()):
        rows = int((~torch.isfinite(features)).any(1).sum())
        yield f"{name}: {rows} of {len(features)} tiles have features that are no numbers"


def _moments(features: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return the number of tiles of a bag, and mean and variance of their features."""
    values = features.double()
    return len(values), values.mean(0), values.var(0, correction=0)


def _each(found: Mapping[Any, str]) -> str:
    return ", ".join(f"{what} ({name})" for what, name in found.items())
