"""Load a trained model from its checkpoint and predict slides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.patients import CohortPatient, by_patient, by_slide, slides_of_row
from slideio_pipe.config import checked
from slideio_pipe.errors import ConfigError
from slideio_pipe.features.encoders import Encoder
from slideio_pipe.features.encoders.encoder import parameter_dtype
from slideio_pipe.features.feature_bag import FeatureBag, open_features
from slideio_pipe.features.scales import in_words
from slideio_pipe.geometry import Affine
from slideio_pipe.mil.checkpoint import read_checkpoint
from slideio_pipe.mil.config import TrainConfig
from slideio_pipe.mil.feature_files import holds_features, is_unnamed
from slideio_pipe.mil.fingerprints import KnownSlides, features_fingerprint, file_of, joined_contents
from slideio_pipe.mil.models.bag_model import MilOutput
from slideio_pipe.mil.models.slides_apart import slides_apart
from slideio_pipe.mil.models.tile_encoder import TileEncoder
from slideio_pipe.mil.models.two_pass import TwoPass
from slideio_pipe.mil.own_parts import modules_of
from slideio_pipe.mil.prediction.prediction import Prediction
from slideio_pipe.mil.prediction.slide_tiles import SlideTiles
from slideio_pipe.mil.prediction.stored_parts import check_maker, fill, stored_encoder, stored_model, warn_changed
from slideio_pipe.mil.sources import chunk_size_of
from slideio_pipe.mil.tasks import Classification, Regression, Task, task_of
from slideio_pipe.slides.config import ViewConfig
from slideio_pipe.store.metadata import is_bag_store
from slideio_pipe.store.patient_index import is_patient_index
from slideio_pipe.streaming.dataset import BagDataset
from slideio_pipe.streaming.device import check_device
from slideio_pipe.streaming.normalize import Normalize
from slideio_pipe.streaming.stream import stream
from slideio_pipe.tiles.bag import Bag, Label, nominal_mpps_of
from slideio_pipe.tiles.patient_bag import PatientBag


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """A trained model and everything it needs; made by ``load_predictor``."""

    checkpoint: Path
    task: Task
    model: nn.Module
    encoder: TileEncoder | None  # None: input is features only
    takes_features: bool  # trained on features; else on slides
    features: str | None  # encoder of the features it was trained on, if named
    width: int  # features per tile
    config: TrainConfig
    device: torch.device
    known: KnownSlides = field(default_factory=KnownSlides)  # the slides of its training
    mpps: tuple[float | None, ...] = ()  # µm per px of the magnifications of its training, if there are several

    def predict(
        self,
        source: str | Path | Bag | FeatureBag | CohortSlide,
        label: Label = None,
        *,
        slide_mpp: float | None = None,
    ) -> Prediction:
        """Return the prediction for one slide or patient.

        Tiles are read, encoded and freed ``config.encoder.chunk_size`` at a time; only the features grow with the bag.
        Nothing is augmented and no tile is skipped.

        Parameters
        ----------
        source : path, bag, FeatureBag or CohortSlide
            With an encoder: a slide, a ``.bag.zarr``, or an open bag. Without: any source of ``open_features``. All
            slides of a patient: a ``PatientBag``, also
            stored, or a row of a cohort by patient.
        label : int, float or str, optional
            Label of the slide; by default that of the bag.
        slide_mpp : float, optional
            µm per level-0 px of a slide whose file states none, or of STAMP's features, which else have no positions.

        Raises
        ------
        NoTissueError
            The slide has no tiles.
        ConfigError
            Features have another width or encoder, are not finite, or are missing; the encoder rejects the tiles.
        SlideioPipeError
            Errors of opening and reading.
        """
        if isinstance(source, FeatureBag):
            return self._of_features(source, None, label)
        slide = _as_slide(source, label, slide_mpp)
        kinds = [self._is_features(each) for each in slides_of_row(slide)]
        if not any(kinds):
            return self._of_pixels(slide)
        if not all(kinds):
            reason = "some of its slides are features, others are not"
            raise ConfigError(reason, slide=slide.name, remedy="pass all of them as one kind")
        name = self.config.encoder.features or self.features
        bags = [open_features(Path(str(each.source)), name, slide_mpp=each.mpp) for each in slides_of_row(slide)]
        if isinstance(slide, CohortPatient):
            return self._of_patient(slide, bags)
        return self._of_features(bags[0], source if isinstance(source, CohortSlide) else None, slide.label)

    def _is_features(self, slide: CohortSlide) -> bool:
        """Return whether the features of a slide are used; raise ConfigError if it has none and there is no encoder."""
        holds = isinstance(slide.source, Path) and holds_features(slide.source, pixels=self.encoder is not None)
        of_bag = isinstance(slide.source, Path) and is_bag_store(slide.source)
        if self.encoder is not None and not (holds and (self.takes_features or not of_bag)):
            return False
        if not isinstance(slide.source, Path) or not holds:
            raise self._no_encoder(str(slide.source) if isinstance(slide.source, Path) else slide.name)
        return True

    def _of_pixels(self, slide: CohortSlide) -> Prediction:
        assert self.encoder is not None
        plain = {"slide_transform": None, "tile_transform": None, "max_tiles": None, "unit": "slide"}
        dataset = BagDataset(Cohort.unchecked([slide]), self.config.loader.model_copy(update=plain))
        bag = dataset.open(0)
        try:
            self._check_magnifications(nominal_mpps_of(bag), slide.name, "its tiles have")
            *_, height, width, _ = bag.shape
            side = self.config.grid.tile_size
            if (height, width) != (side, side) and not self.config.grid.align:
                reason = f"its tiles have {width}×{height} px, the model was trained on {side}×{side}"
                raise ConfigError(reason, slide=slide.name, remedy="predict from the slide itself")
            places = np.asarray(bag.coords)
            if isinstance(bag, PatientBag):
                places = slides_apart(places, bag.slide_index)
            out = self._output(TwoPass(self.encoder.module).encode(self._chunks(bag)).features, places)
            known = {"patient": dataset.patient(0, bag), "label": dataset.label(0, bag)}
            if not isinstance(bag, PatientBag):
                return self._prediction(out, **SlideTiles.of_bag(bag, file_of(slide), slide.name).fields(), **known)
            rows = zip(bag.slides, slides_of_row(slide), strict=True)
            parts = [SlideTiles.of_bag(each, file_of(row), row.name) for each, row in rows]
            return self._prediction_of(slide, out, parts, **known)
        finally:
            dataset.close(0, bag)

    def _prediction_of(self, row: CohortSlide, out: MilOutput, parts: list[SlideTiles], **known: Any) -> Prediction:
        """Return the prediction for a patient, from the tiles of its slides."""
        content = joined_contents(row, [part.content for part in parts]) if isinstance(row, CohortPatient) else None
        count = sum(part.count for part in parts)
        nowhere = SlideTiles(row.name, count, None, None, Affine(), parts[0].view_mpp, None, content)
        return self._prediction(out, **nowhere.fields(), parts=tuple(parts), **known)

    def _of_patient(self, patient: CohortPatient, bags: list[FeatureBag]) -> Prediction:
        """Return the prediction for a patient from the features of its slides."""
        for slide, bag in zip(patient.slides, bags, strict=True):
            self._check_features(bag, slide.name)
        values = [np.array(bag.features) for bag in bags]
        coords = [bag.coords for bag in bags if bag.coords is not None]
        places = None
        if len(coords) == len(bags):
            places = slides_apart(np.concatenate(coords), np.repeat(np.arange(len(bags)), [len(bag) for bag in bags]))
        parts = [
            SlideTiles.of_features(bag, features_fingerprint(found), bag.name if is_unnamed(slide, bag) else slide.name)
            for slide, bag, found in zip(patient.slides, bags, values, strict=True)
        ]
        out = self._output(torch.from_numpy(np.concatenate(values)).to(self.device), places)
        return self._prediction_of(patient, out, parts, patient=patient.patient, label=patient.label)

    def _chunks(self, bag: Bag) -> Iterator[Tensor]:
        """Yield the tiles as input of the encoder; one pass only."""
        assert self.encoder is not None
        size = chunk_size_of(self.config, self.mpps)
        with stream(bag, device=self.device, normalize=None, batch_size=size) as batches:
            for batch in batches:
                yield self.encoder.prepare(batch.tiles)

    def _of_features(self, bag: FeatureBag, slide: CohortSlide | None, label: Label) -> Prediction:
        name = bag.name if slide is None or is_unnamed(slide, bag) else slide.name
        if self.encoder is not None and not self.takes_features:
            reason = f"the model has an encoder of its own, {self.encoder.name}: it takes slides, not features"
            raise ConfigError(reason, slide=name, remedy="predict from the slide or its bag")
        self._check_features(bag, name)
        features = np.array(bag.features)
        values = torch.from_numpy(features).to(self.device)
        return self._prediction(
            self._output(values, bag.coords),
            **SlideTiles.of_features(bag, features_fingerprint(features), name).fields(),
            patient=bag.patient if slide is None else slide.patient or bag.patient,
            label=bag.label if label is None else label,
        )

    def _check_features(self, bag: FeatureBag, name: str) -> None:
        if bag.encoder_facts and self.mpps:
            self._check_magnifications(bag.nominal_mpps, name, "features of")
        remedy = "compute its features with the encoder of the training"
        if bag.features.ndim != 2 or bag.features.shape[1] != self.width:
            reason = f"features of the shape {bag.features.shape}, the model takes (N, {self.width})"
            raise ConfigError(reason, slide=name, remedy=remedy)
        if bag.encoder is not None and self.features is not None and bag.encoder != self.features:
            reason = f"features of {bag.encoder}, the model was trained on those of {self.features}"
            raise ConfigError(reason, slide=name, remedy=remedy)
        if not len(bag):
            raise ConfigError("has no tile", slide=name, remedy="leave it out")
        wrong = int((~np.isfinite(bag.features)).any(1).sum())
        if wrong:
            reason = f"{wrong:,} of {len(bag):,} tiles have features that are no numbers"
            raise ConfigError(reason, slide=name, remedy="compute its features again")

    def _check_magnifications(self, found: tuple[float, ...], name: str, what: str) -> None:
        """Raise ConfigError if tiles or features are of other magnifications than those of the training."""
        pairs = list(zip(found, self.mpps, strict=False))
        if len(found) != len(self.mpps) or any(known not in (None, mpp) for mpp, known in pairs):
            reason = f"{what} {in_words(found)}, the model was trained on {in_words(self.mpps)}"
            raise ConfigError(reason, slide=name, remedy="predict from the slide, or make them as for the training")

    @torch.no_grad()
    def _output(self, features: Tensor, coords: NDArray[np.int64] | None) -> MilOutput:
        """Return the output of the model; its attention is 0 if the model has none."""
        found: MilOutput = self.model(features.to(parameter_dtype(self.model)), coords)
        return found if found.attention is not None else found._replace(attention=features.new_zeros(len(features)))

    def _prediction(self, out: MilOutput, **known: Any) -> Prediction:
        instances = None if out.instances is None else out.instances.double().cpu()
        names, values = self._instances(instances)
        assert out.attention is not None  # see _output
        return Prediction(
            result=self.task.predict(out.logits.cpu()),
            logits=out.logits.double().cpu().numpy(),
            attention=out.attention.double().cpu().numpy(),
            instances=values,
            instance_names=names,
            task=self.task,
            **known,
        )

    def _instances(self, logits: Tensor | None) -> tuple[tuple[str, ...], NDArray[np.float64] | None]:
        """Return the logits of tiles converted like those of slides."""
        task = self.task
        if logits is None:
            return (), None
        if isinstance(task, Classification):
            return tuple(f"probability_{name}" for name in task.classes), task.probabilities(logits).numpy()
        if isinstance(task, Regression):
            return ("predicted",), (logits * task.std + task.mean).numpy()
        return ("risk",), logits.numpy()

    def _no_encoder(self, name: str) -> ConfigError:
        encoder = "" if self.features is None else f" of {self.features}"
        return ConfigError(
            f"the model takes features{encoder}, {self.width:,} per tile, and this has none",
            slide=name,
            remedy="run slideio-pipe features first, or pass the encoder of the training: {encoder=…}",
        )

    def __repr__(self) -> str:
        kind = self.task.settings()["task"]
        takes = f"{self.width:,} features of {self.features or 'any encoder'}" if self.encoder is None else "slides"
        return f"Predictor({kind}, {self.config.model.name}, takes {takes}, on {self.device})"


def load_predictor(
    checkpoint: str | Path,
    *,
    model: nn.Module | Callable[..., nn.Module] | str | None = None,
    encoder: nn.Module | Encoder | str | Path | None = None,
    normalize: Normalize | None = None,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
) -> Predictor:
    """Return the model of a training, ready to predict, from its ``best.ckpt``.

    Parameters
    ----------
    checkpoint : path
        A file written by ``fit``, or its folder. No code in it is executed; modules of your own that it names
        (``my_module:MyAggregator``) are imported, from the folder of the training or the current one.
    model : nn.Module, callable or str, optional
        The aggregator passed to ``fit``, if there was one, or its import path: the checkpoint has only its weights.
    encoder : nn.Module, str or path, optional
        The network passed to ``fit``, if there was one: the checkpoint has its weights, but not its architecture. For a
        model of features: the encoder of these features, or a source of ``load_encoder``; slides then get the tiles of
        the training's features, or, if these are unknown, those of its configuration.
    normalize : Normalize, optional
        Normalisation of an encoder for a model of features, if its own configuration states none.
    device : str or torch.device
    trust_remote_code : bool
        Run the code in the repository of an encoder by name, if its network is code there; see ``load_encoder``.

    Raises
    ------
    ConfigError
        It is not a checkpoint of a training, the encoder or the caller's own model is missing or another one, or the
        device does not exist.
    MissingExtraError
        The model or the encoder needs a package that is not installed.

    Examples
    --------
    >>> load_predictor("nowhere/best.ckpt")
    Traceback (most recent call last):
    ...
    slideio_pipe.errors.ConfigError: nowhere/best.ckpt: no such checkpoint; check the path
    """
    path = Path(checkpoint).expanduser()
    path = path / "best.ckpt" if path.is_dir() else path
    known = read_checkpoint(path)
    recorded = known.get("about")
    if not isinstance(recorded, Mapping) or not {"task", "width", "config"} <= set(recorded) or "model" not in known:
        raise ConfigError("is a checkpoint of another program", slide=str(path), remedy="pass best.ckpt of a training")
    target = check_device(device)
    task, config = task_of(recorded["task"]), checked(TrainConfig, str(path), **recorded["config"])
    config = config.model_copy(update={"modules": recorded.get("modules")})
    network = stored_model(path, config, model, int(recorded["width"]), task.outputs)
    fill(network, known["model"], path, "the model")
    warn_changed(path, config, recorded)
    mpps = tuple(recorded.get("context") or ())
    config = _with_context(config, mpps)
    tiles = stored_encoder(path, recorded, known, encoder, normalize, trust_remote_code, modules_of(config))
    if tiles is not None:
        tiles.module.to(target).eval()
        if "encoder" not in known:
            if recorded.get("tiling") is not None:
                config = config.model_copy(update=_sections(config, recorded["tiling"]))
            check_maker(path, tiles, recorded, config, target)
    of_features, width = recorded.get("encoder") is None, int(recorded["width"])
    known_slides = KnownSlides(recorded.get("slides") or ())
    return Predictor(
        path,
        task,
        network.to(target).eval(),
        tiles,
        of_features,
        recorded.get("features"),
        width,
        config,
        target,
        known_slides,
        mpps,
    )


def _with_context(config: TrainConfig, mpps: tuple[float | None, ...]) -> TrainConfig:
    """Return settings with the magnifications of the training's bags, unless they state them."""
    if not mpps or config.view.context:
        return config
    further = tuple(mpp for mpp in mpps[1:] if mpp is not None)
    return config.model_copy(update={"view": ViewConfig(mpp=mpps[0], context=further)})


def _sections(config: TrainConfig, tiling: Mapping[str, Any]) -> dict[str, Any]:
    return {name: type(getattr(config, name)).model_validate(values) for name, values in tiling.items()}


def _as_slide(source: Any, label: Label, slide_mpp: float | None) -> CohortSlide:
    """Return a slide for any source, with the given label and mpp instead of its own."""
    if isinstance(source, CohortSlide):
        found = source
    elif isinstance(source, str | Path):
        path = Path(source).expanduser()
        found = Cohort([CohortSlide(path, path.name)])[0]
    else:
        found = Cohort.of([source])[0]
    bag = found.source
    if isinstance(bag, PatientBag) or (isinstance(bag, Path) and is_patient_index(bag)):
        found = by_patient(by_slide(Cohort.unchecked([found])))[0]
    mpp = found.mpp if slide_mpp is None else slide_mpp
    return replace(found, label=found.label if label is None else label, mpp=mpp)
