"""``slideio-pipe demo --mil``: a study for training, half of its slides with a small lesion, and a table of targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.splits import split_cohort
from slideio_pipe.commands.demos.same_study import check_same_study
from slideio_pipe.errors import ConfigError
from slideio_pipe.files import make_folder
from slideio_pipe.geometry import Size
from slideio_pipe.synthetic.anatomy import Anatomy, mask_positions
from slideio_pipe.synthetic.slide import write_synthetic_slide
from slideio_pipe.synthetic.stain import LABORATORIES, Staining
from slideio_pipe.tiles.annotations import Annotations
from slideio_pipe.tiles.mask_files import Annotation

MANIFEST = "cohort.csv"
LESION = "Lesion"
GRADES = ("none", "one", "two")  # number of lesions of a slide
_MPP = 0.25
_PIECES = 3
_PARTS = {"train": 0.5, "val": 0.1, "test": 0.4}
_PARTS_OF_FEW = {"train": 0.5, "val": 0.2, "test": 0.3}  # below 40 slides: a tenth would not contain both labels
_PAIRS_FROM = 24  # slides; in a smaller cohort, patients with two slides would leave no validation patients
# Per month, without lesions; each lesion multiplies it. Patients without an event by the end of the study are censored.
_HAZARD, _HAZARD_RATIO = 0.015, 4.0
_STUDY_MONTHS = (24.0, 60.0)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A slide to make."""

    name: str
    lesions: int
    patient: str
    split: str
    seed: int


def write_mil_cohort(
    folder: str | Path,
    slides: int = 40,
    *,
    size: tuple[int, int] = (6144, 4608),
    seed: int = 1,
    laboratory: str = "usual",
    split: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Path:
    """Make slides of which every second has one or two lesions, and return their manifest.

    A lesion covers about 2 % of the tissue of a slide of the default size. ``cohort.csv`` has for each slide its label
    (a lesion or none), patient and split (train, val, test: by patient, stratified by label), and for other tasks:
    ``grade`` (none, one, two lesions), ``lesion_fraction`` (of the tissue), ``time`` (months) and ``event`` (drawn with
    a hazard that every lesion multiplies by 4). ``lesions/<slide>.geojson`` outlines the lesions. Existing slides are
    kept if they are of the same cohort.

    Parameters
    ----------
    folder : str or Path
        Folder for the manifest, ``slides/`` and ``lesions/``.
    slides : int
        Number of slides, at least 8. From 24 on, two slides each are of one patient.
    size : (int, int)
        Width and height, px at 0.25 µm.
    seed : int
        Number of the cohort.
    laboratory : str
        Laboratory that stains the tissue, which stays the same: "usual", "faded", "thick", "violet" or "far".
    split : {"train", "val", "test"}, optional
        Make only these slides of the cohort.
    progress : callable, optional
        Called with (slides done, slides in all).

    Raises
    ------
    ConfigError
        There are too few slides, the laboratory or split is unknown, or the folder contains another cohort.
    OutputError
        The folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> Cohort.of(write_mil_cohort(tempfile.mkdtemp(), 8, size=(512, 384)))
    Cohort(8 slides, labels 0 and 1)
    """
    if slides < 8:
        raise ConfigError(f"a cohort of {slides} slides", remedy="pass slides=8 or more")
    if laboratory not in LABORATORIES:
        raise ConfigError(f'no laboratory "{laboratory}"', remedy=f"pass {', '.join(LABORATORIES)}")
    place = Path(folder).expanduser()
    for name in ("slides", "lesions"):
        make_folder(place / name)
    check_same_study(place, {"seed": seed, "size": [int(side) for side in size], "laboratory": laboratory})
    plans = _plans(slides, seed)
    if split is not None:
        plans = [plan for plan in plans if plan.split == split]
        if not plans:
            raise ConfigError(f'no slide is in split "{split}"', remedy=f"pass {', '.join(_PARTS)}")
    rows = []
    for done, plan in enumerate(plans, 1):
        rows.append(_make(plan, place, size, LABORATORIES[laboratory]))
        if progress is not None:
            progress(done, len(plans))
    return Cohort(rows).write(place / MANIFEST)


def _plans(slides: int, seed: int) -> list[_Plan]:
    """Return the plan of every slide; split evenly over the grades, so that each part has every grade."""
    # Every third slide with lesions has two.
    lesions = [0 if k % 2 == 0 else 2 if k % 6 == 5 else 1 for k in range(slides)]
    paired = slides >= _PAIRS_FROM
    patients = [f"P{(k // 4 * 2 + k % 2 if paired else k) + 1:02}" for k in range(slides)]
    named = [
        CohortSlide(Path(f"s{k:02}.svs"), f"s{k:02}.svs", label=GRADES[lesions[k]], patient=patients[k])
        for k in range(slides)
    ]
    split = split_cohort(Cohort.unchecked(named), _PARTS if slides >= 40 else _PARTS_OF_FEW, seed=seed)
    return [
        _Plan(slide.name, lesions[k], patients[k], str(slide.split), seed * 1000 + k) for k, slide in enumerate(split)
    ]


def _make(plan: _Plan, folder: Path, size: tuple[int, int], stain: Staining) -> CohortSlide:
    path = folder / "slides" / plan.name
    if not path.exists():
        write_synthetic_slide(
            path, size=size, mpp=_MPP, seed=plan.seed, lesions=plan.lesions, pieces=_PIECES, stain=stain
        )
    extent_um = (size[0] * _MPP, size[1] * _MPP)
    anatomy = Anatomy(extent_um, seed=plan.seed, pieces=_PIECES, lesions=plan.lesions)
    outlines = [lesion.outline() / _MPP for lesion in anatomy.lesions]
    if outlines:
        drawn = Annotations([Annotation(LESION, [outline]) for outline in outlines], {LESION: 1})
        drawn.to_geojson(folder / "lesions" / f"{path.stem}.geojson", overwrite=True)
    x, y = mask_positions(Size(*size), _MPP, 16)
    tissue = anatomy.tissue_depth(x, y) > 0
    fraction = (anatomy.lesion_depth(x, y) > 0)[tissue].mean()
    months, event = _outcome(plan)
    known = {
        "grade": GRADES[plan.lesions],
        "lesion_fraction": f"{fraction:.5f}",
        "time": f"{months:.1f}",
        "event": str(event),
    }
    label = int(plan.lesions > 0)
    return CohortSlide(path, plan.name, label=label, patient=plan.patient, split=plan.split, other=tuple(known.items()))


def _outcome(plan: _Plan) -> tuple[float, int]:
    """Return the months to the event, or to the end of the study, and whether it happened."""
    rng = np.random.default_rng([plan.seed, 77])
    months = rng.exponential(1 / (_HAZARD * _HAZARD_RATIO**plan.lesions))
    end = rng.uniform(*_STUDY_MONTHS)
    return min(float(months), float(end)), int(months <= end)
