"""One slide to one bag on disk: open, find tissue, lay the grid, save; configured by one record."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideio_pipe import picture
from slideio_pipe.bag import Label, TileBag
from slideio_pipe.config import ExportConfig
from slideio_pipe.errors import ConfigError, NoTissueError, OutputError
from slideio_pipe.progress import Report
from slideio_pipe.slide import Slide, open_slide
from slideio_pipe.store import StoredBag, save_bag
from slideio_pipe.tiling import TileGrid
from slideio_pipe.tissue import TissueMask, find_tissue

SUFFIX = ".bag.zarr"


@dataclass(frozen=True)
class Exported:
    """What an export made, and how long it took."""

    bag: StoredBag
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return the outcome, JSON-able."""
        stored = sum(file.stat().st_size for file in self.bag.path.rglob("*") if file.is_file())
        mpp = self.bag.view_mpp
        return {
            "bag": str(self.bag.path),
            "slide": self.bag.name,
            "tiles": len(self.bag),
            "tile_size": self.bag.shape[1],
            "mpp": None if mpp is None else list(mpp),
            "bytes": stored,
            "seconds": round(self.seconds, 3),
            "tiles_per_second": round(len(self.bag) / max(self.seconds, 1e-9), 1),
        }


def export_slide(
    path: str | Path,
    out: str | Path | None = None,
    config: ExportConfig | None = None,
    *,
    label: Label = None,
    tissue_file: str | Path | None = None,
    picture_file: str | Path | None = None,
    overwrite: bool = False,
    allow_empty: bool = False,
    threads: int | None = None,
    progress: Report | bool | None = None,
) -> Exported:
    """Write the tissue tiles of a slide into a bag store.

    Parameters
    ----------
    path : str or Path
        The slide.
    out : str or Path, optional
        The ``.bag.zarr`` to make, or the folder to make ``<slide>.bag.zarr`` in; by default the current folder.
    config : ExportConfig, optional
        Resolution, tissue, grid and codec.
    label : int, float or str, optional
        Stored with the bag.
    tissue_file : str or Path, optional
        A GeoJSON (QuPath) or PNG tissue mask to use instead of finding tissue.
    picture_file : str or Path, optional
        Where to draw the slide with its tissue and tiles, and a montage of the bag.
    overwrite : bool
        Replace an existing bag.
    allow_empty : bool
        Write a bag of no tiles when there is no tissue, instead of failing.
    threads : int, optional
        Threads that decode and encode; by default all cores.
    progress : callable, bool or None
        See ``progress.reporting``.

    Raises
    ------
    NoTissueError
        No tile has enough tissue and ``allow_empty`` is False.
    SlideioPipeError
        Whatever opening, reading or writing may raise; nothing is left under the final name.

    Examples
    --------
    >>> import tempfile
    >>> from slideio_pipe.synthetic import write_synthetic_slide
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = write_synthetic_slide(folder / "a.svs", size=(2048, 1536), seed=3)
    >>> export_slide(folder / "a.svs", folder, label=1).bag.path.name
    'a.bag.zarr'
    """
    config = config or ExportConfig()
    started = time.perf_counter()
    with open_slide(path, slide_mpp=config.slide.slide_mpp, backend=config.slide.backend) as slide:
        bag = plan_bag(slide, config, label=label, tissue_file=tissue_file)
        if not len(bag) and not allow_empty:
            raise NoTissueError(
                f"no tile of {bag.shape[1]} px has {config.grid.min_tissue:.0%} tissue",
                slide=slide.name,
                remedy="lower min_tissue, give a mask, use tissue method none, or allow an empty bag",
            )
        target = bag_path(slide, out)
        stored = save_bag(
            bag, target, pixels=config.store.pixels, overwrite=overwrite, threads=threads, progress=progress
        )
        if picture_file is not None:
            _draw(bag, Path(picture_file))
    return Exported(stored, time.perf_counter() - started)


def plan_bag(
    slide: Slide, config: ExportConfig, *, label: Label = None, tissue_file: str | Path | None = None
) -> TileBag:
    """Return the bag an export would write: tissue found and grid laid, no tile decoded yet."""
    view = slide.view(mpp=config.view.mpp)
    tissue = _tissue(slide, config, tissue_file)
    return TileBag(view, TileGrid(view, tissue=tissue, **config.grid.model_dump()), label=label)


def bag_path(slide: Slide, out: str | Path | None) -> Path:
    """Return where the bag of a slide goes: ``out`` itself if it ends in .zarr, else a name of the slide's below it."""
    folder = Path.cwd() if out is None else Path(out).expanduser()
    if folder.suffix == ".zarr":
        return folder
    if folder.is_file():
        raise ConfigError("the output is a file", slide=str(folder), remedy=f"pass a folder or a name in {SUFFIX}")
    stem = slide.name.removesuffix(".tif").removesuffix(".tiff").removesuffix(".ome")
    return folder / f"{Path(stem).stem if '.' in stem else stem}{SUFFIX}"


def _draw(bag: TileBag, file: Path) -> None:
    try:
        picture.beside([bag.grid.plot(800), bag.plot(25, 118)]).save(file)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot be written ({error})", slide=str(file), remedy="end it in .png or .jpg") from error


def _tissue(slide: Slide, config: ExportConfig, tissue_file: str | Path | None) -> TissueMask | None:
    if tissue_file is not None:
        file = Path(tissue_file)
        if file.suffix.lower() in (".geojson", ".json"):
            return TissueMask.from_geojson(file, slide, mpp=config.tissue.mpp)
        return TissueMask.from_png(file, slide)
    if config.tissue.method == "none":
        return None
    return find_tissue(slide, method=config.tissue.method, mpp=config.tissue.mpp)
