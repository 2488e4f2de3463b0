"""``slideio-pipe info``: levels, resolution and metadata of a slide; a line for each of a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from slideio_pipe.commands import cohort as cohort_commands
from slideio_pipe.commands import options
from slideio_pipe.commands.exit_codes import ExitCode
from slideio_pipe.commands.terminal import print_facts, print_failure, print_json, reported, say
from slideio_pipe.errors import SlideioPipeError
from slideio_pipe.files import size_text

if TYPE_CHECKING:
    from slideio_pipe.slides.slide import Slide
    from slideio_pipe.slides.view import SlideView


@reported
def info(
    slide: options.InfoFile,
    mpp: options.MemoryMpp = None,
    slide_mpp: options.SlideMpp = None,
    backend: options.Backend = None,
    as_json: options.Json = False,
) -> None:
    """Show levels, resolution, vendor, and the memory the whole slide would take; a line for each of a cohort.

    Example: [bold]slideio-pipe info a.svs --mpp 0.5[/]

    A folder: [bold]slideio-pipe info slides/[/]
    """
    from slideio_pipe.slides.slide import open_slide

    if cohort_commands.is_cohort([slide]):
        _info_of_many(slide, mpp, slide_mpp, backend or "auto", as_json)
        return
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


def _info_of_many(source: Path, mpp: float | None, slide_mpp: float | None, backend: str, as_json: bool) -> None:
    """Print a line for each slide of a cohort; exit code 1 if some cannot be opened."""
    from slideio_pipe.slides.config import SlideConfig
    from slideio_pipe.slides.slide import open_slide

    described: list[dict[str, Any]] = []
    failed: list[tuple[str, Exception]] = []
    for each in cohort_commands.cohort_of([source], None):
        try:
            settings = SlideConfig(slide_mpp=slide_mpp).in_cohort(each.mpp)
            with open_slide(str(each.source), **settings, backend=backend) as opened:
                described.append(_described(opened, opened.view(mpp=mpp)) | {"name": each.name})
                if not as_json:
                    width, height = opened.dimensions
                    at = "no mpp" if opened.mpp is None else f"{opened.mpp.mean:.4g} µm"
                    levels = f"{len(opened.level_dimensions)} level{'' if len(opened.level_dimensions) == 1 else 's'}"
                    say(f"{each.name}: {width:,} × {height:,} px, {at}, {levels}, {opened.vendor}")
        except SlideioPipeError as error:
            failed.append((each.name, error))
    if as_json:
        print_json({"slides": described, "failed": {name: str(reason) for name, reason in failed}})
    else:
        for name, reason in failed:
            print_failure(name, reason)
    if failed:
        raise typer.Exit(ExitCode.SOME_FAILED)


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
