"""The command line: every command a thin layer over the Python API, errors as one line and exit code 2."""

from __future__ import annotations

import io
import logging
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slideio_pipe import __version__
from slideio_pipe.commands import cohort as cohort_commands
from slideio_pipe.commands import convert as foreign_commands
from slideio_pipe.commands import features as feature_commands
from slideio_pipe.commands import options
from slideio_pipe.commands import predict as predict_commands
from slideio_pipe.commands import timing as timing_commands
from slideio_pipe.commands import tissue as tissue_commands
from slideio_pipe.commands import train as train_commands
from slideio_pipe.commands.settings import mpp_of, settings_of
from slideio_pipe.commands.terminal import called_as, escape, out, print_facts, print_json, reported, say, size_text
from slideio_pipe.errors import ConfigError

# Each command imports what it needs: torch alone takes seconds, and --help should not wait for it.
if TYPE_CHECKING:
    from slideio_pipe.export.slide import Exported
    from slideio_pipe.slides.slide import Slide
    from slideio_pipe.slides.view import SlideView

app = typer.Typer(
    name="slideio-pipe",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)


def main() -> None:
    """Run the command line."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # our errors say it better
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without µ or × gets a question mark, not a traceback
    try:
        app(prog_name="slideio-pipe")
    except KeyboardInterrupt:  # before a command began: while Python was still importing
        raise SystemExit(130) from None


def _version(wanted: bool) -> None:
    if wanted:
        say(f"slideio-pipe {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Gigapixel pathology slides to tile bags and normalised float16 batches.

    Example: [bold]slideio-pipe export a.svs --out bags/[/]
    """
    del version


@app.command()
@reported
def info(
    slide: options.SlideFile,
    mpp: options.MemoryMpp = None,
    slide_mpp: options.SlideMpp = None,
    backend: options.Backend = None,
    as_json: options.Json = False,
) -> None:
    """Show levels, resolution, vendor, and the memory the whole slide would take.

    Example: [bold]slideio-pipe info a.svs --mpp 0.5[/]
    """
    from slideio_pipe.slides.slide import open_slide

    with open_slide(slide, slide_mpp=slide_mpp, backend=backend or "auto") as opened:
        view = opened.view(mpp=mpp)
        if as_json:
            print_json(_described(opened, view))
            return
        facts = opened.describe() | {"levels": "\n".join(_levels(opened))}
        at = "level 0" if view.mpp is None or mpp is None else f"{view.mpp.mean:.3g} µm"
        memory = ", ".join(f"{size_text(count)} in {dtype}" for dtype, count in view.memory_bytes().items())
        facts[f"memory at {at}"] = f"{view.size.width:,} × {view.size.height:,} px: {memory}"
        print_facts(opened.name, facts)


def _levels(slide: Slide) -> list[str]:
    lines = []
    for number, (size, (down, _)) in enumerate(zip(slide.level_dimensions, slide.pyramid.downsamples, strict=True)):
        mpp = "" if slide.mpp is None else f" at {slide.mpp.x * down:.3g} µm"
        lines.append(f"{number}: {size.width:,} × {size.height:,} px{mpp}")
    return lines


def _described(slide: Slide, view: SlideView) -> dict[str, Any]:
    facts = slide.facts
    levels = zip(slide.level_dimensions, slide.pyramid.downsamples, slide.tile_sizes, strict=True)
    return {
        "name": slide.name,
        "dimensions": list(slide.dimensions),
        "mpp": None if slide.mpp is None else list(slide.mpp),
        "mpp_source": slide.mpp_source,
        "objective_power": facts.objective_power,
        "vendor": slide.vendor,
        "backend": facts.backend,
        "fingerprint": slide.fingerprint,
        "levels": [{"size": list(s), "downsample": list(d), "tile": list(t)} for s, d, t in levels],
        "associated": list(facts.associated),
        "icc_profile_bytes": 0 if facts.icc_profile is None else len(facts.icc_profile),
        "view": {"size": list(view.size), "mpp": None if view.mpp is None else list(view.mpp)},
        "memory_bytes": view.memory_bytes(),
        "properties": dict(facts.properties),
    }


app.command()(tissue_commands.tissue)


@app.command()
@reported
def export(
    slides: options.Exported,
    mpp: options.TileMpp = None,
    mag: options.Magnification = None,
    tile_size: options.TileSize = None,
    stride: options.Stride = None,
    overlap: options.Overlap = None,
    edge: options.Edge = None,
    align: options.Align = False,
    tissue_method: options.TissueMethod = None,
    mask: options.Mask = None,
    min_tissue: options.MinTissue = None,
    allow_empty: options.AllowEmpty = False,
    mask_frame: options.MaskFrame = None,
    on_error: options.OnError = None,
    slide_mpp: options.CohortMpp = None,
    slide_mpp_override: options.CohortMppOverride = False,
    backend: options.Backend = None,
    save: options.BagFolder = None,
    pixels: options.Pixels = None,
    label: options.Label = None,
    patient: options.Patient = None,
    picture: options.Picture = None,
    config: options.Config = None,
    threads: options.Threads = None,
    workers: options.Workers = None,
    cluster: options.Cluster = None,
    time_limit: options.TimeLimit = None,
    memory_limit: options.MemoryLimit = None,
    retry: options.Retry = False,
    root: options.Root = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write the tissue tiles of slides into bags (zarr v3), with coordinates and where they come from.

    Interrupted, it goes on where it stopped when run again; what is done is kept. Of a cohort, slides that fail are
    listed in failures.csv beside the bags, the others are done, and the exit code is 1.

    Example: [bold]slideio-pipe export a.svs --out bags/ --mpp 0.5 --tile-size 256[/]

    A cohort: [bold]slideio-pipe export cohort.csv --out bags/ --workers 4[/]
    """
    from slideio_pipe.export.slide import export_slide
    from slideio_pipe.slides.frames import checked_frame

    grid = {"tile_size": tile_size, "stride": stride, "overlap": overlap, "edge": edge, "min_tissue": min_tissue}
    given: dict[str, dict[str, Any]] = {
        "slide": {
            "slide_mpp": slide_mpp,
            "slide_mpp_override": slide_mpp_override or None,
            "backend": backend,
        },
        "view": {"mpp": mpp if mag is None else mpp_of(mag, mpp)},
        "tissue": {"method": tissue_method},
        "grid": grid | {"align": align or None},
        "store": {"pixels": pixels},
    }
    settings = settings_of(slides[0], config, given)
    if workers is not None or cluster is not None or cohort_commands.is_cohort(slides):
        cohort_commands.export_many(
            slides,
            save,
            settings,
            one_slide={"--label": label, "--patient": patient, "--mask": mask, "--picture": picture},
            root=root,
            as_json=as_json,
            **cohort_commands.who_works(workers, cluster),
            threads=threads,
            time_limit_s=time_limit,
            memory_limit_gb=memory_limit,
            overwrite=overwrite,
            retry=retry,
            allow_empty=allow_empty,
            on_error=on_error or "raise",
            mask_frame=None if mask_frame is None else checked_frame(mask_frame),
        )
        return
    done = export_slide(
        slides[0],
        save,
        settings,
        label=_number_or_text(label),
        patient=patient,
        tissue_file=mask,
        mask_frame=None if mask_frame is None else checked_frame(mask_frame),
        picture_file=picture,
        overwrite=overwrite,
        keep=True,
        allow_empty=allow_empty,
        on_error=on_error or "raise",
        threads=threads,
        progress=False if as_json else None,
    )
    if as_json:
        print_json(done.summary())
    else:
        _print_export(done, picture)


def _print_export(done: Exported, picture: Path | None) -> None:
    bag, summary = done.bag, done.summary()
    at = "level 0" if bag.view_mpp is None else f"{bag.view_mpp.mean:.3g} µm per pixel"
    cost = f"{size_text(summary['bytes'])}, {done.seconds:.1f} s, {summary['tiles_per_second']:,.0f} tiles/s"
    say(f"{bag.name}: {len(bag):,} tiles of {bag.shape[1]} px at {at} ({'there already, kept' if done.kept else cost})")
    if done.covered < 0.95:
        left_out = f"{1 - done.covered:.0%} of the tissue lies in no tile"
        aligned = bag.attributes["grid"].get("align")
        more = "a lower --min-tissue keeps" if aligned else "--edge shift or pad, or a lower --min-tissue, keep"
        say(f"{left_out}; {more} more")
    if summary["pixels"].get("source"):
        say("pixels: the JPEG bytes of the slide, unchanged")
    if "psnr_db" in summary["pixels"]:
        say(_loss(**summary["pixels"]))
    say(f"bag: {bag.path}")
    if picture is not None:
        say(f"picture: {picture}")
    say(f'in Python: import slideio_pipe as sp; bag = sp.open_bag("{bag.path}")')


def _loss(quality: int, chroma: str, psnr_db: float | None, psnr_tiles: int, **_: Any) -> str:
    near = "no loss" if psnr_db is None else f"{psnr_db:.1f} dB PSNR"
    return f"JPEG of quality {quality}, {chroma}: {near} against the tiles (over {psnr_tiles:,} of them)"


@app.command()
@reported
def demo(
    folder: options.DemoFolder = Path("slideio-pipe-demo"),
    cohort: options.DemoCohort = False,
    mil: options.DemoMil = False,
    laboratory: options.DemoLaboratory = "usual",
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Try it, in about a minute: make two slides, export their bags, stream them to a device, draw a picture.

    With --cohort: make 24 small slides, three of them broken, export them with two workers, convert the bags, and
    show it all in a report. That three slides fail is meant, and the exit code 0.

    With --mil: make 40 slides, half of them with a lesion of 2 % of the tissue, and a table with what a model can be
    trained for; it takes two minutes. The trainings of configs/ run on them. With --laboratory, those of
    them that test, as another laboratory would have stained them.

    Example: [bold]slideio-pipe demo[/]

    A cohort: [bold]slideio-pipe demo --cohort[/]
    """
    if cohort and mil:
        raise ConfigError("--cohort and --mil are both given", remedy="give one of them")
    if laboratory != "usual" and not mil:
        raise ConfigError("--laboratory without --mil", remedy="add --mil: the other demos are of one laboratory")
    if (cohort or mil) and device is not None:
        remedy = "leave it out: nothing is streamed"
        raise ConfigError(f"--device with {'--cohort' if cohort else '--mil'}", remedy=remedy)
    if mil:
        cohort_commands.demo_mil(folder, laboratory, as_json=as_json)
        return
    if cohort:
        cohort_commands.demo_cohort(folder, as_json=as_json)
        return
    from slideio_pipe.commands.demos.slides import run_demo

    if as_json:
        print_json(run_demo(folder, device=device, say=lambda line: None, progress=False))
        return
    report = run_demo(folder, device=device, say=say)
    bag = folder / Path(report["slides"][1]["bag"]).name
    called = called_as()
    say("next:", style="bold")
    say(f"  {called} info {folder}/tumour.svs --mpp 0.5")
    say(f"  {called} export YOUR_SLIDE.svs --out bags/")
    say(f'  in Python: import slideio_pipe as sp; bag = sp.open_bag("{bag}")')


@app.command()
@reported
def doctor(as_json: options.Json = False) -> None:
    """Check the installation: packages, formats (each really read), GPU. Exit code 2 if the main job cannot run.

    Example: [bold]slideio-pipe doctor[/]
    """
    from slideio_pipe.commands.doctor import as_json as report_of
    from slideio_pipe.commands.doctor import examine

    findings = examine()
    if as_json:
        print_json(report_of(findings))
    else:
        marks = {"ok": "[green]✓[/]", "optional": "[yellow]–[/]", "problem": "[red]✗[/]"}
        group = ""
        for finding in findings:
            if finding.group != group:
                group = finding.group
                out.print(f"[bold]{group}[/]")
            line = f"{marks[finding.status]} {escape(finding.what):<40}{escape(finding.found)}"
            out.print(line, soft_wrap=True)
            if finding.remedy:
                out.print(f"  [dim]{escape(finding.remedy)}[/]", soft_wrap=True)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(2)


app.command()(cohort_commands.split)
app.command()(feature_commands.features)
app.command()(train_commands.train)
app.command()(predict_commands.predict)
app.command()(foreign_commands.convert)
app.command()(timing_commands.bench)
app.command()(timing_commands.profile)


def _number_or_text(label: str | None) -> int | float | str | None:
    """Return a label as the number it is written as; "007" and "nan" are texts."""
    if label is None:
        return None
    if re.fullmatch(r"[+-]?(0|[1-9][0-9]*)", label):
        return int(label)
    if re.fullmatch(r"[+-]?(0|[1-9][0-9]*)\.[0-9]+([eE][+-]?[0-9]+)?", label) and math.isfinite(float(label)):
        return float(label)
    return label
