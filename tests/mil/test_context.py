"""Trainings and predictions with several magnifications: from pixels with the exact gradient, and on features."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from array_loader import open_loader
from made_slides import made_slide
from small_networks import encoder, gradients
from tiny_encoders import DIM, network
from torch import Tensor

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError
from slideio_pipe.mil.bag_tiles import PixelBag
from slideio_pipe.mil.checkpoint import read_checkpoint
from slideio_pipe.mil.fit import fit
from slideio_pipe.mil.models.mil_model import MilModel
from slideio_pipe.mil.models.tile_encoder import TokenPooler
from slideio_pipe.mil.models.two_pass import TwoPass
from slideio_pipe.mil.prediction.predict_cohort import predict_cohort

pytest.importorskip("lightning_fabric")
MPPS = (1.0, 2.0)
PLAIN: dict[str, Any] = {"view": {"mpp": 1.0}, "grid": {"tile_size": 32, "min_tissue": 0.3}}
TILES: dict[str, Any] = PLAIN | {"view": {"mpp": 1.0, "context": [2.0]}}
FIT: dict[str, Any] = {
    "model": {"embed": [], "attention": 4, "dropout": 0.0},
    "fit": {"epochs": 1, "patience": None, "bootstrap": 0, "validation": 0.0, "accelerator": "cpu"},
}
SIDES = (36, 60)  # of the two slides of a patient


class Trained(NamedTuple):
    """A study and its training."""

    cohort: Path
    checkpoint: Path


def noise(side: int, label: int | None = None) -> sp.ContextBag:
    """Return tiles of 12 px at 0.5 and 1 µm of a slide of noise."""
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    view = sp.open_slide(pixels, slide_mpp=0.5).view()
    return sp.ContextBag(view, sp.TileGrid(view, tile_size=12), mpp=[0.5, 1.0], label=label)


def prepare(tiles: Tensor) -> Tensor:
    return tiles.double() / 255


def head() -> MilModel:
    torch.manual_seed(4)
    return MilModel(32, 1, pool="gated", embed=(12,), attention=8, dropout=0.0).double()


@pytest.mark.parametrize("keep_bytes", [0, 5000, 10**9], ids=["read again", "some kept", "kept"])
@pytest.mark.parametrize("chunk_size", [1, 5, 64])
def test_the_gradient_is_that_of_plain_back_propagation(chunk_size: int, keep_bytes: int) -> None:
    """In double precision to 1e-9, over the tiles of a patient's slides at both magnifications."""
    patient = sp.PatientBag([noise(side) for side in SIDES], patient="P1", label=1)
    loader = open_loader([patient], ordered=True, chunk_size=chunk_size)
    chunks = iter(loader)
    tiles = PixelBag(next(chunks), chunks, loader.dataset, 0, 0, prepare, keep_bytes)
    trained, aggregator = TokenPooler(encoder(), "tiny"), head()
    encoded = TwoPass(trained).encode(tiles)
    (aggregator(encoded.features).logits ** 2).sum().backward()
    encoded.backward()

    plain, plain_head = encoder(), head()
    plain[1].eval()
    every = torch.from_numpy(np.concatenate([noise(side)[:] for side in SIDES]))
    scales = [plain(prepare(every[:, scale].permute(0, 3, 1, 2))) for scale in range(2)]
    (plain_head(torch.cat(scales, 1)).logits ** 2).sum().backward()
    wanted, found = gradients(plain, plain_head), gradients(trained, aggregator)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-9


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    lines = ["slide,label"]
    for k in range(4):
        made_slide(folder / f"s{k}.svs", size=(1024, 1024), seed=k + 1, lesions=k % 2)
        lines.append(f"s{k}.svs,{k % 2}")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder / "cohort.csv"


@pytest.fixture(scope="module")
def on_pixels(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    config = TILES | FIT | {"encoder": {"source": "small", "chunk_size": 16}}
    return Trained(slides, fit(slides, config, tmp_path_factory.mktemp("run"), progress=False).checkpoints[0])


def tiny() -> sp.Encoder:
    return sp.load_encoder(network(), name="tiny", normalize="imagenet", input_size=32)


def encode(slides: Path, out: Path, tiles: dict[str, Any] = TILES, how: str = "concat") -> Path:
    sp.encode_cohort(slides, tiny(), out, tiles, device="cpu", dtype="float32", context_features=how, progress=False)
    return out


@pytest.fixture(scope="module")
def on_features(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("features")
    config = FIT | {"encoder": {"folder": str(encode(slides, folder / "f"))}}
    return Trained(folder / "f", fit(slides, config, folder / "run", progress=False).checkpoints[0])


def context_bag(slide: Path, context: float = 2.0) -> sp.ContextBag:
    view = sp.open_slide(slide).view(mpp=1.0)
    grid = sp.TileGrid(view, tile_size=32, min_tissue=0.3, tissue=sp.find_tissue(view.slide))
    return sp.ContextBag(view, grid, mpp=[1.0, context])


@pytest.mark.system
def test_a_checkpoint_from_pixels_predicts_a_slide_at_its_magnifications(on_pixels: Trained, tmp_path: Path) -> None:
    """As the modules do, by hand, on the tiles of the bag; a heat map has a square per tile."""
    predictor = sp.load_predictor(on_pixels.checkpoint)
    slide = on_pixels.cohort.parent / "s1.svs"
    found, bag = predictor.predict(slide), context_bag(slide)
    assert predictor.encoder is not None
    images = torch.from_numpy(bag[:]).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        each = [predictor.encoder.module(predictor.encoder.prepare(images[:, scale])) for scale in range(2)]
        out = predictor.model(torch.cat(each, 1))
    np.testing.assert_allclose(found.logits, out.logits.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.attention, out.attention.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.coords, bag.coords)
    assert found.tile_size == 32
    done = predict_cohort(predictor, [slide], tmp_path, progress=False)
    assert not done.failed
    assert "heatmap.png" in done.slides[0].files


@pytest.mark.system
def test_tiles_of_other_magnifications_are_refused(on_pixels: Trained, slides: Path) -> None:
    """Open bags; those of the training are predicted like the slide."""
    predictor, slide = sp.load_predictor(on_pixels.checkpoint), slides.parent / "s1.svs"
    for bag, words in (
        (context_bag(slide, 4.0), "the magnifications 1 and 4 µm"), (context_bag(slide).at(0), "one magnification"),
    ):  # fmt: skip
        message = f"its tiles have {words}, the model was trained on the magnifications 1 and 2 µm"
        with pytest.raises(ConfigError, match=message):
            predictor.predict(bag)
    np.testing.assert_allclose(predictor.predict(context_bag(slide)).logits, predictor.predict(slide).logits, rtol=1e-6)


@pytest.mark.slow
def test_features_of_several_magnifications_are_trained_on(on_features: Trained) -> None:
    """The model takes them side by side, and the checkpoint states the magnifications."""
    about = read_checkpoint(on_features.checkpoint)["about"]
    assert (about["width"], about["context"]) == (2 * DIM, list(MPPS))
    predictor = sp.load_predictor(on_features.checkpoint)
    assert len(predictor.predict(on_features.cohort / "s1.features.zarr").attention) > 10


def test_a_model_of_features_predicts_slides_with_their_encoder(on_features: Trained, slides: Path) -> None:
    """It reads the magnifications of the training by itself."""
    of_features = sp.load_predictor(on_features.checkpoint).predict(on_features.cohort / "s1.features.zarr")
    of_slide = sp.load_predictor(on_features.checkpoint, encoder=tiny()).predict(slides.parent / "s1.svs")
    np.testing.assert_allclose(of_slide.logits, of_features.logits, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(of_slide.coords, of_features.coords)


@pytest.mark.system
def test_features_of_other_magnifications_are_refused(on_features: Trained, slides: Path, tmp_path: Path) -> None:
    """Also those of the same width."""
    other = encode(slides, tmp_path / "other", TILES | {"view": {"mpp": 1.0, "context": [4.0]}})
    alone = encode(slides, tmp_path / "alone", PLAIN)
    predictor = sp.load_predictor(on_features.checkpoint)
    for folder, words in ((other, "the magnifications 1 and 4 µm"), (alone, "one magnification")):
        with pytest.raises(
            ConfigError, match=f"features of {words}, the model was trained on the magnifications 1 and"
        ):
            predictor.predict(folder / "s1.features.zarr")


@pytest.mark.system
def test_features_stored_apart_are_trained_on_together_and_alone(
    on_features: Trained, slides: Path, tmp_path: Path
) -> None:
    """Together as those side by side; alone under the name of the magnification, which no slide can be read for."""
    apart = encode(slides, tmp_path / "f", how="apart")
    together = fit(slides, FIT | {"encoder": {"folder": str(apart)}}, tmp_path / "both", progress=False)
    same, found = (read_checkpoint(path) for path in (on_features.checkpoint, together.checkpoints[0]))
    for name, value in same["model"].items():
        torch.testing.assert_close(found["model"][name], value)
    config = FIT | {"encoder": {"folder": str(apart), "features": "tiny-2um"}}
    alone = fit(slides, config, tmp_path / "alone", progress=False).checkpoints[0]
    assert sp.load_predictor(alone).predict(apart / "s1.features.zarr").task is not None
    with pytest.raises(ConfigError, match="features of one of several magnifications, tiny-2um"):
        sp.load_predictor(alone, encoder=tiny())


@pytest.mark.system
def test_slides_with_features_of_different_magnifications_are_refused(slides: Path, tmp_path: Path) -> None:
    """All together, before the first epoch."""
    folder, other = encode(slides, tmp_path / "f"), TILES | {"view": {"mpp": 1.0, "context": [4.0]}}
    sp.encode_cohort(
        [slides.parent / "s1.svs"], tiny(), folder, other, device="cpu", dtype="float32", overwrite=True, progress=False
    )
    with pytest.raises(ConfigError, match=r"features of different magnifications: the magnifications 1 and 2 µm"):
        fit(slides, FIT | {"encoder": {"folder": str(folder)}}, tmp_path / "run", progress=False)


@pytest.mark.system
def test_stored_bags_are_trained_on_and_slides_predicted_at_their_magnifications(slides: Path, tmp_path: Path) -> None:
    """The settings of the training state none; the checkpoint has those of the bags."""
    rows = ["slide,label"]
    for k in range(4):
        stored = f"s{k}.bag.zarr"
        sp.save_bag(context_bag(slides.parent / f"s{k}.svs"), tmp_path / stored, progress=False)
        rows.append(f"{stored},{k % 2}")
    (tmp_path / "bags.csv").write_text("\n".join(rows) + "\n")
    config = FIT | {"grid": PLAIN["grid"], "encoder": {"source": "small", "chunk_size": 16}}
    trained = fit(tmp_path / "bags.csv", config, tmp_path / "run", progress=False)
    assert read_checkpoint(trained.checkpoints[0])["about"]["context"] == list(MPPS)
    predictor = sp.load_predictor(trained.checkpoints[0])
    of_bag, of_slide = (predictor.predict(tmp_path / "s1.bag.zarr"), predictor.predict(slides.parent / "s1.svs"))
    np.testing.assert_allclose(of_slide.logits, of_bag.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(of_slide.coords, of_bag.coords)


def test_checkpoints_of_one_magnification_are_as_before(slides: Path, tmp_path: Path) -> None:
    """So that trainings of earlier versions continue."""
    features = encode(slides, tmp_path / "f", PLAIN)
    fitted = fit(slides, FIT | {"encoder": {"folder": str(features)}}, tmp_path / "run", progress=False)
    about = read_checkpoint(fitted.checkpoints[0])["about"]
    assert not {"context", "scale"} & about.keys()
    assert "context" not in about["config"]["view"]
    assert "context" not in about["tiling"]["view"]
