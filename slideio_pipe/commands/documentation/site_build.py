"""Where the documentation site is, and how it is built.

The wheel is built with this file by its path, before the package is installed: it imports nothing of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SHIPPED = Path(__file__).parent / "site"  # in a wheel
ROOT = Path(__file__).parents[3]  # of a checkout
SETTINGS = ROOT / "configs" / "mkdocs.yml"
BUILT = ROOT / "build" / "documentation"
# What the site of this package does not need: other languages of the search, and maps for debugging its theme.
_LEFT_OUT = ("assets/javascripts/lunr", "sitemap.xml", "sitemap.xml.gz", "search/search_index.json.gz")


def build_site(folder: Path) -> None:
    """Build the site of this checkout into a folder; without mkdocs or with a broken link, CalledProcessError.

    It is complete or not there: mkdocs writes to a folder beside it first.
    """
    partial = folder.resolve().with_name(f"{folder.name}.partial")  # mkdocs takes a relative path from configs/
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(SETTINGS), "-d", str(partial)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    for left_out in (partial / name for name in _LEFT_OUT):
        shutil.rmtree(left_out) if left_out.is_dir() else left_out.unlink(missing_ok=True)
    for file in partial.glob("assets/**/*.map"):
        file.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def is_stale(folder: Path) -> bool:
    """Return whether a checkout has sources that are newer than its site."""
    index = folder / "index.html"
    if not index.exists():
        return True
    built = index.stat().st_mtime
    sources = [SETTINGS, *(ROOT / "examples" / "guide").rglob("*"), *(ROOT / "slideio_pipe").rglob("*.py")]
    return any(source.stat().st_mtime > built for source in sources if source.is_file())
