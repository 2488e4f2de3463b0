"""Predict many slides: predictions.csv, and a folder of pictures per slide."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.names import file_stem
from slideio_pipe.cohort.patients import CohortPatient, by_patient, by_slide
from slideio_pipe.cohort.slide_files import files_in
from slideio_pipe.cohort.table import columns_of, csv_bytes
from slideio_pipe.errors import (
    ConfigError,
    OutputExistsError,
    SkippedWarning,
    SlideioPipeError,
    SlideioPipeWarning,
    warn_caller,
)
from slideio_pipe.files import make_folder, write_file
from slideio_pipe.images.picture import save_picture
from slideio_pipe.mil.feature_files import ENDINGS, holds_features
from slideio_pipe.mil.fingerprints import KnownSlides, stem
from slideio_pipe.mil.metrics import Metric
from slideio_pipe.mil.prediction.prediction import Prediction, Scores, checked_scores
from slideio_pipe.mil.prediction.predictor import Predictor
from slideio_pipe.mil.prediction.truth import NEW, Measured, Predicted, measure_predictions
from slideio_pipe.progress import Report, reporting
from slideio_pipe.slides.config import SlideConfig
from slideio_pipe.slides.frames import Frame, frame_corner
from slideio_pipe.slides.slide import Slide, open_slide
from slideio_pipe.store import StoredBag
from slideio_pipe.store.metadata import is_bag_store

TABLE = "predictions.csv"
# Possible files of a slide's folder.
FILES = ("heatmap.png", "heatmap.geojson", "tiles.png", "tiles.csv", "heatmap.ome.tif")


@dataclass(frozen=True, slots=True)
class PredictedSlide:
    """The result for one slide."""

    name: str
    prediction: Prediction | None
    folder: Path | None = None  # folder of its files
    files: tuple[str, ...] = ()
    error: SlideioPipeError | None = None
    part: str = NEW  # part of the model's training: train, val or test; new: not in the training

    def row(self) -> dict[str, Any]:
        """Return its row of ``predictions.csv``."""
        return {} if self.prediction is None else self.prediction.row() | {"part": self.part}


@dataclass(frozen=True, slots=True)
class PredictedCohort:
    """The result of ``predict_cohort``."""

    slides: tuple[PredictedSlide, ...]
    table: Path | None  # predictions.csv
    metrics: Mapping[str, Metric] = field(default_factory=dict)  # of the slides whose true value is in the cohort
    measured: int = 0  # number of these slides
    parts: Mapping[str, Measured] = field(default_factory=dict)  # of these, by part of the training

    @property
    def unit(self) -> str:
        """What a row of the table is: a slide or a patient."""
        return "patient" if any(one.prediction is not None and one.prediction.parts for one in self.slides) else "slide"

    @property
    def failed(self) -> tuple[PredictedSlide, ...]:
        """The slides without a prediction, or without some of their files."""
        return tuple(slide for slide in self.slides if slide.error is not None)

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "predictions": [
                s.prediction.summary()
                | {"part": s.part, "folder": None if s.folder is None else str(s.folder), "files": list(s.files)}
                for s in self.slides
                if s.prediction is not None
            ],
            "failed": [{"slide": s.name, "error": str(s.error)} for s in self.failed],
            "measured": self.measured,
            "metrics": {name: metric.summary() for name, metric in self.metrics.items()},
            "parts": {part: found.summary() for part, found in self.parts.items()},
            "table": None if self.table is None else str(self.table),
        }


def predict_cohort(
    predictor: Predictor,
    cohort: Any,
    out: str | Path | None = None,
    *,
    scores: Scores | None = None,
    slides: str | Path | None = None,
    slide_mpp: float | None = None,
    pyramid: bool = False,
    count: int = 16,
    overwrite: bool = False,
    frame: Frame = "qupath",
    progress: Report | bool | None = None,
) -> PredictedCohort:
    """Predict slides, or patients, one by one; one that fails does not stop the others.

    A model that was trained by patient predicts all slides of a patient together. A patient fails with any of its
    slides: a prediction from some of them would look like one from all.

    If the cohort has the true values (labels, or the columns of the training), the predictions are also measured with
    the training's metrics: all together, and by part of the training, if the checkpoint has its slides.

    Parameters
    ----------
    predictor : Predictor
    cohort : path, list or Cohort
        Slides; or bags or features if the predictor uses these.
    out : path, optional
        Folder for ``predictions.csv`` and, per slide, ``<slide>/heatmap.png``, ``heatmap.geojson``, ``tiles.png``,
        ``tiles.csv`` and, with ``pyramid``, ``heatmap.ome.tif``; of patients ``<patient>/<slide>/…``. None writes
        nothing.
    scores : {"attention", "instance"}, optional
        See ``Prediction.scores``.
    slides : path, optional
        Folder of the slides of bags and features: heat maps and tiles need their pixels.
    slide_mpp : float, optional
        µm per level-0 px of slides whose files state none; replaces the training's setting.
    pyramid : bool
    count : int
        Tiles in ``tiles.png``.
    overwrite : bool
        Replace existing files.
    frame : {"qupath", "level0"}
        Origin of the coordinates in ``heatmap.geojson``; see ``Prediction.to_geojson``.
    progress : callable, bool or None
        See ``progress.reporting``; counts slides.

    Raises
    ------
    ConfigError
        The cohort has errors, or two slides would share a folder.
    OutputExistsError
        ``predictions.csv`` exists.
    OutputError
        The files cannot be written.
    """
    checked_scores(scores)
    frame_corner(frame, None)
    found = _rows(predictor, cohort if isinstance(cohort, Cohort) else Cohort.of(cohort))
    place = None if out is None else Path(out).expanduser()
    folders = _folders(found, place)
    if place is not None and not overwrite and (place / TABLE).exists():
        raise OutputExistsError("is there already", slide=str(place / TABLE), remedy="pass {overwrite=True}")
    if slide_mpp is not None:
        how = predictor.config.slide.model_copy(update={"slide_mpp": slide_mpp})
        predictor = replace(predictor, config=predictor.config.model_copy(update={"slide": how}))
    pictures = _Pictures(scores, _slides_of(slides), pyramid, count, overwrite, predictor.config.slide, frame)
    done = []
    with reporting(progress, "predicting") as report:
        report(0, len(found))
        for slide, folder in zip(found, folders, strict=True):
            done.append(_predict_one(predictor, slide, folder, pictures))
            report(len(done), len(found))
    table = None
    if place is not None:
        make_folder(place)
        table = place / TABLE
        write_file(table, _table(done), overwrite=overwrite)
    every, parts = _measured(predictor, found, done)
    return PredictedCohort(tuple(done), table, every.metrics, every.slides, parts)


def _measured(
    predictor: Predictor, cohort: Cohort, done: Sequence[PredictedSlide]
) -> tuple[Measured, dict[str, Measured]]:
    pairs = zip(cohort, done, strict=True)
    known = [Predicted(slide, one.prediction, one.part) for slide, one in pairs if one.prediction is not None]
    return measure_predictions(predictor.task, known, predictor.config.fit.bootstrap)


def _predict_one(predictor: Predictor, slide: CohortSlide, folder: Path | None, pictures: _Pictures) -> PredictedSlide:
    slide = pictures.with_mpp(slide)
    try:
        prediction = predictor.predict(slide)
    except SlideioPipeError as error:
        return PredictedSlide(slide.name, None, error=error)
    part = _part_of(predictor.known, prediction)
    if folder is None:
        return PredictedSlide(slide.name, prediction, part=part)
    try:
        files = pictures.write(prediction, slide, folder)
    except SlideioPipeError as error:
        return PredictedSlide(slide.name, prediction, folder, error=error, part=part)
    return PredictedSlide(slide.name, prediction, folder, tuple(files), part=part)


def _part_of(known: KnownSlides, prediction: Prediction) -> str:
    """Return the part of the training that a slide, or any slide of a patient, was in."""
    of_patient = prediction.slides if prediction.parts else ()
    found = (known.part(each.slide, each.content) for each in (prediction, *of_patient))
    return next((part for part in found if part is not None), NEW)


def _rows(predictor: Predictor, cohort: Cohort) -> Cohort:
    """Return the cohort by patient if the model was trained by patient, and the cohort has them."""
    if predictor.config.unit == "slide":
        return cohort
    cohort = by_slide(cohort)
    if all(slide.patient is None for slide in cohort):
        reason = "the model was trained by patient, and no slide has one: each is predicted as a patient of its own"
        warn_caller(SlideioPipeWarning(reason))
        return cohort
    columns = [name for name in predictor.config.task.columns if name == "label" or _has_column(cohort, name)]
    return by_patient(cohort, columns)


def _has_column(cohort: Cohort, name: str) -> bool:
    return any(name in dict(slide.other) for slide in cohort)


@dataclass(frozen=True, slots=True)
class _Pictures:
    """Writes the files of a slide's folder."""

    scores: Scores | None
    slides: dict[str, Path] = field(default_factory=dict)  # by stem: slides with the pixels of bags and features
    pyramid: bool = False
    count: int = 16
    overwrite: bool = False
    how: SlideConfig = field(default_factory=SlideConfig)  # settings for opening slides, such as the mpp
    frame: Frame = "qupath"

    def write(self, prediction: Prediction, row: CohortSlide, folder: Path) -> list[str]:
        """Write the files of a slide, or of each slide of a patient into a folder of its own; return their names."""
        if not isinstance(row, CohortPatient):
            return self._write(prediction, row, folder)
        files = []
        for of_slide, slide, inside in zip(prediction.slides, row.slides, _names(row.slides, folder), strict=True):
            files += [f"{inside}/{name}" for name in self._write(of_slide, slide, folder / inside)]
        return files

    def _write(self, prediction: Prediction, slide: CohortSlide, folder: Path) -> list[str]:
        existing = [name for name in FILES if (folder / name).exists()]
        if existing and not self.overwrite:
            raise OutputExistsError("is there already", slide=str(folder / existing[0]), remedy="pass {overwrite=True}")
        make_folder(folder)
        prediction.to_csv(folder / "tiles.csv", overwrite=True)
        files = ["tiles.csv"]
        try:
            prediction.places()
            if not prediction.has_attention:
                prediction.scores(self.scores)
        except ConfigError as error:
            if self.pyramid:
                raise
            warnings.warn(SkippedWarning(f"no heat map: {error}"), stacklevel=4)
            return files
        path = self._slide(slide)
        with (
            open_slide(path, **self.how.in_cohort(slide.mpp), backend=self.how.backend)
            if path is not None
            else nullcontext() as opened
        ):
            geojson = folder / "heatmap.geojson"
            prediction.to_geojson(geojson, scores=self.scores, overwrite=True, slide=opened, frame=self.frame)
            drawn = prediction.plot(opened, scores=self.scores)
            save_picture(drawn, folder / "heatmap.png", overwrite=True)
            files += ["heatmap.geojson", "heatmap.png"]
            if self._write_tiles(prediction, slide, opened, folder):
                files.append("tiles.png")
            if self.pyramid:
                if opened is None:
                    reason = "a pyramid needs the slide, and its path is unknown"
                    raise ConfigError(reason, slide=slide.name, remedy="pass {slides=…} with the folder of the slides")
                target = folder / "heatmap.ome.tif"
                prediction.save_pyramid(opened, target, scores=self.scores, overwrite=True, progress=False)
                files.append("heatmap.ome.tif")
        return files

    def _write_tiles(self, prediction: Prediction, slide: CohortSlide, opened: Slide | None, folder: Path) -> bool:
        if opened is not None:
            drawn = prediction.plot_tiles(opened, self.count, scores=self.scores)
        elif isinstance(slide.source, Path) and not is_bag_store(slide.source):
            return False
        elif isinstance(slide.source, Path):
            with StoredBag(slide.source) as bag:
                drawn = prediction.plot_tiles(bag, self.count, scores=self.scores)
        else:
            drawn = prediction.plot_tiles(slide.source, self.count, scores=self.scores)
        save_picture(drawn, folder / "tiles.png", overwrite=True)
        return True

    def with_mpp(self, slide: CohortSlide) -> CohortSlide:
        """Return the slide with the mpp stated by the file of its pixels: features in µm need it."""
        if isinstance(slide, CohortPatient):
            return replace(slide, slides=tuple(self.with_mpp(each) for each in slide.slides))
        path = self._slide(slide)
        if slide.mpp is not None or path == slide.source:
            return slide
        if path is None:
            of_features = isinstance(slide.source, Path) and holds_features(slide.source)
            return replace(slide, mpp=self.how.slide_mpp) if of_features else slide
        try:
            with open_slide(path, **self.how.in_cohort(None), backend=self.how.backend) as opened:
                return slide if opened.mpp is None else replace(slide, mpp=opened.mpp.mean)
        except SlideioPipeError:  # features are predicted without their slide; drawing reports the error
            return slide

    def _slide(self, slide: CohortSlide) -> Path | None:
        """Return the file of a slide's pixels, if known."""
        source = slide.source
        if isinstance(source, Path) and not is_bag_store(source) and not source.name.endswith(ENDINGS):
            return source
        names = (slide.name, stem(slide.name), *(() if not isinstance(source, Path) else (stem(source.name),)))
        return next((self.slides[name] for name in names if name in self.slides), None)


def _slides_of(folder: str | Path | None) -> dict[str, Path]:
    if folder is None:
        return {}
    found = files_in(Path(folder).expanduser())
    if not found:
        raise ConfigError("no slides are there", slide=str(folder), remedy="check the path")
    return {name: path for path in found for name in (path.name, file_stem(path.name))}


def _folders(cohort: Cohort, place: Path | None) -> list[Path | None]:
    """Return the folder of each slide; raise ConfigError if two slides would share one: a.svs and a.tif."""
    if place is None:
        return [None] * len(cohort)
    return [place / name for name in _names(cohort, place)]


def _names(rows: Sequence[CohortSlide], place: Path) -> list[str]:
    names = [stem(slide.name).replace("/", "_") for slide in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        remedy = 'give them different names in the column "name"'
        raise ConfigError(f"several slides would be written to {place / twice[0]}", remedy=remedy)
    return names


def _table(done: Sequence[PredictedSlide]) -> bytes:
    rows = [slide.row() for slide in done if slide.prediction is not None]
    return csv_bytes(columns_of(rows) or ["slide"], rows)
