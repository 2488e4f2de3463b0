"""Arguments in place of a slide, a bag or a configuration are accepted if unambiguous, else refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError
from slideio_pipe.export.config import ExportConfig

CALLS: dict[str, Callable[[Any, Path], Any]] = {
    "find_tissue": lambda wrong, folder: sp.find_tissue(wrong),
    "TissueMask.from_geojson": lambda wrong, folder: sp.TissueMask.from_geojson(folder / "a.geojson", wrong),
    "TissueMask.from_png": lambda wrong, folder: sp.TissueMask.from_png(folder / "a.png", wrong),
    "TileGrid": lambda wrong, folder: sp.TileGrid(wrong, 64),
    "TileBag": lambda wrong, folder: sp.TileBag(wrong, wrong),
    "save_bag": lambda wrong, folder: sp.save_bag(wrong, folder / "a.bag.zarr"),
    "stream": lambda wrong, folder: sp.stream(wrong, device="cpu", normalize=None),
    "encode_bag": lambda wrong, folder: sp.encode_bag(wrong, "resnet18", device="cpu"),
}
WRONG: dict[str, Any] = {
    "text": "a.svs", "path": Path("a.svs"), "dictionary": {"slide": "a.svs"}, "none": None, "number": 3
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_object_that_is_no_slide_and_no_bag_is_refused(
    call: Callable[[Any, Path], Any], wrong: Any, tmp_path: Path
) -> None:
    """With what to pass instead; nothing is opened, read or written."""
    with pytest.raises(ConfigError) as raised:
        call(wrong, tmp_path)
    assert type(wrong).__name__ in str(raised.value)
    assert raised.value.remedy is not None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"slide": "a.svs"}, None, 3], ids=repr)
def test_only_paths_and_pixels_are_slides(wrong: Any) -> None:
    """A dictionary is neither."""
    with pytest.raises(ConfigError, match=f"a {type(wrong).__name__} is no slide; pass the path of a slide"):
        sp.open_slide(wrong)


def settings_as(kind: str, folder: Path) -> Any:
    """Return the same settings as a record, a dictionary, or a YAML file."""
    values = {"grid": {"tile_size": 64}, "tissue": {"method": "none"}, "view": {"mpp": "native"}}
    if kind == "record":
        return ExportConfig.model_validate(values)
    if kind == "dictionary":
        return values
    file = folder / "export.yaml"
    file.write_text("grid: {tile_size: 64}\ntissue: {method: none}\nview: {mpp: native}\n")
    return file if kind == "path" else str(file)


@pytest.mark.slow
@pytest.mark.parametrize("run", [sp.export_cohort, sp.tissue_cohort], ids=lambda run: run.__name__)
def test_settings_of_a_cohort_may_be_a_dictionary_or_a_file(
    coordinate_slide: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    """They are the same settings as a record: outputs of one run are kept by the others."""
    for kind in ("record", "dictionary", "path", "text"):
        report = run([coordinate_slide], tmp_path / "out", settings_as(kind, tmp_path), workers=0)
        assert not report.failed
        assert (report.done, report.kept) == ((1, 0) if kind == "record" else (0, 1)), kind
    if run is sp.export_cohort:
        bag = sp.open_bag(next((tmp_path / "out").rglob("*.bag.zarr")))
        rows, columns = (700 // 64, 1000 // 64)
        assert bag.shape == (rows * columns, 64, 64, 3)
        assert np.array_equal(bag.coords[-1], [(columns - 1) * 64, (rows - 1) * 64])


@pytest.mark.parametrize("run", [sp.export_cohort, sp.tissue_cohort], ids=lambda run: run.__name__)
@pytest.mark.parametrize("wrong", [3, ["grid"], {"grid": {"tile": 64}}, {3: 4}], ids=repr)
def test_invalid_settings_are_refused(
    coordinate_slide: Path, tmp_path: Path, run: Callable[..., Any], wrong: Any
) -> None:
    """Before anything is done."""
    with pytest.raises(ConfigError):
        run([coordinate_slide], tmp_path / "out", wrong, workers=0)
    assert not (tmp_path / "out").exists()
