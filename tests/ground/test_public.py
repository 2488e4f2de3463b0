"""The public names of ``import slideio_pipe``, and the packages it does not load."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from paths import ROOT

import slideio_pipe

HEAVY = [
    "torch",
    "pyvips",
    "zarr",
    "matplotlib",
    "openslide",
    "tifffile",
    "skimage",
    "PIL",
    "pydantic",
    "typer",
    "rich",
]
PUBLIC = [
    "Aggregator",
    "Annotations",
    "AugmentedBag",
    "BagDataset",
    "BagLoader",
    "Cohort",
    "ColorJitter",
    "ContextBag",
    "Draw",
    "Encoder",
    "Explorer",
    "FeatureBag",
    "FeatureDataset",
    "Fitted",
    "Flip",
    "GaussianNoise",
    "LabelMask",
    "Layout",
    "LoaderConfig",
    "MilModel",
    "MultiCrop",
    "Normalize",
    "OwnLoss",
    "OwnMetric",
    "PatientBag",
    "Prediction",
    "Predictor",
    "RandStainNA",
    "RandomAffine",
    "RandomResizedCrop",
    "Replay",
    "Rotate90",
    "RunReport",
    "Slide",
    "SlideView",
    "SlideioPipeError",
    "SlideioPipeWarning",
    "StainJitter",
    "StainNormalize",
    "StoredBag",
    "SyntheticSlide",
    "Targets",
    "TileBag",
    "TileBatch",
    "TileGrid",
    "TileQuality",
    "TileReader",
    "TissueMask",
    "TrainConfig",
    "TwoPass",
    "WholeBag",
    "add_reduced",
    "build_draw",
    "convert",
    "draw",
    "encode_bag",
    "encode_cohort",
    "explain",
    "explore",
    "export_cohort",
    "find_tissue",
    "fit",
    "fold_cohort",
    "from_clam",
    "from_numpy",
    "from_trident",
    "good_tiles",
    "known_encoders",
    "load_encoder",
    "load_predictor",
    "load_transform",
    "open_bag",
    "open_features",
    "open_slide",
    "pad_features",
    "profile",
    "run_cohort",
    "save_bag",
    "scan_threads",
    "split_cohort",
    "stream",
    "tile_quality",
    "tissue_cohort",
    "write_synthetic_slide",
]


def _fresh(code: str) -> str:
    """Run code in a new interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def test_importing_loads_nothing_heavy() -> None:
    """The import is instant: neither torch nor libvips nor zarr is loaded by it."""
    loaded = json.loads(_fresh("import json, sys, slideio_pipe; print(json.dumps(sorted(sys.modules)))"))
    assert not [name for name in HEAVY if name in loaded]


def test_opening_a_slide_loads_no_torch() -> None:
    """Opening a slide does not wait for it."""
    code = "import sys, slideio_pipe as sp; sp.open_slide; sp.TileBag; print('torch' in sys.modules)"
    assert _fresh(code).strip() == "False"


def test_the_public_names_are_pinned() -> None:
    """To add or remove a name, change this list."""
    assert sorted(slideio_pipe.__all__) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves(name: str) -> None:
    """It exists, is documented, and is listed by ``dir``."""
    value = getattr(slideio_pipe, name)
    assert value.__doc__
    assert value.__module__.startswith("slideio_pipe.")
    assert name in dir(slideio_pipe)


def test_other_names_are_attribute_errors() -> None:
    """Like in any module."""
    with pytest.raises(AttributeError, match="no attribute 'open_slides'"):
        slideio_pipe.open_slides  # noqa: B018


@pytest.mark.system
@pytest.mark.parametrize("name", ["Slide", "TissueMask", "TileGrid", "TileBag", "save_bag", "write_synthetic_slide"])
def test_each_name_can_be_imported_first(name: str) -> None:
    """There is no import cycle."""
    assert _fresh(f"from slideio_pipe import {name}; print({name!r})").strip() == name


@pytest.mark.system
def test_the_stream_function_is_not_its_module() -> None:
    """``sp.stream`` is the function also after its module was imported."""
    code = "import slideio_pipe as sp; sp.TileBatch; a = callable(sp.stream); sp.stream; print(a, callable(sp.stream))"
    assert _fresh(code).strip() == "True True"
