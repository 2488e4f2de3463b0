"""The demo cohort for training: its table agrees with the slides, and another stain changes nothing else."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

import slideio_pipe as sp
from slideio_pipe.commands.app import app
from slideio_pipe.commands.demos import study as demo_mil
from slideio_pipe.commands.demos.study import LESION, _outcome, _plans, write_mil_cohort
from slideio_pipe.errors import ConfigError
from slideio_pipe.synthetic.stain import LABORATORIES, Staining

pytestmark = pytest.mark.slow

SIZE = (1024, 768)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the manifest of eight small slides."""
    return write_mil_cohort(tmp_path_factory.mktemp("cohort"), 8, size=SIZE)


def table(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.system
def test_the_table_agrees_with_the_slides(cohort: Path) -> None:
    """Label, grade and outlines agree; so does the lesion's share of the tissue, counted in the slide's pixels.

    Lesions are the outlines filled by OpenCV. Tissue is what is nearer to stained (160) than to glass (243) once gaps
    between fibres are closed; its edges are antialiased, so that a paler limit would count a rim of glass as well.
    """
    for row in table(cohort):
        lesions = ("none", "one", "two").index(row["grade"])
        assert row["label"] == str(int(lesions > 0))
        outlines = cohort.parent / "lesions" / f"{Path(row['slide']).stem}.geojson"
        assert outlines.exists() is bool(lesions)
        if not lesions:
            assert float(row["lesion_fraction"]) == 0
            continue
        regions = sp.Annotations.from_geojson(outlines).regions
        assert [region.class_name for region in regions] == [LESION] * lesions
        drawn = np.zeros(SIZE[::-1], np.uint8)
        for region in regions:
            cv2.fillPoly(drawn, [np.rint(region.polygon[0]).astype(np.int32)], 1)
        with sp.open_slide(cohort.parent / row["slide"]) as slide:
            pixels = np.asarray(slide.thumbnail(SIZE[0]))
        tissue = cv2.morphologyEx((pixels.min(axis=2) < 200).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 9)))
        assert float(row["lesion_fraction"]) == pytest.approx(drawn.sum() / tissue.sum(), rel=0.07)


@pytest.mark.parametrize("slides", [8, 12, 24, 40])
def test_each_part_has_both_labels(slides: int) -> None:
    """For every size, and no patient is in two parts; from twelve slides on, each grade is in the training part."""
    plans = _plans(slides, 1)
    for part in ("train", "val", "test"):
        assert {plan.lesions > 0 for plan in plans if plan.split == part} == {False, True}
    assert {plan.lesions for plan in plans if plan.split == "train"} >= ({0, 1, 2} if slides > 8 else {0, 1})
    splits: dict[str, set[str]] = {}
    for plan in plans:
        splits.setdefault(plan.patient, set()).add(plan.split)
    assert all(len(names) == 1 for names in splits.values())
    assert (len(splits) < slides) is (slides >= 24)


def test_lesions_increase_the_rate_of_events() -> None:
    """The rate per month (exponential, maximum likelihood) is 0.015, times 4 for each lesion."""
    outcomes: dict[int, list[tuple[float, int]]] = {}
    for plan in _plans(3000, 1):
        outcomes.setdefault(plan.lesions, []).append(_outcome(plan))
    for lesions, found in outcomes.items():
        months, events = np.array(found).T
        assert events.sum() / months.sum() == pytest.approx(0.015 * 4**lesions, rel=0.15)


@pytest.mark.combinations
@pytest.mark.parametrize("laboratory", ["faded", "thick", "violet", "far"])
def test_another_laboratory_has_the_same_tissue(cohort: Path, tmp_path: Path, laboratory: str) -> None:
    """Glass is equal, tissue has other colours, and the tables are the same."""
    shifted = write_mil_cohort(tmp_path, 8, size=SIZE, laboratory=laboratory, split="test")
    rows = {row["slide"]: row for row in table(cohort) if row["split"] == "test"}
    assert {row["slide"]: row for row in table(shifted)} == rows
    name = next(iter(rows))
    with sp.open_slide(cohort.parent / name) as one, sp.open_slide(tmp_path / name) as other:
        a, b = (np.asarray(slide.thumbnail(SIZE[0])).astype(int) for slide in (one, other))
    glass = a.min(axis=2) > 235
    assert np.abs(a - b)[glass].mean() < 0.5  # the range of JPEG artefacts from the edge of the tissue
    # Beer and Lambert: concentrations of the stains follow from one slide, and the colours of the other from these.
    tissue = (a.min(axis=2) < 200) & (a.min(axis=2) > 20)
    density, other = (-np.log(np.clip(each[tissue], 1, 243) / 243) for each in (a, b))
    units, shifted_units = (np.array(stain.densities()) for stain in (Staining(), LABORATORIES[laboratory]))
    held = np.linalg.lstsq(units, density.T, rcond=None)[0]
    expected = (shifted_units @ held).T
    np.testing.assert_allclose(np.median(other / expected, axis=0), 1, atol=0.03)
    off, apart = np.abs(other - expected).mean(), np.abs(other - density).mean()
    assert off < min(0.02, apart / 2)


def test_existing_slides_are_kept(cohort: Path) -> None:
    """A second call writes the table only."""
    before = {path: path.stat().st_mtime_ns for path in (cohort.parent / "slides").iterdir()}
    content = cohort.read_bytes()
    write_mil_cohort(cohort.parent, 8, size=SIZE)
    assert {path: path.stat().st_mtime_ns for path in (cohort.parent / "slides").iterdir()} == before
    assert cohort.read_bytes() == content


def test_a_folder_of_another_cohort_is_refused(cohort: Path) -> None:
    """Of another laboratory, seed or size: its slides would have wrong labels."""
    for other, output in (
        ({"laboratory": "faded"}, "laboratory usual"),
        ({"seed": 2}, "seed 1"),
        ({"size": (512, 384)}, r"size \[1024, 768\]"),
    ):
        with pytest.raises(ConfigError, match=rf"another cohort \({output}\); choose another folder"):
            write_mil_cohort(cohort.parent, 8, **({"size": SIZE} | other))


@pytest.mark.system
def test_the_command_makes_the_study_and_prints_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``demo --mil``; smaller here."""
    monkeypatch.setattr(demo_mil, "write_mil_cohort", partial(write_mil_cohort, slides=8, size=(512, 384)))
    output = CliRunner().invoke(app, ["demo", "--mil", "--out", str(tmp_path)])
    assert output.exit_code == 0
    assert f"train --config mil-end-to-end --cohort {tmp_path / 'cohort.csv'}" in " ".join(output.stdout.split())
    found = json.loads(CliRunner().invoke(app, ["demo", "--mil", "--out", str(tmp_path), "--json"]).stdout)
    assert found == {"cohort": str(tmp_path / "cohort.csv"), "slides": 8, "lesions": str(tmp_path / "lesions")}
    faded = tmp_path / "faded"
    output = CliRunner().invoke(app, ["demo", "--mil", "--laboratory", "faded", "--out", str(faded)])
    assert output.exit_code == 0
    assert f"predict run/ {faded}/cohort.csv" in " ".join(output.stdout.split())
    assert {row["split"] for row in table(faded / "cohort.csv")} == {"test"}
    assert "train configs" not in output.stdout  # they test models that were trained on usual stains
    assert json.loads((faded / "demo.json").read_text())["laboratory"] == "faded"
    only = CliRunner().invoke(app, ["demo", "--laboratory", "faded", "--out", str(tmp_path)])
    assert only.exit_code == 2
    assert "--laboratory without --mil" in only.stderr
    for more, reported in ((["--cohort"], "give one of them"), (["--device", "cpu"], "nothing is streamed")):
        refused = CliRunner().invoke(app, ["demo", "--mil", *more])
        assert refused.exit_code == 2
        assert reported in refused.stderr


def test_impossible_cohorts_are_refused(tmp_path: Path) -> None:
    """Too few slides, an unknown part, an unknown laboratory."""
    with pytest.raises(ConfigError, match="a cohort of 7 slides"):
        write_mil_cohort(tmp_path, 7)
    with pytest.raises(ConfigError, match='no slide is in split "dev"; pass train, val, test'):
        write_mil_cohort(tmp_path, 8, split="dev")
    with pytest.raises(ConfigError, match='no laboratory "blue"; pass usual, faded'):
        write_mil_cohort(tmp_path, 8, laboratory="blue")
