"""The notebooks run from top to bottom, and show what they promise."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_clean(path: Path) -> None:
    """No outputs, no counts, one stable name per cell: a change of the notebook is a change of its text."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = notebook.cells
    assert len({cell.id for cell in cells}) == len(cells)
    for cell in cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


# What the Jupyter client says of the event loop and its sockets is not about us.
@pytest.mark.filterwarnings("default")
def test_slide_to_batches_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell runs in a fresh kernel, without a warning, and slide, mask, grid, bag and tiles are shown."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONWARNINGS", "error::slideio_pipe.errors.SlideioPipeWarning")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(ROOT / "examples" / "01_slide_to_batches.ipynb", as_version=4)
    client = NotebookClient(notebook, kernel_name="python3", timeout=300, resources={"metadata": {"path": tmp_path}})
    client.execute()

    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    printed = "".join(o.text for out in outputs.values() for o in out if o.output_type == "stream")
    assert "float16" in printed
    assert not [o for out in outputs.values() for o in out if o.get("name") == "stderr"]
    for cell, parts in {"open": ["6,000 × 5,000 px", "0.25 µm"], "bag": ["256×256 px", "label"]}.items():
        html = outputs[cell][-1].data["text/html"]
        assert all(part in html for part in [*parts, "data:image/png;base64,"])
    sizes = {
        cell: Image.open(io.BytesIO(base64.b64decode(outputs[cell][-1].data["image/png"]))).size
        for cell in ("tissue", "grid", "tile", "coords", "round")
    }
    assert sizes == {
        "tissue": (700, 583),
        "grid": (700, 583),
        "tile": (256, 256),
        "coords": (486, 486),
        "round": (784, 512),
    }
