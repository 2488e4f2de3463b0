"""The command ``convert``: bags to the layouts of other tools, and their coordinates to bags."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slideio_pipe import options
from slideio_pipe.errors import ConfigError
from slideio_pipe.terminal import print_json, reported, say

# Each command imports what it needs: --help should not wait for it.
if TYPE_CHECKING:
    from slideio_pipe.foreign import Converted
    from slideio_pipe.store import StoredBag

Sources = Annotated[
    list[Path], typer.Argument(help="Bags (.bag.zarr); with --from, files of coordinates (.h5).", metavar="BAG|H5…")
]
To = Annotated[
    str | None,
    typer.Option("--to", metavar="LAYOUT", help="clam, trident, stamp, torchmil, webdataset, memmap or hf."),
]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="clam|trident", help="Make bags of pixels from the coordinates of these tools."),
]
Folder = Annotated[
    Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where it goes.", rich_help_panel=options.OUTPUT)
]
Features = Annotated[
    Path | None,
    typer.Option("--features", metavar="FOLDER", help="<slide>.npy, .pt or .h5 with a row for each tile of the bag."),
]
Encoder = Annotated[
    str,
    typer.Option(
        "--encoder", metavar="NAME", help="Whose features they are; without --features, those beside the pixels."
    ),
]
Slides = Annotated[
    Path | None,
    typer.Option("--slides", "--slide", metavar="PATH", help="With --from: the slide, or the folder of slides."),
]
Level0Size = Annotated[
    int | None,
    typer.Option("--tile-size-level0", metavar="px", help="With --from, where the file does not say: side at level 0."),
]
Size = Annotated[
    int | None, typer.Option("--tile-size", metavar="px", help="With --from: side of a tile, if not the file's.")
]


@reported
def convert(
    sources: Sources,
    to: To = None,
    source: From = None,
    folder: Folder = Path(),
    features: Features = None,
    encoder: Encoder = "features",
    slides: Slides = None,
    tile_size: Size = None,
    tile_size_level0: Level0Size = None,
    slide_mpp: options.SlideMpp = None,
    pixels: options.Pixels = None,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write bags in the layout of another MIL tool, or make bags from coordinates of CLAM or TRIDENT.

    Example: [bold]slideio-pipe convert bags/*.bag.zarr --to trident --out job/[/]

    Example: [bold]slideio-pipe convert patches/*.h5 --from clam --slides slides/ --out bags/[/]
    """
    if (to is None) == (source is None):
        raise ConfigError("one of --to and --from is needed", remedy="pass --to clam, or --from clam with --slides")
    progress = False if as_json else None
    sizes = {"--tile-size": tile_size, "--tile-size-level0": tile_size_level0}
    only = {"--slides": slides, **sizes, "--slide-mpp": slide_mpp, "--pixels": pixels}
    unused = [name for name, value in only.items() if value is not None]
    if to is not None and unused:
        raise ConfigError(f"{' and '.join(unused)} with --to", remedy="leave it out: it is for --from")
    if to is not None:
        from slideio_pipe.foreign import convert as write

        more: dict[str, Any] = {"overwrite": overwrite, "threads": threads, "progress": progress}
        done = write(sources, to, folder, features=features, encoder=encoder, **more)
        _print_converted(done, as_json)
        return
    assert source is not None
    how: dict[str, Any] = {"tile_size": tile_size, "tile_size_level0": tile_size_level0, "slide_mpp": slide_mpp}
    store = {"pixels": pixels or "zstd", "overwrite": overwrite, "threads": threads, "progress": progress}
    bags = [_import(file, source, slides, folder, how, store) for file in sources]
    if as_json:
        print_json([{"slide": bag.name, "bag": str(bag.path), "tiles": len(bag)} for bag in bags])
        return
    for bag in bags:
        say(f"{bag.name}: {len(bag):,} tiles of {bag.shape[1]} px; bag: {bag.path}")


def _print_converted(done: Converted, as_json: bool) -> None:
    if as_json:
        facts = {"layout": done.layout, "bags": done.bags, "tiles": done.tiles, "left_out": list(done.left_out)}
        print_json(facts | {"paths": [str(path) for path in done.paths]})
        return
    say(f"{done.layout}: {done.tiles:,} tiles of {done.bags:,} bag{'' if done.bags == 1 else 's'}")
    for path in done.paths[:5]:
        say(f"  {path}")
    if len(done.paths) > 5:
        say(f"  and {len(done.paths) - 5:,} more")


def _import(
    file: Path, source: str, slides: Path | None, folder: Path, how: dict[str, Any], store: dict[str, Any]
) -> StoredBag:
    """Make the bag of one file of coordinates."""
    from slideio_pipe.export import bag_path
    from slideio_pipe.foreign import from_clam, from_trident
    from slideio_pipe.slide import open_slide
    from slideio_pipe.store import save_bag

    readers = {"clam": from_clam, "trident": from_trident}
    if source not in readers:
        raise ConfigError(f"no coordinates of {source!r}", remedy="pass --from clam or --from trident")
    if slides is None:
        raise ConfigError("coordinates have no pixels", slide=str(file), remedy="pass --slides")
    sizes = {name: value for name, value in how.items() if name != "slide_mpp"}
    with open_slide(_slide_of(file, slides), slide_mpp=how["slide_mpp"]) as slide:
        bag = readers[source](file, slide, **sizes)
        return save_bag(bag, bag_path(slide, folder), **store)


def _slide_of(file: Path, slides: Path) -> Path:
    """Return the slide that a file of coordinates is named after."""
    from slideio_pipe.foreign.converting import stem_of

    if not slides.is_dir() or slides.suffix == ".zarr":
        return slides
    stem = file.stem.removesuffix("_patches")
    found = sorted(path for path in slides.iterdir() if stem in (path.name, stem_of(path.name)))
    if len(found) != 1:
        what = "no slide" if not found else f"{len(found)} slides"
        raise ConfigError(f"{what} in {slides} called {stem}", slide=str(file), remedy="pass --slide with its path")
    return found[0]
