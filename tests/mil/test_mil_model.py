"""Poolings follow their papers; torchmil's models are used like ours."""

from __future__ import annotations

import importlib.util
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slideio_pipe.errors import ConfigError
from slideio_pipe.mil.fit import fit
from slideio_pipe.mil.models.mil_model import MilModel, build_model
from slideio_pipe.mil.models.pooling import AttentionPool, MaxPool, MeanPool
from slideio_pipe.mil.models.small_encoder import SmallEncoder
from slideio_pipe.mil.models.torchmil_model import grid_of

COORDS = np.stack(np.meshgrid(np.arange(6), np.arange(5)), -1).reshape(-1, 2) * 512
NAMES = [
    "ABMIL",
    "CAMIL",
    "CLAM_SB",
    "DSMIL",
    "DTFDMIL",
    "DeepGraphSurv",
    "GTP",
    "IIBMIL",
    "PatchGCN",
    "ProbSmoothABMIL",
    "SETMIL",
    "SmABMIL",
    "SmTransformerABMIL",
    "SmoothABMIL",
    "TransMIL",
    "TransformerABMIL",
    "TransformerProbSmoothABMIL",
]


def features(count: int = 30, width: int = 32) -> Tensor:
    return torch.rand(count, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("gated", [False, True])
def test_attention_equals_the_paper(gated: bool) -> None:
    """Ilse et al. 2018, equations 8 and 9, in numpy in double precision."""
    pool = AttentionPool(8, 4, gated=gated).double()
    bag = features(7, 8).double()
    h = bag.numpy()
    value, w = pool.value, pool.score.weight.detach().numpy()[0]
    hidden = np.tanh(h @ value.weight.detach().numpy().T + value.bias.detach().numpy())
    if gated:
        gate = pool.gate
        assert gate is not None
        hidden = hidden / (1 + np.exp(-(h @ gate.weight.detach().numpy().T + gate.bias.detach().numpy())))
    weights = [math.exp(score) for score in hidden @ w]
    attention = np.array(weights) / sum(weights)
    found = pool(bag)
    np.testing.assert_allclose(found.attention.detach().numpy(), attention, rtol=1e-12)
    np.testing.assert_allclose(found.vector.detach().numpy(), attention @ h, rtol=1e-12)


def test_mean_and_max_pooling() -> None:
    """Their vectors, and attention that sums to one."""
    bag = torch.tensor([[1.0, 5.0], [3.0, 4.0], [2.0, 0.0]])
    mean, largest = MeanPool()(bag), MaxPool()(bag)
    assert mean.vector.tolist() == [2, 3]
    assert largest.vector.tolist() == [3, 5]
    assert largest.attention.tolist() == [0.5, 0.5, 0]
    assert float(mean.attention.sum()) == pytest.approx(1)


def test_attention_in_half_precision_differs_between_tiles() -> None:
    """Each of 50,000 tiles has less than float16's smallest step; the sum is still one."""
    pool = AttentionPool(4, 2).to(torch.bfloat16)
    attention = pool(torch.zeros(50_000, 4, dtype=torch.bfloat16)).attention.detach()
    assert float(attention.sum()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("pool", ["gated", "attention", "mean", "max"])
def test_the_order_of_tiles_does_not_matter(pool: str) -> None:
    """For every pooling."""
    model = MilModel(32, 3, pool=pool).double().eval()
    bag, order = features().double(), torch.randperm(30)
    one, other = model(bag), model(bag[order])
    torch.testing.assert_close(one.logits, other.logits)
    torch.testing.assert_close(one.attention[order], other.attention)


def test_a_bag_of_one_tile_has_the_logits_of_its_instance() -> None:
    """For every pooling."""
    model = MilModel(32, 2).eval()
    bag = features()
    instances = model(bag).instances
    assert instances is not None
    torch.testing.assert_close(model(bag[3:4]).logits, instances[3])


@pytest.mark.combinations
@pytest.mark.parametrize("count", [30, 1])
@pytest.mark.parametrize("name", NAMES)
def test_models_of_torchmil_train_and_return_attention(name: str, count: int) -> None:
    """One bag at a time."""
    pytest.importorskip("torchmil")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmil's own
        model = build_model(f"torchmil:{name}", 32, 1, **({"n_landmarks": 8} if name == "CAMIL" else {}))
        bag = features(count).requires_grad_()
        out = model.train()(bag, COORDS[:count], torch.tensor(1.0))
        (out.logits.sum() + (0 if out.auxiliary is None else out.auxiliary)).backward()
        assert bag.grad is not None
        assert float(bag.grad.abs().sum()) > 0
        with torch.no_grad():
            seen = model.eval()(features(count), COORDS[:count])
    assert seen.logits.shape == (1,)
    assert seen.attention.shape == (count,)
    assert float(seen.attention.sum()) == pytest.approx(1, abs=1e-4)


def test_models_of_torchmil_that_cannot_be_used_are_refused() -> None:
    """Unknown names list the known ones; several classes need another model; a graph needs coordinates."""
    pytest.importorskip("torchmil")
    with pytest.raises(ConfigError, match="torchmil has no model 'Nothing'; pass one of ABMIL, "):
        build_model("torchmil:Nothing", 32, 1)
    with pytest.raises(ConfigError, match="TransMIL has one logit, 3 are needed"):
        build_model("torchmil:TransMIL", 32, 3)
    with pytest.raises(ConfigError, match="ABMIL takes other settings"):
        build_model("torchmil:ABMIL", 32, 1, nothing=3)
    with pytest.raises(ConfigError, match="PatchGCN needs the positions of tiles"):
        build_model("torchmil:PatchGCN", 32, 1)(features())


def test_wrong_features_are_refused() -> None:
    """Of another encoder, or missing ones."""
    with pytest.raises(ConfigError, match=r"features of the shape \(5, 16\), the model takes \(N, 32\)"):
        MilModel(32)(torch.zeros(5, 16))
    with pytest.raises(ConfigError, match="a bag without a tile"):
        MilModel(32)(torch.zeros(0, 32))
    with pytest.raises(ConfigError, match="no pooling 'median'"):
        build_model("median", 32, 1)


def test_the_grid_of_coordinates() -> None:
    """Columns and rows, for every stride at level 0."""
    assert grid_of(COORDS + 1000).tolist() == (COORDS // 512).tolist()
    assert grid_of(np.array([[7, 9]])).tolist() == [[0, 0]]


def test_the_small_encoder_takes_tiles_of_any_size() -> None:
    """Each tile is independent of the others, so that training in chunks is exact."""
    encoder = SmallEncoder(32)
    bag = torch.rand(3, 3, 50, 70)
    torch.testing.assert_close(encoder(bag)[1:2], encoder(bag[1:2]))
    assert encoder(torch.rand(2, 3, 224, 224)).shape == (2, 32)


def test_features_are_standardised() -> None:
    """Mean 0 and deviation 1 over the tiles of all bags; a constant feature stays finite."""
    model = MilModel(3)
    bag = torch.tensor([[1.0, 100.0, 7.0], [3.0, 300.0, 7.0]])
    model.standardize(bag.mean(0), bag.std(0, correction=0))
    assert model.prepared(bag).tolist() == [[-1, -1, 0], [1, 1, 0]]


class Exported(nn.Module):
    """A model with the two outputs that are exported."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model(features)
        return out.logits, out.attention


@pytest.mark.slow
@pytest.mark.combinations
@pytest.mark.parametrize("pool", ["gated", "attention", "mean", "max"])
@pytest.mark.filterwarnings("ignore")  # of torch's exporters
def test_exported_models_take_any_number_of_tiles(tmp_path: Path, pool: str) -> None:
    """As a torch program, and as ONNX if installed: the example's number is not fixed."""
    torch.manual_seed(0)
    model = Exported(MilModel(16, 3, pool=pool, embed=(8,), attention=4)).eval()
    shapes = {"features": {0: torch.export.Dim("tiles", min=2, max=99_999)}}
    program = torch.export.export(model, (torch.randn(7, 16),), dynamic_shapes=shapes).module()
    bags = [torch.randn(count, 16) for count in (7, 2, 50, 3000)]
    for bag in bags:
        for found, expected in zip(program(bag), model(bag), strict=True):
            torch.testing.assert_close(found, expected)
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
        return
    runtime = importlib.import_module("onnxruntime")
    path = str(tmp_path / "m.onnx")
    torch.onnx.export(model, (torch.randn(7, 16),), path, dynamic_shapes=shapes, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path)
    for bag in bags:
        found = session.run(None, {session.get_inputs()[0].name: bag.numpy()})
        for one, expected in zip(found, model(bag), strict=True):
            np.testing.assert_allclose(one, expected.detach().numpy(), atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # torchmil's own
@pytest.mark.parametrize("name", ["DSMIL", "DTFDMIL", "CLAM_SB"])
def test_the_classification_loss_of_a_model_is_not_added_for_numbers(tmp_path: Path, name: str) -> None:
    """A cross-entropy of ages has no lower bound; the squared error alone is never negative."""
    pytest.importorskip("torchmil")
    generator = torch.Generator().manual_seed(1)
    lines = ["slide,label"]
    for k in range(8):
        torch.save(torch.randn(6, 16, generator=generator) + k / 4, tmp_path / f"f{k}.pt")
        lines.append(f"f{k}.pt,{60.0 + k}")
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    config = {
        "task": {"kind": "regression"},
        "model": {"name": f"torchmil:{name}"},
        "fit": {"epochs": 4, "patience": None, "bootstrap": 0, "validation": 0.0, "accelerator": "cpu", "lr": 1e-2},
    }
    fitted = fit(tmp_path / "cohort.csv", config, tmp_path / "run", progress=False)
    assert all(row["loss"] >= 0 for row in fitted.history[0])
    model = build_model(f"torchmil:{name}", 16, 1)
    with pytest.raises(ConfigError, match="the target 61 is no class"):
        model.train()(torch.randn(5, 16), None, torch.tensor(61.0))


@pytest.mark.filterwarnings("ignore")  # torchmil's own
@pytest.mark.parametrize("name", ["DTFDMIL", "CLAM_SB", "ABMIL"])
def test_the_loss_of_two_classes_equals_torchmils(name: str) -> None:
    """The bag's cross-entropy once, plus the model's own losses: the sum that its trainer minimises."""
    pytest.importorskip("torchmil")
    torch.manual_seed(0)
    model = build_model(f"torchmil:{name}", 16, 1).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    bag, target = torch.randn(12, 16), torch.tensor(1.0)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - DTFDMIL draws its groups from it
    out = model(bag, None, target)
    ours = nn.functional.binary_cross_entropy_with_logits(out.logits[0], target)
    ours = ours if out.auxiliary is None else ours + out.auxiliary
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - DTFDMIL draws its groups from it
    takes_mask = {"mask": torch.ones(1, 12)} if name == "DTFDMIL" else {}
    _, losses = model.model.compute_loss(target[None], X=bag[None], **takes_mask)
    torch.testing.assert_close(ours, torch.stack([loss.reshape(()) for loss in losses.values()]).sum())
