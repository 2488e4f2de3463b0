"""The command line: every command a thin layer over the Python API, errors as one line and exit code 2."""

from __future__ import annotations

import functools
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from slideio_pipe import __version__
from slideio_pipe.config import ExportConfig, checked, load_config
from slideio_pipe.errors import (
    ConfigError,
    NoTissueError,
    OutputError,
    OutputExistsError,
    SlideioPipeError,
    SlideioPipeWarning,
)
from slideio_pipe.geometry import magnification_to_mpp

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    name="slideio-pipe",
    help="Gigapixel pathology slides to tile bags and normalised float16 batches.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
out, err = Console(highlight=False), Console(stderr=True, highlight=False)

SlideArgument = Annotated[Path, typer.Argument(metavar="SLIDE", help="A slide: SVS, TIFF, NDPI, MRXS, DICOM, zarr…")]
SlideMpp = Annotated[
    float | None,
    typer.Option("--slide-mpp", help="µm per level-0 pixel, when the file does not say or lies.", show_default=False),
]
BackendOption = Annotated[str, typer.Option("--backend", help="auto, tiff, openslide or array.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else there.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


class EdgeChoice(StrEnum):
    """What happens at the right and lower edge."""

    drop = "drop"
    shift = "shift"
    pad = "pad"


def main() -> None:
    """Run the command line."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # our errors say it better
    app()


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Turn our errors into one line on standard error and exit code 2, our warnings into one line each."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _plain_warnings():
                return command(*args, **kwargs)
        except SlideioPipeError as error:
            err.print(f"[bold red]error[/]: {_escape(str(error))}", soft_wrap=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            err.print("interrupted; run the same command again to go on")
            raise typer.Exit(130) from None

    return run


@contextmanager
def _plain_warnings() -> Iterator[None]:
    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        err.print(f"[yellow]warning[/]: {_escape(str(message))}", soft_wrap=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", SlideioPipeWarning)
        warnings.showwarning = show
        yield


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"slideio-pipe {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Gigapixel pathology slides to tile bags and normalised float16 batches."""
    del version


@app.command()
@reported
def info(
    slide: SlideArgument,
    mpp: Annotated[float | None, typer.Option(help="Resolution of the memory estimate, µm per pixel.")] = None,
    slide_mpp: SlideMpp = None,
    backend: BackendOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show levels, resolution, vendor, and the memory the whole slide would take.

    Example: [bold]slideio-pipe info a.svs --mpp 0.5[/]
    """
    from slideio_pipe.slide import open_slide

    with open_slide(slide, slide_mpp=slide_mpp, backend=backend) as opened:
        facts = opened.facts
        view = opened.view(mpp=mpp)
        memory = view.memory_bytes()
        if as_json:
            _print_json(
                {
                    "name": opened.name,
                    "dimensions": list(opened.dimensions),
                    "mpp": None if opened.mpp is None else list(opened.mpp),
                    "mpp_source": opened.mpp_source,
                    "objective_power": facts.objective_power,
                    "vendor": opened.vendor,
                    "backend": facts.backend,
                    "fingerprint": opened.fingerprint,
                    "levels": [
                        {"size": list(size), "downsample": list(down), "tile": list(tile)}
                        for size, down, tile in zip(
                            opened.level_dimensions, opened.level_downsamples, opened.tile_sizes, strict=True
                        )
                    ],
                    "associated": list(facts.associated),
                    "icc_profile_bytes": 0 if facts.icc_profile is None else len(facts.icc_profile),
                    "view": {"size": list(view.size), "mpp": None if view.mpp is None else list(view.mpp)},
                    "memory_bytes": memory,
                    "properties": dict(facts.properties),
                }
            )
            return
        table = _table(opened.name, opened.describe())
        at = "level 0" if mpp is None else f"{mpp:g} µm"
        sizes = ", ".join(f"{_size(n)} in {name}" for name, n in memory.items())
        table.add_row(f"memory at {at}", f"{view.size.width:,} × {view.size.height:,} px: {sizes}")
        out.print(table)


@app.command()
@reported
def tissue(
    slide: SlideArgument,
    save: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the mask: .geojson (QuPath) or .png.", show_default=False)
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Write a picture of the slide with tissue outlined.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option(help="otsu, threshold or none.")] = "otsu",
    mpp: Annotated[float, typer.Option(help="Resolution of the mask, µm per pixel.")] = 8.0,
    slide_mpp: SlideMpp = None,
    overwrite: Overwrite = False,
    as_json: JsonOption = False,
) -> None:
    """Find tissue, and write it for QuPath, as a mask, or as a picture.

    Example: [bold]slideio-pipe tissue a.svs --out a.geojson --picture a.png[/]
    """
    from slideio_pipe.slide import open_slide
    from slideio_pipe.tissue import find_tissue

    if save is not None and save.suffix.lower() not in (".png", ".geojson", ".json"):
        raise ConfigError(f"no mask format {save.suffix!r}", slide=str(save), remedy="end it in .geojson or .png")
    if picture is not None and picture.exists() and not overwrite:
        raise OutputExistsError("is there already", slide=str(picture), remedy="pass --overwrite")
    with open_slide(slide, slide_mpp=slide_mpp) as opened:
        mask = find_tissue(opened, method=method, mpp=mpp)
        if mask.is_empty:
            raise NoTissueError("no tissue found", slide=opened.name, remedy="try --method threshold, or another --mpp")
        if save is not None:
            (mask.to_png if save.suffix.lower() == ".png" else mask.to_geojson)(save, overwrite=overwrite)
        if picture is not None:
            _save_picture(mask.plot(opened), picture)
    summary = {
        "slide": mask.slide_name,
        "fraction": round(mask.fraction, 4),
        "area_mm2": round(mask.area_um2 / 1e6, 3),
        "method": mask.method,
        "mask": None if save is None else str(save),
        "picture": None if picture is None else str(picture),
    }
    if as_json:
        _print_json(summary)
        return
    out.print(f"{mask.slide_name}: {mask.fraction:.1%} tissue, {mask.area_um2 / 1e6:.2f} mm² ({mask.method})")
    for written in filter(None, (save, picture)):
        out.print(f"wrote {written}")


@app.command()
@reported
def export(
    slide: SlideArgument,
    save: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for <slide>.bag.zarr, or the .zarr itself. Default: here."),
    ] = None,
    mpp: Annotated[
        str | None, typer.Option(help='µm per tile pixel, or "native" for level 0.  [default: 0.5]', show_default=False)
    ] = None,
    mag: Annotated[
        float | None, typer.Option(help="Magnification instead of --mpp: 20 means 0.5 µm.", show_default=False)
    ] = None,
    tile_size: Annotated[
        int | None, typer.Option("--tile-size", "--patch-size", help="Side, px.  [default: 256]", show_default=False)
    ] = None,
    stride: Annotated[int | None, typer.Option(help="Distance between tiles, px.", show_default=False)] = None,
    overlap: Annotated[int | None, typer.Option(help="Instead of --stride, px.", show_default=False)] = None,
    edge: Annotated[EdgeChoice | None, typer.Option(help="At the right and lower edge.", show_default=False)] = None,
    min_tissue: Annotated[
        float | None, typer.Option(help="Least tissue fraction of a tile.  [default: 0.5]", show_default=False)
    ] = None,
    tissue_method: Annotated[
        str | None, typer.Option("--tissue", help="otsu, threshold or none (keep every tile).", show_default=False)
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Tissue mask to use: .geojson or .png.", show_default=False)] = None,
    pixels: Annotated[
        str | None, typer.Option(help="none (raw) or zstd (lossless).  [default: zstd]", show_default=False)
    ] = None,
    label: Annotated[str | None, typer.Option(help="Label to store with the bag.", show_default=False)] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML with any of these; options win over it.", show_default=False)
    ] = None,
    slide_mpp: SlideMpp = None,
    backend: Annotated[str | None, typer.Option(help="auto, tiff, openslide or array.", show_default=False)] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Write a picture of tissue and tiles.", show_default=False)
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: one per core.", show_default=False)] = None,
    overwrite: Overwrite = False,
    allow_empty: Annotated[bool, typer.Option(help="Write a bag of no tiles if there is no tissue.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the tissue tiles of a slide into a bag (zarr v3) with coordinates and provenance.

    Interrupted, it goes on where it stopped when run again.

    Example: [bold]slideio-pipe export a.svs --out bags/ --mpp 0.5 --tile-size 256[/]
    """
    from slideio_pipe.export import export_slide

    if mag is not None:
        if mpp is not None:
            raise ConfigError("--mag and --mpp are both given", remedy="give one of them")
        if mag <= 0:
            raise ConfigError(f"--mag {mag:g} is no magnification", remedy="pass 20, 40, …")
        mpp = str(magnification_to_mpp(mag))
        err.print(f"--mag {mag:g} means {mpp} µm per pixel")
    given: dict[str, dict[str, Any]] = {
        "slide": {"slide_mpp": slide_mpp, "backend": backend},
        "view": {"mpp": mpp},
        "tissue": {"method": tissue_method},
        "grid": {
            "tile_size": tile_size,
            "stride": stride,
            "overlap": overlap,
            "edge": None if edge is None else edge.value,
            "min_tissue": min_tissue,
        },
        "store": {"pixels": pixels},
    }
    settings = _merged(load_config(config) if config else ExportConfig(), given)
    done = export_slide(
        slide,
        save,
        settings,
        label=_number_or_text(label),
        tissue_file=mask,
        picture_file=picture,
        overwrite=overwrite,
        allow_empty=allow_empty,
        threads=threads,
        progress=False if as_json else None,
    )
    summary = done.summary()
    if as_json:
        _print_json(summary)
        return
    out.print(str(done.bag))
    out.print(
        f"wrote {done.bag.path} ({_size(summary['bytes'])}, {summary['seconds']:.1f} s, "
        f"{summary['tiles_per_second']:,.0f} tiles/s)"
    )
    out.print(f'open it with: sp.open_bag("{done.bag.path}")', markup=False)


@app.command()
@reported
def demo(
    folder: Annotated[Path, typer.Option("--out", "-o", help="Where slides, bags and picture go.")] = Path(
        "slideio-pipe-demo"
    ),
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if there is one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make two slides, export their tile bags, stream them normalised to a device, draw a picture.

    Example: [bold]slideio-pipe demo[/]
    """
    from slideio_pipe.demo import run_demo

    report = run_demo(folder, device=device, say=(lambda line: None) if as_json else out.print)
    if as_json:
        _print_json(report)
        return
    first = report["slides"][0]["bag"]
    out.print("next:", style="bold")
    out.print(f"  slideio-pipe info {report['folder']}/tumour.svs --mpp 0.5", markup=False)
    out.print("  slideio-pipe export YOUR_SLIDE.svs --out bags/", markup=False)
    out.print(f"  python -c \"import slideio_pipe as sp; print(sp.open_bag('{first}'))\"", markup=False)


@app.command()
@reported
def doctor(as_json: JsonOption = False) -> None:
    """Check the installation: packages, formats (each really read), GPU. Exit code 2 if the main job cannot run.

    Example: [bold]slideio-pipe doctor[/]
    """
    from slideio_pipe.doctor import as_json as report_of
    from slideio_pipe.doctor import examine

    findings = examine()
    if as_json:
        _print_json(report_of(findings))
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        marks = {"ok": "[green]✓[/]", "optional": "[yellow]–[/]", "problem": "[red]✗[/]"}
        group = ""
        for finding in findings:
            if finding.group != group:
                group = finding.group
                table.add_row("", f"[bold]{group}[/]", "")
            remedy = f"\n[dim]{_escape(finding.remedy)}[/]" if finding.remedy else ""
            table.add_row(marks[finding.status], finding.what, _escape(finding.found) + remedy)
        out.print(table)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(2)


def _merged(config: ExportConfig, given: dict[str, dict[str, Any]]) -> ExportConfig:
    """Return the configuration with the options that were given put over it."""
    values = config.model_dump()
    for stage, options in given.items():
        chosen = {name: value for name, value in options.items() if value is not None}
        if "stride" in chosen or "overlap" in chosen:  # one replaces the other
            values[stage] |= {"stride": None, "overlap": None}
        values[stage] |= chosen
    if values["view"]["mpp"] == "native":
        values["view"]["mpp"] = None
    return checked(ExportConfig, None, **values)


def _number_or_text(label: str | None) -> int | float | str | None:
    for kind in (int, float):
        try:
            return None if label is None else kind(label)
        except ValueError:
            continue
    return label


def _save_picture(image: Any, path: Path) -> None:
    try:
        image.save(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot be written ({error})", slide=str(path), remedy="end it in .png or .jpg") from error


def _table(title: str, facts: dict[str, str]) -> Table:
    table = Table(title=_escape(title), title_justify="left", title_style="bold", show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(f"[dim]{name}[/]", _escape(value))
    return table


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
