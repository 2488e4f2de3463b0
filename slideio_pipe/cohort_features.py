"""The features of a cohort's tiles, beside the pixels of bags or straight from slides; resumable."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from slideio_pipe.cohort import Cohort, CohortSlide
from slideio_pipe.config import ExportConfig, LoaderConfig, checked, load_loader_config
from slideio_pipe.device import check_device
from slideio_pipe.encoders import Encoder, load_encoders
from slideio_pipe.encoders.loading import Source
from slideio_pipe.encoding import BATCH_SIZE, Encoding, check_feature_dtype
from slideio_pipe.errors import ConfigError, OutputExistsError
from slideio_pipe.export import SUFFIX as BAG_SUFFIX
from slideio_pipe.export import bag_name
from slideio_pipe.feature_pool import FeaturePool, Laid
from slideio_pipe.ledger import settings_digest
from slideio_pipe.progress import Report, rated
from slideio_pipe.run import Job, RunReport, run_cohort
from slideio_pipe.store.features import (
    FOLDER,
    SUFFIX,
    add_features,
    create_feature_store,
    encoder_attributes,
    feature_store_attributes,
    open_feature_store,
)
from slideio_pipe.store.layout import is_bag_store
from slideio_pipe.store.partial import within_run
from slideio_pipe.streaming import at_least_one, default_threads
from slideio_pipe.workers import OnStage

# Where the runs over bags that get their features themselves are written down, below the bags' folder.
RUNS = Path("runs") / "features"
_SHOWN = 5


@dataclass(slots=True)
class FeatureReport(RunReport):
    """What a run of ``encode_cohort`` did."""

    tiles: int = 0  # encoded by this run
    encoders: dict[str, int] = field(default_factory=dict)  # name to numbers per tile
    device: str = "cpu"

    def summary(self) -> dict[str, Any]:
        """Return the numbers, JSON-able."""
        rate = round(self.tiles / max(self.seconds, 1e-9), 1)
        told = {"tiles": self.tiles, "tiles_per_second": rate, "encoders": self.encoders, "device": self.device}
        return {**RunReport.summary(self), **told}


@dataclass(frozen=True)
class FeatureWork:
    """Where the features of each slide go, and which of them are there."""

    encoders: tuple[Encoder, ...]
    folder: Path | None  # of .features.zarr; None: beside the pixels
    config: LoaderConfig | None  # None: bags only, whose tiles are laid
    transform: Any  # its description
    dtype: str

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """What tiles depend on; encoders may be added later."""
        config = {} if self.config is None else self.config.model_dump(mode="json")
        return config | {"slide_transform": self.transform}

    @cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """What is kept beside the features of each encoder."""
        return {
            encoder.name: {**encoder.describe(), "dtype": self.dtype, "digest": encoder.digest}
            for encoder in self.encoders
        }

    def store(self, slide: CohortSlide) -> Path:
        """Return the store that a slide's features go to."""
        assert isinstance(slide.source, Path)
        if self.folder is None:
            return slide.source
        return self.folder / f"{bag_name(slide.name).removesuffix(BAG_SUFFIX)}{SUFFIX}"

    def output(self, slide: CohortSlide) -> Path:
        """Return the features of the last encoder if all are there, else a name that nothing has."""
        store = self.store(slide)
        for encoder in self.encoders:
            if not self.is_there(store, encoder.name):
                return store / FOLDER / f"{encoder.name}.{self.facts[encoder.name]['digest']}"
        return store / FOLDER / self.encoders[-1].name

    def is_there(self, store: Path, name: str) -> bool:
        """Return whether a store has the features that this run would make."""
        found = encoder_attributes(store, name)
        return found is not None and all(found.get(key) == self.facts[name][key] for key in ("digest", "dtype"))

    def refuse_others(self, cohort: Cohort) -> None:
        """Raise ConfigError when slides have features that other encoders made, or of other tiles."""
        other: dict[str, list[str]] = {}
        for slide in cohort:
            store = self.store(slide)
            for name in self.facts:
                found = encoder_attributes(store, name)
                if found is not None and not self.is_there(store, name):
                    other.setdefault(f"{name} ({_difference(found, self.facts[name])})", []).append(slide.name)
            stored = {} if self.folder is None else feature_store_attributes(store) or {}
            made = stored.get("made")
            # A run in this folder that did these itself says more: which settings.
            changed = made is not None and made["settings"] != settings_digest(self.settings, slide)
            if changed and not self.output(slide).exists():
                other.setdefault(f"{_tiles_of(stored)} of other settings", []).append(slide.name)
        if other:
            shown = "; ".join(
                f"{what}: {len(names):,} slides, such as {', '.join(names[:_SHOWN])}" for what, names in other.items()
            )
            remedy = "pass overwrite=True or another folder, or give the encoder a name of its own: mine=timm:NAME"
            raise ConfigError(f"features of other encoders or settings are there: {shown}", remedy=remedy)

    def missing(self, job: Job) -> list[str]:
        """Return whose features of a slide are still to be computed."""
        store = self.store(job.slide)
        if self.folder is not None and store.exists() and not self._is_of(job, store):
            if not job.overwrite:
                raise OutputExistsError(
                    "features of other tiles are there", slide=str(store), remedy="pass overwrite=True"
                )
            return list(self.facts)
        return [name for name in self.facts if not self.is_there(store, name)]

    def keep(self, job: Job, bag: Laid, features: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Write the features of a slide."""
        if self.folder is None:  # bags may be of several folders, each with runs of its own
            return self._keep(job, bag, features)
        with within_run(self.folder):
            return self._keep(job, bag, features)

    def _keep(self, job: Job, bag: Laid, features: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        store = self.store(job.slide)
        named = {name: (values, self.facts[name]) for name, values in features.items()}
        if self.folder is not None and not (store.exists() and self._is_of(job, store)):
            told = {**bag.provenance, "made": _made(job)}
            create_feature_store(store, bag, told, named, overwrite=job.overwrite)
        else:
            if self.folder is not None and not np.array_equal(open_feature_store(store).columns["coords"], bag.coords):
                reason = "the tiles are not those whose features are there"
                raise ConfigError(reason, slide=str(store), remedy="pass overwrite=True, or another folder")
            for name, (values, facts) in named.items():
                add_features(store, name, values, facts, overwrite=job.overwrite)
        return self._summary(store, bag, features)

    def recall(self, slide: CohortSlide) -> dict[str, Any]:
        """Return what is known of features that were written before a kill."""
        return {"features": str(self.store(slide)), "encoders": ", ".join(self.facts)}

    def __call__(self, slide: CohortSlide, *, overwrite: bool, on_stage: OnStage) -> dict[str, Any]:
        """Refuse: the pool encodes many slides together."""
        raise ConfigError("features are encoded by a FeaturePool", slide=slide.name, remedy="call encode_cohort")

    def _is_of(self, job: Job, store: Path) -> bool:
        """Return whether a store of features is of the same tiles, as far as settings tell."""
        found = feature_store_attributes(store)
        return found is not None and found.get("made") == _made(job)

    def _summary(self, store: Path, bag: Laid, features: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        return {
            "features": str(store),
            "tiles": len(bag),
            "encoders": ", ".join(features),
            "bytes": sum(values.nbytes for values in features.values()),
        }


def encode_cohort(
    cohort: Any,
    encoders: Source | Iterable[Source],
    out: str | Path | None = None,
    config: LoaderConfig | ExportConfig | str | Path | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device | None = None,
    batch_size: int = BATCH_SIZE,
    dtype: str = "float16",
    threads: int | None = None,
    slide_transform: Any = None,
    allow_empty: bool = False,
    overwrite: bool = False,
    shard: str | None = None,
    progress: Report | bool | None = None,
) -> FeatureReport:
    """Compute the features of every slide of a cohort; run it again to go on where it stopped.

    The tiles of a slide are decoded once for all encoders, the next slides are opened meanwhile, and batches hold tiles
    of several slides where they end and begin, so that the device does not wait between slides. A slide that fails
    costs itself only: it is listed in ``failures.csv``.

    Parameters
    ----------
    cohort : path, list or Cohort
        Slides, or bags (``.bag.zarr``); see ``Cohort.of``.
    encoders : Encoder, or what ``load_encoder`` takes, or several
        Those whose features a slide has already are left out: encoders may be added later.
    out : str or Path, optional
        The folder of ``<slide>.features.zarr`` and of the run's notes. By default features go into bags, beside their
        pixels (``features/<encoder>``), and the notes into ``runs/features`` below the bags' folder.
    config : LoaderConfig, ExportConfig, path or dict, optional
        How slides become tiles. By default tiles are of the encoders' input size (the largest), at the encoders' mpp if
        they say one, else at 0.5 µm. Bags have their tiles.
    device : str or torch.device, optional
        "cpu", "cuda" or "cuda:1"; by default the GPU if there is one.
    batch_size : int
        Tiles per batch.
    dtype : "float16" or "float32"
        Of the features. With float16 CUDA computes in it, too (autocast).
    threads : int, optional
        Threads that decode; by default one fewer than the cores.
    slide_transform : albumentationsxl transform, optional
        Drawn once per slide, such as a stain normalisation.
    allow_empty : bool
        Write no rows for slides without tissue, instead of listing them as failed. Empty bags have none anyway.
    overwrite : bool
        Replace features of other settings or other encoders of the same name; what is the same stays.
    shard : str, optional
        "0/4" is the first of four parts of the cohort: for a process on each of several GPUs.
    progress : callable, bool or None
        See ``progress.reporting``; counts slides.

    Raises
    ------
    ConfigError
        All that is wrong with the cohort or an encoder; or features of other settings are there.
    OutputError
        Another run writes into this folder, or it cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from torch import nn
    >>> from slideio_pipe import load_encoder, open_features
    >>> from slideio_pipe.synthetic import write_synthetic_slide
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = write_synthetic_slide(folder / "a.svs", size=(2048, 1536), seed=3)
    >>> network = nn.Sequential(nn.Conv2d(3, 8, 7, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> tiny = load_encoder(network, name="tiny", normalize="imagenet", input_size=64)
    >>> report = encode_cohort(folder, tiny, folder / "features", device="cpu")
    >>> report.done, open_features(folder / "features" / "a.features.zarr").features.shape[1]
    (1, 8)
    """
    slides, part = _part(Cohort.of(cohort), shard)
    check_feature_dtype(dtype)
    place = check_device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    folder = None if out is None else Path(out).expanduser().absolute()
    bags_only = check_places(slides, folder)
    chosen = tuple(load_encoders(encoders))
    settings = tile_config(config, chosen)
    described = None if slide_transform is None else slide_transform.to_dict()["transform"]
    work = FeatureWork(chosen, folder, None if bags_only else settings, described, dtype)
    if not overwrite:
        work.refuse_others(slides)
    notes = _notes(slides, folder, part)
    with rated(progress, f"{len(slides):,} slides", "tiles") as (report, count):
        pool = FeaturePool(
            Encoding(chosen, device=place, batch_size=batch_size, dtype=dtype),
            work,
            settings,
            slide_transform=slide_transform,
            threads=default_threads() if threads is None else at_least_one("threads", threads),
            allow_empty=allow_empty,
            on_tiles=count,
        )
        done = run_cohort(work, slides, folder or notes, pool=pool, notes=notes, overwrite=overwrite, progress=report)
    known = {name: getattr(done, name) for name in RunReport.__dataclass_fields__}
    return FeatureReport(**known, tiles=pool.tiles, encoders={e.name: e.dim for e in chosen}, device=str(place))


def tile_config(config: Any, encoders: Iterable[Encoder]) -> LoaderConfig:
    """Return how slides become tiles: as configured, by default as the encoders want them.

    Examples
    --------
    >>> tile_config({"grid": {"tile_size": 128}}, []).grid.tile_size
    128
    """
    known = list(encoders)
    if isinstance(config, LoaderConfig):
        found = config
    elif isinstance(config, ExportConfig):
        found = checked(LoaderConfig, None, **config.model_dump(exclude={"store"}))
    elif config is None:
        sizes, mpps = [e.input_size for e in known], {e.mpp for e in known if e.mpp is not None}
        view = {"view": {"mpp": mpps.pop()}} if len(mpps) == 1 else {}
        found = checked(LoaderConfig, None, grid={"tile_size": max(sizes, default=256)}, **view)
    else:
        found = load_loader_config(config)
    for name, value in (("max_tiles", found.max_tiles), ("tile_transform", found.tile_transform)):
        if value is not None:
            reason = f"{name} is {value}, and features are of all tiles as they are"
            raise ConfigError(reason, remedy="leave it out; slide_transform is applied")
    return found


def check_places(slides: Cohort, folder: Path | None) -> bool:
    """Return whether all sources are bags.

    Raises
    ------
    ConfigError
        Features are to go beside pixels, and a source has none on disk but its own.
    """
    slide = next((slide for slide in slides if not _is_bag(slide)), None)
    if slide is not None and folder is None:
        reason = "is no bag, so features have no place beside its pixels"
        raise ConfigError(reason, slide=slide.name, remedy="pass out=… with a folder for the features, or export it")
    return slide is None


def _is_bag(slide: CohortSlide) -> bool:
    return isinstance(slide.source, Path) and slide.source.is_dir() and is_bag_store(slide.source)


def _part(slides: Cohort, shard: str | None) -> tuple[Cohort, str | None]:
    """Return the slides of a shard, and what its notes are called."""
    if shard is None:
        return slides, None
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not number < count:
        raise ConfigError(f"shard is {shard!r}", remedy='pass "0/4" for the first of four')
    part = slides[number::count]
    return part, f"shard-{number}-of-{count}"


def _notes(slides: Cohort, folder: Path | None, part: str | None) -> Path:
    """Return where a run is written down: with its outputs, or beside the bags that hold them."""
    if folder is not None:
        return folder if part is None else folder / RUNS / part
    bags = [slide.source.absolute().parent for slide in slides if isinstance(slide.source, Path)]
    return Path(os.path.commonpath(bags)) / RUNS / (part or "")


def _made(job: Job) -> dict[str, str]:
    """Return what the tiles of a slide were made with and of."""
    return {"settings": job.entry.settings, "fingerprint": job.entry.fingerprint}


def _tiles_of(told: Mapping[str, Any]) -> str:
    """Return what tiles a store is of, in short."""
    side, mpp = (told.get("grid") or {}).get("tile_size"), (told.get("view") or {}).get("mpp")
    return f"tiles of {side} px" + ("" if mpp is None else f" at {mpp[0]:.3g} µm")


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in what two encoders of one name differ."""
    told = [
        f"{key} was {before.get(key)}, is {now.get(key)}"
        for key in ("weights", "input_size", "interpolation", "pooling", "mpp", "normalize", "dtype")
        if before.get(key) != now.get(key)
    ]
    return "; ".join(told) or "of another digest"
