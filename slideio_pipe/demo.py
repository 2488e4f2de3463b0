"""The main job on two generated slides, start to end, with a picture of what was done: ``slideio-pipe demo``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from slideio_pipe import picture
from slideio_pipe.bag import TileBag
from slideio_pipe.config import ExportConfig, GridConfig, StoreConfig, ViewConfig
from slideio_pipe.device import Normalize
from slideio_pipe.errors import OutputError
from slideio_pipe.export import Exported, bag_path, plan_bag
from slideio_pipe.slide import Slide, open_slide
from slideio_pipe.store import StoredBag, save_bag
from slideio_pipe.streaming import stream
from slideio_pipe.synthetic import write_synthetic_slide

Say = Callable[[str], object]

PICTURE = "demo.png"
_SIZE = (12_288, 9216)
_CONFIG = ExportConfig(
    view=ViewConfig(mpp=0.5),
    grid=GridConfig(tile_size=256, min_tissue=0.5),
    store=StoreConfig(pixels="zstd"),
)


@dataclass(frozen=True)
class Streamed:
    """What went through the stream."""

    tiles: int
    seconds: float
    mean: float  # of all normalised values, to show that they are normalised
    std: float


def run_demo(folder: Path, *, size: tuple[int, int] = _SIZE, device: str | None = None, say: Say) -> dict[str, Any]:
    """Make two slides in ``folder``, export their bags, stream them to a device, and draw what happened.

    Parameters
    ----------
    folder : Path
        Made if missing; slides and bags already there are kept.
    size : (int, int)
        Width and height of the slides, px at 0.25 µm.
    device : str, optional
        Where batches go: by default CUDA if there is one, else the CPU.
    say : callable
        Called with one line of text per step.

    Returns
    -------
    dict
        The numbers, JSON-able.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot be made ({error.strerror})", slide=str(folder), remedy="pass another folder with --out"
        ) from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    report: dict[str, Any] = {"folder": str(folder), "device": device, "slides": []}
    panels = []
    for name, seed, lesions in (("healthy", 1, 0), ("tumour", 2, 3)):
        path = _slide(folder / f"{name}.svs", size, seed, lesions, say)
        started = time.perf_counter()
        with open_slide(path) as slide:
            bag = plan_bag(slide, _CONFIG, label=int(lesions > 0))
            stored = save_bag(bag, bag_path(slide, folder), pixels=_CONFIG.store.pixels, overwrite=True)
            exported = Exported(stored, time.perf_counter() - started)
            panels.append(_panel(slide, bag))
        summary = exported.summary()
        say(
            f"  exported {summary['tiles']:,} tiles of 256 px at 0.5 µm to {stored.path.name} "
            f"({summary['bytes'] / 1e6:.0f} MB, {summary['tiles_per_second']:,.0f} tiles/s)"
        )
        streamed = _stream(stored, device)
        rate = streamed.tiles / streamed.seconds
        say(
            f"  streamed them to {device} as normalised float16: {rate:,.0f} tiles/s "
            f"(mean {streamed.mean:+.2f}, std {streamed.std:.2f})"
        )
        report["slides"].append(summary | {"label": stored.label, "streamed_tiles_per_second": round(rate, 1)})
    drawn = folder / PICTURE
    picture.above(panels).save(drawn)
    say(f"picture: {drawn}")
    return report | {"picture": str(drawn)}


def _slide(path: Path, size: tuple[int, int], seed: int, lesions: int, say: Say) -> Path:
    if path.exists():
        say(f"{path.name} is there already")
        return path
    started = time.perf_counter()
    write_synthetic_slide(path, size=size, seed=seed, lesions=lesions)
    seconds = time.perf_counter() - started
    say(f"made {path.name}: {size[0]:,} × {size[1]:,} px at 0.25 µm, {lesions} lesions ({seconds:.1f} s)")
    return path


def _stream(bag: StoredBag, device: str) -> Streamed:
    tiles, total, squares = 0, 0.0, 0.0
    started = time.perf_counter()
    with stream(bag, batch_size=128, device=device, normalize=Normalize.imagenet()) as batches:
        for batch in batches:
            tiles += len(batch)
            sample = batch.tiles[0].float()  # one tile a batch is enough to see that it is normalised
            total += float(sample.mean()) * len(batch)
            squares += float(sample.square().mean()) * len(batch)
    seconds = time.perf_counter() - started
    mean = total / max(1, tiles)
    return Streamed(tiles, seconds, mean, max(0.0, squares / max(1, tiles) - mean**2) ** 0.5)


def _panel(slide: Slide, bag: TileBag) -> Image.Image:
    """Draw one row: slide, tissue and grid, montage."""
    mask = bag.grid.mask
    tissue = "" if mask is None else f", {mask.fraction:.0%} of the slide is tissue"
    return picture.beside(
        [
            picture.captioned(slide.plot(640), f"{slide.name}, label {bag.label}"),
            picture.captioned(bag.grid.plot(640), f"{len(bag):,} tiles{tissue}"),
            picture.captioned(bag.plot(20, 118), "tiles of the bag, 0.5 µm per pixel"),
        ]
    )
