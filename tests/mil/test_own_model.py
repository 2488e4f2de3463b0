"""An aggregator of one's own is trained and predicts as the package's, or is refused before the first epoch."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from own_parts import SOURCE, Attention, Mean, module_file, quick
from small_networks import encoder, gradients
from tiny_training import WIDTH, slides, study
from torch import Tensor, nn
from typer.testing import CliRunner

import slideio_pipe as sp
from slideio_pipe.commands.app import app
from slideio_pipe.errors import ConfigError, SkippedWarning, SlideioPipeWarning
from slideio_pipe.mil.checkpoint import read_checkpoint
from slideio_pipe.mil.models.own_model import own_model, tried

pytest.importorskip("lightning_fabric")
pytestmark = pytest.mark.usefixtures("without_plots")
LABELS = [k % 2 for k in range(12)]
SPLIT = ["train"] * 8 + ["test"] * 4


def cohort(folder: Path, **columns: list[Any]) -> Path:
    return study(folder, {"label": LABELS, "split": SPLIT} | columns)


def features(path: Path) -> Tensor:
    found: Tensor = torch.load(path)
    return found


# -- training ----------------------------------------------------------------------------------------------------------


def test_a_class_is_trained_and_predicts_as_by_hand(tmp_path: Path) -> None:
    """The prediction is that of the module with the checkpoint's weights on standardised features."""
    table = cohort(tmp_path)
    fitted = sp.fit(table, quick(validation=0), tmp_path / "run", model=Attention, progress=False)
    weights = read_checkpoint(fitted.checkpoints[0])["model"]
    plain = Attention(WIDTH, 1)
    plain.load_state_dict({key.removeprefix("aggregator."): value for key, value in weights.items() if "." in key})
    training = torch.cat([features(tmp_path / f"s{k}.pt") for k in range(8)]).double()
    scaled = (features(tmp_path / "s9.pt") - training.mean(0)) / training.std(0, correction=0)
    logits, attention = plain(scaled.float())
    found = sp.load_predictor(fitted.folder, model=Attention).predict(tmp_path / "s9.pt")
    np.testing.assert_allclose(found.logits, logits.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(found.attention, attention.detach().numpy(), atol=1e-5)
    assert not torch.equal(plain.head.weight, Attention(WIDTH, 1).head.weight)


def test_settings_are_arguments_of_the_class(tmp_path: Path) -> None:
    config = quick(validation=0) | {"model": {"settings": {"hidden": 9}}}
    fitted = sp.fit(cohort(tmp_path), config, tmp_path / "run", model=Attention, progress=False)
    assert read_checkpoint(fitted.checkpoints[0])["model"]["aggregator.score.0.weight"].shape == (9, WIDTH)
    assert sp.load_predictor(fitted.folder, model=Attention).config.model.settings == {"hidden": 9}


def test_every_fold_begins_with_the_instance_that_was_passed(tmp_path: Path) -> None:
    """It is copied, and stays as it was; with a learning rate of almost nothing the folds end with its weights."""
    torch.manual_seed(3)
    given = Attention(WIDTH, 1)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    config = quick(folds=3, validation=0, lr=1e-12, weight_decay=0.0)
    fitted = sp.fit(study(tmp_path, {"label": LABELS}), config, tmp_path / "run", model=given, progress=False)
    for checkpoint in fitted.checkpoints:
        weights = read_checkpoint(checkpoint)["model"]
        for name, value in before.items():
            torch.testing.assert_close(weights[f"aggregator.{name}"], value, rtol=0, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


@pytest.mark.system
def test_every_fold_trains_a_copy_of_the_encoder_that_was_passed(tmp_path: Path) -> None:
    """Otherwise the second fold would begin with what the first has learnt from its test slides."""
    network = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = network[0].weight.detach().clone()
    pixels = {"view": {"mpp": 1.0}, "grid": {"tile_size": 32, "min_tissue": 0.3}, "encoder": {"chunk_size": 16}}
    table = slides(tmp_path, 4)
    config = pixels | quick(epochs=1, folds=2, validation=0, lr=1e-2)
    sp.fit(table, config, tmp_path / "run", encoder=network, progress=False)
    assert torch.equal(network[0].weight, before)


def test_an_import_path_is_found_beside_the_settings_and_by_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another folder; the checkpoint has the path, the settings and the weights."""
    module_file(tmp_path / "study", "own_a")
    table = cohort(tmp_path / "study")
    text = {"model": "own_a:MyAggregator", "fit": quick(validation=0)["fit"]}
    (tmp_path / "study" / "mil.yaml").write_text(yaml.safe_dump(text))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    fitted = sp.fit(table, tmp_path / "study" / "mil.yaml", tmp_path / "run", progress=False)
    about = read_checkpoint(fitted.checkpoints[0])["about"]
    assert about["config"]["model"]["name"] == "own_a:MyAggregator"
    assert list(about["code"]) == ["own_a.py"]
    found = sp.load_predictor(fitted.folder).predict(tmp_path / "study" / "s9.pt")
    row = next(csv.DictReader((tmp_path / "run" / "predictions.csv").read_text().splitlines()))
    again = sp.load_predictor(fitted.folder).predict(tmp_path / "study" / "s8.pt")
    assert float(row["probability_1"]) == pytest.approx(again.result["probability_1"], abs=1e-6)
    assert found.has_attention
    repeated = sp.fit(table, tmp_path / "run" / "config.yaml", tmp_path / "run", progress=False)
    assert repeated.history == fitted.history


@pytest.mark.system
def test_the_command_line_takes_an_import_path_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ``train --model``, and of ``predict --model`` for a model that was passed in Python."""
    module_file(tmp_path, "own_b")
    table = cohort(tmp_path)
    monkeypatch.chdir(tmp_path)
    given = [f"--set=fit.{key}={json.dumps(value)}" for key, value in quick(validation=0)["fit"].items()]
    done = CliRunner().invoke(
        app, ["train", "--cohort", str(table), "--model", "own_b:MyAggregator", *given, "--out", "run"]
    )
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["predict", "run/best.ckpt", "s9.pt", "--json"])
    assert done.exit_code == 0, done.output
    by_path = json.loads(done.stdout)["predictions"][0]["logits"]
    settings = quick(validation=0)
    import own_b  # type: ignore[import-not-found]

    sp.fit(table, settings, "python", model=own_b.MyAggregator, progress=False)
    done = CliRunner().invoke(app, ["predict", "python/best.ckpt", "s9.pt"])
    assert "--model" in done.output
    done = CliRunner().invoke(app, ["predict", "python/best.ckpt", "s9.pt", "--json", "--model", "own_b:MyAggregator"])
    assert json.loads(done.stdout)["predictions"][0]["logits"] == pytest.approx(by_path)


def test_a_killed_training_goes_on_with_the_same_weights(tmp_path: Path) -> None:
    """As one that was not stopped."""
    table = cohort(tmp_path)
    whole = sp.fit(table, quick(epochs=3, validation=0), tmp_path / "whole", model=Attention, progress=False)

    def stop(done: int, total: int) -> None:
        del total
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sp.fit(table, quick(epochs=3, validation=0), tmp_path / "run", model=Attention, progress=stop)
    again = sp.fit(table, quick(epochs=3, validation=0), tmp_path / "run", model=Attention, progress=False)
    wanted, found = (read_checkpoint(fitted.checkpoints[0])["model"] for fitted in (whole, again))
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())


@pytest.mark.system
def test_a_training_does_not_go_on_with_other_code_or_another_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comments may change. Prediction warns of other code."""
    table = cohort(tmp_path)
    sp.fit(table, quick(validation=0), tmp_path / "python", model=Attention, progress=False)
    with pytest.raises(
        ConfigError, match=r"another training: parameters was 8 tensors, 52 values .* is 8 tensors, 60 values"
    ):
        sp.fit(table, quick(validation=0), tmp_path / "python", model=Attention(WIDTH, 1, 5), progress=False)
    monkeypatch.chdir(tmp_path)
    file = module_file(tmp_path, "own_c")
    sp.fit(table, quick(validation=0), "run", model="own_c:MyAggregator", progress=False)
    file.write_text(f"# a comment\n{SOURCE}")
    sp.fit(table, quick(validation=0), "run", model="own_c:MyAggregator", progress=False)
    file.write_text(SOURCE.replace("NUMBER = 3", "NUMBER = 4"))
    with pytest.raises(ConfigError, match=r"another training: code.own_c.py was \w+, is \w+; pass overwrite"):
        sp.fit(table, quick(validation=0), "run", model="own_c:MyAggregator", progress=False)
    with pytest.warns(SlideioPipeWarning, match=r"own_c.py has changed since the training"):
        sp.load_predictor("run")


@pytest.mark.parametrize("chunk_size", [1, 5, 64])
def test_the_gradient_of_the_encoder_behind_an_own_model_is_exact(chunk_size: int) -> None:
    """In double precision to 1e-9, compared with plain back-propagation over all tiles at once."""
    tiles = torch.rand(23, 3, 12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def made() -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(4)
        network = encoder()
        width = network.eval()(tiles[:1]).shape[1]
        return network, own_model(Attention, width, 1, {}, "own").double()

    (network, head), (plain, plain_head) = made(), made()
    bag = sp.TwoPass(network).encode(list(tiles.split(chunk_size)))
    head(bag.features).logits.square().sum().backward()
    bag.backward()
    plain_head(plain(tiles)).logits.square().sum().backward()
    wanted, found = gradients(plain, plain_head), gradients(network, head)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-9


@pytest.mark.system
def test_an_own_encoder_and_an_own_model_train_from_pixels_and_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both by import path; the prediction equals that of the modules applied by hand."""
    module_file(tmp_path, "own_d")
    table = slides(tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    pixels = {"view": {"mpp": 1.0}, "grid": {"tile_size": 32, "min_tissue": 0.3}}
    config = pixels | quick(validation=0, lr=1e-2) | {"encoder": {"source": "own_d:make_encoder", "chunk_size": 16}}
    fitted = sp.fit(table, config, "run", model="own_d:MyAggregator", progress=False)
    predictor = sp.load_predictor("run")
    found = predictor.predict(tmp_path / "s1.svs")
    import own_d  # type: ignore[import-not-found]

    state = read_checkpoint(fitted.checkpoints[0])
    network, head = own_d.make_encoder(), own_d.MyAggregator(6, 1)
    assert not torch.equal(network[0].weight, state["encoder"]["network.0.weight"])  # it was trained
    network.load_state_dict({key.removeprefix("network."): value for key, value in state["encoder"].items()})
    head.load_state_dict({k.removeprefix("aggregator."): v for k, v in state["model"].items() if "." in k})
    with sp.open_slide("s1.svs") as slide:
        view = slide.view(mpp=1.0)
        bag = sp.TileBag(view, sp.TileGrid(view, tile_size=32, min_tissue=0.3, tissue=sp.find_tissue(slide)))
        pixels_of = torch.from_numpy(bag[:]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    logits, attention = head(network((pixels_of - mean) / std))
    np.testing.assert_allclose(found.logits, logits.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(found.attention, attention.detach().numpy(), atol=1e-4)


class Nothing(nn.Module):
    """Returns NaN."""

    def forward(self, tiles: Tensor) -> Tensor:
        return torch.full((len(tiles), 4), torch.nan)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (5, r"<int>: the encoder is of type int; pass an nn.Module"),
        (nn.Conv2d(3, 4, 8, device="meta"), r"<Conv2d>: its parameters are on no device \(meta\)"),
        (Nothing(), r"Nothing returns no finite number for a white tile"),
        (nn.Conv2d(3, 4, 3), r"Conv2d returns maps of .* not features"),
        ("own_missing:make_encoder", r"there is no module own_missing"),
    ],
)
def test_what_is_no_encoder_is_refused(network: Any, message: str, tmp_path: Path) -> None:
    """Before the first epoch."""
    pixels = {"view": {"mpp": 1.0}, "grid": {"tile_size": 32, "min_tissue": 0.3}}
    with pytest.raises(ConfigError, match=message):
        sp.fit(slides(tmp_path, 2), pixels | quick(validation=0), tmp_path / "run", encoder=network, progress=False)


@pytest.mark.system
def test_an_encoder_with_its_normalisation_is_trained_and_predicts(tmp_path: Path) -> None:
    """What ``load_encoder`` returns, also one whose tokens are pooled; the one that was passed stays as it is."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 8, 8)

        def forward(self, tiles: Tensor) -> Tensor:
            found: Tensor = self.convolution(tiles).flatten(2).transpose(1, 2)
            return found

    def made() -> sp.Encoder:
        torch.manual_seed(1)
        return sp.load_encoder(Tokens(), name="tokens", normalize="half", input_size=32, pooling="mean")

    given = made()
    pixels = {"view": {"mpp": 1.0}, "grid": {"tile_size": 32, "min_tissue": 0.3}, "encoder": {"chunk_size": 16}}
    table = slides(tmp_path, 3)
    fitted = sp.fit(table, pixels | quick(validation=0, lr=1e-2), tmp_path / "run", encoder=given, progress=False)
    assert (
        given.weights
        == sp.load_encoder(given.module, name="x", normalize="half", input_size=32, pooling="mean").weights
    )
    state = read_checkpoint(fitted.checkpoints[0])
    assert state["about"]["encoder"]["normalize"]["mean"] == [0.5, 0.5, 0.5]
    found = sp.load_predictor(fitted.folder, encoder=made()).predict(tmp_path / "s1.svs")
    network = Tokens()
    network.load_state_dict({key.removeprefix("network."): value for key, value in state["encoder"].items()})
    with sp.open_slide(tmp_path / "s1.svs") as slide:
        view = slide.view(mpp=1.0)
        bag = sp.TileBag(view, sp.TileGrid(view, tile_size=32, min_tissue=0.3, tissue=sp.find_tissue(slide)))
        tiles = torch.from_numpy(bag[:]).permute(0, 3, 1, 2).float() / 127.5 - 1
    model = sp.load_predictor(fitted.folder, encoder=made()).model
    logits = model(network(tiles).mean(1)).logits
    np.testing.assert_allclose(found.logits, logits.detach().numpy(), atol=1e-4)


# -- without attention, with coordinates -------------------------------------------------------------------------------


def test_without_attention_heat_maps_say_so(tmp_path: Path) -> None:
    """The prediction and the table of tiles are written, without attention; a warning says why there is no picture."""
    table = cohort(tmp_path)
    fitted = sp.fit(table, quick(validation=0), tmp_path / "run", model=Mean, progress=False)
    predictor = sp.load_predictor(fitted.folder, model=Mean)
    found = predictor.predict(tmp_path / "s9.pt")
    assert not found.has_attention
    with pytest.raises(ConfigError, match=r"no attention: its tiles have no scores; return \(logits, attention\)"):
        found.scores()
    bag = sp.FeatureBag("s9", np.zeros((4, WIDTH), np.float32), np.arange(8).reshape(4, 2) * 512, 512, 1, None, None)
    with pytest.raises(ConfigError, match="no attention"):
        predictor.predict(bag).plot()
    from slideio_pipe.mil.prediction.predict_cohort import predict_cohort

    places = sp.FeatureBag("a", np.zeros((4, WIDTH), np.float32), np.arange(8).reshape(4, 2), 512, 1, None, None)
    predictor.predict(places).to_csv(tmp_path / "tiles.csv")
    assert (tmp_path / "tiles.csv").read_text().splitlines()[0] == "tile,x,y"
    with pytest.warns(SkippedWarning, match="no heat map"):
        done = predict_cohort(predictor, [tmp_path / "s9.pt"], tmp_path / "out", progress=False)
    assert not done.failed
    assert done.slides[0].files == ("tiles.csv",)


class Located(nn.Module):
    """Looks at coordinates."""

    def __init__(self, in_features: int, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(in_features + 2, outputs)

    def forward(self, features: Tensor, coords: Tensor) -> Tensor:
        assert coords.dtype == torch.int64
        found: Tensor = self.head(torch.cat([features, coords.float() / 1000], 1).mean(0))
        return found


class Wherever(Located):
    """Looks at coordinates where they are known."""

    def forward(self, features: Tensor, coords: Tensor | None = None) -> Tensor:
        return super().forward(features, torch.zeros(len(features), 2).long() if coords is None else coords)


def test_a_parameter_named_coords_gets_the_positions(tmp_path: Path) -> None:
    """Where they are unknown it is refused, or None if that is the default."""
    values, coords = torch.randn(5, 4), np.arange(10).reshape(5, 2) * 512
    model = tried(own_model(Located, 4, 1, {}, "own"), "own").eval()
    plain = model.aggregator
    torch.testing.assert_close(model(values, coords).logits, plain(values, torch.from_numpy(coords)))
    with pytest.raises(ConfigError, match="needs the positions of tiles, and these are unknown"):
        model(values)
    anywhere = own_model(Wherever, 4, 1, {}, "own").eval()
    torch.testing.assert_close(anywhere(values).logits, anywhere.aggregator(values))
    with pytest.raises(ConfigError, match="needs the positions"):
        sp.fit(cohort(tmp_path), quick(validation=0), tmp_path / "run", model=Located, progress=False)
    assert not (tmp_path / "run").exists()


def test_attention_is_a_share(tmp_path: Path) -> None:
    """Only proportions count, and (N, 1) is (N,)."""

    class Sums(Mean):
        def forward(self, features: Tensor) -> Any:
            return super().forward(features)[None], torch.arange(len(features)).float()[:, None]

    out = own_model(Sums, 4, 1, {}, "own").eval()(torch.randn(4, 4))
    assert out.logits.shape == (1,)
    torch.testing.assert_close(out.attention, torch.tensor([0, 1, 2, 3]) / 6)


def test_lazy_layers_and_models_without_own_parameters_work(tmp_path: Path) -> None:
    """The number of features is not known when the instance is made."""

    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.LazyLinear(1)

        def forward(self, features: Tensor) -> Tensor:
            found: Tensor = self.head(features.mean(0))
            return found

    fitted = sp.fit(cohort(tmp_path), quick(validation=0), tmp_path / "run", model=Lazy(), progress=False)
    assert sp.load_predictor(fitted.folder, model=Lazy()).predict(tmp_path / "s9.pt").logits.shape == (1,)


# -- refused before the first epoch ------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Returns what it is told to."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.make = make

    def forward(self, features: Tensor) -> Any:
        return self.make(features, self.weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x, w: x[:, :1] * w,
            r"<Fixed> for features \(7, 6\) is \(7, 1\) float32, and 1 logits are needed; return",
        ),
        (lambda x, w: x[0, :2] * w, r"is \(2,\) float32, and 1 logits are needed"),
        (lambda x, w: {"logits": w}, r"is a dict, not a tensor; return logits \(1,\), or \(logits, attention\)"),
        (lambda x, w: (w, w, w), r"is a tuple of 3, not a tensor"),
        (lambda x, w: (w, x[:, :2]), r"the attention of <Fixed> .* is \(7, 2\) float32, and \(7,\) is needed"),
        (lambda x, w: (w, -torch.ones(len(x))), r"has negative shares"),
        (lambda x, w: w * torch.nan, r"the output of <Fixed> for features \(7, 6\) is not finite"),
        (lambda x, w: w.detach(), r"its logits have no gradient; leave out detach"),
        (lambda x, w: nn.Linear(9, 1)(x), r"does not work on features \(7, 6\) \(RuntimeError: .*it gets one bag"),
        (lambda x, w: w.long(), r"is \(1,\) int64, and 1 logits are needed"),
    ],
)
def test_an_output_that_does_not_fit_is_refused_with_shapes(make: Any, message: str, tmp_path: Path) -> None:
    """Before the folder of the run is made."""
    with pytest.raises(ConfigError, match=message):
        sp.fit(cohort(tmp_path), quick(validation=0), tmp_path / "run", model=Fixed(make), progress=False)
    assert not (tmp_path / "run").exists()


class Needy(nn.Module):
    """Needs an argument."""

    def __init__(self, in_features: int, outputs: int, hidden: int) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Needy, r"Needy\(6, 1\) fails \(TypeError: .*hidden.*other arguments: model.settings"),
        (3, r"<int>: the model is an int, neither a module nor a callable"),
        (lambda width, outputs: width, r"<lambda>: it makes an int, no nn.Module"),
        (nn.Linear(6, 1, device="meta"), r"its parameters are on no device \(meta\)"),
        (nn.Linear, r"<Linear> for features \(7, 6\) is \(7, 1\) float32, and 1 logits are needed"),
        ("own_missing:MyAggregator", r"there is no module own_missing in .*, and none is installed"),
        ("os:system", r"os is a module of Python itself"),
    ],
)
def test_what_is_no_model_is_refused(model: Any, message: str, tmp_path: Path) -> None:
    """With the reason and the remedy."""
    with pytest.raises(ConfigError, match=message):
        sp.fit(cohort(tmp_path), quick(validation=0), tmp_path / "run", model=model, progress=False)


def test_settings_of_an_instance_are_refused(tmp_path: Path) -> None:
    config = quick(validation=0) | {"model": {"settings": {"hidden": 9}}}
    with pytest.raises(ConfigError, match=r"model\.settings has hidden, and the model is made already"):
        sp.fit(cohort(tmp_path), config, tmp_path / "run", model=Attention(WIDTH, 1), progress=False)


def test_a_model_without_parameters_is_refused(tmp_path: Path) -> None:
    """With nothing else to train."""

    class Sums(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features.mean().reshape(1)

    with pytest.raises(ConfigError, match="no parameters to train"):
        sp.fit(cohort(tmp_path), quick(validation=0), tmp_path / "run", model=Sums(), progress=False)


@pytest.mark.system
def test_a_model_that_was_passed_has_to_be_passed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To ``load_predictor``, and to ``fit`` with the settings that it wrote; another one is refused."""
    table = cohort(tmp_path)
    fitted = sp.fit(table, quick(validation=0), tmp_path / "run", model=Attention(WIDTH, 1), progress=False)
    with pytest.raises(ConfigError, match=r"a model of its own, Attention, .* pass it, its class, .*model=…"):
        sp.load_predictor(fitted.folder)
    with pytest.raises(ConfigError, match=r"the model <Attention> was passed in Python"):
        sp.fit(table, tmp_path / "run" / "config.yaml", tmp_path / "again", progress=False)
    with pytest.raises(ConfigError, match=r"its weights are not those of the model"):
        sp.load_predictor(fitted.folder, model=Mean)
    assert sp.load_predictor(fitted.folder, model=Attention(WIDTH, 1)).predict(tmp_path / "s9.pt").has_attention
    plain = sp.fit(table, quick(validation=0), tmp_path / "plain", progress=False)
    with pytest.raises(ConfigError, match="its model is gated, and another one is passed; leave model out"):
        sp.load_predictor(plain.folder, model=Attention)
    monkeypatch.chdir(tmp_path)
    file = module_file(tmp_path / "place", "own_e")
    monkeypatch.chdir(tmp_path / "place")
    sp.fit(table, quick(validation=0), tmp_path / "path", model="own_e:MyAggregator", progress=False)
    monkeypatch.chdir(tmp_path)
    file.rename(tmp_path / "own_f.py")
    monkeypatch.delitem(__import__("sys").modules, "own_e")
    with pytest.raises(ConfigError, match=r"own_e:MyAggregator: there is no module own_e in .*did you mean own_f"):
        sp.load_predictor(tmp_path / "path")
    assert sp.load_predictor(tmp_path / "path", model="own_f:MyAggregator").model is not None
