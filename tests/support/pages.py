"""Run the pages of the guide, compare what their blocks print with the page, or write it into the page.

``python tests/support/pages.py PAGE…`` compares; with ``--write`` outputs and pictures are refreshed in place.

- ``python`` blocks run in order in one namespace, in a new folder in which ``a.svs`` is a generated slide; what a block
  prints and the value of its last expression is its output. ``bash`` blocks run in the same folder. Other blocks
  (``sh``, ``yaml``) are shown only; a block with ``title="name"`` is written to that file and not run.
- A ``text`` block directly after a block is its output; ``…`` in it matches anything, on a line of its own any number
  of lines. The temporary folder is shown as ``/home/you/work``.
- A picture ``![…](pictures/x.jpg)`` after a block is the value of its last expression, or what the block wrote.
- ``python raises`` and ``bash raises`` blocks have to fail, and show the error in their ``text`` block.
- Warnings of this package are errors, unless the output shows them.
- ``<!-- files: study -->`` on the first line asks for more files (page_files.py).
"""

from __future__ import annotations

import argparse
import difflib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from page_blocks import Block, asked_files, read_blocks
from page_files import write_files
from paths import MADE_SLIDES, ROOT, SEARCHED, SUPPORT
from PIL import Image

GUIDE = ROOT / "examples" / "guide"
TIME_LIMIT_S = 600
SIMILAR = 12  # mean difference of two pictures, of 255 levels: JPEG and versions of fonts differ less


@dataclass
class PageRun:
    """What a page did when it was run."""

    page: Path
    outputs: dict[int, str] = field(default_factory=dict)  # by the line of the block
    failed: list[str] = field(default_factory=list)  # blocks that did not run
    different: list[str] = field(default_factory=list)  # blocks with another output
    pictures: dict[str, bytes] = field(default_factory=dict)


def run_page(page: Path) -> PageRun:
    """Run a page in its own process and a new folder, and compare."""
    text = page.read_text(encoding="utf-8")
    run = PageRun(page)
    with tempfile.TemporaryDirectory(prefix="slideio-pipe-page-") as parent:
        folder = Path(parent).resolve() / "work"
        (folder / "pictures").mkdir(parents=True)
        write_files(folder, asked_files(text))
        results = _run_blocks(page.resolve(), folder)
        run.pictures = {path.name: path.read_bytes() for path in sorted((folder / "pictures").iterdir())}
    blocks = {block.line: block for block in read_blocks(text)}
    for result in results:
        line, output = result["line"], _stripped(result["output"])
        run.outputs[line] = output
        if result["failure"]:
            run.failed.append(f"{page.name}:{line}: {result['failure']}\n{output}")
        elif blocks[line].has_output and not matches(blocks[line].expected, output):
            run.different.append(f"{page.name}:{line}: the output is another one\n{_difference(blocks[line], output)}")
    return run


def _run_blocks(page: Path, folder: Path) -> list[dict[str, Any]]:
    results = folder.parent / "results.json"
    environment = {**os.environ, "PYTHONPATH": SEARCHED, "TMPDIR": str(folder.parent), "COLUMNS": "100"}
    command = [sys.executable, SUPPORT / "page_session.py", page, folder, results]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIME_LIMIT_S
    )
    if done.returncode:
        return [{"line": 0, "output": done.stderr, "failure": f"the process ended with {done.returncode}"}]
    found: list[dict[str, Any]] = json.loads(results.read_text(encoding="utf-8"))
    return found


def _stripped(output: str) -> str:
    """Return an output without spaces at the end of lines and empty lines around it."""
    return "\n".join(line.rstrip() for line in output.splitlines()).strip("\n")


def matches(expected: str, output: str) -> bool:
    """Return whether an output is as the page shows it; ``…`` matches anything.

    >>> matches("24 tiles in … s", "24 tiles in 0.31 s"), matches("a\\n…\\nb", "a\\nb"), matches("24 tiles", "25 tiles")
    (True, True, False)
    """
    lines = [
        r"(?:.*\n)*?" if line.strip() == "…" else ".*?".join(re.escape(part) for part in line.split("…")) + r"\n"
        for line in _stripped(expected).splitlines()
    ]
    return re.fullmatch("".join(lines), f"{output}\n" if output else "") is not None


def _difference(block: Block, output: str) -> str:
    return "\n".join(difflib.unified_diff(block.expected.splitlines(), output.splitlines(), "page", "now", lineterm=""))


def compare_pictures(run: PageRun) -> list[str]:
    """Return which pictures that a page makes are not in its folder, or look different there."""
    problems = []
    text = run.page.read_text(encoding="utf-8")
    for name, data in run.pictures.items():
        kept = run.page.parent / "pictures" / name
        if f"pictures/{name}" not in text:
            continue  # written by a block, and not shown
        if not kept.exists():
            problems.append(f"{run.page.name}: pictures/{name} is missing")
        elif kept.suffix != ".svg" and not _similar(kept.read_bytes(), data):
            problems.append(f"{run.page.name}: pictures/{name} is another picture")
    return problems


def _similar(kept: bytes, made: bytes) -> bool:
    one, other = (Image.open(io.BytesIO(data)).convert("RGB") for data in (kept, made))
    if one.size != other.size:
        return False
    difference = np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16))
    return float(difference.mean()) < SIMILAR


def write_page(run: PageRun) -> None:
    """Refresh the outputs and pictures of a page; lines with ``…`` that still match stay."""
    text = run.page.read_text(encoding="utf-8")
    lines = text.splitlines()
    for block in reversed(read_blocks(text)):
        if block.output and block.line in run.outputs:
            output = run.outputs[block.line]
            if not matches(block.expected, output):
                lines[block.output[0] : block.output[1] - 1] = _merged(block.expected, output)
    run.page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, data in run.pictures.items():
        if f"pictures/{name}" in text:
            kept = run.page.parent / "pictures" / name
            kept.parent.mkdir(exist_ok=True)
            if not kept.exists() or not _similar(kept.read_bytes(), data):
                kept.write_bytes(data)


def _merged(expected: str, output: str) -> list[str]:
    """Return the lines of an output, each as the page had it if that has ``…`` and matches."""
    patterns = [line for line in expected.splitlines() if "…" in line and line.strip() != "…"]
    return [next((old for old in patterns if matches(old, new)), new) for new in output.splitlines()]


def main() -> int:
    """Run the pages named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="refresh outputs and pictures in place")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="made-slides-") as made:
        os.environ.setdefault(MADE_SLIDES, made)
        for page in options.pages:
            failed |= not check_page(page, write=options.write)
    return int(failed)


def check_page(page: Path, *, write: bool) -> bool:
    """Run a page and print what is different, or write it; return whether it is in order."""
    run = run_page(page)
    if write and not run.failed:
        write_page(run)
        print(f"{page}: written, {len(run.outputs)} blocks, {len(run.pictures)} pictures")
        return True
    problems = run.failed + run.different + compare_pictures(run)
    print("\n".join(problems) or f"{page}: {len(run.outputs)} blocks are as shown")
    return not problems


if __name__ == "__main__":
    sys.exit(main())
