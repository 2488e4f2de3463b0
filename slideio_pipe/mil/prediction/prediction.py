"""The prediction of a model for one slide and for each of its tiles."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slideio_pipe.cohort.table import csv_bytes
from slideio_pipe.errors import ConfigError
from slideio_pipe.files import write_file
from slideio_pipe.geometry import Affine, Mpp, Rect
from slideio_pipe.images.explorable import explored
from slideio_pipe.mil.prediction.colour_scale import ColourScale
from slideio_pipe.mil.prediction.heatmap import draw_heatmap, save_heatmap_pyramid
from slideio_pipe.mil.prediction.score_map import TileScores
from slideio_pipe.mil.prediction.score_regions import MOST_TILES, write_regions
from slideio_pipe.mil.prediction.slide_tiles import SlideTiles
from slideio_pipe.mil.prediction.top_tiles import draw_top_tiles
from slideio_pipe.mil.tasks import Classification, Regression, Task
from slideio_pipe.progress import Report
from slideio_pipe.slides.frames import Frame, frame_corner
from slideio_pipe.slides.slide import Slide
from slideio_pipe.tiles.bag import Bag, Label
from slideio_pipe.tiles.tissue_mask import TissueMask

Scores = Literal["attention", "instance"]
SCORES: tuple[Scores, ...] = ("attention", "instance")


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """A model's prediction for a slide or a patient, with scores of its tiles; made by ``Predictor.predict``.

    Tile k is the square of ``tile_size`` px of the view at ``coords[k]``; the affine maps it to level 0.
    """

    slide: str  # its name
    result: dict[str, Any]  # columns of predictions.csv: class and probabilities, number, or risk
    logits: NDArray[np.float64]  # (outputs,)
    attention: NDArray[np.float64]  # (N,), sums to 1: the share of each tile; 0 if the model has no attention
    instances: NDArray[np.float64] | None  # (N, columns): prediction for each tile alone
    instance_names: tuple[str, ...]  # names of these columns: "probability_1", "predicted" or "risk"
    coords: NDArray[np.int64] | None  # (N, 2) top-left corners (x, y), level-0 px; None if unknown
    tile_size: float | None  # view px
    affine: Affine  # view px to level-0 px
    view_mpp: Mpp | None  # µm per view px
    task: Task = field(repr=False)
    label: Label = None
    patient: str | None = None
    tissue: TissueMask | None = field(default=None, repr=False)  # if it was found for this prediction
    content: str | None = field(default=None, repr=False)  # fingerprint of its file or features
    bounds: Rect | None = None  # scanned part of level 0, if stated: origin of QuPath
    parts: tuple[SlideTiles, ...] = field(default=(), repr=False)  # of a patient: the tiles of each slide, in order
    whole: Prediction | None = field(default=None, repr=False)  # of a slide of a patient: the patient's prediction

    def __len__(self) -> int:
        return len(self.attention)

    @property
    def slides(self) -> tuple[Prediction, ...]:
        """The prediction on each slide of a patient; of a slide, itself.

        Each has the patient's result and the scores of its own tiles. Attention is a tile's share among all tiles of
        the patient, and so are its mean, percentiles and colours: the slides of a patient can be compared.
        """
        if not self.parts:
            return (self,)
        ends = np.cumsum([part.count for part in self.parts]).tolist()
        found = []
        for part, end in zip(self.parts, ends, strict=True):
            rows = slice(end - part.count, end)
            scores: dict[str, Any] = {"attention": self.attention[rows]}
            if self.instances is not None:
                scores["instances"] = self.instances[rows]
            found.append(replace(self, **part.fields(), **scores, parts=(), whole=self))
        return tuple(found)

    @property
    def _patient(self) -> Prediction:
        """The prediction over all tiles that the model saw together."""
        return self.whole or self

    @property
    def has_attention(self) -> bool:
        """Whether the model has an attention; an aggregator of one's own may have none."""
        return bool(self._patient.attention.any())

    @property
    def times_mean(self) -> NDArray[np.float64]:
        """The attention of each tile as a multiple of the mean, (N,): over the slide, or all slides of a patient."""
        return self.attention * len(self._patient)

    @property
    def said(self) -> dict[str, Any]:
        """The former name of ``result``."""
        return self.result

    @property
    def default_scores(self) -> Scores:
        """Attention, or the tiles' own predictions if attention is equal for all tiles (mean pooling)."""
        attention = self._patient.attention
        flat = float(attention.max()) - float(attention.min()) <= 1e-6 * float(attention.max())
        return "instance" if flat and self.instances is not None else "attention"

    @property
    def instance_column(self) -> int:
        """The column of ``instances`` for the instance score: the second of two classes, else the predicted one."""
        if not isinstance(self.task, Classification) or len(self.task.classes) == 2:
            return len(self.instance_names) - 1
        return self.task.classes.index(self.result["predicted"])

    def scores(self, kind: Scores | None = None) -> NDArray[np.float64]:
        """Return one score per tile, (N,).

        Parameters
        ----------
        kind : {"attention", "instance"}, optional
            The attention, which sums to 1; or the prediction for the tile alone: the probability of the second of two
            classes or of the predicted one of several, the number, the risk. By default ``default_scores``.

        Raises
        ------
        ConfigError
            The model has no such scores.
        """
        chosen = checked_scores(kind) or self.default_scores
        if chosen == "attention" and not self.has_attention:
            remedy = "return (logits, attention) in its forward"
            raise ConfigError("the model has no attention: its tiles have no scores", slide=self.slide, remedy=remedy)
        if chosen == "attention":
            return self.attention
        if self.instances is None:
            remedy = 'pass {scores="attention"}'
            raise ConfigError("the model does not score tiles on their own", slide=self.slide, remedy=remedy)
        return self.instances[:, self.instance_column]

    def percentiles(self) -> NDArray[np.float64]:
        """Return the fraction of tiles with at most the attention of each, (N,), 0 to 1.

        Of the slide's tiles, or of those of all slides of a patient.
        """
        return percentiles(self.attention, self._patient.attention)

    def top(self, count: int, kind: Scores | None = None) -> NDArray[np.int64]:
        """Return the tiles with the highest scores, highest first."""
        return np.argsort(-self.scores(kind), kind="stable")[:count]

    def places(self) -> tuple[NDArray[np.int64], float]:
        """Return the positions of the tiles, and their side in view px.

        Raises
        ------
        ConfigError
            They are unknown.
        """
        if self.parts:
            remedy = "pass one of them: prediction.slides[0]"
            raise ConfigError("each slide of a patient has its own positions", slide=self.slide, remedy=remedy)
        if self.coords is None or self.tile_size is None:
            reason = "positions of its tiles are unknown" if self.coords is None else "size of its tiles is unknown"
            remedy = (
                "predict from the slide, its bag or features with coordinates; if these are µm, pass {slides=…} or mpp"
            )
            raise ConfigError(reason, slide=self.slide, remedy=remedy)
        return self.coords, self.tile_size

    def tile_scores(self, kind: Scores | None = None) -> TileScores:
        """Return scores with positions and colours; attention as multiples of its mean over the slide or the patient.

        Raises
        ------
        ConfigError
            The positions of the tiles are unknown, or the model has no such scores.
        """
        chosen = checked_scores(kind) or self.default_scores
        values, (coords, side) = self.scores(chosen), self.places()
        if chosen == "attention":
            values = self.times_mean
            scale = ColourScale.of_attention(self._patient.times_mean)
        elif isinstance(self.task, Classification):
            scale = ColourScale.of_probability(f"probability {self.task.classes[self.instance_column]}")
        else:
            scale = ColourScale.of_numbers(self.instance_names[-1], self._patient.scores(chosen))
        return TileScores(self.slide, values, scale, coords, side, self.affine, self._title(), self.tissue)

    def _title(self) -> str:
        text = f"predicted {self.sentence()}" if "predicted" in self.result else self.sentence()
        text = text if self.whole is None else f"patient {self.whole.slide}, {text}"
        if not isinstance(self.task, Classification | Regression) or self.label is None:
            return text
        return f"{text}, label {self.label}"

    # -- output --------------------------------------------------------------------------------------------------

    def plot(self, slide: Slide | None = None, *, scores: Scores | None = None, max_size: int = 640) -> Image.Image:
        """Return the slide overlaid with the scores of its tiles, and a colour bar; without the slide, on white."""
        return draw_heatmap(self.tile_scores(scores), slide, max_size)

    def plot_tiles(self, pixels: Slide | Bag, count: int = 16, *, scores: Scores | None = None) -> Image.Image:
        """Return the tiles with the highest scores, read from the slide or from the bag that was predicted."""
        return draw_top_tiles(self.tile_scores(scores), pixels, count)

    def explore(self, slide: Slide, **options: Any) -> Any:
        """Show the slide with these scores in the viewer; see ``Slide.explore``.

        Parameters
        ----------
        slide : Slide
            The slide that was predicted.
        options
            Those of ``slideio_pipe.explore``.
        """
        return explored(slide, scores=self, **options)

    def save_pyramid(
        self,
        slide: Slide,
        path: str | Path,
        *,
        scores: Scores | None = None,
        mpp: float | str | None = None,
        blend: bool = True,
        overwrite: bool = False,
        progress: Report | bool | None = None,
    ) -> Path:
        """Write the slide overlaid with the scores as a pyramid TIFF; see ``save_heatmap_pyramid``."""
        drawn = self.tile_scores(scores)
        return save_heatmap_pyramid(
            drawn, slide, Path(path), mpp=mpp, blend=blend, overwrite=overwrite, progress=progress
        )

    def to_geojson(
        self,
        path: str | Path,
        *,
        scores: Scores | None = None,
        most_tiles: int = MOST_TILES,
        overwrite: bool = False,
        slide: Slide | None = None,
        frame: Frame = "qupath",
    ) -> None:
        """Write the tiles in QuPath's format, with all their scores; above ``most_tiles`` as merged regions.

        Coordinates are level-0 px from the corner of the slide's bounds, as in QuPath, or with ``frame="level0"`` from
        that of level 0, as in OpenSlide. Pass the slide if features of other tools were predicted: they do not contain
        its bounds.
        """
        corner = frame_corner(frame, self.bounds if slide is None else slide.bounds)
        shares = {"attention percentile": self.percentiles(), "attention": self.times_mean}
        measured = shares if self.has_attention else {}
        for number, name in enumerate(self.instance_names):
            if self.instances is not None:
                measured[name.replace("_", " ")] = self.instances[:, number]
        drawn = self.tile_scores(scores)
        write_regions(
            drawn, Path(path), measurements=measured, most_tiles=most_tiles, overwrite=overwrite, corner=corner
        )

    def to_csv(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a row per tile: its position (level-0 px), attention, its percentile, and its own prediction.

        Of a patient also the slide; positions are those of the slides' own files: ``prediction.slides``.
        """
        columns: dict[str, NDArray[Any]] = {"tile": np.arange(len(self))}
        if self.parts:
            columns["slide"] = np.repeat([part.slide for part in self.parts], [part.count for part in self.parts])
        if self.coords is not None:
            columns |= {"x": self.coords[:, 0], "y": self.coords[:, 1]}
        if self.has_attention:
            columns |= {"attention": self.attention, "attention_percentile": self.percentiles()}
        for number, name in enumerate(self.instance_names):
            if self.instances is not None:
                columns[name] = self.instances[:, number]
        cells = zip(*(column.tolist() for column in columns.values()), strict=True)
        rows = (dict(zip(columns, row, strict=True)) for row in cells)
        write_file(Path(path), csv_bytes(columns, rows), overwrite=overwrite)

    # -- text ----------------------------------------------------------------------------------------------------

    def sentence(self) -> str:
        """Return the prediction of the slide in one line."""
        return sentence(self.result, self.task)

    def row(self) -> dict[str, Any]:
        """Return its row of ``predictions.csv``."""
        known: dict[str, Any] = {"slide": self.slide, "patient": self.patient or ""}
        if self.parts:
            known = {"patient": self.slide, "slides": len(self.parts)}
        known["label"] = "" if self.label is None else self.label
        return known | self.result | {"tiles": len(self)}

    def summary(self) -> dict[str, Any]:
        """Return it as JSON values, without the tiles."""
        return self.row() | {"label": self.label, "patient": self.patient, "logits": self.logits.tolist()}

    def __repr__(self) -> str:
        return f"Prediction({self.slide}: {self.sentence()}, {len(self):,} tiles)"


def percentiles(values: NDArray[np.float64], among: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Return the fraction of values, or of those of ``among``, that are no larger than each, (N,).

    >>> percentiles(np.array([0.1, 0.5, 0.1, 0.3])).tolist()
    [0.5, 1.0, 0.5, 0.75]
    """
    every = values if among is None else among
    return np.searchsorted(np.sort(every), values, side="right") / max(1, len(every))


def sentence(result: dict[str, Any], task: Task) -> str:
    """Return a prediction in one line.

    >>> from slideio_pipe.mil.tasks import Survival
    >>> sentence({"risk": 0.25}, Survival())
    'risk 0.25'
    """
    if isinstance(task, Classification):
        name = str(result["predicted"])
        chance = float(result[f"probability_{name}"])
        # Never "100 %": no model is certain.
        shown = "> 99.9 %" if chance > 0.9995 else f"{chance:.1%}".replace("%", " %")
        return f"{name} ({shown})"
    if isinstance(task, Regression):
        return f"{result['predicted']:.4g}"
    return f"risk {result['risk']:.4g}"


def checked_scores(kind: Any) -> Scores | None:
    """Return a valid kind of scores; raise ConfigError if the kind is unknown."""
    if kind is not None and kind not in SCORES:
        raise ConfigError(f"no scores {kind!r}", remedy='pass {scores="attention"} or {scores="instance"}')
    checked: Scores | None = kind
    return checked
