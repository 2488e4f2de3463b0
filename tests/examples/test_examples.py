"""The notebooks run from top to bottom, and their outputs are as described."""

from __future__ import annotations

import ast
import base64
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from browser import CHROMIUM
from made_slides import made_slide
from notebooks import FOLDER, NOTEBOOKS, execute, kinds
from paths import ROOT
from PIL import Image

MOST_BYTES = 600_000  # of a notebook with its pictures


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_with_outputs(path: Path) -> None:
    """Executed from top to bottom, of moderate size, without traces of the machine; each cell has a stable name."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum(bool(cell.outputs) for cell in code) > len(code) / 2
    assert sum("image/jpeg" in o.get("data", {}) for cell in code for o in cell.outputs) >= 2
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < MOST_BYTES
    assert not [word for word in ("image/png", "/root/", str(ROOT)) if word in text]
    assert not [cell.id for cell in code if "execution" in cell.metadata]


def run(name: str, folder: Path) -> dict[str, list[nbformat.NotebookNode]]:
    """Run a notebook, and return what each cell shows: nothing on standard error, and what the stored one shows."""
    notebook = execute(FOLDER / name, folder)
    assert kinds(notebook) == kinds(nbformat.read(FOLDER / name, as_version=4))
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert not [o for out in outputs.values() for o in out if o.get("name") == "stderr"]
    return outputs


def printed(outputs: dict[str, list[nbformat.NotebookNode]]) -> dict[str, str]:
    """Return the text that each cell printed, joined from its pieces."""
    return {cell: "".join(o.text for o in out if o.output_type == "stream") for cell, out in outputs.items()}


def shown(output: nbformat.NotebookNode) -> Image.Image:
    """Return the picture that a cell ends with."""
    return Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))


# Warnings of the Jupyter client about the event loop and its sockets do not concern this package.
@pytest.mark.filterwarnings("default")
def test_slide_to_batches_runs(tmp_path: Path) -> None:
    """Every cell runs in a fresh kernel, without a warning, and slide, mask, grid, bag and tiles are shown."""
    outputs = run("01_slide_to_batches.ipynb", tmp_path)
    assert "float16" in "".join(printed(outputs).values())
    for cell, parts in {"open": ["6,000 × 5,000 px", "0.25 µm"], "bag": ["256×256 px", "label"]}.items():
        html = outputs[cell][-1].data["text/html"]
        assert all(part in html for part in [*parts, "data:image/png;base64,"])
    sizes = {cell: shown(outputs[cell][-1]).size for cell in ("tissue", "grid", "tile", "coords", "round")}
    assert sizes == {  # of plots with their margins, titles and legends
        "tissue": (700 + 28, 583 + 84),
        "grid": (700 + 28, 583 + 108),
        "tile": (256, 256),
        "coords": (486 + 28, 486 + 84),
        "round": (784, 512),
    }


@pytest.mark.filterwarnings("default")
def test_augmentation_runs(tmp_path: Path) -> None:
    """Every cell runs: eight draws, bags before and after, real tissue in the corners, the table, the refusal."""
    outputs = run("02_augmentation.ipynb", tmp_path)
    for cell in ("eight", "bag", "rotated", "tiles", "batch"):
        assert min(shown(outputs[cell][-1]).size) > 300
    three_rows = np.asarray(shown(outputs["tiles"][-1]))
    black = [(row == 0).all(axis=2).mean() for row in np.array_split(three_rows, 3)]
    assert black[0] == black[2] == 0 < 0.05 < black[1]  # cut out, then turned
    for cell, parts in {
        "view": ["turned", "stain"],
        "explain": ["AdvancedBlur", "refused"],
        "save": ["0.5 µm"],
    }.items():
        assert all(part in outputs[cell][-1].data["text/html"] for part in parts)
    texts = printed(outputs)
    assert "instead" in texts["refused"]
    assert "'kind': 'stain'" in texts["draw"]
    assert "torch.float16" in texts["stream"]


@pytest.mark.filterwarnings("default")
def test_cohort_runs(tmp_path: Path) -> None:
    """Every cell runs: all problems at once, three failures, one put right, nine kept, bags, layouts, the report."""
    outputs = run("03_cohort.ipynb", tmp_path)
    texts = printed(outputs)
    assert "3 problems" in texts["check"]
    assert "patients in both: set()" in texts["split"]
    assert texts["export"].startswith("9 done, 3 failed")
    assert texts["failures"].count("->") == 3
    assert texts["resume"] == "1 done now, 9 kept, 0 failed\n"
    assert texts["convert"].count(" of 10 bags") == 2
    assert texts["report"] == "report.html: 12 slides, 2 with a warning\n"
    assert min(shown(outputs["bags"][-1]).size) > 300
    assert shown(outputs["report"][-1]).size[0] > 900


@pytest.mark.filterwarnings("default")
def test_seeing_runs(tmp_path: Path) -> None:
    """Every cell runs: places, the viewer with its still picture, one draw as a picture and as texts."""
    outputs = run("06_see_it.ipynb", tmp_path)
    for cell in ("setup", "part", "place", "draw", "crop", "again"):
        assert min(shown(outputs[cell][-1]).size) >= 250
    for cell in ("explore", "bag"):
        data = outputs[cell][-1].data
        assert "srcdoc" in data["text/html"]
        assert data["text/plain"].removeprefix("Explorer(").removesuffix(")") in data["text/html"]
        assert Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"]))).width > 700
    texts = printed(outputs)
    assert "slide.region(x, y, mpp=..., size=...)" in texts["index"]
    assert "turned 20°, stain" in texts["draw"]
    assert re.search(r": [0-2] of 255 levels", texts["crop"])
    assert "sp.Draw.from_json({" in texts["text"]
    assert "__class_fullname__: slideio_pipe.Replay" in texts["text"]
    assert texts["close"] == "Explorer(closed) Explorer(closed)\n"


@pytest.mark.filterwarnings("default")
def test_own_model_runs(tmp_path: Path) -> None:
    """Every cell runs, in under 40 lines of code: folds, attention, and a loop that separates the classes."""
    outputs = run("07_own_model.ipynb", tmp_path)
    cells = nbformat.read(FOLDER / "07_own_model.ipynb", as_version=4).cells
    code = [line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines() if line.strip()]
    assert len(code) < 40
    assert float(re.findall(r"AUROC +([0-9.]+)", printed(outputs)["fit"])[0]) > 0.8
    for cell in ("see", "top"):
        assert min(shown(outputs[cell][-1]).size) > 200
    found = ast.literal_eval(outputs["loop"][-1].data["text/plain"])
    assert [name for name, _, _ in found] == [f"S{k:02}.svs" for k in range(12)]
    chances = [[chance for _, label, chance in found if label == wanted] for wanted in (0, 1)]
    assert max(chances[0]) < min(chances[1])


@pytest.mark.filterwarnings("default")
def test_training_runs(tmp_path: Path) -> None:
    """Every cell runs: features, folds much better than chance, and attention on the lesions."""
    outputs = run("04_train_mil.ipynb", tmp_path)
    texts = printed(outputs)
    assert re.match(r"[0-9,]+ tiles of 20 slides", texts["features"])
    assert float(re.findall(r"auroc +([0-9.]+)", texts["fit"])[0]) > 0.8
    assert texts["predictions"].count("->") == 6
    share = re.match(r"([0-9]+)% of the attention is on the", texts["truth"])
    assert share is not None
    assert int(share[1]) > 40
    for cell in ("see", "top"):
        assert min(shown(outputs[cell][-1]).size) > 200


@pytest.mark.filterwarnings("default")
def test_end_to_end_runs(tmp_path: Path) -> None:
    """Every cell runs: the gradient is exact, the network learns, and its attention is on the lesions."""
    outputs = run("05_end_to_end.ipynb", tmp_path)
    texts = printed(outputs)
    assert texts["stream"].count("last") == 1
    differences = [float(number) for number in re.findall(r"difference (\S+)", texts["gradient"])]
    assert len(differences) == 4
    assert max(differences) < 1e-9
    assert float(re.findall(r"that test ([0-9.]+)", texts["fit"])[0]) > 0.7
    assert texts["predict"].count("->") == 4
    shares = [int(share) for share in re.findall(r"([0-9]+)%", texts["truth"])]
    assert shares[0] > 3 * shares[1]
    for cell in ("augment", "see", "top"):
        assert min(shown(outputs[cell][-1]).size) > 200


def test_lightning_module_learns(tmp_path: Path) -> None:
    """Slides are generated, a Trainer trains on the loader, and most test slides are classified correctly."""
    pytest.importorskip("pytorch_lightning")
    texts = subprocess.run(
        [sys.executable, ROOT / "examples" / "lightning_module.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (right,) = re.findall(r"(\d+)% of 4 test slides", texts)
    assert int(right) >= 75
    assert not list(tmp_path.glob("slideio-pipe-*"))  # removed


def test_flat_images_learn(tmp_path: Path) -> None:
    """Two classes are generated, the loss falls, and images of another slide are classified."""
    texts = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:slideio_pipe", ROOT / "examples" / "flat_images.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    losses = [float(loss) for loss in re.findall(r"loss (\d\.\d+)", texts)]
    assert losses[-1] < 0.9 * losses[0]
    (right,) = re.findall(r"(\d+)% of the test images", texts)
    assert int(right) >= 75
    assert not list(tmp_path.glob("slideio-pipe-*"))  # removed


def test_a_step_of_lightstream_has_the_exact_gradient(tmp_path: Path) -> None:
    """Of a whole image that stays bytes on the host; without lightstream, a sentence says what to install."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "lightstream_step.py", "--check"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    if importlib.util.find_spec("lightstream") is None:
        assert lines == [
            "lightstream cannot be imported (No module named 'lightstream'): pip install lightstream lightning"
        ]
        return
    assert re.fullmatch(
        r"1\.svs: \d+ × \d+ px of torch\.uint8, loss [\d.]+, gradients differ by \d\.\de-\d\d", lines[0]
    )
    assert float(lines[0].rpartition(" ")[2]) < 1e-3
    assert len(lines) == 2


def test_flat_images_has_help() -> None:
    """``--help`` shows how to call it."""
    texts = subprocess.run(
        [sys.executable, ROOT / "examples" / "flat_images.py", "--help"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "python examples/flat_images.py --folder" in texts


def test_augmented_stored_bags_train(tmp_path: Path) -> None:
    """Slides are exported once, their stored tiles are drawn again in every epoch, and the loss falls."""
    pytest.importorskip("lightning_fabric")
    texts = subprocess.run(
        [
            sys.executable,
            "-W",
            "error::UserWarning:slideio_pipe",
            ROOT / "examples" / "augment_stored_bags.py",
            "--epochs",
            "8",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "from stored 48×48 px, neighbours, else reflected" in texts
    first, last = (float(loss) for loss in re.findall(r"loss (\d\.\d+) to (\d\.\d+)", texts)[0])
    assert last < 0.8 * first
    assert not list(tmp_path.glob("slideio-pipe-*"))  # removed


def test_the_picture_of_the_viewer(tmp_path: Path) -> None:
    """Two screenshots: the whole slide beside its augmented self, and the same at its nuclei, which differ."""
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    made_slide(tmp_path / "a.svs", size=(3000, 2200), seed=3)
    subprocess.run(
        [sys.executable, ROOT / "examples" / "viewer_picture.py", tmp_path / "a.svs", "--at", "1200", "900"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        check=True,
    )
    picture = np.asarray(Image.open(tmp_path / "viewer.jpg").convert("RGB"), float)
    assert picture.shape == (2 * 720 + 8, 1280, 3)
    original, augmented = picture[800:1400, :470], picture[800:1400, 480:820]
    assert np.abs(original.mean((0, 1)) - augmented.mean((0, 1))).max() > 5
    assert original.std() > 10
