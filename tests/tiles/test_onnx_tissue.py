"""Tissue of a model in ONNX, in overlapping tiles, is that of the same model in NumPy on the whole slide at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from command_line import run
from onnx import TensorProto, helper, numpy_helper
from pyramids import write_pyramid
from scipy import ndimage

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError, MissingExtraError
from slideio_pipe.tiles.onnx_model import OnnxModel

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = ["background", "tissue", "fold", "pen"]
# Three by three convolutions, so that a tile's border depends on its neighbours.
WEIGHTS = np.random.default_rng(8).normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32)
BIAS = np.array([0.4, 0.1, -0.1, -0.3], np.float32)
SIDECAR: dict[str, Any] = {
    "mpp": 2.0,
    "tile_size": 64,
    "overlap": 8,
    "mean": list(MEAN),
    "std": list(STD),
    "classes": CLASSES,
    "tissue": ["tissue"],
    "background": ["background"],
}


def write_model(
    path: Path,
    sidecar: dict[str, Any] | None = None,
    *,
    side: int | str = "side",
    batch: int | str = "batch",
    channels: int = 4,
    stride: int = 1,
) -> Path:
    """Write a model of one convolution, and its sidecar."""
    weights, bias = WEIGHTS[:channels], BIAS[:channels]
    nodes = [
        helper.make_node(
            "Conv", ["pixels", "w", "b"], ["scores"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[stride, stride]
        )
    ]
    graph = helper.make_graph(
        nodes,
        "tissue",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, channels, None, None])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    if sidecar is not None:
        path.with_suffix(".yaml").write_text(yaml.safe_dump(sidecar))
    return path


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Blobs of four colours at 1 µm per pixel, with glass between them; sides are no multiples of a tile."""
    rng = np.random.default_rng(2)
    height, width = 310, 430
    smooth = ndimage.gaussian_filter(rng.normal(size=(height, width)), 12)
    colours = np.array([[243, 243, 243], [190, 120, 180], [90, 40, 110], [30, 60, 190]])
    picture = colours[np.digitize(smooth, np.quantile(smooth, [0.4, 0.75, 0.9]))]
    return np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray) -> Path:
    return write_pyramid(tmp_path_factory.mktemp("slides") / "a.tif", pixels, (1,), mpp=1.0)


def in_numpy(rgb: np.ndarray) -> np.ndarray:
    """Return the classes of a whole picture, white beyond its edges, by SciPy's correlation."""
    padded = np.pad(rgb, ((1, 1), (1, 1), (0, 0)), constant_values=255).astype(np.float32)
    values = (padded / 255 - np.float32(MEAN)) / np.float32(STD)
    scores = [
        bias + sum(ndimage.correlate(values[..., c], kernel[c], mode="constant") for c in range(3))
        for kernel, bias in zip(WEIGHTS, BIAS, strict=True)
    ]
    return np.argmax(scores, axis=0)[1:-1, 1:-1]


def cells(labels: np.ndarray, kind: int, cell: int) -> np.ndarray:
    """Return which cells have at least half of their pixels of a class; at the edges, of those inside."""
    rows, columns = (-(-side // cell) for side in labels.shape)
    parts = [
        labels[cell * r : cell * r + cell, cell * c : cell * c + cell] for r in range(rows) for c in range(columns)
    ]
    return np.array([2 * np.count_nonzero(part == kind) >= part.size for part in parts]).reshape(rows, columns)


@pytest.mark.parametrize("mpp", [2.0, 8.0])
@pytest.mark.parametrize("batch", [1, 3, "batch"], ids=str)
def test_tiles_give_what_the_whole_slide_does(path: Path, tmp_path: Path, mpp: float, batch: int | str) -> None:
    """Every pixel of the mask, whatever the batch, and artefacts are no tissue."""
    model = write_model(tmp_path / "m.onnx", SIDECAR, batch=batch, side=64 if batch == 1 else "side")
    slide = sp.open_slide(path)
    whole = np.asarray(slide.region(0, 0, mpp=2.0, size=tuple(slide.view(mpp=2.0).size)))
    labels = in_numpy(whole)
    found = sp.find_tissue(slide, method=f"onnx:{model}", mpp=mpp, min_area_um2=0, max_hole_um2=0)
    expected = cells(labels, 1, round(mpp / 2.0))
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(found.mask[: expected.shape[0], : expected.shape[1]], expected)
    assert found.mpp is not None
    assert found.mpp.mean == pytest.approx(mpp, rel=0.02)


def test_holes_are_filled_where_there_is_glass_and_not_where_there_is_an_artefact(path: Path, tmp_path: Path) -> None:
    slide = sp.open_slide(path)
    labels = in_numpy(np.asarray(slide.region(0, 0, mpp=2.0, size=tuple(slide.view(mpp=2.0).size))))
    model = write_model(tmp_path / "m.onnx", SIDECAR)
    filled = sp.find_tissue(slide, method=f"onnx:{model}", mpp=2.0, min_area_um2=0, max_hole_um2=1e9)
    assert not filled.mask[: labels.shape[0], : labels.shape[1]][labels >= 2].any()
    write_model(model, SIDECAR | {"background": ["background", "fold", "pen"]})
    more = sp.find_tissue(slide, method=f"onnx:{model}", mpp=2.0, min_area_um2=0, max_hole_um2=1e9)
    assert more.mask.sum() > filled.mask.sum()


def test_layouts_channels_and_strides(path: Path, tmp_path: Path) -> None:
    """BGR, an output of half the size, and one channel with a sigmoid."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    straight = OnnxModel(write_model(tmp_path / "a.onnx", SIDECAR)).labels(tiles)
    swapped = OnnxModel(write_model(tmp_path / "b.onnx", SIDECAR | {"channels": "BGR"}))
    # The mean and deviation are in the order of the channels that the model takes.
    assert not np.array_equal(swapped.labels(tiles), straight)
    same = {"channels": "BGR", "mean": [0.5] * 3, "std": [0.2] * 3}
    one = OnnxModel(write_model(tmp_path / "c.onnx", SIDECAR | same))
    two = OnnxModel(write_model(tmp_path / "d.onnx", SIDECAR | same | {"channels": "RGB"}))
    np.testing.assert_array_equal(one.labels(tiles), two.labels(tiles[..., ::-1]))
    half = OnnxModel(write_model(tmp_path / "e.onnx", SIDECAR, stride=2)).labels(tiles)
    np.testing.assert_array_equal(half[:, ::2, ::2], straight[:, ::2, ::2])
    np.testing.assert_array_equal(half[:, 1::2, ::2], half[:, ::2, ::2])
    single = SIDECAR | {"classes": ["glass", "tissue"], "background": ["glass"], "activation": "sigmoid"}
    found = OnnxModel(write_model(tmp_path / "f.onnx", single, channels=1)).labels(tiles)
    values = (tiles.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    score = np.stack(
        [
            BIAS[0] + sum(ndimage.correlate(tile[..., c], WEIGHTS[0][c], mode="constant") for c in range(3))
            for tile in values
        ]
    )
    sure = np.abs(score) > 1e-4
    np.testing.assert_array_equal(found[sure], (score > 0)[sure])


def test_the_mask_says_which_model_made_it(path: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx", None)
    (tmp_path / "m.json").write_text(json.dumps(SIDECAR))
    made = sp.find_tissue(sp.open_slide(path), method=f"onnx:{model}").provenance()
    assert made["method"] == f"onnx:{model}"
    assert made["settings"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()[:16]
    assert made["settings"]["sidecar"]["classes"] == CLASSES


def broken(path: Path) -> None:
    path.write_bytes(b"no model")


def without_sidecar(path: Path) -> None:
    path.with_suffix(".yaml").unlink()


def changed(**values: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.with_suffix(".yaml").write_text(yaml.safe_dump(SIDECAR | values))

    return write


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (broken, "m.onnx: cannot be loaded"),
        (without_sidecar, "no sidecar beside it; write m.yaml: the guide has an example"),
        (Path.unlink, "there is no such model"),
        (changed(tissue=["tumour"]), "there is no class 'tumour'; classes has background, tissue, fold, pen"),
        (changed(tissue=[7]), "there is no class 7"),
        (changed(tissue=["background"]), "a class is tissue or background, not both"),
        (changed(tile_size=32), r"its input has the shape .*64.*, and the sidecar says \(3, 32, 32\)"),
        (changed(layout="NHWC"), r"its input has the shape .*, and the sidecar says \(64, 64, 3\)"),
        (changed(classes=["background", "tissue"]), r"its output has the shape \(1, 4, 64, 64\), .* says 2 classes"),
        (changed(std=[0, 1, 1]), "std should be more than 0"),
        (changed(mpp=0.2), "the model is for 0.2 µm per px, and the slide is scanned at 1 µm"),
        (changed(output="mask"), r"has no output 'mask' \(it has scores\)"),
        (changed(providers=["TPU"]), "onnxruntime has no TPU here"),
        (changed(colour="RGB"), 'unknown key "colour"'),
    ],
)
def test_what_does_not_fit_is_refused(path: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    model = write_model(tmp_path / "m.onnx", SIDECAR, side=64, batch=1)
    spoil(model)
    with pytest.raises(ConfigError, match=message):
        sp.find_tissue(sp.open_slide(path), method=f"onnx:{model}")


def test_without_onnxruntime_the_extra_is_named(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "m.onnx", SIDECAR)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"slideio-pipe\[onnx\]"):
        sp.find_tissue(sp.open_slide(path), method=f"onnx:{model}")


def test_commands_and_settings_take_a_model(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--method``, ``--tissue``, and a path relative to the file of the settings; the bag says which it was."""
    (tmp_path / "models").mkdir()
    model = write_model(tmp_path / "models" / "m.onnx", SIDECAR)
    done = run("tissue", path, "--method", f"onnx:{model}", "--out", tmp_path / "a.geojson")
    expected = sp.find_tissue(sp.open_slide(path), method=f"onnx:{model}")
    assert f"{expected.fraction:.1%}" in done.output
    settings = tmp_path / "models" / "mine.yaml"
    settings.write_text("{tissue: {method: 'onnx:m.onnx'}, view: {mpp: 1.0}, grid: {tile_size: 64}}")
    run("export", path, "--out", tmp_path / "bags", "--config", settings)
    known = sp.open_bag(tmp_path / "bags" / "a.bag.zarr").attributes["tissue"]["settings"]
    assert known["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()[:16]
    with sp.open_bag(tmp_path / "bags" / "a.bag.zarr") as bag:
        dataset = sp.BagDataset([path], settings)
        np.testing.assert_array_equal(dataset.open(0).coords, bag.coords)
    before = dataset.digest()
    write_model(model, SIDECAR | {"tissue": ["fold"]})
    assert sp.BagDataset([path], settings).digest() != before
    monkeypatch.chdir(tmp_path / "models")
    assert "there is no such model" in run("tissue", path, "--method", "onnx:other.onnx", code=2).output
