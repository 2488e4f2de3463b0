"""``slideio-pipe view``: look at slides in the browser, under a live augmentation."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Any

from slideio_pipe.commands import cohort as cohort_commands
from slideio_pipe.commands import options
from slideio_pipe.commands.terminal import print_json, reported, say, warn

# Decoded stored tiles that are kept: a few screens. Of the package's usual 128 MB an hour of dragging used them all.
DECODED_BYTES = 64_000_000


@reported
def view(
    slides: options.Shown,
    transform: options.ShownTransform = None,
    seed: options.ShownSeed = None,
    annotations: options.ShownAnnotations = None,
    scores: options.ShownScores = None,
    config: options.ShownConfig = None,
    slide_folder: options.SlidesOfBags = None,
    clinical: options.Clinical = None,
    column: options.ColumnNames = None,
    mpp: options.ShownMpp = None,
    slide_mpp: options.CohortMpp = None,
    backend: options.Backend = None,
    port: options.Port = 8970,
    no_browser: options.NoBrowser = False,
    hosts: options.Hosts = None,
    labels: options.PatientLabels = False,
    save_to: options.SaveTo = None,
    as_json: options.Json = False,
) -> None:
    """Look at slides in the browser: zoom, layers, and any augmentation live.

    It serves this computer only, until Ctrl+C. On another computer: ssh -L 8970:localhost:8970 HOST, and open the
    printed link here.

    Example: [bold]slideio-pipe view a.svs[/]

    A cohort under an augmentation: [bold]slideio-pipe view cohort.csv --transform stain-light[/]

    What a training saw in any epoch: [bold]slideio-pipe view run/[/]
    """
    from slideio_pipe.slides.tile_cache import SHARED
    from slideio_pipe.viewer.explore import explore

    SHARED.limit(DECODED_BYTES)
    drawn = None
    if transform is not None:
        from slideio_pipe.augment.compose import load_transform

        drawn = load_transform(transform)
    viewer = explore(
        _shown(slides, slide_folder, clinical, column),
        transform=drawn,
        seed=seed,
        annotations=annotations,
        scores=scores,
        **_layers(config),
        slides=slide_folder,
        mpp=mpp,
        slide_mpp=slide_mpp,
        backend=backend or "auto",
        port=port,
        hosts=hosts or (),
        labels=labels,
        save_to=save_to,
    )
    with viewer:
        if port not in (0, viewer.port):
            warn(f"port {port} is in use; {viewer.port} is used")
        if as_json:
            print_json({"url": viewer.url, "port": viewer.port, "save_to": None if save_to is None else str(save_to)})
            sys.stdout.flush()  # for the program that reads it while the viewer runs
        else:
            say(f"open {viewer.url}")
            if no_browser:
                tunnel = f"ssh -L {viewer.port}:localhost:{viewer.port} {socket.gethostname()}"
                say(f"on another computer, run this there first: {tunnel}", copied=True)
        if not no_browser and not viewer.open():
            warn("no browser was found; open the link yourself")
        if not as_json:
            say("Ctrl+C ends the viewer")
        wait_for_interrupt()
        if not as_json:
            say("ended")


def _shown(slides: list[Path], folder: Path | None, clinical: Path | None, columns: list[str] | None) -> Any:
    """Return the cohort of a table; other sources as they are."""
    from slideio_pipe.cohort.table import is_table

    tables = cohort_commands.table_options(folder if is_table(slides[0]) else None, clinical, columns)
    if tables or (len(slides) == 1 and is_table(slides[0])):
        return cohort_commands.cohort_of(slides, None, tables)
    return slides if len(slides) > 1 else slides[0]


def _layers(config: Path | None) -> dict[str, Any]:
    """Return the tissue and the grid of an export's configuration."""
    if config is None:
        return {}
    from slideio_pipe.export.config import load_config

    settings = load_config(config)
    return {"tissue": settings.tissue, "grid": settings.grid, "tile_mpp": settings.view.mpp}


def wait_for_interrupt() -> None:
    """Return when the user ends the program."""
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return
