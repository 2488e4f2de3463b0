"""Ids of a table are joined to the files below a folder: exactly, and everything left over is listed."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from dicom_files import write_series
from hypothesis import given
from hypothesis import strategies as st
from pyramids import coordinate_pixels

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.slide_search import FoundFiles, stem_of_id
from slideio_pipe.errors import ConfigError, UnmatchedWarning

TCGA = "TCGA-CR-7395-01Z-00-DX1"
UUID = "0a1b2c3d-1111-2222-3333-0123456789ab"
OTHER = "ffffffff-1111-2222-3333-0123456789ab"


def touched(folder: Path, *files: str) -> Path:
    """Return a folder with empty files; names that end in / are folders."""
    for name in files:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir() if name.endswith("/") else place.touch()
    return folder


def joined(folder: Path, *ids: str) -> list[str]:
    """Return the files of ids, without a warning of other files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnmatchedWarning)
        found = Cohort.of([{"slide": each} for each in ids], slides=folder)
    return [str(slide.source.relative_to(folder)) for slide in found if isinstance(slide.source, Path)]


@pytest.mark.parametrize(
    ("files", "cell", "file"),
    [
        (["a.svs"], "a", "a.svs"),
        (["a.svs"], "a.svs", "a.svs"),
        (["a.SVS"], "a.svs", "a.SVS"),
        (["a.ndpi"], "a.svs", "a.ndpi"),
        (["x/y/a.svs"], "a", "x/y/a.svs"),
        (["x/a.svs", "y/a.svs"], "y/a", "y/a.svs"),
        (["x/a.svs", "y/a.svs"], "y/a.svs", "y/a.svs"),
        (["a.svs", "a.ndpi"], "a.ndpi", "a.ndpi"),
        (["a.svs", "ab.svs", "a.b.svs"], "a", "a.svs"),
        (["a.svs"], "/other/disk/a.svs", "a.svs"),
        (["a.svs"], "D:\\scans\\a.svs", "a.svs"),
        (["a.ome.tif"], "a", "a.ome.tif"),
        (["a.ome.zarr/"], "a", "a.ome.zarr"),
        (["S2024.12.svs", "S2024.1.svs"], "S2024.1", "S2024.1.svs"),
        (["007.svs", "7.svs"], "7", "7.svs"),
        (["a.mrxs", "a/Slidedat.ini", "a/b.tif"], "a", "a.mrxs"),
        (["a.svs", "a.bag.zarr/", "a.h5", "a.png"], "a", "a.svs"),
        (["a.bag.zarr/", "a.h5"], "a", "a.bag.zarr"),
        (["f/a.h5"], "a.svs", "f/a.h5"),
        (["a.h5"], "a.h5", "a.h5"),
        (["a.svs.h5", "a.ndpi.h5"], "a.svs", "a.svs.h5"),
        (["a.svs.h5"], "a", "a.svs.h5"),
        (["a.features.zarr/"], "a", "a.features.zarr"),
        (["a.jpg"], "a", "a.jpg"),
        ([f"{TCGA}.{UUID}.svs"], TCGA, f"{TCGA}.{UUID}.svs"),
        ([f"{TCGA}.{UUID}.svs"], f"{TCGA}.{UUID}", f"{TCGA}.{UUID}.svs"),
        ([f"{TCGA}.svs"], f"{TCGA}.{UUID}.svs", f"{TCGA}.svs"),
    ],
)  # fmt: skip
def test_an_id_is_joined_to_its_file(tmp_path: Path, files: list[str], cell: str, file: str) -> None:
    """With or without ending, at any depth; the more exact match wins."""
    assert joined(touched(tmp_path, *files), cell) == [file]


@pytest.mark.parametrize(
    ("files", "cell", "words"),
    [
        (["x/a.svs", "y/a.svs"], "a", r'row 1: "a" has 2 slides: x/a.svs and y/a.svs'),
        (["a.svs", "a.ndpi"], "a", r'"a" has 2 slides: a.ndpi and a.svs'),
        (["ab.svs"], "a", r"1 of 1 ids have no file below .*row 1 \"a\" \(the beginning of 1, such as ab\)"),
        (["A.svs"], "a", r"\(A differs in capitals\)"),
        (["007.svs"], "7", r"\(007 differs in leading zeros\).*1 slides there are in no row: 007.svs"),
        ([f"{TCGA}.svs"], "TCGA-CR-7395-01Z", r"the beginning of 1, such as TCGA-CR-7395-01Z-00-DX1\)"),
        ([f"{TCGA}.{OTHER}.svs"], f"{TCGA}.{UUID}", "have no file below"),
        (
            [f"{TCGA}.{OTHER}.svs", f"{TCGA}.{UUID}.svs"],
            TCGA,
            "has 2 slides",
        ),
        ([".a.svs"], "a", "have no file below"),
        ([], "a", "have no file below"),
    ],
)
def test_ids_that_are_not_clear_are_refused(tmp_path: Path, files: list[str], cell: str, words: str) -> None:
    """A beginning is no match; what is similar is named."""
    touched(tmp_path, *files)
    with pytest.raises(ConfigError, match=words):
        Cohort.of([{"slide": cell}], slides=tmp_path)


def test_two_ids_of_one_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are equal without their endings; not if the column "name" tells them apart."""
    touched(tmp_path, "a.svs")
    with pytest.raises(ConfigError, match=r'row 1 \("a"\) and row 2 \("a.svs"\) are both a\.svs'):
        Cohort.of([{"slide": "a"}, {"slide": "a.svs"}], slides=tmp_path)
    monkeypatch.chdir(tmp_path)  # where the second one is a path
    with pytest.raises(ConfigError, match=r'row 1 \("a"\) and row 2 \("a.svs"\) are both a\.svs'):
        Cohort.of([{"slide": "a"}, {"slide": "a.svs"}], slides=tmp_path)
    rows = [{"slide": "a", "name": "left"}, {"slide": "a", "name": "right"}]
    assert [slide.name for slide in Cohort.of(rows, slides=tmp_path)] == ["left", "right"]


def test_one_error_lists_all_ids(tmp_path: Path) -> None:
    """Twenty of them, with the number of the others."""
    touched(tmp_path, "a.svs")
    with pytest.raises(ConfigError) as caught:
        Cohort.of([{"slide": f"s{k}"} for k in range(30)], slides=tmp_path)
    message = str(caught.value)
    assert "30 of 30 ids have no file" in message
    assert 'row 20 "s19", and 10 more; 1 slides there are in no row: a.svs' in message


def test_files_without_a_row_are_listed_in_a_warning(tmp_path: Path) -> None:
    """All of them are in its attribute ``names``."""
    touched(tmp_path, "a.svs", *(f"x/{k:02}.svs" for k in range(25)))
    with pytest.warns(UnmatchedWarning, match=r"25 of 26 slides are in no row: x/00\.svs.* and 5 more") as caught:
        Cohort.of([{"slide": "a"}], slides=tmp_path)
    assert caught[0].message.names == tuple(f"x/{k:02}.svs" for k in range(25))  # type: ignore[union-attr]


def test_a_path_that_exists_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the table; the folder is then not compared."""
    touched(tmp_path, "raw/a.svs", "here/a.svs", "here/b.svs", "raw/c.svs")
    monkeypatch.chdir(tmp_path)
    assert [s.source for s in Cohort.of([{"slide": "here/b.svs"}], slides="raw")] == [tmp_path / "here/b.svs"]
    with pytest.warns(UnmatchedWarning, match="1 of 2 slides are in no row: c.svs"):
        found = Cohort.of([{"slide": "here/b.svs"}, {"slide": "a"}], slides="raw")
    assert [slide.source for slide in found] == [tmp_path / "here/b.svs", tmp_path / "raw/a.svs"]


def test_the_id_is_the_name_of_the_slide(tmp_path: Path) -> None:
    """Results are then under the ids of the study; written, the cohort keeps them."""
    touched(tmp_path, "raw/a.svs")
    cohort = Cohort.of([{"slide": "a", "label": 1}], slides=tmp_path / "raw")
    assert cohort[0].name == "a"
    assert list(Cohort.of(cohort.write(tmp_path / "joined.csv"))) == list(cohort)


def test_a_folder_of_a_dicom_series_is_a_slide(tmp_path: Path) -> None:
    """By the name of the folder, at any depth; of two series in a folder, both are named."""
    pixels = coordinate_pixels(300, 200)
    for number, name in enumerate(("one/series", "two")):
        write_series(tmp_path / name, pixels, (1, 2), series=f"1.2.{number}", prefix="level")
    assert joined(tmp_path, "two", "one") == ["two/level0.dcm", "one/series/level0.dcm"]
    write_series(tmp_path / "two" / "more", pixels, (1, 2), series="1.2.3", prefix="level")
    with pytest.raises(ConfigError, match='"two" has 2 slides'):
        Cohort.of([{"slide": "two"}], slides=tmp_path)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    """Before anything is read."""
    with pytest.raises(ConfigError, match="slides is no folder"):
        Cohort.of([{"slide": "a"}], slides=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="slides is for a table"):
        Cohort.of(tmp_path, slides=tmp_path)


@given(stems=st.lists(st.text("ab0.-", min_size=1, max_size=4), min_size=1, max_size=8, unique=True))
def test_the_join_is_that_of_a_plain_loop(tmp_path_factory: pytest.TempPathFactory, stems: list[str]) -> None:
    """An id without ending is the file whose name, without .svs, is the id: never another one."""
    folder = tmp_path_factory.mktemp("files")
    visible = [stem for stem in stems if not stem.startswith(".")]
    touched(folder, *(f"{stem}.svs" for stem in stems))
    files = FoundFiles.below(folder)
    for stem in [*stems, "a", "b", "ab"]:
        expected = [f"{other}.svs" for other in visible if stem_of_id(f"{other}.svs") == stem]
        assert files.of(stem) == expected, stem
