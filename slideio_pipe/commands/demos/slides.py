"""``slideio-pipe demo``: export and stream two generated slides, with a picture of the result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slideio_pipe.export.config import ExportConfig
from slideio_pipe.export.preview import sheet
from slideio_pipe.export.slide import Exported, bag_path, plan_bag
from slideio_pipe.files import make_folder
from slideio_pipe.images import picture
from slideio_pipe.images.picture import save_picture
from slideio_pipe.progress import reporting
from slideio_pipe.slides.config import ViewConfig
from slideio_pipe.slides.slide import open_slide
from slideio_pipe.store import StoredBag, save_bag
from slideio_pipe.store.config import StoreConfig
from slideio_pipe.streaming.device import check_device
from slideio_pipe.streaming.normalize import Normalize
from slideio_pipe.streaming.stream import TileBatch, stream
from slideio_pipe.synthetic.slide import write_synthetic_slide
from slideio_pipe.tiles.config import GridConfig

Say = Callable[[str], object]

PICTURE = "demo.png"
_SIZE = (12_288, 9216)
_CONFIG = ExportConfig(
    view=ViewConfig(mpp=0.5), grid=GridConfig(tile_size=256, min_tissue=0.5), store=StoreConfig(pixels="zstd")
)


@dataclass(frozen=True)
class Streamed:
    """Numbers of the streaming."""

    tiles: int
    seconds: float
    largest_error: float  # largest error of the first batch against the formula in float64

    @property
    def per_second(self) -> float:
        """Tiles per second."""
        return self.tiles / max(self.seconds, 1e-9)


def run_demo(
    folder: Path, *, size: tuple[int, int] = _SIZE, device: str | None = None, say: Say, progress: bool | None = None
) -> dict[str, Any]:
    """Make two slides in ``folder``, export their bags, stream them to a device, and draw the result.

    Parameters
    ----------
    folder : Path
        Created if missing. Existing slides are reused; bags and picture are written again.
    size : (int, int)
        Width and height of the slides, px at 0.25 µm.
    device : str, optional
        Device of the batches: by default CUDA if available, else the CPU.
    say : callable
        Called with one line of text per step.
    progress : bool, optional
        See ``progress.reporting``.

    Returns
    -------
    dict
        The numbers as JSON values.

    Raises
    ------
    ConfigError
        There is no such device.
    OutputError
        The folder cannot be written.
    """
    target = check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    make_folder(folder)
    slides, panels = [], []
    for name, seed, lesions in (("healthy", 1, 0), ("tumour", 2, 3)):
        path = folder / f"{name}.svs"
        _make_slide(path, size, seed, lesions, say, progress)
        started = time.perf_counter()
        with open_slide(path) as slide:
            bag = plan_bag(slide, _CONFIG, label=int(lesions > 0))
            stored = save_bag(
                bag, bag_path(slide, folder), pixels=_CONFIG.store.pixels, overwrite=True, progress=progress
            )
            exported = Exported(stored, time.perf_counter() - started, bag.grid.covered())
            panels.append(sheet(slide, bag))
        summary = exported.summary()
        say(
            f"  exported {summary['tiles']:,} tiles of 256 px at 0.5 µm to {stored.path.name} "
            f"({summary['bytes'] / 1e6:.0f} MB, {summary['tiles_per_second']:,.0f} tiles/s)"
        )
        streamed = _stream(stored, target)
        say(
            f"  streamed them to {target} as float16 batches with ImageNet normalisation "
            f"({streamed.per_second:,.0f} tiles/s, largest rounding error {streamed.largest_error:.1g})"
        )
        rate = round(streamed.per_second, 1)
        slides.append(summary | {"label": stored.label, "streamed_tiles_per_second": rate})
    drawn = folder / PICTURE
    save_picture(picture.above(panels), drawn, overwrite=True)
    say(f"picture of both: {drawn}")
    return {"folder": str(folder), "device": str(target), "slides": slides, "picture": str(drawn)}


def _make_slide(path: Path, size: tuple[int, int], seed: int, lesions: int, say: Say, progress: bool | None) -> None:
    if path.exists():
        say(f"{path.name} is there already")
        return
    started = time.perf_counter()
    with reporting(progress, f"making {path.name}") as report:
        write_synthetic_slide(path, size=size, seed=seed, lesions=lesions, progress=report)
    seconds = time.perf_counter() - started
    say(f"made {path.name}: {size[0]:,} × {size[1]:,} px at 0.25 µm, {lesions} lesions ({seconds:.1f} s)")


def _stream(bag: StoredBag, device: torch.device) -> Streamed:
    normalize = Normalize.imagenet()
    tiles, largest_error, checking = 0, 0.0, 0.0
    started = time.perf_counter()
    with stream(bag, batch_size=128, device=device, normalize=normalize) as batches:
        for batch in batches:
            if not tiles:
                before = time.perf_counter()
                largest_error = _largest_error(bag, batch, normalize)
                checking = time.perf_counter() - before
            tiles += len(batch)
    return Streamed(tiles, time.perf_counter() - started - checking, largest_error)


def _largest_error(bag: StoredBag, batch: TileBatch, normalize: Normalize) -> float:
    """Return the largest difference of the batch's first tiles from ((x/255) − mean)/std of the stored bytes."""
    found = batch.tiles[:4].double().cpu().numpy().transpose(0, 2, 3, 1)
    exact = (bag[: len(found)] / 255 - np.array(normalize.mean)) / np.array(normalize.std)
    return float(np.abs(found - exact).max())
