"""A missing optional package is one sentence with the install command, in every place."""

from __future__ import annotations

import re
import sys
import threading
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT

from slideio_pipe import TileBag, TileGrid, convert, load_encoder, open_features, open_slide
from slideio_pipe.cohort.table import read_table, write_table
from slideio_pipe.cohort.workers.dask_pool import pool_for
from slideio_pipe.errors import MissingExtraError, require
from slideio_pipe.features.encoders.files import read_weights
from slideio_pipe.mil.checks import made_fabric
from slideio_pipe.mil.config import FitConfig
from slideio_pipe.mil.models.torchmil_model import TorchMilModel
from slideio_pipe.mil.plots import write_plots
from slideio_pipe.mil.tasks import Regression

PROJECT = ROOT / "pyproject.toml"


def _convert(layout: str) -> Callable[[Path], Any]:
    def run(folder: Path) -> Any:
        view = open_slide(np.full((64, 64, 3), 7, np.uint8), slide_mpp=0.5).view()
        return convert(TileBag(view, TileGrid(view, tile_size=32)), layout, folder / "out", progress=False)

    return run


def _read_features(folder: Path) -> Any:
    (folder / "a.h5").write_bytes(b"")
    return open_features(folder / "a.h5")


def _on_slurm(folder: Path) -> Any:
    (folder / "slurm.yaml").write_text("jobs: 1\ncores: 1\nmemory: 1 GB\n")
    return pool_for(folder / "slurm.yaml", print, folder=folder)


def _plots(folder: Path) -> None:
    import torch

    logits, targets = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0.0, 1.0, 2.5])
    write_plots(folder / "plots", Regression(0.0, 1.0), "val", logits, targets, {}, {})


USES: list[tuple[str, str, Callable[[Path], Any]]] = [
    ("hdf5", "h5py", _convert("clam")),
    ("hdf5", "h5py", _read_features),
    ("memmap", "tensordict", _convert("memmap")),
    ("hf", "pyarrow", _convert("hf")),
    ("parquet", "pyarrow", lambda folder: read_table(folder / "a.parquet")),
    ("parquet", "pyarrow", lambda folder: write_table(folder / "a.parquet", ["slide"], [{"slide": "a.svs"}])),
    ("excel", "openpyxl", lambda folder: read_table(folder / "a.xlsx")),
    ("excel", "openpyxl", lambda folder: write_table(folder / "a.xlsx", ["slide"], [{"slide": "a.svs"}])),
    ("timm", "timm", lambda _: load_encoder("timm:resnet18")),
    ("timm", "safetensors", lambda folder: read_weights(folder / "a.safetensors")),
    ("transformers", "transformers", lambda folder: load_encoder(f"hf:{folder}")),
    ("cluster", "distributed", lambda folder: pool_for("tcp://127.0.0.1:9", print, folder=folder)),
    ("cluster", "dask_jobqueue", _on_slurm),
    ("train", "torchmetrics", lambda _: made_fabric(FitConfig())),
    ("train", "tensorboard", lambda _: made_fabric(FitConfig())),
    ("train", "lightning_fabric", lambda _: made_fabric(FitConfig())),
    ("train", "torchmil", lambda _: TorchMilModel("TransMIL", 8)),
    ("train", "matplotlib", _plots),
]


@pytest.mark.parametrize(
    ("extra", "package", "use"), USES, ids=[f"{package} {use.__name__}" for _, package, use in USES]
)
def test_a_missing_package_is_an_error_with_its_extra(
    extra: str, package: str, use: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sentence for each, with an extra of this project; nothing is written."""
    loaded = [name for name in sys.modules if name.startswith(f"{package}.")]
    for name in [package, *loaded]:
        monkeypatch.setitem(sys.modules, name, None)  # which Python treats as "cannot be imported"
    monkeypatch.delitem(sys.modules, "slideio_pipe.cohort.workers.slurm", raising=False)
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(MissingExtraError) as raised:
        use(tmp_path)
    assert str(raised.value) == f'{package} is needed and not installed; pip install "slideio-pipe[{extra}]"'
    installs = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"][extra]
    names = [re.split(r"[<>= ]", line)[0].replace("-", "_") for line in installs]
    assert package in names
    assert {path.suffix for path in set(tmp_path.rglob("*")) - before} <= {".h5", ".yaml"}  # what the test itself wrote


def test_a_package_that_warns_at_import_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the warning filters are unchanged."""
    (tmp_path / "warns_at_import.py").write_text("import warnings\nwarnings.warn('no widgets')\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = list(warnings.filters)
    assert require("warns_at_import", "more").__name__ == "warns_at_import"
    assert warnings.filters == before


def test_imports_in_threads_do_not_change_the_warning_filters() -> None:
    """Filters belong to the process: two threads that each save and restore them could lose them."""
    require("json", "more")
    before, seen = warnings.filters, []

    def ask() -> None:
        require("json", "more")
        seen.append(warnings.filters is before)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 4
