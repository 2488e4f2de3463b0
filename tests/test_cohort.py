"""A cohort is checked before anything starts, and everything that is wrong is said at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_streaming import numbered_bag

from slideio_pipe.cohort import Cohort, CohortSlide
from slideio_pipe.errors import AlikeLabelsWarning, ConfigError


def manifest(folder: Path, text: str, *files: str) -> Path:
    """Write a CSV and empty files beside it."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    path = folder / "cohort.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_manifest(tmp_path: Path) -> None:
    """Paths are relative to the file; cells may be empty; other columns are left alone."""
    text = "slide,label,mpp,mask,patient\nx/a.svs,1,0.25,a.png,p1\nb.svs,,,,p2\n"
    cohort = Cohort.of(manifest(tmp_path, text, "x/a.svs", "b.svs", "a.png"))
    first, second = cohort
    assert (first.source, first.name, first.label, first.mpp) == (tmp_path / "x/a.svs", "a.svs", 1, 0.25)
    assert first.mask == tmp_path / "a.png"
    assert (second.label, second.mpp, second.mask) == (None, None, None)
    assert len(cohort[1:]) == 1


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["0", "1", ""], [0, 1, None]),
        (["0.5", "1", "2"], [0.5, 1.0, 2.0]),
        (["tumour", "1", ""], ["tumour", "1", None]),
    ],
)
def test_labels_have_one_type(tmp_path: Path, cells: list[str], labels: list[object]) -> None:
    """A column of whole numbers is whole numbers; one word makes all of it text."""
    rows = "".join(f"{name}.svs,{cell}\n" for name, cell in zip("abc", cells, strict=True))
    cohort = Cohort.of(manifest(tmp_path, "slide,label\n" + rows, "a.svs", "b.svs", "c.svs"))
    assert cohort.labels == labels
    assert [type(label) for label in cohort.labels] == [type(label) for label in labels]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_spreadsheets(tmp_path: Path, delimiter: str) -> None:
    """A byte order mark, semicolons, decimal commas and empty lines are what spreadsheets write."""
    number = "0.25" if delimiter == "," else "0,25"
    text = f"\ufeffslide;mpp\n a.svs ;{number}\n;\n".replace(";", delimiter)
    (slide,) = Cohort.of(manifest(tmp_path, text, "a.svs"))
    assert (slide.name, slide.mpp) == ("a.svs", 0.25)


def test_all_problems_at_once(tmp_path: Path) -> None:
    """With their lines, in one error that names the file."""
    text = "slide,lable,mpp,mask\na.svs,1,wide,\nmissing.svs,0,-1,no.png\nx/a.svs,1,,\n,1,,\n"
    with pytest.raises(ConfigError) as caught:
        Cohort.of(manifest(tmp_path, text, "a.svs", "x/a.svs"))
    message = str(caught.value)
    for part in (
        "cohort.csv: 7 problems",
        'column "lable" looks like "label"',
        "line 2: mpp 'wide' is no resolution",
        "line 3: mpp '-1' is no resolution",
        "line 3: no such slide",
        "line 3: no such mask",
        "line 5: no slide",
        "2 slides are called a.svs",
    ):
        assert part in message


def test_names_tell_slides_apart(tmp_path: Path) -> None:
    """Files of the same name in two folders are fine when they are given names."""
    text = "slide,name\nx/1.svs,x1\ny/1.svs,y1\n"
    assert [slide.name for slide in Cohort.of(manifest(tmp_path, text, "x/1.svs", "y/1.svs"))] == ["x1", "y1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("slide\n", "no slides"),
        ("file,label\na.svs,1\n", 'no column "slide"'),
        ("slide,slide\na.svs,a.svs\n", "is there twice"),
    ],
)
def test_manifests_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    """Each says what is missing."""
    with pytest.raises(ConfigError, match=words):
        Cohort.of(manifest(tmp_path, text, "a.svs"))


def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    """Not there, or not text."""
    with pytest.raises(ConfigError, match="check the path"):
        Cohort.of(tmp_path / "nowhere.csv")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00slide")
    with pytest.raises(ConfigError, match="UTF-8"):
        Cohort.of(tmp_path / "a.csv")


def test_many_problems_are_counted_not_listed(tmp_path: Path) -> None:
    """A manifest of the wrong folder does not fill the screen."""
    with pytest.raises(ConfigError, match=r"100 problems.*and 80 more"):
        Cohort.of(manifest(tmp_path, "slide\n" + "".join(f"{k}.svs\n" for k in range(100))))


def test_a_list(tmp_path: Path) -> None:
    """Paths and bags; a bag brings its own label; a cohort is itself."""
    (tmp_path / "a.svs").touch()
    bag = numbered_bag(3)
    bag.label = 7  # type: ignore[assignment]
    cohort = Cohort.of([tmp_path / "a.svs", bag])
    assert [(slide.name, slide.label) for slide in cohort] == [("a.svs", None), ("array", 7)]
    assert Cohort.of(cohort) is cohort
    assert repr(cohort) == "Cohort(2 slides, labels 7)"


@pytest.mark.parametrize("source", [7, [7], numbered_bag(1), []])
def test_what_is_no_cohort(source: object) -> None:
    """It says what to pass."""
    with pytest.raises(ConfigError):
        Cohort.of(source)  # type: ignore[arg-type]


def test_slides_of_a_list_are_told_by_their_number(tmp_path: Path) -> None:
    """No manifest lists them, so no line of it can be named."""
    (tmp_path / "a.svs").touch()
    with pytest.raises(ConfigError, match=r"^slide 2: no such slide .*b\.svs"):
        Cohort.of([tmp_path / "a.svs", tmp_path / "b.svs"])


def test_a_slide_is_a_cohort_of_one(tmp_path: Path) -> None:
    """It need not be put into a list, and one that is missing is not taken for a manifest."""
    (tmp_path / "a.svs").touch()
    assert [slide.name for slide in Cohort.of(tmp_path / "a.svs")] == ["a.svs"]
    with pytest.raises(ConfigError, match=r"no such slide .*b\.svs"):
        Cohort.of(str(tmp_path / "b.svs"))


def labelled(folder: Path, **counts: int) -> Cohort:
    """Return a cohort in which so many slides have these labels."""
    labels = [label.replace("_", " ") for label, count in counts.items() for _ in range(count)]
    (folder / "a.svs").touch()
    return Cohort(CohortSlide(folder / "a.svs", str(number), label) for number, label in enumerate(labels))


@pytest.mark.parametrize("slip", ["tumuor", "tumor", "tumoru", "tumoor", "tunour", "tumourr"])
def test_a_label_that_looks_misspelt(tmp_path: Path, slip: str) -> None:
    """Is told, and no error: classes may be alike by right."""
    with pytest.warns(AlikeLabelsWarning, match=rf"label '{slip}' \(1×\) may be 'tumour' \(40×\) misspelt"):
        labelled(tmp_path, tumour=40, normal=30, **{slip: 1})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("grade_1", "grade_2"),
        ("type_A", "type_B"),
        ("MSI", "MSS"),
        ("HER2+", "HER2-"),
        ("typical", "atypical"),
        ("normal", "tumour"),
        ("stage_II", "stage_III"),
        ("pT1a", "pT1b"),
        ("lobular", "tubular"),
    ],
)
def test_labels_that_are_alike_by_right(tmp_path: Path, one: str, other: str) -> None:
    """Are left alone, however rare one of them is; and any that are about as frequent (warnings are errors here)."""
    labelled(tmp_path, **{one: 40, other: 1})
    labelled(tmp_path, **{one: 1, other: 40})
    labelled(tmp_path, tumour=4, tumuor=1)
