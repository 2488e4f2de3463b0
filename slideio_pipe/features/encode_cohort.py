"""Encode the tiles of a cohort, into its bags or from slides to feature stores; resumable."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.run import RunReport, run_cohort
from slideio_pipe.config import checked
from slideio_pipe.errors import ConfigError, SlideioPipeError
from slideio_pipe.export.config import ExportConfig
from slideio_pipe.features.cohort_work import FeatureWork, check_portable
from slideio_pipe.features.encode_bag import BATCH_SIZE, check_feature_dtype
from slideio_pipe.features.encoders import Encoder, load_encoders
from slideio_pipe.features.encoders.encoder_tiles import (
    common_mpp,
    common_size,
    warn_scale,
    warn_scale_of_bag,
    with_tiles_of,
)
from slideio_pipe.features.encoders.loading import Source
from slideio_pipe.features.encoding_pool import EncodeSettings, FeaturePool
from slideio_pipe.features.scales import check_context_features
from slideio_pipe.progress import Report, rated
from slideio_pipe.store import open_bag
from slideio_pipe.store.metadata import is_bag_store
from slideio_pipe.streaming.arguments import at_least_one, default_threads
from slideio_pipe.streaming.config import LoaderConfig, load_loader_config
from slideio_pipe.streaming.device import check_device
from slideio_pipe.tiles.bag import nominal_mpps_of

# Folder of the runs that write features into bags, below the bags' folder.
RUNS = Path("runs") / "features"


@dataclass(slots=True)
class FeatureReport(RunReport):
    """The results of a run of ``encode_cohort``."""

    encoders: dict[str, int] = field(default_factory=dict)  # name to features per tile
    device: str = "cpu"

    def summary(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        rate = round(self.tiles / max(self.seconds, 1e-9), 1)
        numbers = {"tiles": self.tiles, "tiles_per_second": rate, "encoders": self.encoders, "device": self.device}
        return {**RunReport.summary(self), **numbers}


def encode_cohort(
    cohort: Any,
    encoders: Source | Iterable[Source],
    out: str | Path | None = None,
    config: LoaderConfig | ExportConfig | str | Path | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device | None = None,
    batch_size: int = BATCH_SIZE,
    dtype: str = "float16",
    context_features: str = "concat",
    threads: int | None = None,
    slide_transform: Any = None,
    allow_empty: bool = False,
    overwrite: bool = False,
    shard: str | None = None,
    workers: int | None = None,
    cluster: str | Path | None = None,
    time_limit_s: float | None = None,
    memory_limit_gb: float | None = None,
    retry: bool = False,
    progress: Report | bool | None = None,
) -> FeatureReport:
    """Compute the features of every slide of a cohort; run it again to continue after a stop.

    The tiles of a slide are decoded once for all encoders, the next slides are opened meanwhile, and batches can
    contain tiles of several slides, so that the device does not wait between slides. A slide that fails does not stop
    the others: it is listed in ``failures.csv``.

    Parameters
    ----------
    cohort : path, list or Cohort
        Slides, or bags (``.bag.zarr``); see ``Cohort.of``.
    encoders : Encoder, or what ``load_encoder`` takes, or several
        Encoders whose features a slide already has are skipped: encoders can be added later.
    out : str or Path, optional
        The folder of ``<slide>.features.zarr`` and of the run's files. By default features are written into bags,
        beside their pixels (``features/<encoder>``), and the run's files into ``runs/features`` below the bags' folder.
    config : LoaderConfig, ExportConfig, path, name of a preset or dict, optional
        Settings of the tiles. By default tiles have the size and the mpp that the encoders are meant for: of several
        the largest size (their input size if they state none), at 0.5 µm if no mpp is stated. Settings that leave these
        two out have those of known encoders. Bags already have tiles.
    device : str or torch.device, optional
        "cpu", "cuda" or "cuda:1"; by default the GPU if there is one.
    batch_size : int
        Tiles per batch.
    dtype : "float16" or "float32"
        Dtype of the features. With float16 CUDA also computes in it (autocast).
    context_features : "concat" or "apart"
        Features of S magnifications (``view.context``): one array of (N, S·D) per encoder, finest first, or one of
        (N, D) for each, such as ``uni-0.5um`` and ``uni-2um``. ``open_features`` reads both alike.
    threads : int, optional
        Number of decoding threads; by default one fewer than the cores.
    slide_transform : albumentationsxl transform, optional
        Drawn once per slide, such as a stain normalisation.
    allow_empty : bool
        Write no rows for slides without tissue, instead of listing them as failed. Empty bags never have rows.
    overwrite : bool
        Replace features of other settings or of other encoders with the same name; equal ones are kept.
    shard : str, optional
        "0/4" is the first of four parts of the cohort: for one process per GPU.
    workers : int, optional
        Encode in this many processes, one slide at a time: for CPUs, and for slides that crash their reader. By default
        all are encoded in this process, in batches filled across slides, which suits a GPU.
    cluster : str or Path, optional
        Encode on Dask or SLURM, one slide at a time per worker; see ``run_cohort``.
    time_limit_s, memory_limit_gb : float, optional
        Limit per slide and per process; with ``workers`` or ``cluster``.
    retry : bool
        Retry slides that crashed two worker processes.
    progress : callable, bool or None
        See ``progress.reporting``; counts slides.

    Raises
    ------
    ConfigError
        The cohort or an encoder has errors, listed together; the encoders are meant for tiles of different mpp, and
        none is configured; or features of other settings exist.
    OutputError
        Another run writes into this folder, or the folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from torch import nn
    >>> from slideio_pipe import load_encoder, open_features
    >>> from slideio_pipe.synthetic.slide import write_synthetic_slide
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
    context_how = check_context_features(context_features)
    place = check_device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    folder = None if out is None else Path(out).expanduser().absolute()
    bags_only = check_places(slides, folder)
    chosen = tuple(load_encoders(encoders))
    settings = tile_config(config, () if bags_only else chosen)
    if slide_transform is not None:
        _refuse_stored(slides)
    described = None if slide_transform is None else slide_transform.to_dict()["transform"]
    threads = default_threads() if threads is None else at_least_one("threads", threads)
    how = EncodeSettings(str(place), batch_size, dtype, settings, slide_transform, threads, allow_empty)
    in_workers = workers is not None or cluster is not None
    if not in_workers and (time_limit_s is not None or memory_limit_gb is not None):
        raise ConfigError("limits are for worker processes", remedy="pass {workers=1} or more")
    if bags_only:
        _warn_scale_of_bags(chosen, slides)
    else:
        warn_scale(chosen, settings.grid.tile_size, settings.view.mpp)
    tiling = None if bags_only else settings
    mpps = _mpps_of_bags(slides) if bags_only else _mpps_of_slides(settings)
    work = FeatureWork(
        chosen, folder, tiling, described, dtype, how if in_workers else None, mpps=mpps, context_features=context_how
    )
    if not overwrite:
        work.refuse_others(slides)
    notes = _notes(slides, folder, part)
    if in_workers:
        check_portable(work)
    with rated(progress, f"{len(slides):,} slides", "tiles") as (report, count):
        pool = None if in_workers else FeaturePool(chosen, how, work, on_tiles=count)
        done = run_cohort(
            work,
            slides,
            folder or notes,
            workers=workers or 1,
            cluster=cluster,
            pool=pool,
            time_limit_s=time_limit_s,
            memory_limit_bytes=None if memory_limit_gb is None else round(memory_limit_gb * 1e9),
            notes=notes,
            overwrite=overwrite,
            retry=retry,
            progress=report,
        )
    known = _fields(done) if pool is None else _fields(done) | {"tiles": pool.tiles}
    together = max(1, len(mpps)) if context_how == "concat" else 1
    dims = {name: encoder.dim * together for encoder in chosen for name in work.arrays(encoder.name)}
    return FeatureReport(**known, encoders=dims, device=str(place))


def _fields(report: RunReport) -> dict[str, Any]:
    return {name: getattr(report, name) for name in RunReport.__dataclass_fields__}


def tile_config(config: Any, encoders: Iterable[Encoder]) -> LoaderConfig:
    """Return the settings of the tiles: as configured, by default as the encoders need them.

    Examples
    --------
    >>> tile_config({"grid": {"tile_size": 128}}, []).grid.tile_size
    128
    """
    known = list(encoders)
    if isinstance(config, LoaderConfig):
        found = config
    elif isinstance(config, ExportConfig):
        found = checked(LoaderConfig, None, **config.model_dump(exclude={"store"}, exclude_unset=True))
    elif config is None:
        mpp = common_mpp(known)
        view = {} if mpp is None else {"view": {"mpp": mpp}}
        found = checked(LoaderConfig, None, grid={"tile_size": common_size(known)}, **view)
    else:
        found = load_loader_config(config)
    found = with_tiles_of(found, known)
    for name, value in (("max_tiles", found.max_tiles), ("tile_transform", found.tile_transform)):
        if value is not None:
            reason = f"{name} is {value}, and features are of all tiles as they are"
            raise ConfigError(reason, remedy="leave it out; slide_transform is applied")
    return found.model_copy(update={"unit": "slide"})  # a patient's features are those of its slides


def _mpps_of_slides(config: LoaderConfig) -> tuple[float, ...]:
    """Return the µm per px of the tiles' magnifications; empty for one.

    Raise ConfigError if they are not the same for all slides.
    """
    if not config.view.context:
        return ()
    if config.view.mpp is None:
        reason = "the first magnification is that of each slide's level 0, and features of several have one for all"
        raise ConfigError(reason, remedy="set {mpp=0.5}, or what the encoder is meant for")
    return (config.view.mpp, *config.view.context)


def _mpps_of_bags(slides: Cohort) -> tuple[float, ...]:
    """Return the same of the first bag, which all others must equal."""
    first = next(iter(slides)).source
    assert isinstance(first, Path)  # check_places
    with suppress(SlideioPipeError), open_bag(first) as bag:  # a damaged bag is listed later
        return nominal_mpps_of(bag)
    return ()


def _warn_scale_of_bags(encoders: Iterable[Encoder], slides: Cohort) -> None:
    """Warn if the tiles of the first bag have another scale than encoders are meant for."""
    first = next(iter(slides)).source
    assert isinstance(first, Path)  # check_places
    with suppress(SlideioPipeError), open_bag(first) as bag:  # a damaged bag is listed later
        warn_scale_of_bag(encoders, bag.provenance())


def _refuse_stored(slides: Cohort) -> None:
    """Raise ConfigError if there is a bag store: its features are those of the pixels beside them."""
    stored = [slide.name for slide in slides if isinstance(slide.source, Path) and is_bag_store(slide.source)]
    if stored:
        reason = f"a transform, and {stored[0]} has its pixels already ({len(stored)} of {len(slides)} have)"
        raise ConfigError(reason, remedy="pass slides, or leave the transform out")


def check_places(slides: Cohort, folder: Path | None) -> bool:
    """Return whether all sources are bags.

    Raise ConfigError if features are to be written beside pixels, and a source is not a bag on disk.
    """
    others = (slide for slide in slides if not (isinstance(slide.source, Path) and is_bag_store(slide.source)))
    slide = next(others, None)
    if slide is not None and folder is None:
        reason = "is no bag, so features have no place beside its pixels"
        raise ConfigError(reason, slide=slide.name, remedy="pass {out=…} with a folder for the features, or export it")
    return slide is None


def _part(slides: Cohort, shard: str | None) -> tuple[Cohort, str | None]:
    """Return the slides of a shard, and the name of its files."""
    if shard is None:
        return slides, None
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not number < count:
        raise ConfigError(f"shard is {shard!r}", remedy='pass "0/4" for the first of four')
    part = slides[number::count]
    return part, f"shard-{number}-of-{count}"


def _notes(slides: Cohort, folder: Path | None, part: str | None) -> Path:
    """Return the folder of a run's files: with its outputs, or beside the bags that contain the features."""
    if folder is not None:
        return folder if part is None else folder / RUNS / part
    bags = [slide.source.absolute().parent for slide in slides if isinstance(slide.source, Path)]
    return Path(os.path.commonpath(bags)) / RUNS / (part or "")
