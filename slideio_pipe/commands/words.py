"""Names of Python arguments on the command line: options, or keys of a command's settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_type_hints

from slideio_pipe.errors import Words

# An option has the name of its argument, with "-" for "_". Exceptions, for commands without an option of that name:
OPTIONS = {
    "tissue_file": "--mask",
    "method": "--tissue",
    "default_mpp": "--slide-mpp",
    "source": "--from",
    "max_tiles": "--tiles",
    "columns": "--column",
}
# Where the configuration records that messages name are documented.
RECORDS = {
    "ExportConfig": "slideio-pipe export --help",
    "GridConfig": "slideio-pipe export --help",
    "QualityConfig": "slideio-pipe export --help",
    "LoaderConfig": "slideio-pipe config show mil",
    "TrainConfig": "slideio-pipe config show mil",
}
# Keys in the settings of a training or a loader, for commands without the option.
SETTINGS = {
    "slide_mpp": "slide.slide_mpp",
    "backend": "slide.backend",
    "mpp": "view.mpp",
    "method": "tissue.method",
    "min_tissue": "grid.min_tissue",
    "min_focus": "quality.min_focus",
    "max_pen": "quality.max_pen",
    "max_fold": "quality.max_fold",
    "max_bubble": "quality.max_bubble",
    "max_white": "quality.max_white",
    "tile_size": "grid.tile_size",
    "stride": "grid.stride",
    "overlap": "grid.overlap",
    "edge": "grid.edge",
    "align": "grid.align",
    "encoder": "encoder.source",
    "trust_remote_code": "encoder.trust_remote_code",
    "features": "encoder.folder",
    "batch_size": "encoder.chunk_size",
    "chunk_size": "encoder.chunk_size",
    "max_failures": "fit.max_failures",
}


def command_words(command: Callable[..., Any] | None = None) -> Words:
    """Return the function that names arguments as ``command`` does, or by default as the command line does.

    Examples
    --------
    >>> words = command_words()
    >>> words("slide_mpp", "0.25"), words("overwrite", "True"), words("mpp", "None"), words("tissue_file", '"a.png"')
    ('--slide-mpp 0.25', '--overwrite', '--mpp native', '--mask a.png')
    """
    own = frozenset() if command is None else options_of(command)

    def words(name: str, value: str) -> str:
        if name in RECORDS or name[0].isupper():
            return RECORDS.get(name, name)
        section, _, argument = name.rpartition(".")
        rule = f"--{argument.replace('_', '-')}"
        option = rule if rule in own else OPTIONS.get(argument, rule)
        key = name if section else SETTINGS.get(name)
        typed = "native" if value == "None" else value.replace('"', "").replace("'", "")
        if option in own or not own or key is None:
            return option if value in ("", "True", "…") else f"{option} {typed}"
        return key if value in ("", "…") else f"{'--set ' if '--set' in own else ''}{key}={typed}"

    if "--set" not in own:
        return words
    from slideio_pipe.cohort.cohort_slide import cohort_words

    return cohort_words(words)  # a training is of a cohort


def options_of(command: Callable[..., Any]) -> frozenset[str]:
    """Return the names of all options of a command."""
    hints = get_type_hints(command, include_extras=True).values()
    infos = [info for hint in hints for info in getattr(hint, "__metadata__", ())]
    # typer.Option("--out", "-o") stores the first name as its default until the command is built.
    return frozenset(str(name) for info in infos for name in (info.default, *(info.param_decls or ())))
