"""Data sets and loaders with one bag per patient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from array_loader import bag, open_loader
from pyramids import coordinate_pixels, write_pyramid

import slideio_pipe as sp
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.errors import ConfigError, CorruptSlideError, FailedSlidesError, SkippedWarning

PATIENTS = {"P0": 2, "P1": 1, "P2": 3, "P3": 2}  # slides of each
READ = {"unit": "patient", "view": {"mpp": 0.5}, "grid": {"tile_size": 64}, "tissue": {"method": "none"}}


def memory_cohort(broken: str | None = None) -> sp.Cohort:
    """Return bags in memory: slide k of a patient has 7 + k tiles."""
    rows = []
    for number, (patient, count) in enumerate(PATIENTS.items()):
        for k in range(count):
            made = bag(f"{patient}-{k}", 7 + k)
            if made.name == broken:
                made.read = _broken  # type: ignore[method-assign]
            rows.append(CohortSlide(made, made.name, label=number % 2, patient=patient))
    return sp.Cohort(rows)


def _broken(indices: Any, out: Any = None, *, threads: int = 1) -> Any:
    raise CorruptSlideError("is damaged", slide="P2-1")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides of two patients, scanned at two resolutions, with a manifest."""
    folder = tmp_path_factory.mktemp("study")
    rows = ["slide,label,patient"]
    for patient, mpps in {"A": (0.5, 0.25), "B": (0.25,)}.items():
        for number, mpp in enumerate(mpps):
            name = f"{patient}{number}.tif"
            write_pyramid(folder / name, coordinate_pixels(420 + 10 * number, 400), (1,), mpp=mpp)
            rows.append(f"{name},{int(patient == 'B')},{patient}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_a_bag_is_a_patient_and_its_slides_tiles_are_as_in_their_own_bags(study: Path) -> None:
    by_slide = sp.BagDataset(study / "cohort.csv", READ | {"unit": "slide"}, tile_transform=sp.Flip())
    by_patient = sp.BagDataset(study / "cohort.csv", READ, tile_transform=sp.Flip())
    assert (len(by_slide), len(by_patient)) == (3, 2)
    assert repr(by_patient) == "BagDataset(2 patients)"
    for epoch in (0, 3):
        for dataset in (by_slide, by_patient):
            dataset.set_epoch(epoch)
        alone = [by_slide[0], by_slide[1]]
        patient = by_patient[0]
        assert (patient.bag, patient.label, patient.patient, patient.slides) == ("A", 0, "A", ("A0.tif", "A1.tif"))
        assert torch.equal(patient.tiles, torch.cat([slide.tiles for slide in alone]))
        assert np.array_equal(patient.coords, np.concatenate([slide.coords for slide in alone]))
        assert patient.slide_index.tolist() == [0] * len(alone[0]) + [1] * len(alone[1])


def test_a_slide_wide_transform_is_drawn_for_each_slide_with_the_seeds_of_its_own_bag(study: Path) -> None:
    config, transform = READ | {"seed": 5}, sp.StainJitter()
    dataset = sp.BagDataset(study / "cohort.csv", config, slide_transform=transform)
    opened = dataset.open(0, epoch=2)
    draws = [slide.view.draw for slide in opened.slides]
    alone = sp.BagDataset(study / "cohort.csv", config | {"unit": "slide"}, slide_transform=transform)
    assert draws == [alone.open(k, epoch=2).view.draw for k in (0, 1)]
    assert draws[0] != draws[1]


def collected(chunks: Any) -> dict[str, dict[int, tuple[int, bytes]]]:
    """Return slide and pixels of every tile, by patient and number of the tile."""
    found: dict[str, dict[int, tuple[int, bytes]]] = {}
    for chunk in chunks:
        assert len(chunk.slide_index) == len(chunk)
        for number, slide, tile in zip(chunk.index.tolist(), chunk.slide_index.tolist(), chunk.tiles, strict=True):
            found.setdefault(chunk.bag, {})[number] = slide, tile.numpy().tobytes()
    return found


def expected(cohort: sp.Cohort) -> dict[str, dict[int, tuple[int, bytes]]]:
    found: dict[str, dict[int, tuple[int, bytes]]] = {}
    for row in cohort:
        tiles = found.setdefault(str(row.patient), {})
        slide = int(row.name[-1])
        pixels = np.ascontiguousarray(row.source[:].transpose(0, 3, 1, 2))
        tiles.update({len(tiles) + k: (slide, tile.tobytes()) for k, tile in enumerate(pixels)})
    return found


@pytest.mark.parametrize(
    "how",
    [{"ordered": True}, {"mix": 2}, {"interleave": 2}, {"shuffle": True, "mix": 1}, {"bags_in_flight": 3}],
    ids=str,
)
def test_chunks_span_slides_and_every_tile_comes_once(how: dict[str, Any]) -> None:
    cohort = memory_cohort()
    loader = open_loader(cohort, {"unit": "patient"}, **how)
    assert len(loader) == 2 + 1 + 3 + 2
    chunks = list(loader)
    assert collected(chunks) == expected(cohort)
    assert any(len(set(chunk.slide_index.tolist())) > 1 for chunk in chunks)
    assert sum(chunk.last for chunk in chunks) == len(PATIENTS)


def test_whole_bags_are_patients() -> None:
    cohort = memory_cohort()
    bags = list(open_loader(cohort, {"unit": "patient"}, mix=2).bags())
    assert {bag.bag: bag.label for bag in bags} == {"P0": 0, "P1": 1, "P2": 0, "P3": 1}
    assert collected(bags) == expected(cohort)


def test_max_tiles_counts_the_tiles_of_a_patient() -> None:
    loader = open_loader(memory_cohort(), {"unit": "patient", "max_tiles": 12})
    counts = {bag.bag: len(bag) for bag in loader.bags()}
    assert counts == {"P0": 12, "P1": 7, "P2": 12, "P3": 12}


def test_an_epoch_continues_within_a_patient() -> None:
    whole = collected(open_loader(memory_cohort(), {"unit": "patient"}, shuffle=True, ordered=True))
    loader = open_loader(memory_cohort(), {"unit": "patient"}, shuffle=True, ordered=True)
    chunks = iter(loader)
    first = [next(chunks) for _ in range(4)]
    state = loader.state_dict()
    loader.close()
    again = open_loader(memory_cohort(), {"unit": "patient"}, shuffle=True, ordered=True)
    again.load_state_dict(state)
    rest = list(again)
    assert len(first) + len(rest) == 8
    assert collected([*first, *rest]) == whole
    with pytest.raises(ConfigError, match="another loader"):
        open_loader(memory_cohort(), shuffle=True, ordered=True).load_state_dict(state)


def test_ranks_get_equal_numbers_of_patients() -> None:
    how = {"world_size": 3, "even": "pad"}
    loaders = [open_loader(memory_cohort(), {"unit": "patient"}, rank=rank, **how) for rank in range(3)]
    shares = [[bag.bag for bag in loader.bags()] for loader in loaders]
    assert [len(share) for share in shares] == [2, 2, 2]
    assert {patient for share in shares for patient in share} == set(PATIENTS)
    with pytest.warns(SkippedWarning, match="1 of 4 patients are in no epoch"):
        assert len(list(open_loader(memory_cohort(), {"unit": "patient"}, rank=0, world_size=3))) == 2


def test_a_patient_fails_with_its_slide_and_the_error_names_the_slide() -> None:
    loader = open_loader(memory_cohort(broken="P2-1"), {"unit": "patient"}, max_failures=1)
    with pytest.warns(SkippedWarning, match=r"1 patient could not be read, such as P2-1"):
        bags = [bag.bag for bag in loader.bags()]
    assert bags == ["P0", "P1", "P3"]
    assert [failure.slide for failure in loader.failures] == ["P2"]
    with pytest.raises(FailedSlidesError, match="1 of 4 patients failed"):
        loader.raise_failures()
    with pytest.raises(CorruptSlideError, match="P2-1"):
        list(open_loader(memory_cohort(broken="P2-1"), {"unit": "patient"}))


def test_a_patient_whose_slide_cannot_be_opened_fails_and_its_other_slides_are_closed(
    study: Path, tmp_path: Path
) -> None:
    (tmp_path / "cohort.csv").write_text(
        f"slide,label,patient\n{study}/A0.tif,0,A\n{tmp_path}/cut.tif,0,A\n{study}/B0.tif,1,B\n"
    )
    (tmp_path / "cut.tif").write_bytes((study / "A1.tif").read_bytes()[:1000])
    dataset = sp.BagDataset(tmp_path / "cohort.csv", READ)
    loader = sp.BagLoader(dataset, device="cpu", normalize=None, max_failures=1)
    with pytest.warns(SkippedWarning, match="cut.tif"):
        assert [bag.bag for bag in loader.bags()] == ["B"]


@pytest.mark.system
def test_worker_processes_read_patients(study: Path) -> None:
    dataset = sp.BagDataset(study / "cohort.csv", READ, tile_transform=sp.Flip())
    threads = sp.BagLoader(dataset, device="cpu", normalize=None, chunk_size=20)
    workers = sp.BagLoader(dataset, device="cpu", normalize=None, chunk_size=20, workers=2)
    assert collected(workers) == collected(threads)
    workers.close()


def test_bags_of_patients_that_the_caller_made_keep_their_slides(study: Path) -> None:
    slides = sp.BagDataset(study / "cohort.csv", READ | {"unit": "slide"})
    own = sp.PatientBag([slides.open(0), slides.open(1)], patient="A", label=0)
    (found,) = sp.BagLoader(sp.BagDataset([own]), device="cpu", normalize=None).bags()
    assert (found.bag, found.patient, found.label) == ("A", "A", 0)
    assert np.array_equal(found.slide_index, own.slide_index)


@pytest.mark.parametrize("kind", ["path", "stored", "open"])
def test_bags_of_patients_are_their_slides_again(study: Path, tmp_path: Path, kind: str) -> None:
    """A stored patient by its path, opened, or a bag in memory: with unit patient its slides can be augmented."""
    slides = sp.BagDataset(study / "cohort.csv", READ | {"unit": "slide"})
    bags = [slides.open(0), slides.open(1)]
    wanted = np.concatenate([bag[:] for bag in bags])
    if kind != "open":
        bags = [sp.save_bag(bag, tmp_path / f"{bag.name}.bag.zarr", progress=False) for bag in bags]
    patient: Any = sp.PatientBag(bags, patient="A", label=0)
    if kind == "path":
        sp.save_bag(patient, tmp_path / "A.patient.json")
        patient = tmp_path / "A.patient.json"
    found = sp.BagDataset([patient], {"unit": "patient"})[0]
    assert (found.bag, found.label, found.patient, found.slides) == ("A", 0, "A", ("A0.tif", "A1.tif"))
    assert np.array_equal(found.tiles.permute(0, 2, 3, 1).numpy(), wanted)
    assert found.slide_index.tolist() == [0] * len(bags[0]) + [1] * len(bags[1])
    if kind != "open":
        drawn = sp.BagDataset([patient], {"unit": "patient"}, tile_transform=sp.Flip(p=1)).open(0)
        assert all(isinstance(slide, sp.AugmentedBag) for slide in drawn.slides)
        drawn.close()
