"""The command ``tissue``: find the tissue of one slide or of a cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from slideio_pipe.commands import cohort as cohort_commands
from slideio_pipe.commands import options
from slideio_pipe.commands.exit_codes import ExitCode
from slideio_pipe.commands.options import settings_of
from slideio_pipe.commands.terminal import print_json, reported, say, shown
from slideio_pipe.errors import ConfigError, NoTissueError

if TYPE_CHECKING:
    from slideio_pipe.export.config import ExportConfig


@reported
def tissue(
    slides: options.Exported,
    method: options.Method = None,
    mpp: options.MaskMpp = None,
    save: options.MaskFile = None,
    form: options.MaskForm = None,
    manifest: options.MaskManifest = None,
    frame: options.OutputFrame = None,
    picture: options.Picture = None,
    config: options.Config = None,
    slide_mpp: options.CohortMpp = None,
    slide_mpp_override: options.CohortMppOverride = False,
    backend: options.Backend = None,
    on_error: options.OnError = None,
    workers: options.Workers = None,
    cluster: options.Cluster = None,
    time_limit: options.TimeLimit = None,
    memory_limit: options.MemoryLimit = None,
    retry: options.Retry = False,
    slide_folder: options.SlidesOfTable = None,
    clinical: options.Clinical = None,
    column: options.ColumnNames = None,
    root: options.Root = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Find tissue, and write it as GeoJSON for QuPath, as a mask, or as a picture.

    In a cohort, every slide gets a file that can be corrected; --manifest lists them for export. Run it again after an
    interruption to continue.

    Example: [bold]slideio-pipe tissue a.svs --out a.geojson --picture a.png[/]

    A cohort: [bold]slideio-pipe tissue cohort.csv --out masks/ --manifest corrected.csv --workers 4[/]
    """
    from slideio_pipe.files import make_folder
    from slideio_pipe.images.picture import picture_path, save_picture
    from slideio_pipe.slides.frames import checked_frame
    from slideio_pipe.slides.slide import open_slide
    from slideio_pipe.tiles.find_tissue import find_tissue

    opening = {"slide_mpp": slide_mpp, "slide_mpp_override": slide_mpp_override or None, "backend": backend}
    given = {"slide": opening, "tissue": {"method": method, "mpp": mpp}}
    settings = settings_of(slides[0], config, given)
    tables = cohort_commands.table_options(slide_folder, clinical, column)
    if workers is not None or cluster is not None or tables or cohort_commands.is_cohort(slides):
        _find_many(
            slides,
            save,
            settings,
            picture,
            root,
            tables,
            as_json,
            form=form or "geojson",
            manifest=manifest,
            **cohort_commands.worker_options(workers, cluster),
            time_limit_s=time_limit,
            memory_limit_gb=memory_limit,
            overwrite=overwrite,
            retry=retry,
            on_error=on_error or "raise",
            frame=frame or "qupath",
        )
        return
    if form is not None or manifest is not None:
        raise ConfigError("--format and --manifest are for a cohort", remedy="pass --out a.geojson, or a.png")
    if save is not None and save.suffix.lower() not in (".png", ".geojson", ".json"):
        raise ConfigError("no mask has this ending", slide=str(save), remedy="end it in .geojson or .png")
    checked_frame(frame or "qupath")
    if picture is not None:
        picture_path(picture, overwrite=overwrite)
    with open_slide(slides[0], slide_mpp=settings.slide.slide_mpp, backend=settings.slide.backend) as opened:
        mask = find_tissue(opened, **settings.tissue.model_dump(), on_error=on_error or "raise")
        if mask.is_empty:
            remedy = "try --method threshold, another --mpp, or a threshold in the tissue section of a --config"
            raise NoTissueError("no tissue found", slide=opened.name, remedy=remedy)
        if save is not None:
            make_folder(save.parent)
            if save.suffix.lower() == ".png":
                mask.to_png(save, overwrite=overwrite)
            else:
                mask.to_geojson(save, overwrite=overwrite, frame=checked_frame(frame or "qupath"))
        if picture is not None:
            save_picture(mask.plot(opened), picture, overwrite=overwrite)
    written = {what: str(file) for what, file in (("mask", save), ("picture", picture)) if file is not None}
    if as_json:
        fraction, area = round(mask.fraction, 4), round(mask.area_um2 / 1e6, 3)
        facts = {"slide": mask.slide_name, "fraction": fraction, "area_mm2": area, "method": mask.method}
        print_json(facts | {"mask": None, "picture": None} | written)
        return
    say(f"{mask.slide_name}: {mask.fraction:.1%} of the slide is tissue, {mask.area_um2 / 1e6:.2f} mm² ({mask.method})")
    for what, file in written.items():
        say(f"{what}: {file}")


def _find_many(
    sources: Sequence[Path],
    save: Path | None,
    config: ExportConfig,
    picture: Path | None,
    root: Path | None,
    tables: Mapping[str, Any],
    as_json: bool,
    **settings: Any,
) -> None:
    """Find the tissue of a cohort and print the result; exit code 1 if slides failed."""
    from slideio_pipe.export.tissue import tissue_cohort

    cohort = cohort_commands.cohort_of(sources, root, tables)
    if picture is not None:
        raise ConfigError("--picture is for one slide", remedy="leave it out")
    if save is None or save.suffix.lower() in (".png", ".geojson", ".json") or save.is_file():
        reason = (
            "--out is no folder for the masks of a cohort" if save else "a cohort, and there is no --out for its masks"
        )
        raise ConfigError(reason, slide=str(sources[0]), remedy="pass --out masks/, or one slide file")
    # By its path, if it has one: the manifest must not overwrite the cohort without --overwrite.
    given = sources[0] if len(sources) == 1 and not tables else cohort
    report = tissue_cohort(given, save, config, progress=shown(as_json), **settings)
    if as_json:
        manifest = None if settings["manifest"] is None else str(settings["manifest"])
        print_json(report.summary() | {"manifest": manifest})
    else:
        cohort_commands.print_counts(report, "found", f"{report.seconds:.1f} s")
        say(f"masks: {report.folder}")
        if settings["manifest"] is not None:
            say(f"manifest: {settings['manifest']}")
    if report.failed:
        raise typer.Exit(ExitCode.SOME_FAILED)
