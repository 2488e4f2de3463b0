"""Numbers of cells per tile, stored with a bag: against a count of the cells in each square, by comparison."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from command_line import run

from slideio_pipe import (
    Annotations,
    TileBag,
    TileGrid,
    export_cohort,
    open_bag,
    open_slide,
    save_bag,
    write_synthetic_slide,
)
from slideio_pipe.errors import BagFormatError, ConfigError, OutputExistsError
from slideio_pipe.export.slide import export_slide

KINDS = ["Neoplastic", "Inflammatory"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    """Return a slide, its cells as CellViT writes them, their places and their kinds."""
    folder = tmp_path_factory.mktemp("cells")
    write_synthetic_slide(folder / "a.svs", size=(2048, 1536), seed=3)
    rng = np.random.default_rng(1)
    places, kinds = rng.uniform((0, 0), (2048, 1536), (1500, 2)), rng.integers(1, 3, 1500)
    cells = [
        {"centroid": place, "type": kind, "bbox": [[0, 0], [1, 1]]}
        for place, kind in zip(places.tolist(), kinds.tolist(), strict=True)
    ]
    document = {"type_map": {"Background": 0, "Neoplastic": 1, "Inflammatory": 2}, "cells": cells}
    (folder / "a.json").write_text(json.dumps(document), encoding="utf-8")
    return folder / "a.svs", folder / "a.json", places, kinds


def expected(coords: np.ndarray, side: float, places: np.ndarray) -> list[int]:
    inside = (places >= coords[:, None]) & (places < coords[:, None] + side)
    counts: list[int] = inside.all(axis=2).sum(axis=1).tolist()
    return counts


def test_an_export_counts_cells(made: tuple[Path, Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """Per class and tile, in an array of the store that zarr reads; kept when the bag is copied."""
    slide, cells, places, kinds = made
    done = export_slide(slide, tmp_path, cell_file=cells)
    with open_bag(done.bag.path) as bag:
        side = bag.shape[1] * 0.5 / 0.25
        assert bag.cell_counts is not None
        assert sorted(bag.cell_counts) == sorted(KINDS)
        for number, name in enumerate(KINDS, 1):
            assert bag.cell_counts[name].tolist() == expected(bag.coords, side, places[kinds == number])
        assert done.summary()["cells"] == sum(int(found.sum()) for found in bag.cell_counts.values()) > 500
        again = save_bag(bag, tmp_path / "again.bag.zarr", progress=False)
        assert again.cell_counts is not None
        assert {name: found.tolist() for name, found in again.cell_counts.items()} == {
            name: found.tolist() for name, found in bag.cell_counts.items()
        }
        stored = zarr.open_array(done.bag.path / "cell_counts", mode="r")
        assert stored.attrs["classes"] == ["Inflammatory", "Neoplastic"]
        assert np.asarray(stored[...]).sum() == done.summary()["cells"]


def test_other_cells_are_another_bag(made: tuple[Path, Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """The same command keeps a bag; with other cells, or none, it exists already."""
    slide, cells, *_ = made
    export_slide(slide, tmp_path, cell_file=cells)
    assert export_slide(slide, tmp_path, cell_file=cells, keep=True).kept
    for other in ({"cell_file": cells, "cell_classes": ["Neoplastic"]}, {}):
        with pytest.raises(OutputExistsError):
            export_slide(slide, tmp_path, keep=True, **other)  # type: ignore[arg-type]
    plain = export_slide(slide, tmp_path / "plain")
    assert plain.bag.cell_counts is None
    assert "cells" not in plain.summary()
    assert not (plain.bag.path / "cell_counts").exists()


def test_a_bag_with_annotations_is_stored_with_counts(tmp_path: Path) -> None:
    """Of points, also if there are none; polygons alone are not counted."""
    view = open_slide(np.full((300, 500, 3), 90, np.uint8), slide_mpp=0.5).view()
    grid = TileGrid(view, tile_size=100)
    for points, name in (([(10, 20), (450, 250)], "some"), ([], "none")):
        marked = Annotations.from_arrays(points, ["a"] * len(points), classes=["a", "b"])
        stored = save_bag(TileBag(view, grid, annotations=marked), tmp_path / f"{name}.bag.zarr", progress=False)
        assert stored.cell_counts is not None
        assert {key: int(found.sum()) for key, found in stored.cell_counts.items()} == {"a": len(points), "b": 0}
    square = [np.array([[0.0, 0], [50, 0], [50, 50], [0, 50]])]
    drawn = Annotations([("Tumor", square)], {"Tumor": 1})  # type: ignore[list-item]
    bag = TileBag(view, grid, annotations=drawn)
    assert save_bag(bag, tmp_path / "drawn.bag.zarr", progress=False).cell_counts is None


def test_damaged_counts_are_said(tmp_path: Path) -> None:
    """Of another number of tiles."""
    view = open_slide(np.full((300, 500, 3), 90, np.uint8), slide_mpp=0.5).view()
    marked = Annotations.from_arrays([(5, 5)], ["a"])
    bag = TileBag(view, TileGrid(view, tile_size=100), annotations=marked)
    path = save_bag(bag, tmp_path / "a.bag.zarr", progress=False).path
    shutil.rmtree(path / "cell_counts")
    wrong = zarr.create_array(path / "cell_counts", shape=(3, 1), dtype="int32", attributes={"classes": ["a"]})
    wrong[...] = 7
    with pytest.raises(BagFormatError, match=r"cell_counts has the shape \(3, 1\)"):
        open_bag(path)


@pytest.mark.slow
def test_a_cohort_counts_cells(made: tuple[Path, Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """Of the column "cell_file"; a changed file is another bag, a broken one a failed slide."""
    slide, cells, *_ = made
    own = tmp_path / "own.json"
    own.write_bytes(cells.read_bytes())
    table = tmp_path / "cohort.csv"
    table.write_text(f"slide,cell_file\n{slide},own.json\n")
    report = export_cohort(table, tmp_path / "bags", {"tissue": {"method": "none"}}, cell_classes=["Neoplastic"])
    assert report.failures is None
    with open_bag(tmp_path / "bags" / "a.bag.zarr") as bag:
        assert bag.cell_counts is not None
        assert [*bag.cell_counts] == ["Neoplastic"]
    again = export_cohort(table, tmp_path / "bags", {"tissue": {"method": "none"}}, cell_classes=["Neoplastic"])
    assert again.done == 0
    own.write_text("{}")
    with pytest.raises(ConfigError, match="labels, mpp, masks or cells of the cohort"):
        export_cohort(table, tmp_path / "bags", {"tissue": {"method": "none"}}, cell_classes=["Neoplastic"])
    broken = export_cohort(table, tmp_path / "other", {"tissue": {"method": "none"}})
    assert broken.failures is not None
    assert "not a file of cells" in broken.failures.read_text()


def test_the_command_counts_cells(made: tuple[Path, Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """With its options, and says how many; for a cohort the option is a column."""
    slide, cells, *_ = made
    done = run("export", slide, "--out", tmp_path, "--cells", cells, "--cell-class", "Inflammatory")
    assert "cells in the tiles: " in done.stdout
    assert "Inflammatory" in done.stdout
    assert "Neoplastic" not in done.stdout
    both = run("export", slide, slide.parent, "--out", tmp_path, "--cells", cells, code=2)
    assert 'a column "cell_file"' in both.stderr
