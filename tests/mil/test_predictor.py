"""A checkpoint predicts as the training did, from slides, bags and features; others are refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tiny_training import PIXELS, WIDTH, features, slides, train_features, train_pixels

import slideio_pipe as sp
from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.errors import ConfigError, NoTissueError
from slideio_pipe.mil.models.small_encoder import SmallEncoder
from slideio_pipe.streaming.dataset import BagDataset

pytest.importorskip("lightning_fabric")


class Trained(NamedTuple):
    """Fixtures that the tests share."""

    folder: Path
    pixels: Path
    own: Path
    features: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Three slides and three trainings."""
    folder = tmp_path_factory.mktemp("trained")
    cohort = slides(folder)
    own = train_pixels(cohort, folder / "own", SmallEncoder(8))
    return Trained(
        folder, train_pixels(cohort, folder / "pixels"), own, train_features(features(folder / "f"), folder / "run")
    )


@pytest.mark.slow
def test_a_slide_is_predicted_as_by_encoder_and_model(trained: Trained) -> None:
    """The encoder on all tiles at once, then the model: the same numbers."""
    predictor = sp.load_predictor(trained.pixels)
    found = predictor.predict(trained.folder / "s1.svs", label=1)
    assert predictor.encoder is not None
    dataset = BagDataset([trained.folder / "s1.svs"], {key: PIXELS[key] for key in ("view", "grid")})
    bag = dataset.open(0)
    with torch.no_grad():
        tiles = torch.from_numpy(bag.read(np.arange(len(bag)))).permute(0, 3, 1, 2)
        out = predictor.model(predictor.encoder.module(predictor.encoder.prepare(tiles)))
    dataset.close(0, bag)
    np.testing.assert_allclose(found.logits, out.logits.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.attention, out.attention.numpy(), atol=1e-6)
    assert found.attention.sum() == pytest.approx(1)
    assert out.instances is not None
    np.testing.assert_allclose(found.scores("instance"), torch.sigmoid(out.instances[:, 0]).numpy(), atol=1e-5)
    assert (found.coords == bag.coords).all()
    assert found.result["probability_1"] == pytest.approx(float(torch.sigmoid(out.logits[0])), abs=1e-5)
    assert found.said == found.result  # the former name
    assert (found.label, found.tile_size, found.slide) == (1, 32, "s1.svs")
    assert found.affine.a == pytest.approx(4)


def test_a_bag_is_predicted_as_its_slide(trained: Trained, tmp_path: Path) -> None:
    """Stored or open, by path or as a row of a cohort."""
    predictor = sp.load_predictor(trained.pixels.parent)
    slide = trained.folder / "s0.svs"
    wanted = predictor.predict(slide)
    dataset = BagDataset([slide], {key: PIXELS[key] for key in ("view", "grid")})
    bag = dataset.open(0)
    sp.save_bag(bag, tmp_path / "s0.bag.zarr", progress=False)
    for source in (bag, tmp_path / "s0.bag.zarr", CohortSlide(slide, "s0.svs", patient="p")):
        found = predictor.predict(source)
        np.testing.assert_array_equal(found.attention, wanted.attention)
        assert found.affine == wanted.affine
    dataset.close(0, bag)


def test_a_callers_network_must_be_passed_again(trained: Trained) -> None:
    """The checkpoint's weights replace the given ones; another architecture is refused."""
    with pytest.raises(ConfigError, match=r"network of its own, SmallEncoder.*encoder=…"):
        sp.load_predictor(trained.own)
    first, second = (
        sp.load_predictor(trained.own, encoder=SmallEncoder(8)).predict(trained.folder / "s1.svs") for _ in range(2)
    )
    assert (first.attention == second.attention).all()
    with pytest.raises(ConfigError, match="not those of encoder SmallEncoder"):
        sp.load_predictor(trained.own, encoder=SmallEncoder(16))


def test_features_are_predicted_as_the_training_predicted(trained: Trained, tmp_path: Path) -> None:
    """From a file or open; without coordinates there is a table and no heat map."""
    predictor = sp.load_predictor(trained.features)
    found = predictor.predict(trained.folder / "f" / "f3.pt")
    values = torch.load(trained.folder / "f" / "f3.pt", weights_only=True)
    with torch.no_grad():
        np.testing.assert_allclose(found.logits, predictor.model(values).logits.numpy(), atol=1e-6)
    again = predictor.predict(sp.open_features(trained.folder / "f" / "f3.pt"))
    assert (again.logits == found.logits).all()
    assert again.slide == found.slide == "f3"
    with pytest.raises(ConfigError, match="positions of its tiles are unknown"):
        found.plot()
    found.to_csv(tmp_path / "tiles.csv")
    with (tmp_path / "tiles.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["attention"]) for row in rows] == found.attention.tolist()
    assert sum(float(row["attention_percentile"]) == 1 for row in rows) == 1
    assert all(float(row["probability_0"]) + float(row["probability_1"]) == pytest.approx(1) for row in rows)


def test_a_model_of_features_predicts_slides_with_the_encoder(tmp_path: Path) -> None:
    """Tiled as the slides of the training; features are still accepted."""
    cohort = slides(tmp_path)
    torch.manual_seed(0)
    encoder = sp.load_encoder(SmallEncoder(8), name="own", normalize="imagenet", input_size=32)
    tiles = {"view": {"mpp": 1.0}, "tissue": {"mpp": 4.0}, "grid": {"tile_size": 32, "min_tissue": 0.2, "stride": 48}}
    sp.encode_cohort(cohort, encoder, tmp_path / "features", tiles, device="cpu", progress=False)
    config = {"encoder": {"folder": str(tmp_path / "features")}, "model": {"embed": [4]}, "fit": PIXELS["fit"]}
    fitted = sp.fit(cohort, config, tmp_path / "run", progress=False)
    predictor = sp.load_predictor(fitted.checkpoints[0], encoder=encoder)
    of_slide = predictor.predict(tmp_path / "s1.svs")
    for given in (predictor, sp.load_predictor(fitted.checkpoints[0])):
        of_features = given.predict(tmp_path / "features" / "s1.features.zarr")
        assert of_slide.slide == of_features.slide == "s1.svs"
        np.testing.assert_array_equal(of_slide.coords, of_features.coords)
        np.testing.assert_allclose(of_slide.logits, of_features.logits, atol=5e-3)  # features are float16
    with pytest.raises(ConfigError, match="features first, or pass the encoder of the training: encoder="):
        sp.load_predictor(fitted.checkpoints[0]).predict(tmp_path / "s1.svs")


def test_inputs_that_do_not_fit_the_checkpoint_are_refused(trained: Trained, tmp_path: Path) -> None:
    """Other widths, NaN, slides without an encoder, features for an encoder, other files."""
    takes_features, takes_slides = sp.load_predictor(trained.features), sp.load_predictor(trained.pixels)
    torch.save(torch.zeros(3, WIDTH + 1), tmp_path / "wide.pt")
    torch.save(torch.full((3, WIDTH), torch.nan), tmp_path / "nan.pt")
    torch.save(torch.zeros(0, WIDTH), tmp_path / "empty.pt")
    for name, output in (("wide", "takes"), ("nan", "no numbers"), ("empty", "no tile")):
        with pytest.raises(ConfigError, match=output):
            takes_features.predict(tmp_path / f"{name}.pt")
    with pytest.raises(ConfigError, match="run slideio-pipe features first"):
        takes_features.predict(trained.folder / "s0.svs")
    with pytest.raises(ConfigError, match="takes slides, not features"):
        takes_slides.predict(sp.open_features(trained.folder / "f" / "f0.pt"))
    torch.save({"version": 1, "state": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ConfigError, match="another program"):
        sp.load_predictor(tmp_path / "other.ckpt")
    with pytest.raises(ConfigError, match="no such checkpoint"):
        sp.load_predictor(tmp_path / "none.ckpt")
    with pytest.raises(ConfigError, match="no scores 'heat'"):
        takes_slides.predict(trained.folder / "s0.svs").scores("heat")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::slideio_pipe.errors.EmptyTissueWarning")
def test_a_slide_without_tissue_has_no_prediction(trained: Trained, tmp_path: Path) -> None:
    """The error says so."""
    from PIL import Image

    Image.new("RGB", (512, 512), (243, 243, 243)).save(tmp_path / "glass.png")
    with pytest.raises(NoTissueError):
        sp.load_predictor(trained.pixels).predict(tmp_path / "glass.png", slide_mpp=0.25)


def test_mean_pooling_shows_the_predictions_of_tiles(trained: Trained) -> None:
    """Its attention is equal for all tiles."""
    found = sp.load_predictor(trained.pixels).predict(trained.folder / "s0.svs")
    flat = type(found)(
        **{name: getattr(found, name) for name in found.__slots__} | {"attention": np.full(len(found), 1 / len(found))}
    )
    assert found.default_scores == "attention"
    assert flat.default_scores == "instance"
    assert (flat.top(3) == np.argsort(-found.scores("instance"), kind="stable")[:3]).all()


def test_a_cohort_slide_keeps_label_and_patient(trained: Trained) -> None:
    """In its row of predictions.csv."""
    slide = Cohort.of(trained.folder / "cohort.csv")[1]
    row = sp.load_predictor(trained.pixels).predict(slide).row()
    assert (row["slide"], row["label"]) == ("s1.svs", 1)
    assert row["predicted"] in ("0", "1")
