"""MUSK1 by attention MIL, as in Ilse, Tomczak and Welling (ICML 2018): five times 10-fold cross-validation."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from benchmark import require
from torch import Tensor
from torch.func import functional_call

from slideio_pipe.mil.models.mil_model import MilModel
from slideio_pipe.mil.tasks import Classification

# Table 1 of the paper: accuracy and its "standard error of the mean".
PUBLISHED = {"attention": (0.892, 0.040), "gated": (0.900, 0.050)}
# Appendix of the paper: fc-256, fc-128, fc-64, each with ReLU and dropout, attention of 64, one logit; SGD.
_EMBED, _ATTENTION, _DROPOUT = (256, 128, 64), 64, 0.5
_LR, _MOMENTUM, _WEIGHT_DECAY = 5e-4, 0.9, 5e-3
_TASK = Classification(("0", "1"), (1.0, 1.0))


class Bag(NamedTuple):
    """A molecule: its conformations, and whether it smells of musk."""

    features: Tensor  # (n, 166)
    label: Tensor  # (1,) float64


def read_bags(path: Path) -> list[Bag]:
    """Return the bags of a table without a header: label, bag, features."""
    table = np.loadtxt(path, delimiter=",")
    features = table[:, 2:]
    features = ((features - features.mean(0)) / features.std(0)).astype(np.float32)
    found = []
    for name in np.unique(table[:, 1]):
        rows = table[:, 1] == name
        found.append(Bag(torch.from_numpy(features[rows]), torch.tensor([float(table[rows, 0].max())])))
    return found


def easy_bags(count: int = 40) -> list[Bag]:
    """Return bags of noise, half of them with another mean."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for k in range(count):
        features = torch.randn(5, 166, generator=generator)
        features += 4.0 * (k % 2)
        found.append(Bag(features, torch.tensor([float(k % 2)])))
    return found


def parts(count: int, folds: int, generator: torch.Generator) -> list[list[int]]:
    """Return the test bags of each fold."""
    order = torch.randperm(count, generator=generator).tolist()
    return [order[k::folds] for k in range(folds)]


def trained(bags: list[Bag], folds: list[list[int]], pool: str, epochs: int, seed: int) -> list[MilModel]:
    """Return a model for each fold, trained on the bags of the other folds, after the last epoch.

    All folds train on the same bag at a time, in one call through vmap, except the fold that tests with it: its weights
    and momentum do not change. Results equal those of one loop per fold, which takes nine times as long.
    """
    torch.manual_seed(seed)
    models = [
        MilModel(bags[0].features.shape[1], 1, pool=pool, embed=_EMBED, attention=_ATTENTION, dropout=_DROPOUT)
        for _ in folds
    ]
    weights, _ = torch.func.stack_module_state(models)
    every = list(weights.values())
    optimizer = torch.optim.SGD(every, _LR, _MOMENTUM, weight_decay=_WEIGHT_DECAY, fused=True)
    for weight in every:
        optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    tester = {number: k for k, fold in enumerate(folds) for number in fold}

    def loss(weights: dict[str, Tensor], bag: Bag) -> Tensor:
        return _TASK.loss(functional_call(models[0], weights, (bag.features,)).logits[None], bag.label)

    losses = torch.func.vmap(loss, in_dims=(0, None), randomness="different")
    for _ in range(epochs):
        for number in torch.randperm(len(bags)).tolist():
            optimizer.zero_grad()
            losses(weights, bags[number]).sum().backward()
            kept = [tensor[tester[number]] for tensor in _state(every, optimizer)]
            before = [tensor.clone() for tensor in kept]
            optimizer.step()
            for tensor, value in zip(kept, before, strict=True):
                tensor.copy_(value)
    for k, model in enumerate(models):
        # Buffers are not trained: each model keeps its own, which are those of all.
        model.load_state_dict(model.state_dict() | {name: weight[k].detach() for name, weight in weights.items()})
        model.eval()
    return models


def _state(weights: list[Tensor], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return weights and momenta."""
    return [weight.detach() for weight in weights] + [optimizer.state[w]["momentum_buffer"] for w in weights]


@torch.no_grad()
def accuracy(model: MilModel, bags: list[Bag], test: list[int]) -> float:
    """Return the fraction of bags on the right side of a probability of 0.5."""
    return float(np.mean([(float(model(bags[k].features).logits) > 0) == bool(bags[k].label) for k in test]))


def musk(
    path: Path,
    *,
    pools: Sequence[str] = tuple(PUBLISHED),
    runs: int = 5,
    folds: int = 10,
    epochs: int = 100,
    quick: bool = False,
) -> None:
    """Print accuracies beside the published ones; with --quick, of bags that are easy to separate."""
    bags = easy_bags() if quick else read_bags(path)
    if quick:
        # After 10 epochs of 20 bags one fold still predicts one class; after 15 both folds are right.
        runs, folds, epochs, pools = 1, 2, 25, pools[:1]
    known = "Easy" if quick else "MUSK1"
    print(f"{known}: {len(bags)} bags, {sum(len(b.features) for b in bags)} instances; {runs} × {folds} folds")
    print("| pooling | ours, mean | s.e. over folds and runs | deviation of run means | published | CPU s |")
    print("|---|---|---|---|---|---|")
    for pool in pools:
        mean, error = PUBLISHED[pool]
        began, accuracies = time.process_time(), np.zeros((runs, folds))
        for run in range(runs):
            tests = parts(len(bags), folds, torch.Generator().manual_seed(run))
            models = trained(bags, tests, pool, epochs, run)
            accuracies[run] = [accuracy(model, bags, test) for model, test in zip(models, tests, strict=True)]
            print(f"{pool}, run {run + 1}: {accuracies[run].mean():.3f}", file=sys.stderr, flush=True)
        spread = accuracies.std(ddof=1) / np.sqrt(accuracies.size) if accuracies.size > 1 else 0.0
        between = accuracies.mean(1).std(ddof=1) if runs > 1 else 0.0
        inside = abs(accuracies.mean() - mean) <= error
        beside = "(other bags)" if quick else f"{mean:.3f} ± {error:.3f}: {'inside' if inside else 'OUTSIDE'}"
        print(
            f"| {pool} | {accuracies.mean():.3f} | {spread:.3f} | {between:.3f} | {beside} "
            f"| {time.process_time() - began:.0f} |",
            flush=True,
        )
        good = accuracies.mean() >= 0.95 if quick else inside
        require(bool(good), f"an accuracy of {accuracies.mean():.3f} for {pool}")
