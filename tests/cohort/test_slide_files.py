"""Slides of folders, patterns and lists: each slide once; subfolders are searched."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import pytest
import zarr
from dicom_files import write_dicom, write_series
from pyramids import coordinate_pixels, write_pyramid

from slideio_pipe import errors
from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.errors import ConfigError, SlideNotFoundError
from slideio_pipe.slides.slide import open_slide

PIXELS = coordinate_pixels(300, 200)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Two DICOM slides in one folder: three levels and a label, and two levels; a plain slide beside them."""
    folder = tmp_path / "dicom"
    # Names do not state sizes: the first in order is not level 0.
    files = write_series(folder, PIXELS, (1, 2, 4), series="1.2.1", prefix="one")
    files[0].rename(folder / "one9.dcm")
    write_dicom(folder / "a.dcm", PIXELS, number=7, series="1.2.1", kind="ORIGINAL\\PRIMARY\\LABEL\\NONE")
    write_series(folder, 255 - PIXELS, (1, 2), series="1.2.2", prefix="two")
    write_pyramid(folder / "z.tif", PIXELS, (1,))
    return folder


def _pattern(folder: Path) -> list[CohortSlide]:
    return list(Cohort.of(folder / "*"))


def _folder(folder: Path) -> list[CohortSlide]:
    return list(Cohort.of(folder))


def _list(folder: Path) -> list[CohortSlide]:
    return list(Cohort.of(sorted(folder.iterdir())))


@pytest.mark.parametrize("given", [_pattern, _folder, _list])
def test_a_dicom_series_is_one_slide(series: Path, given: Callable[[Path], list[CohortSlide]]) -> None:
    """Named after its largest level; OpenSlide opens the same slide from each of its files."""
    with pytest.warns(errors.PartsWarning, match="4 of 7 paths are parts of other slides") as caught:
        slides = given(series)
    assert [slide.name for slide in slides] == ["one9.dcm", "two0.dcm", "z.tif"]
    assert len(caught) == 1
    hashes = set()
    for path in series.glob("*.dcm"):
        with openslide.OpenSlide(str(path)) as slide:
            hashes.add(slide.properties["openslide.quickhash-1"])
    assert len(hashes) == 2


def test_files_of_different_slides_have_no_warning(series: Path) -> None:
    """One file of each."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cohort = Cohort.of([series / "one2.dcm", series / "two1.dcm"])
    assert [slide.name for slide in cohort] == ["one2.dcm", "two1.dcm"]


def test_rows_of_one_series_are_a_problem(series: Path, tmp_path: Path) -> None:
    """Rows of a manifest could have different labels."""
    rows = ["dicom/one9.dcm,0", "dicom/two0.dcm,1", "dicom/one1.dcm,1"]
    (tmp_path / "cohort.csv").write_text("\n".join(["slide,label", *rows]))
    with pytest.raises(ConfigError, match="line 2 and line 4 are files of one DICOM slide"):
        Cohort.of(tmp_path / "cohort.csv")


def test_a_folder_of_one_dicom_file_is_a_cohort(tmp_path: Path) -> None:
    """Its file is the path of the slide."""
    path = write_series(tmp_path / "a", PIXELS, (1,))[0]
    assert [slide.source for slide in Cohort.of(tmp_path / "a")] == [path]
    write_dicom(tmp_path / "a" / "0.dcm", PIXELS, number=7, kind="ORIGINAL\\PRIMARY\\LABEL\\NONE")
    with pytest.raises(SlideNotFoundError, match=f"pass {path}; its other files"):
        open_slide(tmp_path / "a")


def test_subfolders_are_searched_if_the_folder_has_no_slides(tmp_path: Path) -> None:
    """With a warning; hidden folders, zarrs and our own bags are skipped."""
    write_series(tmp_path / "p1" / "dicom", PIXELS, (1, 2))
    for name in ("p2/a.svs", "p3/deep/b.ndpi", "p3/c.mrxs", "p3/c/inside.tif", ".trash/d.svs", "p4/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    zarr.open_group(str(tmp_path / "p5" / "f.zarr"), mode="w")
    (tmp_path / "p5" / "f.zarr" / "inside.tif").touch()
    zarr.open_group(str(tmp_path / "p5" / "g.bag.zarr"), mode="w")
    with pytest.warns(errors.PartsWarning) as caught:
        cohort = Cohort.of(tmp_path)
    assert [slide.name for slide in cohort] == ["l0.dcm", "a.svs", "c.mrxs", "b.ndpi", "f.zarr"]
    output = [str(warning.message) for warning in caught]
    assert any("no slides in it; 6 files of slides are taken from 5 folders below it" in text for text in output)
    assert any("1 of 6 paths are parts of other slides, such as l1.dcm of l0.dcm" in text for text in output)


def test_subfolders_beside_slides_are_left_out_with_a_warning(tmp_path: Path) -> None:
    """They may contain older versions or results."""
    for name in ("a.svs", "old/a.svs", "old/b.svs", "c.mrxs", "c/x.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.warns(errors.PartsWarning, match="2 files of slides in folders below it are left out"):
        cohort = Cohort.of(tmp_path)
    assert [slide.name for slide in cohort] == ["a.svs", "c.mrxs"]


def test_companion_files_that_a_pattern_matches_are_no_slides(tmp_path: Path) -> None:
    """Tiles of MIRAX, VSI and VMS, and chunks of a zarr."""
    names = ("a.mrxs", "a/Data0000.dat", "a/Slidedat.ini", "b.vsi", "_b_/stack1/frame_t.ets", "c_1.jpg", "c_map.jpg")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    lines = ("[Virtual Microscope Specimen]", "ImageFile=c_1.jpg", "MapFile=c_map.jpg", "MacroImage=c_macro.jpg")
    (tmp_path / "c.vms").write_text("\r\n".join(lines))
    (tmp_path / "c_macro.jpg").touch()
    zarr.save_array(str(tmp_path / "d.zarr"), np.zeros((8, 8, 3), np.uint8))
    with pytest.warns(errors.PartsWarning, match=r"\(4 slides\)"):
        cohort = Cohort.of(tmp_path / "**" / "*")
    assert [slide.name for slide in cohort] == ["a.mrxs", "b.vsi", "c.vms", "d.zarr"]
    with pytest.warns(errors.PartsWarning, match=r"\(4 slides\)"):
        Cohort.of(tmp_path / "*")


def test_a_mirax_folder_is_refused_naming_its_file(tmp_path: Path) -> None:
    """In the remedy."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a.mrxs").touch()
    with pytest.raises(SlideNotFoundError, match=f"pass {tmp_path / 'a.mrxs'}"):
        open_slide(tmp_path / "a")


def test_slides_of_one_name_in_two_folders_are_refused(tmp_path: Path) -> None:
    """Their bags would have the same name."""
    for name in ("p1/a.svs", "p2/a.svs"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with (
        pytest.warns(errors.PartsWarning, match="2 files"),
        pytest.raises(ConfigError, match=r"2 slides are called a\.svs"),
    ):
        Cohort.of(tmp_path)


def test_the_slide_of_coordinates_is_found(tmp_path: Path) -> None:
    """The .mrxs and not its folder, also in subfolders."""
    from slideio_pipe.export.import_bags import slide_of

    (tmp_path / "a").mkdir()
    (tmp_path / "a.mrxs").touch()
    assert slide_of(tmp_path / "a_patches.h5", tmp_path) == tmp_path / "a.mrxs"
    (tmp_path / "nested" / "p1").mkdir(parents=True)
    (tmp_path / "nested" / "p1" / "b.svs").touch()
    with pytest.warns(errors.PartsWarning, match="taken from 1 folder below it"):
        assert slide_of(tmp_path / "b.h5", tmp_path / "nested") == tmp_path / "nested" / "p1" / "b.svs"
