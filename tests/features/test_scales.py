"""Features of tiles at several magnifications: each as in a plain loop, side by side or in arrays of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_slides import made_slide
from tiny_encoders import DIM, Watched, network, reference, write_torchscript
from typer.testing import CliRunner

import slideio_pipe as sp
from slideio_pipe.commands.app import app
from slideio_pipe.errors import BagFormatError, ConfigError
from slideio_pipe.streaming.normalize import IMAGENET_MEAN, IMAGENET_STD

MPPS = (1.0, 2.0, 4.0)
TILES: dict[str, Any] = {"view": {"mpp": 1.0, "context": [2.0, 4.0]}, "grid": {"tile_size": 32, "min_tissue": 0.3}}
TOLERANCE = 6e-4  # half the distance of two float16 numbers below 1, and rounding of float32 before


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for number in (1, 2):
        made_slide(folder / f"s{number}.svs", size=(1024, 768), seed=number)
    return folder


def tiny(**settings: Any) -> sp.Encoder:
    return sp.load_encoder(network(), name="tiny", **({"normalize": "imagenet", "input_size": 32} | settings))


def context_bag(path: Path) -> sp.ContextBag:
    view = sp.open_slide(path).view(mpp=1.0)
    tissue = sp.find_tissue(view.slide)
    return sp.ContextBag(view, sp.TileGrid(view, tile_size=32, tissue=tissue, min_tissue=0.3), mpp=list(MPPS))


def encode(slides: Path, out: Path, how: str = "concat", **options: Any) -> Any:
    return sp.encode_cohort(slides, tiny(), out, TILES, device="cpu", context_features=how, progress=False, **options)


@pytest.fixture(scope="module")
def wanted(slides: Path) -> np.ndarray:
    """Features of the first slide: tile by tile and magnification by magnification, in float64."""
    tiles = context_bag(slides / "s1.svs")[:]
    rows = [[reference(scale, network(), IMAGENET_MEAN, IMAGENET_STD) for scale in tile] for tile in tiles]
    return np.array(rows).reshape(len(tiles), len(MPPS) * DIM)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_each_magnification_is_encoded_as_in_a_plain_loop(batch_size: int, slides: Path, wanted: np.ndarray) -> None:
    """Finest first, normalised alike, in rows of the bag's order."""
    found = sp.encode_bag(context_bag(slides / "s1.svs"), tiny(), device="cpu", batch_size=batch_size)["tiny"]
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found.astype(np.float64), wanted, atol=TOLERANCE)


def test_no_batch_is_larger_than_with_one_magnification(slides: Path) -> None:
    """The memory of the network does not grow with the number of magnifications."""
    watched = Watched(network())
    encoder = sp.load_encoder(watched, name="tiny", normalize="imagenet", input_size=32)
    watched.batches.clear()
    bag = context_bag(slides / "s1.svs")
    sp.encode_bag(bag, encoder, device="cpu", batch_size=10)
    assert max(watched.batches) == 10
    assert sum(watched.batches) == len(MPPS) * len(bag)


def test_apart_is_one_array_for_each_magnification(slides: Path) -> None:
    bag = context_bag(slides / "s1.svs")
    together = sp.encode_bag(bag, tiny(), device="cpu")["tiny"]
    apart = sp.encode_bag(bag, tiny(), device="cpu", context_features="apart")
    assert list(apart) == ["tiny-1um", "tiny-2um", "tiny-4um"]
    np.testing.assert_array_equal(np.concatenate(list(apart.values()), 1), together)
    with pytest.raises(ConfigError, match="cannot be 'beside'; pass context_features='concat' or 'apart'"):
        sp.encode_bag(bag, tiny(), device="cpu", context_features="beside")


@pytest.mark.parametrize("how", ["concat", "apart"])
def test_features_of_a_cohort_are_read_alike_however_they_are_stored(
    how: str, slides: Path, wanted: np.ndarray, tmp_path: Path
) -> None:
    """``open_features`` joins the arrays of an encoder; the report has the width of each."""
    report = encode(slides, tmp_path, how)
    widths = {"tiny": 3 * DIM} if how == "concat" else dict.fromkeys(["tiny-1um", "tiny-2um", "tiny-4um"], DIM)
    assert report.encoders == widths
    store = tmp_path / "s1.features.zarr"
    assert sorted(path.name for path in (store / "features").iterdir() if path.is_dir()) == sorted(widths)
    for found in (sp.open_features(store), sp.open_features(store, "tiny")):
        np.testing.assert_allclose(found.features.astype(np.float64), wanted, atol=TOLERANCE)
        assert (found.encoder, found.nominal_mpps) == ("tiny", MPPS)


def test_one_magnification_of_several_can_be_read_alone(slides: Path, wanted: np.ndarray, tmp_path: Path) -> None:
    encode(slides, tmp_path, "apart")
    alone = sp.open_features(tmp_path / "s1.features.zarr", "tiny-2um")
    assert (alone.encoder, alone.nominal_mpps) == ("tiny-2um", ())
    np.testing.assert_allclose(alone.features.astype(np.float64), wanted[:, DIM : 2 * DIM], atol=TOLERANCE)


def test_arrays_that_an_interrupted_run_did_not_write_are_added(slides: Path, tmp_path: Path) -> None:
    encode(slides, tmp_path, "apart")
    features = tmp_path / "s1.features.zarr" / "features"
    kept = (features / "tiny-1um" / "c" / "0" / "0").stat().st_mtime_ns
    shutil.rmtree(features / "tiny-4um")
    with pytest.raises(BagFormatError, match="features of tiny lack the magnification 4 µm"):
        sp.open_features(tmp_path / "s1.features.zarr")
    report = encode(slides, tmp_path, "apart")
    assert (report.done, report.kept) == (1, 1)
    assert (features / "tiny-1um" / "c" / "0" / "0").stat().st_mtime_ns == kept
    assert sp.open_features(tmp_path / "s1.features.zarr").features.shape[1] == 3 * DIM


def test_other_magnifications_are_other_features(slides: Path, tmp_path: Path) -> None:
    """Tiles of a folder have one set of magnifications; the two ways of storing them may be side by side."""
    encode(slides, tmp_path)
    assert encode(slides, tmp_path, "apart").done == 2
    other = TILES | {"view": {"mpp": 1.0, "context": [2.0]}}
    with pytest.raises(ConfigError, match="features of other encoders or settings are there"):
        sp.encode_cohort(slides, tiny(), tmp_path, other, device="cpu", progress=False)


def test_magnifications_without_a_common_first_one_are_refused(slides: Path, tmp_path: Path) -> None:
    native = TILES | {"view": {"mpp": "native", "context": [2.0]}}
    with pytest.raises(ConfigError, match=r"that of each slide's level 0.*set mpp=0.5"):
        sp.encode_cohort(slides, tiny(), tmp_path, native, device="cpu", progress=False)


@pytest.mark.system
def test_worker_processes_encode_them_too(slides: Path, tmp_path: Path) -> None:
    write_torchscript(tmp_path / "tiny.pt", model=network())
    settings = {"name": "tiny", "normalize": "imagenet", "input_size": 32}
    encoder = sp.load_encoder(tmp_path / "tiny.pt", **settings)
    report = sp.encode_cohort(
        slides, encoder, tmp_path / "f", TILES, device="cpu", context_features="apart", workers=1, progress=False
    )
    assert report.done == 2
    alone = encode(slides, tmp_path / "g")
    assert alone.done == 2
    found, same = (sp.open_features(tmp_path / name / "s1.features.zarr").features for name in "fg")
    np.testing.assert_allclose(found.astype(np.float64), same.astype(np.float64), atol=TOLERANCE)


@pytest.fixture(scope="module")
def bags(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bags of both slides, stored."""
    folder = tmp_path_factory.mktemp("bags")
    for name in ("s1", "s2"):
        sp.save_bag(context_bag(slides / f"{name}.svs"), folder / f"{name}.bag.zarr", progress=False)
    return folder


@pytest.mark.parametrize("how", ["concat", "apart"])
def test_features_of_stored_bags_are_written_beside_their_tiles(
    how: str, bags: Path, wanted: np.ndarray, tmp_path: Path
) -> None:
    """The magnifications are those of the bags."""
    shutil.copytree(bags, tmp_path / "bags")
    stored = sorted((tmp_path / "bags").glob("*.bag.zarr"))
    report = sp.encode_cohort(stored, tiny(), device="cpu", context_features=how, progress=False)
    assert report.done == 2
    found = sp.open_features(stored[0])
    np.testing.assert_allclose(found.features.astype(np.float64), wanted, atol=TOLERANCE)
    assert found.nominal_mpps == MPPS


def test_a_bag_of_other_magnifications_than_the_first_fails(slides: Path, bags: Path, tmp_path: Path) -> None:
    """And the others are encoded."""
    first, other = tmp_path / "s1.bag.zarr", tmp_path / "s2.bag.zarr"
    shutil.copytree(bags / first.name, first)
    view = sp.open_slide(slides / "s2.svs").view(mpp=1.0)
    bag = sp.ContextBag(view, sp.TileGrid(view, tile_size=32), mpp=[1.0, 2.0, 8.0])
    sp.save_bag(bag, other, progress=False)
    report = sp.encode_cohort([first, other], tiny(), device="cpu", progress=False)
    assert report.done == 1
    (failed,) = report.failed
    assert failed.slide == other.name
    assert "the magnifications 1, 2 and 8 µm, those of the run the magnifications 1, 2 and 4 µm" in str(failed.error)


def test_features_of_one_magnification_have_the_attributes_of_earlier_versions(slides: Path, tmp_path: Path) -> None:
    """Their digest is the encoder's, and nothing is said of magnifications."""
    plain = TILES | {"view": {"mpp": 1.0}}
    sp.encode_cohort(slides, tiny(), tmp_path, plain, device="cpu", progress=False)
    found = sp.open_features(tmp_path / "s1.features.zarr")
    assert found.encoder_facts["digest"] == tiny().digest
    assert found.nominal_mpps == ()
    assert not {"context", "scale", "scale_of"} & found.encoder_facts.keys()


def test_the_command_stores_them_apart(slides: Path, tmp_path: Path) -> None:
    write_torchscript(tmp_path / "tiny.pt", model=network())
    (tmp_path / "tiles.yaml").write_text("view: {mpp: 1.0, context: [2.0, 4.0]}\ngrid: {tile_size: 32}\n")
    done = CliRunner().invoke(
        app,
        [
            "features", str(slides), "--encoder", str(tmp_path / "tiny.pt"), "--normalize", "imagenet",
            "--input-size", "32", "--config", str(tmp_path / "tiles.yaml"), "--context-features", "apart",
            "--out", str(tmp_path / "f"), "--json",
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["encoders"] == dict.fromkeys(["tiny-1um", "tiny-2um", "tiny-4um"], DIM)
