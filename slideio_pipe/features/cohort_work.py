"""The encoding work of a cohort: output stores, finished features, and encoding of one slide in a worker process."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.ledger import Entry, fingerprint, settings_digest
from slideio_pipe.cohort.names import SUFFIX as BAG_SUFFIX
from slideio_pipe.cohort.names import bag_name
from slideio_pipe.cohort.run import Job
from slideio_pipe.cohort.workers.pool import OnProgress
from slideio_pipe.errors import ConfigError, EncoderSettingsWarning, OutputExistsError
from slideio_pipe.features.encoders import Encoder, load_encoder
from slideio_pipe.features.encoders.known import split_weights
from slideio_pipe.features.encoding_pool import BagMetadata, EncodeSettings, FeaturePool
from slideio_pipe.features.scales import ContextFeatures, array_facts, array_names, in_words, split_scales
from slideio_pipe.locks import within_run
from slideio_pipe.store.feature_arrays import (
    FOLDER,
    SUFFIX,
    add_features,
    create_feature_store,
    encoder_attributes,
    feature_store_attributes,
    open_feature_store,
)
from slideio_pipe.streaming.config import LoaderConfig
from slideio_pipe.tiles.own_tissue import method_fingerprint
from slideio_pipe.tiles.quality.tile_quality import summary_of

_SHOWN = 5


@dataclass(frozen=True)
class FeatureWork:
    """The output stores of a cohort's features, and which features exist."""

    encoders: tuple[Encoder, ...]
    folder: Path | None  # folder of .features.zarr; None: beside the pixels
    config: LoaderConfig | None  # None: only bags, which have tiles
    transform: Any  # description of the transform
    dtype: str
    worker_settings: EncodeSettings | None = None  # for worker processes; None: a FeaturePool encodes
    mpps: tuple[float, ...] = ()  # µm per px of the tiles' magnifications, if there are several
    context_features: ContextFeatures = "concat"

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the tiles, without the encoders, which can be added later."""
        config = {} if self.config is None else self.config.model_dump(mode="json")
        if self.config is not None:
            config |= method_fingerprint(self.config.tissue.method)
        return config | {"slide_transform": self.transform}

    @cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """The attributes stored with each array of features."""
        found: dict[str, dict[str, Any]] = {}
        for encoder in self.encoders:
            facts = {**encoder.describe(), "dtype": self.dtype, "digest": encoder.digest}
            found |= array_facts(facts, encoder.name, self.mpps, self.context_features)
        return found

    def arrays(self, encoder: str) -> tuple[str, ...]:
        """Return the names of an encoder's arrays."""
        return array_names(encoder, self.mpps, self.context_features)

    def store(self, slide: CohortSlide) -> Path:
        """Return the store for a slide's features."""
        assert isinstance(slide.source, Path)
        if self.folder is None:
            return slide.source
        return self.folder / f"{bag_name(slide.name).removesuffix(BAG_SUFFIX)}{SUFFIX}"

    def output(self, slide: CohortSlide) -> Path:
        """Return the path of the last array of features if all exist, else a path that does not exist."""
        store = self.store(slide)
        for name, facts in self.facts.items():
            if not self.is_there(store, name):
                return store / FOLDER / f"{name}.{facts['digest']}"
        return store / FOLDER / next(reversed(self.facts))

    def is_there(self, store: Path, name: str) -> bool:
        """Return whether a store has the features that this run would compute."""
        found = encoder_attributes(store, name)
        return found is not None and all(found.get(key) == self.facts[name][key] for key in ("digest", "dtype"))

    def refuse_others(self, cohort: Cohort) -> None:
        """Raise ConfigError if slides have features of other encoders with these names, or of other tiles."""
        other: dict[str, list[str]] = {}
        for slide in cohort:
            store = self.store(slide)
            for name in self.facts:
                found = encoder_attributes(store, name)
                if found is not None and not self.is_there(store, name):
                    other.setdefault(f"{name} ({_difference(found, self.facts[name])})", []).append(slide.name)
            stored = {} if self.folder is None else feature_store_attributes(store) or {}
            made = stored.get("made")
            # A ledger entry of this folder has more details: the changed settings.
            changed = made is not None and made["settings"] != settings_digest(self.settings, slide)
            if changed and not self.output(slide).exists():
                other.setdefault(f"{_tiles_of(stored)} of other settings", []).append(slide.name)
        if other:
            shown = "; ".join(
                f"{what}: {len(names):,} slides, such as {', '.join(names[:_SHOWN])}" for what, names in other.items()
            )
            remedy = "pass {overwrite=True} or another folder, or give the encoder a name of its own: mine=timm:NAME"
            raise ConfigError(f"features of other encoders or settings are there: {shown}", remedy=remedy)

    def missing(self, job: Job) -> list[str]:
        """Return the encoders whose features of a slide are missing."""
        store = self.store(job.slide)
        if self.folder is not None and store.exists() and not self._is_of(job, store):
            if not job.overwrite:
                raise OutputExistsError(
                    "features of other tiles are there", slide=str(store), remedy="pass {overwrite=True}"
                )
            return [encoder.name for encoder in self.encoders]
        names = {encoder.name: self.arrays(encoder.name) for encoder in self.encoders}
        return [name for name, arrays in names.items() if not all(self.is_there(store, each) for each in arrays)]

    def keep(self, job: Job, bag: BagMetadata, features: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Write the features of a slide."""
        if bag.mpps != self.mpps:
            reason = f"its tiles have {in_words(bag.mpps)}, those of the run {in_words(self.mpps)}"
            raise ConfigError(reason, slide=job.slide.name, remedy="compute its features apart from the others")
        if self.folder is None:  # bags may be in several folders, each with its own runs
            return self._keep(job, bag, features)
        with within_run(self.folder):
            return self._keep(job, bag, features)

    def _keep(self, job: Job, bag: BagMetadata, features: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        store = self.store(job.slide)
        arrays = [split_scales(features[name], name, self.mpps, self.context_features) for name in features]
        named = {name: (values, self.facts[name]) for of_encoder in arrays for name, values in of_encoder.items()}
        if self.folder is not None and not (store.exists() and self._is_of(job, store)):
            description = {**bag.provenance, "made": _tile_identity(job)}
            create_feature_store(store, bag, description, named, overwrite=job.overwrite)
        else:
            if self.folder is not None and not np.array_equal(open_feature_store(store).columns["coords"], bag.coords):
                reason = "the tiles are not those whose features are there"
                raise ConfigError(reason, slide=str(store), remedy="pass {overwrite=True}, or another folder")
            for name, (values, facts) in named.items():
                if not (len(named) > len(features) and self.is_there(store, name)):  # of one interrupted between two
                    add_features(store, name, values, facts, overwrite=job.overwrite)
        return self._summary(store, bag, features)

    def recall(self, slide: CohortSlide) -> dict[str, Any]:
        """Return the ledger entries of features that were written before a kill."""
        return {"features": str(self.store(slide)), "encoders": ", ".join(self.facts)}

    def __call__(self, slide: CohortSlide, *, overwrite: bool, on_stage: OnProgress) -> dict[str, Any]:
        """Encode one slide, in a worker process."""
        if self.worker_settings is None:
            raise ConfigError("features are encoded by a FeaturePool", slide=slide.name, remedy="call encode_cohort")
        assert isinstance(slide.source, Path)
        on_stage("encode")
        job = Job(slide, Entry("start", settings_digest(self.settings, slide), fingerprint(slide.source)), overwrite)
        (outcome,) = FeaturePool(self.encoders, self.worker_settings, self).outcomes([job])
        if outcome.error is not None:
            raise outcome.error
        return dict(outcome.value or self.recall(slide))

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {
            "encoders": tuple(_to_source(encoder) for encoder in self.encoders)
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "encoders", tuple(_from_source(encoder) for encoder in state["encoders"]))

    def _is_of(self, job: Job, store: Path) -> bool:
        """Return whether a store of features has the same tiles, judged by the settings."""
        found = feature_store_attributes(store)
        return found is not None and found.get("made") == _tile_identity(job)

    def _summary(self, store: Path, bag: BagMetadata, features: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        return {
            "features": str(store),
            "tiles": len(bag),
            "encoders": ", ".join(features),
            "bytes": sum(values.nbytes for values in features.values()),
            **summary_of(bag.quality, bag.provenance),
        }


def check_portable(work: FeatureWork) -> None:
    """Raise ConfigError if a network cannot be sent to other processes."""
    try:
        pickle.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise ConfigError(
            f"a network cannot be sent to worker processes ({error})",
            remedy="pass a file or a name (a.pt2, timm:NAME, hf:NAME), or define its class in a module",
        ) from error


@dataclass(frozen=True, slots=True)
class _EncoderSource:
    """An encoder that is loaded again in the worker: third-party code cannot be pickled, and is large."""

    source: str
    digest: str
    given: Mapping[str, Any]


def _to_source(encoder: Encoder) -> Encoder | _EncoderSource:
    file = Path(encoder.source)
    known = split_weights(encoder.source)[0]
    if not encoder.source.startswith(("timm:", "hf:")) and not file.is_file() and known is None:
        return encoder
    source = str(file.absolute()) if file.is_file() else encoder.source
    names = ("name", "normalize", "input_size", "mpp", "interpolation", "precision")
    given = {name: getattr(encoder, name) for name in names} | {
        "pooling": None if encoder.pooling == "none" else encoder.pooling,
        "trust_remote_code": known is not None and known.remote_code,  # it was allowed when this encoder was loaded
    }
    return _EncoderSource(source, encoder.digest, given)


def _from_source(encoder: Encoder | _EncoderSource) -> Encoder:
    if isinstance(encoder, Encoder):
        return encoder
    with warnings.catch_warnings(action="ignore", category=EncoderSettingsWarning):  # it was shown before
        loaded = load_encoder(encoder.source, **encoder.given)
    if loaded.digest != encoder.digest:
        raise ConfigError("is another network here", slide=encoder.source, remedy="use the same file everywhere")
    return loaded


def _tile_identity(job: Job) -> dict[str, str]:
    """Return the settings and the source of a slide's tiles."""
    return {"settings": job.entry.settings, "fingerprint": job.entry.fingerprint}


def _tiles_of(description: Mapping[str, Any]) -> str:
    """Return a short description of a store's tiles."""
    side, mpp = (description.get("grid") or {}).get("tile_size"), (description.get("view") or {}).get("mpp")
    return f"tiles of {side} px" + ("" if mpp is None else f" at {mpp[0]:.3g} µm")


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the difference between two encoders of one name."""
    differences = [
        f"{key} was {before.get(key)}, is {now.get(key)}"
        for key in ("weights", "input_size", "interpolation", "pooling", "mpp", "normalize", "dtype", "precision")
        if before.get(key) != now.get(key)
    ]
    return "; ".join(differences) or "of another digest"
