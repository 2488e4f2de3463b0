"""Boxes and points of tiles in batches, whole bags and DataLoaders, of threads and worker processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
import torch
from drawn_regions import MOVES, view_of

from slideio_pipe import (
    Annotations,
    BagDataset,
    BagLoader,
    Cohort,
    MultiCrop,
    PatientBag,
    TileBag,
    TileGrid,
    open_bag,
    open_slide,
    save_bag,
    stream,
    write_synthetic_slide,
)
from slideio_pipe.errors import ConfigError, UnmatchedWarning
from slideio_pipe.tiles.marks.targets import Targets

RNG = np.random.default_rng(3)
KINDS = ["a", "b"]
CELLS = Annotations.from_arrays(
    RNG.uniform((0, 0), (900, 700), (300, 2)),
    RNG.choice(KINDS, 300).tolist(),
    [(x, y, x + 20, y + 30) for x in range(10, 850, 60) for y in range(10, 650, 80)],
    ["a"] * 112,
    KINDS,
)
CROPS = A.Compose([A.HorizontalFlip(p=0.5), *MOVES], bbox_params=A.BboxParams("pascal_voc", ["k"], min_visibility=0.3))


def _bag(**options: Any) -> TileBag:
    view = view_of(0.6, MOVES)
    return TileBag(view, TileGrid(view, 96), tile_transform=CROPS, seed=8, **options)


def _same(found: tuple[Targets, ...] | None, expected: list[Targets]) -> None:
    assert found is not None
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours.boxes, theirs.boxes)
        assert np.array_equal(ours.points, theirs.points)
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert ours.rules == theirs.rules


def test_batches_of_a_stream_have_targets() -> None:
    """Those of their tiles, in any order; without annotations, none."""
    bag = _bag(annotations=CELLS)
    order = RNG.permutation(len(bag))
    seen = 0
    for batch in stream(bag, device="cpu", normalize=None, batch_size=7, indices=order):
        _same(batch.targets, bag.targets(batch.index))
        seen += sum(len(each) for each in batch.targets or ())
    assert seen > 200
    plain = next(iter(stream(_bag(), device="cpu", normalize=None, batch_size=7)))
    assert plain.targets is None


def test_tiles_and_targets_show_the_same() -> None:
    """On a slide with dark squares for boxes, the pixels inside a tile's boxes are dark, after all draws."""
    pixels = np.full((700, 900, 3), 240, np.uint8)
    for left, top, right, lower in CELLS.boxes.astype(int).tolist():
        pixels[top:lower, left:right] = 20
    view = view_of(None, A.Compose([A.HorizontalFlip(p=1)]), pixels)
    flips = A.Compose([A.VerticalFlip(p=0.5), A.HorizontalFlip(p=0.5)])
    bag = TileBag(view, TileGrid(view, 100), tile_transform=flips, annotations=CELLS, seed=2)
    for batch in stream(bag, device="cpu", normalize=None, batch_size=9):
        for tile, found in zip(batch.tiles, batch.targets or (), strict=True):
            dark = np.zeros((100, 100), bool)
            for left, top, right, lower in found.boxes.round().astype(int).tolist():
                dark[top:lower, left:right] = True
            assert np.array_equal((tile[0] < 100).numpy(), dark)


def test_a_detector_gets_its_dictionaries() -> None:
    """One per tile, with float32 boxes and int64 labels: what torchvision's detectors take."""
    batch = next(iter(stream(_bag(annotations=CELLS), device="cpu", normalize=None, batch_size=16)))
    dictionaries = [each.to_torch() for each in batch.targets or ()]
    assert {tuple(each) for each in dictionaries} == {("boxes", "labels", "points", "point_labels")}
    assert all(each["boxes"].dtype == torch.float32 and each["labels"].dtype == torch.int64 for each in dictionaries)


# -- cohorts -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a table of two slides with the cells of each, as CellViT writes them."""
    folder = tmp_path_factory.mktemp("cells")
    rows = ["slide,label,patient,cell_file"]
    for number, name in enumerate(("one", "two")):
        write_synthetic_slide(folder / f"{name}.svs", size=(1024, 768), seed=number + 1)
        places = np.random.default_rng(number).uniform((0, 0), (1024, 768), (200, 2)).tolist()
        cells = [
            {"centroid": [x, y], "type": 1 + k % 2, "bbox": [[y - 5, x - 4], [y + 5, x + 4]]}
            for k, (x, y) in enumerate(places)
        ]
        (folder / f"{name}.json").write_text(json.dumps({"type_map": {"1": "A", "2": "B"}, "cells": cells}))
        rows.append(f"{name}.svs,{number},P{number},{name}.json")
    (folder / "cohort.csv").write_text("\n".join(rows))
    return folder / "cohort.csv"


CONFIG = {"view": {"mpp": 0.5}, "grid": {"tile_size": 96}, "tissue": {"method": "none"}, "seed": 4}


def test_a_cohort_has_a_column_for_cells(cohort: Path, tmp_path: Path) -> None:
    """Relative to the table; written again, and missing files are listed."""
    slides = Cohort.of(cohort)
    assert [slide.cell_file for slide in slides] == [cohort.parent / "one.json", cohort.parent / "two.json"]
    slides.write(tmp_path / "again.csv")
    assert [slide.cell_file for slide in Cohort.of(tmp_path / "again.csv")] == [slide.cell_file for slide in slides]
    assert slides.to_dataframe()["cell_file"].tolist() == [str(slide.cell_file) for slide in slides]
    (tmp_path / "bad.csv").write_text(f"slide,cell_file\n{cohort.parent / 'one.svs'},none.json\n")
    with pytest.raises(ConfigError, match=r"no such cell file .*none\.json"):
        BagDataset(tmp_path / "bad.csv", CONFIG)


@pytest.mark.parametrize("options", [{}, {"mix": 2, "interleave": 2}, {"ordered": True, "chunk_size": 5}])
def test_chunks_of_a_loader_have_targets(cohort: Path, options: dict[str, Any]) -> None:
    """Those of the tiles of their bag, with the draws of the epoch."""
    dataset = BagDataset(cohort, CONFIG, tile_transform=CROPS, slide_transform=MOVES, cells=["A", "B"])
    loader = BagLoader(dataset, device="cpu", normalize=None, **{"chunk_size": 16, **options})
    names = [slide.name for slide in dataset.cohort]
    for epoch in range(2):
        bags = {name: dataset.open(k, epoch) for k, name in enumerate(names)}
        seen = 0
        for chunk in loader:
            _same(chunk.targets, bags[chunk.bag].targets(chunk.index))  # type: ignore[attr-defined]
            seen += sum(len(each) for each in chunk.targets or ())
        assert seen > 200


def test_whole_bags_have_targets(cohort: Path) -> None:
    """Gathered from chunks, by a plain index, and through a DataLoader."""
    dataset = BagDataset(cohort, CONFIG, tile_transform=CROPS, cells={"A": 3, "B": 7})
    loader = BagLoader(dataset, device="cpu", normalize=None, chunk_size=10, mix=2, ordered=True)
    for k, whole in enumerate(loader.bags()):
        bag: Any = dataset.open(k, 0)
        expected = bag.targets(whole.index)
        _same(whole.targets, expected)
        _same(dataset[k].targets, expected)
        assert {label for each in expected for label in each.labels.tolist()} == {3, 7}
    plain = torch.utils.data.DataLoader(dataset, batch_size=None)
    assert all(len(whole.targets) == len(whole) for whole in plain)


def test_stored_bags_have_the_cells_of_their_table(cohort: Path, tmp_path: Path) -> None:
    """In the frame that the store records; augmented, too."""
    slide = open_slide(cohort.parent / "one.svs")
    view = slide.view(mpp=0.5)
    bag = TileBag(view, TileGrid(view, 96), label=1)
    save_bag(bag, tmp_path / "one.bag.zarr")
    table = tmp_path / "stores.csv"
    table.write_text(f"slide,cell_file\none.bag.zarr,{cohort.parent / 'one.json'}\n")
    cells = Annotations.from_cells(cohort.parent / "one.json", ["A", "B"], slide=slide)
    _same(BagDataset(table, {}, cells=["A", "B"])[0].targets, cells.targets(bag))
    drawn = BagDataset(table, {"seed": 5}, tile_transform=CROPS, cells=["A", "B"])
    augmented: Any = drawn.open(0, 1)
    drawn.set_epoch(1)
    _same(drawn[0].targets, cells.targets(augmented))
    with open_bag(tmp_path / "one.bag.zarr") as stored:
        stored.annotations = cells
        _same(tuple(stored.targets()), cells.targets(bag))


def test_a_patient_has_targets(cohort: Path, tmp_path: Path) -> None:
    """Of the slides of one patient, one after the other."""
    table = tmp_path / "patients.csv"
    table.write_text(
        cohort.read_text()
        .replace("P1", "P0")
        .replace(",1,P0", ",0,P0")
        .replace("one", f"{cohort.parent}/one")
        .replace("two", f"{cohort.parent}/two")
    )
    dataset = BagDataset(table, CONFIG | {"unit": "patient"}, cells=["A"])
    whole = dataset[0]
    patient = dataset.open(0)
    assert isinstance(patient, PatientBag)
    _same(whole.targets, [*patient.slides[0].targets(), *patient.slides[1].targets()])  # type: ignore[attr-defined]


def test_slides_without_cells_are_said(cohort: Path) -> None:
    """All of them, before one is opened; also cells that cannot be: of views, of no class."""
    slides = [cohort.parent / "one.svs", cohort.parent / "two.svs"]
    with pytest.raises(ConfigError, match=r'2 of 2 slides have no cells: one.svs, two.svs; name .* "cell_file"'):
        BagDataset(slides, CONFIG, cells=["A"])
    with pytest.raises(ConfigError, match="views have no targets"):
        BagDataset(cohort, CONFIG, cells=["A"], views=MultiCrop(global_=1, local=1))
    with pytest.raises(ConfigError, match="pass a list of names"):
        BagDataset(cohort, CONFIG, cells="A")
    assert BagDataset(cohort, CONFIG)[0].targets is None
    failing = BagLoader(BagDataset(cohort, CONFIG, cells=["Z"]), device="cpu", normalize=None)
    with pytest.warns(UnmatchedWarning, match="no cell of Z; classes found: A, B"):
        assert sum(len(each) for chunk in failing for each in chunk.targets or ()) == 0


@pytest.mark.system
def test_worker_processes_leave_targets_as_they_are(cohort: Path) -> None:
    """They read pixels; targets are those of threads."""
    dataset = BagDataset(cohort, CONFIG, tile_transform=CROPS, cells=["A", "B"])
    with BagLoader(dataset, device="cpu", normalize=None, chunk_size=16, workers=2, ordered=True) as loader:
        for chunk in loader:
            bag: Any = dataset.open([slide.name for slide in dataset.cohort].index(chunk.bag), 0)
            _same(chunk.targets, bag.targets(chunk.index))
