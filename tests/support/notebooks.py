"""Execute the notebooks of the guide, and store their outputs with pictures of moderate size.

``python tests/support/notebooks.py [NAME…]`` executes all notebooks, or those named, and writes them in place.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from paths import ROOT
from PIL import Image

FOLDER = ROOT / "examples" / "guide" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
WIDTH, HEIGHT, QUALITY = 1000, 1400, 72  # of stored pictures; the largest side of a page's column is 800 px
SHOWN_AS = "/tmp/slideio-pipe"  # in place of the temporary folder
_EMBEDDED = re.compile(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)")


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook in a new kernel and a folder, with our warnings as errors."""
    notebook = nbformat.read(path, as_version=4)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error::slideio_pipe.errors.SlideioPipeWarning",
        "TMPDIR": str(folder),
    }
    client = NotebookClient(notebook, kernel_name="python3", timeout=300, resources={"metadata": {"path": folder}})
    client.execute(env=environment)
    return notebook


def kinds(notebook: nbformat.NotebookNode) -> dict[str, list[str]]:
    """Return what each cell of code shows: names of streams, and of displayed objects the best kind.

    Consecutive outputs of one kind count once: how often a kernel sends what a cell prints depends on the machine.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return {cell.id: [kind for kind, _ in groupby(map(_kind, cell.outputs))] for cell in cells}


def _kind(output: nbformat.NotebookNode) -> str:
    data = output.get("data", {})
    picture = any(kind.startswith("image/") for kind in data)
    return str(output.get("name") or ("picture" if picture else "text/html" if "text/html" in data else "text"))


def reduce(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Make pictures smaller and encode them as JPEG; leave out times, versions and the temporary folder."""
    notebook.metadata.pop("language_info", None)
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [_reduced(output, folder) for output in cell.outputs]
    return notebook


def _reduced(output: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    if output.output_type == "stream":
        output.text = _without_folder(output.text, folder)
        return output
    data: dict[str, Any] = output.data
    picture = data.pop("image/png", None) or data.pop("image/jpeg", None)
    if picture:  # a viewer in a frame has both; only Jupyter shows the frame, and every reader of notebooks the picture
        data.pop("text/html", None)
    for kind, value in data.items():
        data[kind] = _EMBEDDED.sub(lambda found: f"data:image/jpeg;base64,{smaller(found[1])}", value)
        data[kind] = _without_folder(data[kind], folder)
    if picture:
        data["image/jpeg"] = smaller(picture)
    return output


def _without_folder(text: str, folder: Path) -> str:
    return re.sub(re.escape(str(folder)) + r"/slideio-pipe-\w+", SHOWN_AS, text)


def smaller(encoded: str) -> str:
    """Return a picture in base64 as JPEG in base64, at most WIDTH × HEIGHT."""
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def main() -> None:
    """Execute and write the notebooks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of file names; all notebooks by default")
    names = parser.parse_args().names
    for path in NOTEBOOKS:
        if names and not path.name.startswith(tuple(names)):
            continue
        with tempfile.TemporaryDirectory(prefix="slideio-pipe-notebook-") as made:
            folder = Path(made).resolve()
            notebook = reduce(execute(path, folder), folder)
        nbformat.validate(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1e3:,.0f} kB")


if __name__ == "__main__":
    main()
