"""Gigapixel pathology slides to normalised float16 tile batches and tile bags, lazily.

Everything public is here and is loaded on first use: ``import slideio_pipe as sp`` itself loads nothing heavy.

The folders are rooms; each says in its ``__init__.py`` what it is for, and README.md is the map. The modules beside
this file are the ground of all rooms: ``errors`` (every exception and warning), ``arguments`` (numbers as callers give
them), ``geometry`` (sizes, affines, levels), ``config`` (records of settings, YAML), ``presets`` (settings by name),
``files`` (written whole or not at all), ``locks`` (one writer), ``cores`` (how many a process may use), ``progress``
(bars and log lines), ``version``.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from slideio_pipe.version import __version__ as __version__

if TYPE_CHECKING:  # what __getattr__ finds, for type checkers and editors
    from slideio_pipe.augment.build_draw import build_draw as build_draw
    from slideio_pipe.augment.colour_transforms import ColorJitter as ColorJitter
    from slideio_pipe.augment.colour_transforms import GaussianNoise as GaussianNoise
    from slideio_pipe.augment.colour_transforms import RandStainNA as RandStainNA
    from slideio_pipe.augment.colour_transforms import StainJitter as StainJitter
    from slideio_pipe.augment.colour_transforms import StainNormalize as StainNormalize
    from slideio_pipe.augment.compose import draw as draw
    from slideio_pipe.augment.compose import load_transform as load_transform
    from slideio_pipe.augment.draw import Draw as Draw
    from slideio_pipe.augment.explain import explain as explain
    from slideio_pipe.augment.geometric_transforms import Flip as Flip
    from slideio_pipe.augment.geometric_transforms import RandomAffine as RandomAffine
    from slideio_pipe.augment.geometric_transforms import RandomResizedCrop as RandomResizedCrop
    from slideio_pipe.augment.geometric_transforms import Rotate90 as Rotate90
    from slideio_pipe.augment.own_transforms import from_numpy as from_numpy
    from slideio_pipe.augment.replay import Replay as Replay
    from slideio_pipe.cohort.cohort import Cohort as Cohort
    from slideio_pipe.cohort.run import RunReport as RunReport
    from slideio_pipe.cohort.run import run_cohort as run_cohort
    from slideio_pipe.cohort.splits import fold_cohort as fold_cohort
    from slideio_pipe.cohort.splits import split_cohort as split_cohort
    from slideio_pipe.errors import SlideioPipeError as SlideioPipeError
    from slideio_pipe.errors import SlideioPipeWarning as SlideioPipeWarning
    from slideio_pipe.export.cohort import export_cohort as export_cohort
    from slideio_pipe.export.convert import convert as convert
    from slideio_pipe.export.layouts import from_clam as from_clam
    from slideio_pipe.export.layouts import from_trident as from_trident
    from slideio_pipe.export.layouts.item import Layout as Layout
    from slideio_pipe.export.tissue import tissue_cohort as tissue_cohort
    from slideio_pipe.features.encode_bag import encode_bag as encode_bag
    from slideio_pipe.features.encode_cohort import encode_cohort as encode_cohort
    from slideio_pipe.features.encoders import Encoder as Encoder
    from slideio_pipe.features.encoders import known_encoders as known_encoders
    from slideio_pipe.features.encoders import load_encoder as load_encoder
    from slideio_pipe.features.feature_bag import FeatureBag as FeatureBag
    from slideio_pipe.features.feature_bag import open_features as open_features
    from slideio_pipe.mil.config import TrainConfig as TrainConfig
    from slideio_pipe.mil.feature_dataset import FeatureDataset as FeatureDataset
    from slideio_pipe.mil.feature_dataset import pad_features as pad_features
    from slideio_pipe.mil.fit import fit as fit
    from slideio_pipe.mil.models.mil_model import MilModel as MilModel
    from slideio_pipe.mil.models.own_model import Aggregator as Aggregator
    from slideio_pipe.mil.models.two_pass import TwoPass as TwoPass
    from slideio_pipe.mil.objective import OwnLoss as OwnLoss
    from slideio_pipe.mil.objective import OwnMetric as OwnMetric
    from slideio_pipe.mil.prediction.prediction import Prediction as Prediction
    from slideio_pipe.mil.prediction.predictor import Predictor as Predictor
    from slideio_pipe.mil.prediction.predictor import load_predictor as load_predictor
    from slideio_pipe.mil.results import Fitted as Fitted
    from slideio_pipe.slides.slide import Slide as Slide
    from slideio_pipe.slides.slide import open_slide as open_slide
    from slideio_pipe.slides.view import SlideView as SlideView
    from slideio_pipe.store import AugmentedBag as AugmentedBag
    from slideio_pipe.store import StoredBag as StoredBag
    from slideio_pipe.store import add_reduced as add_reduced
    from slideio_pipe.store import open_bag as open_bag
    from slideio_pipe.store import save_bag as save_bag
    from slideio_pipe.streaming.config import LoaderConfig as LoaderConfig
    from slideio_pipe.streaming.dataset import BagDataset as BagDataset
    from slideio_pipe.streaming.loader import BagLoader as BagLoader
    from slideio_pipe.streaming.normalize import Normalize as Normalize
    from slideio_pipe.streaming.profile import profile as profile
    from slideio_pipe.streaming.stream import TileBatch as TileBatch
    from slideio_pipe.streaming.stream import stream as stream
    from slideio_pipe.streaming.thread_scan import scan_threads as scan_threads
    from slideio_pipe.streaming.whole_bag import WholeBag as WholeBag
    from slideio_pipe.synthetic.slide import SyntheticSlide as SyntheticSlide
    from slideio_pipe.synthetic.slide import write_synthetic_slide as write_synthetic_slide
    from slideio_pipe.tiles.annotations import Annotations as Annotations
    from slideio_pipe.tiles.context_bag import ContextBag as ContextBag
    from slideio_pipe.tiles.find_tissue import find_tissue as find_tissue
    from slideio_pipe.tiles.grid import TileGrid as TileGrid
    from slideio_pipe.tiles.label_mask import LabelMask as LabelMask
    from slideio_pipe.tiles.marks.targets import Targets as Targets
    from slideio_pipe.tiles.multi_crop import MultiCrop as MultiCrop
    from slideio_pipe.tiles.patient_bag import PatientBag as PatientBag
    from slideio_pipe.tiles.quality.good_tiles import good_tiles as good_tiles
    from slideio_pipe.tiles.quality.good_tiles import tile_quality as tile_quality
    from slideio_pipe.tiles.quality.tile_quality import TileQuality as TileQuality
    from slideio_pipe.tiles.reader import TileReader as TileReader
    from slideio_pipe.tiles.tile_bag import TileBag as TileBag
    from slideio_pipe.tiles.tissue_mask import TissueMask as TissueMask
    from slideio_pipe.viewer.explore import Explorer as Explorer
    from slideio_pipe.viewer.explore import explore as explore

# Programs choose what is shown of the package's log; the command line does with -v.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_PUBLIC = {
    "open_slide": "slides.slide",
    "Slide": "slides.slide",
    "SlideView": "slides.view",
    "find_tissue": "tiles.find_tissue",
    "from_numpy": "augment.own_transforms",
    "Layout": "export.layouts.item",
    "TissueMask": "tiles.tissue_mask",
    "Annotations": "tiles.annotations",
    "Targets": "tiles.marks.targets",
    "LabelMask": "tiles.label_mask",
    "TileGrid": "tiles.grid",
    "TileReader": "tiles.reader",
    "TileBag": "tiles.tile_bag",
    "ContextBag": "tiles.context_bag",
    "tile_quality": "tiles.quality.good_tiles",
    "good_tiles": "tiles.quality.good_tiles",
    "TileQuality": "tiles.quality.tile_quality",
    "PatientBag": "tiles.patient_bag",
    "stream": "streaming.stream",
    "TileBatch": "streaming.stream",
    "MultiCrop": "tiles.multi_crop",
    "Cohort": "cohort.cohort",
    "split_cohort": "cohort.splits",
    "fold_cohort": "cohort.splits",
    "run_cohort": "cohort.run",
    "RunReport": "cohort.run",
    "export_cohort": "export.cohort",
    "tissue_cohort": "export.tissue",
    "Encoder": "features.encoders",
    "load_encoder": "features.encoders",
    "known_encoders": "features.encoders",
    "encode_bag": "features.encode_bag",
    "encode_cohort": "features.encode_cohort",
    "open_features": "features.feature_bag",
    "FeatureBag": "features.feature_bag",
    "LoaderConfig": "streaming.config",
    "BagDataset": "streaming.dataset",
    "BagLoader": "streaming.loader",
    "WholeBag": "streaming.whole_bag",
    "profile": "streaming.profile",
    "scan_threads": "streaming.thread_scan",
    "fit": "mil.fit",
    "Fitted": "mil.results",
    "TrainConfig": "mil.config",
    "MilModel": "mil.models.mil_model",
    "TwoPass": "mil.models.two_pass",
    "Aggregator": "mil.models.own_model",
    "OwnLoss": "mil.objective",
    "OwnMetric": "mil.objective",
    "FeatureDataset": "mil.feature_dataset",
    "pad_features": "mil.feature_dataset",
    "load_predictor": "mil.prediction.predictor",
    "Predictor": "mil.prediction.predictor",
    "Prediction": "mil.prediction.prediction",
    "Normalize": "streaming.normalize",
    "save_bag": "store",
    "open_bag": "store",
    "add_reduced": "store",
    "StoredBag": "store",
    "AugmentedBag": "store",
    "write_synthetic_slide": "synthetic.slide",
    "SyntheticSlide": "synthetic.slide",
    "StainJitter": "augment.colour_transforms",
    "StainNormalize": "augment.colour_transforms",
    "RandStainNA": "augment.colour_transforms",
    "ColorJitter": "augment.colour_transforms",
    "GaussianNoise": "augment.colour_transforms",
    "RandomAffine": "augment.geometric_transforms",
    "Rotate90": "augment.geometric_transforms",
    "Flip": "augment.geometric_transforms",
    "RandomResizedCrop": "augment.geometric_transforms",
    "Replay": "augment.replay",
    "Draw": "augment.draw",
    "build_draw": "augment.build_draw",
    "draw": "augment.compose",
    "load_transform": "augment.compose",
    "explain": "augment.explain",
    "convert": "export.convert",
    "from_clam": "export.layouts",
    "from_trident": "export.layouts",
    "explore": "viewer.explore",
    "Explorer": "viewer.explore",
    "SlideioPipeError": "errors",
    "SlideioPipeWarning": "errors",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(f"slideio_pipe.{_PUBLIC[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'slideio_pipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
