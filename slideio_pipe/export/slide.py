"""Export one slide to one bag on disk: open, find tissue, place the grid, save; configured by one record."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.cohort.names import SUFFIX, bag_name
from slideio_pipe.errors import ConfigError, NoTissueError, OutputError, OutputExistsError, SlideioPipeError
from slideio_pipe.export.config import ExportConfig
from slideio_pipe.export.preview import sheet
from slideio_pipe.images.picture import picture_path, save_picture
from slideio_pipe.progress import Report, reporting
from slideio_pipe.slides.frames import Frame
from slideio_pipe.slides.slide import Slide, open_slide
from slideio_pipe.store import StoredBag, save_bag
from slideio_pipe.store.codecs import codec_for
from slideio_pipe.store.config import Pixels
from slideio_pipe.store.failed_tiles import check_store_on_error
from slideio_pipe.tiles.annotations import Annotations
from slideio_pipe.tiles.bag import Label
from slideio_pipe.tiles.context_bag import bag_of
from slideio_pipe.tiles.find_tissue import tissue_of
from slideio_pipe.tiles.grid import TileGrid
from slideio_pipe.tiles.quality.good_tiles import with_quality
from slideio_pipe.tiles.quality.refused_tiles import no_good_tile
from slideio_pipe.tiles.quality.tile_quality import summary_of
from slideio_pipe.tiles.tile_bag import TileBag

_LOG = logging.getLogger(__name__)

# Minimum fraction of the raw bytes after encoding: glass compresses well, tissue to about a half. JPEG: any.
_MIN_SIZE = {"none": 1.0, "zstd": 0.2}
_MIN_SIZE_JPEG = 0.01
Counts = dict[str, NDArray[np.int64]] | None


@dataclass(frozen=True)
class Exported:
    """The result of an export, and its duration."""

    bag: StoredBag
    seconds: float
    covered: float  # fraction of the tissue inside some tile, 0 to 1
    written: int | None = None  # tiles written by this run: fewer if it continued a bag
    kept: bool = False  # the same bag existed

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        mpp, known = self.bag.view_mpp, self.bag.attributes
        written = len(self.bag) if self.written is None else self.written
        return {
            "bag": str(self.bag.path),
            "slide": self.bag.name,
            "tiles": len(self.bag),
            "tile_size": self.bag.shape[-3],
            "mpp": None if mpp is None else list(mpp),
            **({"context": list(self.bag.nominal_mpps[1:])} if self.bag.nominal_mpps else {}),
            "mpp_source": known["slide"]["mpp_source"],
            "bytes": self.bag.stored_bytes(),
            "failed_tiles": len(self.bag.attributes.get("failures", ())),
            "pixels": known["pixels"],
            "tissue": None if known["tissue"] is None else round(known["tissue"]["fraction"], 4),
            "tissue_covered": round(self.covered, 4),
            **summary_of(self.bag.quality, known),
            **({} if (counts := self.bag.cell_counts) is None else {"cells": int(sum(map(np.sum, counts.values())))}),
            "seconds": round(self.seconds, 3),
            "tiles_per_second": round(written / max(self.seconds, 1e-9), 1),
            **({"kept": True} if self.kept else {}),
        }


def export_slide(
    path: str | Path,
    out: str | Path | None = None,
    config: ExportConfig | None = None,
    *,
    label: Label = None,
    default_mpp: float | None = None,
    patient: str | None = None,
    tissue_file: str | Path | None = None,
    mask_frame: Frame | None = None,
    picture_file: str | Path | None = None,
    cell_file: str | Path | None = None,
    cell_classes: Sequence[str] | Mapping[str, int] | None = None,
    overwrite: bool = False,
    keep: bool = False,
    allow_empty: bool = False,
    on_error: str = "raise",
    threads: int | None = None,
    progress: Report | bool | None = None,
    on_stage: Callable[[str], object] | None = None,
    on_plan: Callable[[Slide, TileBag], object] | None = None,
) -> Exported:
    """Write the tissue tiles of a slide into a bag store.

    Parameters
    ----------
    path : str or Path
        The slide.
    out : str or Path, optional
        The ``.bag.zarr`` to create, or the folder for ``<slide>.bag.zarr``; by default the current folder.
    config : ExportConfig, optional
        Resolution, tissue, grid and codec.
    label : int, float or str, optional
        Label to store with the bag.
    default_mpp : float, optional
        µm per level-0 pixel if the file states none; ``config.slide.slide_mpp`` replaces the file's value.
    patient : str, optional
        Patient of the slide, to store with the bag.
    tissue_file : str or Path, optional
        A GeoJSON (QuPath) or PNG tissue mask to use instead of finding tissue.
    mask_frame : {"qupath", "level0"}, optional
        Frame of that mask, for slides that state the bounds of the scanned area; by default QuPath's for GeoJSON, and
        from the shape for pictures.
    picture_file : str or Path, optional
        File for a picture of the slide with its tissue and tiles, and a montage of the bag.
    cell_file : str or Path, optional
        Cells that QuPath, CellViT or StarDist found, as ``Annotations.from_cells`` reads them: how many of each class
        are in each tile is stored with the bag, ``bag.cell_counts``.
    cell_classes : sequence of str, or mapping of str to int, optional
        Their classes; by default all in the file.
    overwrite : bool
        Replace an existing bag.
    keep : bool
        Return an existing bag that would be written again unchanged, instead of failing.
    allow_empty : bool
        Write an empty bag if there is no tissue, instead of failing.
    on_error : {"raise", "white"}
        Handling of a damaged slide. "white" treats undecodable places as glass when finding tissue, and as white tiles
        in the bag, which lists them in ``attributes["failures"]``; at most a tenth of the tiles.
    threads : int, optional
        Number of decoding and encoding threads; by default all cores.
    progress : callable, bool or None
        See ``progress.reporting``.
    on_stage : callable, optional
        Called with "open", "tissue" and "tiles" at the start of each.
    on_plan : callable, optional
        Called with the slide and its planned bag, before tiles are read, also if the bag is empty.

    Raises
    ------
    NoTissueError
        No tile has enough tissue and ``allow_empty`` is False.
    SlideioPipeError
        Errors of opening, reading or writing; nothing is left at the final path.

    Examples
    --------
    >>> import tempfile
    >>> from slideio_pipe.synthetic.slide import write_synthetic_slide
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = write_synthetic_slide(folder / "a.svs", size=(2048, 1536), seed=3)
    >>> export_slide(folder / "a.svs", folder, label=1).bag.path.name
    'a.bag.zarr'
    """
    config = config or ExportConfig()
    check_store_on_error(on_error)  # before the search for tissue
    started = time.perf_counter()
    begin = on_stage or (lambda stage: None)
    begin("open")
    how = {"slide_mpp": config.slide.slide_mpp, "default_mpp": default_mpp}
    with open_slide(path, **how, backend=config.slide.backend) as slide:
        target = bag_path(slide, out)
        exists = target.exists() and not overwrite
        drawing = None if picture_file is None else picture_path(picture_file, overwrite=overwrite or (keep and exists))
        if exists and not keep:  # checked again when saving; here it avoids finding tissue
            raise _exists(target)
        begin("tissue")
        bag = plan_bag(
            slide,
            config,
            label=label,
            patient=patient,
            tissue_file=tissue_file,
            mask_frame=mask_frame,
            on_error=on_error,
            threads=threads,
            cell_file=cell_file,
            cell_classes=cell_classes,
        )
        planned = time.perf_counter()
        _LOG.info("%s: tissue and %d tiles found in %.1f s", bag.name, len(bag), planned - started)
        if on_plan is not None:
            on_plan(slide, bag)
        if not len(bag) and not allow_empty:
            raise _nothing_to_export(bag, tissue_file)
        if exists:
            kept = _same(target, bag, config.store.pixels)
            _LOG.info("%s: kept, it has these tiles and settings", target)
            if drawing is not None and not drawing.exists():
                save_picture(sheet(slide, bag), drawing, overwrite=False)
            return Exported(kept, time.perf_counter() - started, bag.grid.covered(), written=0, kept=True)
        _check_space(bag, target, config.store.pixels)
        begin("tiles")
        with reporting(progress, f"saving {bag.name}") as report:
            counted = _ResumedProgress(report)
            stored = save_bag(
                bag,
                target,
                pixels=config.store.pixels,
                overwrite=overwrite,
                on_error=on_error,
                threads=threads,
                progress=counted,
            )
        seconds = time.perf_counter() - started
        before = f", {counted.before} tiles of an interrupted run are kept" if counted.before > 0 else ""
        _LOG.info("%s: written in %.1f s%s", bag.name, seconds + started - planned, before)
        if drawing is not None:
            save_picture(sheet(slide, bag), drawing, overwrite=overwrite)
    return Exported(stored, seconds, bag.grid.covered(), len(bag) - counted.before)


class _ResumedProgress:
    """Forwards progress, and records how much was done before."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.before = -1

    def __call__(self, done: int, total: int) -> None:
        if self.before < 0:
            self.before = done
        self._report(done, total)


def _exists(target: Path) -> OutputExistsError:
    return OutputExistsError("already exists", slide=str(target), remedy="pass {overwrite=True} or another path")


def _same(target: Path, bag: TileBag, pixels: Pixels) -> StoredBag:
    """Return the existing bag, if it would be written again unchanged.

    Raise OutputExistsError if it is of another slide or of other settings, or is not a bag.
    """
    codec = codec_for(pixels)
    about = {"codec": codec.name, **codec.pixels}
    planned = json.loads(json.dumps(bag.provenance()))
    try:
        stored = StoredBag(target)
    except (SlideioPipeError, OSError) as error:
        raise _exists(target) from error
    known, settings = stored.attributes["pixels"], stored.provenance()
    same = (
        all(settings.get(key) == value for key, value in planned.items() if key != "packages")
        and all(known.get(key) == about.get(key) for key in ("codec", "quality", "source", "lossless"))
        and np.array_equal(stored.coords, bag.coords)
        and _equal_counts(stored.cell_counts, bag.cell_counts)
    )
    if not same:
        stored.close()
        raise _exists(target)
    return stored


def _equal_counts(one: Counts, other: Counts) -> bool:
    if one is None or other is None:
        return one is other
    return [*one] == [*other] and all(np.array_equal(one[name], other[name]) for name in one)


def _check_space(bag: TileBag, target: Path, pixels: Pixels) -> None:
    """Refuse an export that cannot fit on the disk; close cases are tried."""
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    needed, free = math.prod(bag.shape) * _MIN_SIZE.get(pixels, _MIN_SIZE_JPEG), shutil.disk_usage(folder).free
    if needed > max(free, 1e9):
        raise OutputError(
            f"{len(bag):,} tiles need at least {needed / 1e9:,.0f} GB, {free / 1e9:,.1f} GB are free",
            slide=str(target),
            remedy="use a larger {stride=}, a coarser {mpp=} or another disk",
        )


def _nothing_to_export(bag: TileBag, tissue_file: str | Path | None) -> NoTissueError:
    grid = bag.grid
    if grid.refused is not None and len(grid.refused):
        return no_good_tile(grid.refused, bag.name)
    if tissue_file is not None and (grid.mask is None or grid.mask.is_empty):
        width, height = bag.view.slide.pyramid.levels[0]
        return NoTissueError(
            f"{tissue_file} marks nothing inside the slide, {width}×{height} px at level 0",
            slide=bag.name,
            remedy="pass a mask of this slide: polygons in its level-0 pixels, or an image of the whole slide",
        )
    empty = grid.mask is None or grid.mask.is_empty
    found = "no tissue" if grid.mask is None or empty else f"{grid.mask.fraction:.2%} tissue"
    first = "try another method of finding tissue" if empty else "lower {min_tissue=}"
    other = "" if tissue_file is not None else "pass {tissue_file=…}, "
    return NoTissueError(
        f"no tile of {grid.tile_size} px has {grid.config.min_tissue:.0%} tissue ({found} was found)",
        slide=bag.name,
        remedy=f'{first}, {other}keep every tile with {{method="none"}}, or pass {{allow_empty=True}}',
    )


def plan_bag(
    slide: Slide,
    config: ExportConfig,
    *,
    label: Label = None,
    patient: str | None = None,
    tissue_file: str | Path | None = None,
    on_error: str = "raise",
    mask_frame: Frame | None = None,
    threads: int | None = None,
    cell_file: str | Path | None = None,
    cell_classes: Sequence[str] | Mapping[str, int] | None = None,
) -> TileBag:
    """Return the bag an export would write: tissue found, grid placed, quality measured if it matters."""
    view = slide.view(mpp=config.view.mpp)
    tissue = tissue_of(slide, config.tissue, tissue_file, frame=mask_frame, on_error=on_error)
    grid = TileGrid(view, tissue=tissue, **config.grid.model_dump())
    grid = with_quality(grid, config.quality, on_error=on_error, threads=threads)
    cells = None if cell_file is None else Annotations.from_cells(cell_file, cell_classes, slide=slide)
    return bag_of(view, grid, config.view, label=label, patient=patient, annotations=cells)


def bag_path(slide: Slide, out: str | Path | None) -> Path:
    """Return the path of a slide's bag: ``out`` if it ends in .zarr, else a name from the slide below it.

    Raise ConfigError if ``out`` is a file.
    """
    folder = Path.cwd() if out is None else Path(out).expanduser()
    if folder.suffix == ".zarr":
        return folder
    if folder.is_file():
        raise ConfigError("the output is a file", slide=str(folder), remedy=f"pass a folder or a name in {SUFFIX}")
    return folder / bag_name(slide.name)
