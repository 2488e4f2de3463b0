"""An address such as s3://bucket/a.svs is refused as one: the remedy is to copy or mount it, wherever it was passed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import run

import slideio_pipe as sp
from slideio_pipe.errors import BagFormatError, ConfigError, OutputError, SlideNotFoundError
from slideio_pipe.files import TO_PATH, address_in
from slideio_pipe.synthetic.slide import write_synthetic_slide

INPUTS: dict[str, tuple[Callable[[str], Any], type[Exception]]] = {
    "a.svs": (sp.open_slide, SlideNotFoundError),
    "a.bag.zarr": (sp.open_bag, BagFormatError),
    "a.features.zarr": (sp.open_features, BagFormatError),
    "a.h5": (sp.open_features, BagFormatError),
    "cohort.csv": (sp.Cohort.of, ConfigError),
    "slides/": (sp.Cohort.of, ConfigError),
    "slides/*.svs": (sp.Cohort.of, ConfigError),
    "b.svs": (lambda address: sp.Cohort.of([address]), ConfigError),
    "best.ckpt": (sp.load_predictor, ConfigError),
    "a.pt2": (sp.load_encoder, ConfigError),
    "stain.yaml": (sp.load_transform, ConfigError),
    "a.geojson": (sp.Annotations.from_geojson, SlideNotFoundError),
}


@pytest.mark.parametrize("scheme", ["s3://bucket/", "https://example.org/", "filecache::s3://bucket/"])
@pytest.mark.parametrize("name", INPUTS)
def test_inputs(name: str, scheme: str) -> None:
    """The message has the whole address, and not a path with one slash."""
    reading, kind = INPUTS[name]
    with pytest.raises(kind) as caught:
        reading(scheme + name)
    assert f"{scheme}{name.rstrip('/')}" in str(caught.value)
    assert "an address, not a file" in str(caught.value)
    assert TO_PATH in str(caught.value)


def test_rows_of_a_cohort(tmp_path: Path) -> None:
    """Every row is listed, with its line."""
    table = tmp_path / "cohort.csv"
    table.write_text("slide\ns3://bucket/a.svs\nhttps://example.org/b.svs\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"line 2: slide s3://bucket/a\.svs is an address.+line 3: slide https://"):
        sp.Cohort.of(table)


def test_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder called "s3:" is made."""
    write_synthetic_slide(tmp_path / "a.svs", size=(1024, 768), seed=1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="s3://bucket/bags: an address, not a folder; write to a disk"):
        sp.export_cohort("a.svs", "s3://bucket/bags", progress=False)
    with sp.open_slide("a.svs") as slide, pytest.raises(OutputError, match=r"s3://bucket/a\.bag\.zarr: an address"):
        sp.save_bag(sp.TileBag(slide.view(), sp.TileGrid(slide.view(), tile_size=256)), "s3://bucket/a.bag.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["a.svs"]


@pytest.mark.parametrize("command", ["info", "export", "tissue", "features"])
def test_commands(command: str, tmp_path: Path) -> None:
    """The exit code is that of a wrong argument."""
    more = ["--encoder", "a.pt2"] if command == "features" else []
    result = run(
        command, "s3://bucket/a.svs", *more, *([] if command in ("info", "tissue") else ["--out", tmp_path]), code=2
    )
    assert "s3://bucket/a.svs" in " ".join(result.output.split())
    assert "an address, not a file" in " ".join(result.output.split())


def test_a_folder_with_a_colon_is_a_folder(tmp_path: Path) -> None:
    """A name such as "study:" is allowed on disk."""
    place = tmp_path / "study:"
    assert address_in(place / "a.svs") is not None
    place.mkdir()
    assert address_in(place / "a.svs") is None
