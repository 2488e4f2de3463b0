"""The built site of this installation; a checkout builds it when it is first needed."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

from slideio_pipe.commands.documentation.site_build import BUILT, SETTINGS, SHIPPED, build_site, is_stale
from slideio_pipe.errors import MissingExtraError, OutputError


def site_folder() -> Path:
    """Return the folder of the site, built anew in a checkout whose pages or docstrings have changed.

    Raises
    ------
    MissingExtraError
        It is not there, and mkdocs, which builds it, is not installed.
    OutputError
        It cannot be built.
    """
    if (SHIPPED / "index.html").exists():
        return SHIPPED
    if not SETTINGS.exists():
        raise MissingExtraError("this installation has no documentation", remedy="install slideio-pipe from a wheel")
    if is_stale(BUILT):
        if any(importlib.util.find_spec(package) is None for package in ("mkdocs", "material", "mkdocstrings")):
            raise MissingExtraError(
                "the documentation of a checkout is built by mkdocs, which is not installed",
                remedy='pip install "slideio-pipe[docs]"',
            )
        try:
            build_site(BUILT)
        except subprocess.CalledProcessError as error:
            raise OutputError(f"mkdocs could not build it ({error.stderr.strip()})", slide=str(SETTINGS)) from error
    return BUILT
