"""A study by patient: one to four slides each, scanned at two resolutions, one label for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.splits import split_cohort
from slideio_pipe.commands.demos.same_study import check_same_study
from slideio_pipe.errors import ConfigError
from slideio_pipe.files import make_folder
from slideio_pipe.synthetic.slide import write_synthetic_slide

MANIFEST = "cohort.csv"
_MPPS = (0.25, 0.5)
_SLIDES = (1, 2, 3, 4)  # slides of a patient, in turns
_PARTS = {"train": 0.6, "val": 0.2, "test": 0.2}
_PIECES = 2


@dataclass(frozen=True, slots=True)
class _Plan:
    """A slide to make."""

    name: str
    patient: str
    label: int
    lesions: int
    mpp: float
    seed: int


def write_patient_cohort(
    folder: str | Path,
    patients: int = 30,
    *,
    size_um: tuple[float, float] = (768.0, 576.0),
    seed: int = 1,
    progress: Callable[[int, int], object] | None = None,
) -> Path:
    """Make a study of patients with one to four slides, and return its manifest.

    Every second patient has a lesion (label 1), in one of the slides: the others look like those of label 0. So a model
    of single slides cannot learn the labels, and a model of patients can. Every second slide is scanned at 0.25 µm, the
    others at 0.5 µm. ``cohort.csv`` has the columns slide, label, patient and split (train, val, test). Existing slides
    are kept.

    Parameters
    ----------
    folder : str or Path
        Folder for the manifest and ``slides/``.
    patients : int
        Number of patients, at least 10.
    size_um : (float, float)
        Width and height of a slide, µm.
    seed : int
        Number of the study.
    progress : callable, optional
        Called with (slides done, slides in all).

    Raises
    ------
    ConfigError
        There are too few patients, or the folder contains another study.
    OutputError
        The folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> Cohort.of(write_patient_cohort(tempfile.mkdtemp(), 10, size_um=(128, 96)))
    Cohort(22 slides, labels 0 and 1)
    """
    if patients < 10:
        raise ConfigError(f"a study of {patients} patients", remedy="make at least 10")
    place = Path(folder).expanduser()
    make_folder(place / "slides")
    check_same_study(place, {"patients": patients, "size_um": list(size_um), "seed": seed})
    plans = _plans(patients, seed)
    rows = []
    for done, plan in enumerate(plans, 1):
        path = place / "slides" / plan.name
        if not path.exists():
            width, height = (round(side / plan.mpp) for side in size_um)
            write_synthetic_slide(
                path, size=(width, height), mpp=plan.mpp, seed=plan.seed, lesions=plan.lesions, pieces=_PIECES
            )
        rows.append(CohortSlide(path, plan.name, label=plan.label, patient=plan.patient))
        if progress is not None:
            progress(done, len(plans))
    return split_cohort(Cohort(rows), _PARTS, seed=seed).write(place / MANIFEST)


def _plans(patients: int, seed: int) -> list[_Plan]:
    plans: list[_Plan] = []
    for number in range(patients):
        label, count = number % 2, _SLIDES[number // 2 % 4]
        for k in range(count):
            lesions = int(label == 1 and k == number // 2 % count)
            mpp = _MPPS[(number // 2 + k) % 2]  # both labels alike: else the scanner would give the label away
            name = f"p{number + 1:02}-{k + 1}.svs"
            plans.append(_Plan(name, f"P{number + 1:02}", label, lesions, mpp, seed * 1000 + len(plans)))
    return plans
