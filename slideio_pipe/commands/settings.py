"""What the options of a command mean: a configuration, of a file or the default one, with options put over it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slideio_pipe.commands.terminal import err
from slideio_pipe.errors import ConfigError

# Imported where it is needed: --help should not wait for it.
if TYPE_CHECKING:
    from slideio_pipe.config import ExportConfig


def settings_of(slide: Path, file: Path | None, given: dict[str, dict[str, Any]]) -> ExportConfig:
    """Return the configuration of the file, or the default one, with the options that were given put over it."""
    from slideio_pipe.config import ExportConfig, checked, load_config

    values = (load_config(file) if file else ExportConfig()).model_dump()
    for stage, wanted in given.items():
        chosen = {name: value for name, value in wanted.items() if value is not None}
        if "stride" in chosen or "overlap" in chosen:  # one replaces the other
            values[stage] |= {"stride": None, "overlap": None}
        values[stage] |= chosen
    return checked(ExportConfig, slide.name, **values)


def mpp_of(magnification: float, mpp: str | None) -> float:
    """Return what a magnification means, and say so."""
    from slideio_pipe.geometry import magnification_to_mpp

    if mpp is not None:
        raise ConfigError("--mag and --mpp are both given", remedy="give one of them")
    if not (math.isfinite(magnification) and magnification > 0):
        raise ConfigError(f"--mag {magnification:g} is no magnification", remedy="pass 20, 40, …")
    found = magnification_to_mpp(magnification)
    err.print(f"--mag {magnification:g} means {found:g} µm per pixel", soft_wrap=True)
    return found
