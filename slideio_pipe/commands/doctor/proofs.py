"""What each extra is for, done once on something small; run in a process of its own (``extras.py``).

A proof takes an empty folder, and returns what it did; it raises whatever a broken package raises. An extra without a
proof here is proved by importing its packages. Everything is imported inside: one broken package must not hide others.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slideio_pipe.commands.doctor.findings import error_text
from slideio_pipe.commands.doctor.formats import gradient
from slideio_pipe.commands.doctor.packages import requirements


def main(extra: str) -> None:
    """Print the outcome as JSON: ``done`` or ``error``. Other output goes to standard error."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")  # of packages of packages
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            done = PROOFS[extra](Path(folder)) if extra in PROOFS else _imports(extra)
            outcome = {"done": done}
        except Exception as error:  # a broken package may raise anything
            outcome = {"error": f"{type(error).__name__}: {error_text(error)}"}
    print(json.dumps(outcome), file=answer, flush=True)


def _imports(extra: str) -> str:
    """Import the modules of each package."""
    modules: dict[str, list[str]] = {}
    for module, names in importlib.metadata.packages_distributions().items():
        for name in names:
            modules.setdefault(name.lower().replace("_", "-"), []).append(module)
    for requirement in requirements(extra):
        for module in modules.get(requirement.name.lower().replace("_", "-"), []):
            if module.isidentifier() and not module.startswith("_"):
                importlib.import_module(module)
    return "can be imported"


def _bag() -> Any:
    from slideio_pipe.slides.slide import open_slide
    from slideio_pipe.tiles.grid import TileGrid
    from slideio_pipe.tiles.tile_bag import TileBag

    view = open_slide(gradient(), slide_mpp=0.5).view()
    return TileBag(view, TileGrid(view, tile_size=64), label=1)


def _check_equal(found: Any, expected: Any) -> None:
    import numpy as np

    if not np.array_equal(np.asarray(found), np.asarray(expected)):
        raise ValueError("reads other values than were written")


def _check_close(found: Any, expected: Any) -> None:
    import numpy as np

    if not np.allclose(np.asarray(found), np.asarray(expected), rtol=1e-2, atol=1e-3):
        raise ValueError("computes other values than torch")


def _prove_hdf5(folder: Path) -> str:
    from slideio_pipe.export.convert import convert
    from slideio_pipe.export.layouts.clam import from_clam

    bag = _bag()
    convert(bag, "clam-pixels", folder, progress=False)
    (file,) = folder.rglob("*.h5")
    read = from_clam(file)
    _check_equal(read[:], bag[:])
    return "an HDF5 bag reads as written"


def _prove_parquet(folder: Path) -> str:
    from slideio_pipe.cohort.table import read_table, write_table

    rows = [{"slide": "a.svs", "label": "1"}, {"slide": "é.svs", "label": "0"}]
    write_table(folder / "cohort.parquet", ["slide", "label"], rows)
    if list(read_table(folder / "cohort.parquet").rows) != rows:
        raise ValueError("reads other rows than were written")
    return "a cohort in Parquet reads as written"


def _prove_hf(folder: Path) -> str:
    import pyarrow.parquet as pq

    from slideio_pipe.export.convert import convert

    bag = _bag()
    convert(bag, "hf", folder, progress=False)
    (file,) = (folder / "data").glob("*.parquet")
    table = pq.read_table(file)
    _check_equal(list(zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True)), bag.coords)
    return "a data set in Parquet reads as written"


def _prove_memmap(folder: Path) -> str:
    import tensordict

    from slideio_pipe.export.convert import convert

    bag = _bag()
    convert(bag, "memmap", folder, progress=False)
    (stored,) = (path for path in folder.iterdir() if path.is_dir())
    tiles = tensordict.TensorDict.load_memmap(stored)["tiles"]
    _check_equal(tiles.permute(0, 2, 3, 1).numpy(), bag[:])
    return "a memory-mapped bag reads as written"


def _prove_cluster(folder: Path) -> str:
    import dask
    import distributed

    importlib.import_module("dask_jobqueue")
    dask.config.set({"temporary-directory": str(folder), "distributed.comm.timeouts.connect": "10s"})
    local = {"processes": False, "n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**local) as cluster, distributed.Client(cluster, set_as_default=False) as client:
        if client.submit(sum, [1, 2]).result(timeout=20) != 3:
            raise ValueError("a task returned another value")
    return "a task of a Dask cluster in this process returned"


def _prove_onnx(folder: Path) -> str:
    import numpy as np
    import onnx.reference
    import onnxruntime
    import torch

    from slideio_pipe.streaming.normalize import Normalize

    importlib.import_module("onnxscript")
    tiles = torch.from_numpy(gradient()[None, :32, :32]).permute(0, 3, 1, 2)
    normalize = Normalize.imagenet().eval()
    torch.onnx.export(normalize, (tiles,), folder / "normalize.onnx", dynamo=True, verbose=False)
    model = onnx.load(folder / "normalize.onnx")
    onnx.checker.check_model(model)
    runner = onnx.reference.ReferenceEvaluator(model)
    (found,) = runner.run(None, {runner.input_names[0]: tiles.numpy()})
    _check_close(np.float32(found), normalize(tiles).float())
    session = onnxruntime.InferenceSession(str(folder / "normalize.onnx"), providers=["CPUExecutionProvider"])
    (again,) = session.run(None, {session.get_inputs()[0].name: tiles.numpy()})
    _check_close(np.float32(again), normalize(tiles).float())
    return "Normalize runs as ONNX, also in onnxruntime"


def _prove_timm(folder: Path) -> str:
    import safetensors.torch
    import torch

    timm = importlib.import_module("timm")  # its types are not for mypy
    network = timm.create_model("test_vit", pretrained=False, num_classes=0).eval()
    safetensors.torch.save_file(network.state_dict(), folder / "weights.safetensors")
    again = timm.create_model("test_vit", pretrained=False, num_classes=0).eval()
    again.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))
    tiles = torch.full((1, 3, *network.default_cfg["input_size"][1:]), 0.5)
    with torch.no_grad():
        _check_close(again(tiles), network(tiles))
    return "an encoder computes the same from its saved weights"


def _prove_transformers(folder: Path) -> str:
    from slideio_pipe.features.encode_bag import encode_bag
    from slideio_pipe.features.encoders import load_encoder

    transformers = importlib.import_module("transformers")  # its types are not for mypy
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
    }
    transformers.ViTModel(transformers.ViTConfig(intermediate_size=32, **shape)).eval().save_pretrained(folder)
    normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 64, "width": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(normal))
    (features,) = encode_bag(_bag(), load_encoder(f"hf:{folder}"), device="cpu", progress=False).values()
    if features.shape != (len(_bag()), 16):
        raise ValueError(f"an encoder returned features of the shape {features.shape}")
    return "an encoder of Hugging Face encodes a bag"


def _prove_train(folder: Path) -> str:
    import torch

    from slideio_pipe.mil.fit import fit

    importlib.import_module("torchmil")
    lines = ["slide,label"]
    for k in range(4):
        torch.save(torch.randn(6, 4) + k % 2, folder / f"f{k}.pt")
        lines.append(f"f{k}.pt,{k % 2}")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    settings = {
        "model": {"embed": [4], "attention": 4},
        "fit": {"epochs": 1, "patience": None, "bootstrap": 0, "validation": 0.5, "accelerator": "cpu"},
    }
    fitted = fit(folder / "cohort.csv", settings, folder / "run", progress=False)
    if not fitted.checkpoints or not list((folder / "run").rglob("*.png")):
        raise ValueError("a training wrote no checkpoint or no plot")
    return "a training of one epoch wrote its checkpoint and its plots"


PROOFS: dict[str, Callable[[Path], str]] = {
    "hdf5": _prove_hdf5,
    "parquet": _prove_parquet,
    "hf": _prove_hf,
    "memmap": _prove_memmap,
    "cluster": _prove_cluster,
    "onnx": _prove_onnx,
    "timm": _prove_timm,
    "transformers": _prove_transformers,
    "train": _prove_train,
}
