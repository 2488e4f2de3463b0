"""torchmil's models with our interface: one bag in, its logit and the attention of each tile out."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from slideio_pipe.errors import ConfigError, require
from slideio_pipe.mil.models.bag_model import BagModel, MilOutput

# Names of the loss in torchmil's models that the task already has.
_CRITERION = ("BCEWithLogitsLoss", "BCEWithLogitsLoss_t1")
# Radius of neighbours on the grid of tiles, including diagonal ones: 1.5 tiles.
_NEIGHBOURS = 1.5


class TorchMilModel(BagModel):
    """A model of torchmil by name, such as "TransMIL" or "CLAM_SB".

    They have one logit: for two classes, a number or a risk. A model's own loss for two classes (instance losses) is
    ``auxiliary``, for which ``forward`` needs the class; for a number or a risk there is none. Models that need a graph
    get the eight neighbours of every tile, from the coordinates. Raise ConfigError if there is no such model, or it
    needs other inputs; MissingExtraError if torchmil is not installed.

    Parameters
    ----------
    name : str
        Name in ``torchmil.models``.
    in_features : int
        D of the features.
    outputs : int
        1.
    settings
        Arguments of the model.
    """

    def __init__(self, name: str, in_features: int, outputs: int = 1, **settings: Any) -> None:
        super().__init__(in_features, outputs)
        models = require("torchmil.models", "train")
        kinds = _kinds(models)
        if name not in kinds:
            raise ConfigError(f"torchmil has no model {name!r}", remedy=f"pass one of {', '.join(kinds)}")
        kind = kinds[name]
        if outputs != 1:
            raise ConfigError(f"{name} has one logit, {outputs} are needed", remedy='pass {model="gated"}')
        try:
            self.model = kind(in_shape=(in_features,), **settings)
        except TypeError as error:
            raise ConfigError(f"{name} takes other settings ({error})", remedy="see torchmil.models") from error
        self._takes = set(inspect.signature(kind.forward).parameters)
        self._predict_takes = set(inspect.signature(kind.predict).parameters)

    def forward(self, features: Tensor, coords: ArrayLike | None = None, target: Tensor | None = None) -> MilOutput:
        """Return the output for a bag of (N, D) features at (N, 2) coordinates."""
        features = self.prepared(features)
        inputs = self._inputs(features, coords)
        if self.training:
            return self._training(features, inputs, target)
        inputs = {key: value for key, value in inputs.items() if key in self._predict_takes}
        with torch.enable_grad():  # GTP computes its attention from gradients
            logit, scores = (found.detach() for found in self.model.predict(**inputs, return_inst_pred=True)[:2])
        scores = scores.reshape(len(features), -1)[:, 0]
        return MilOutput(logit.reshape(1), torch.softmax(scores.float(), 0), scores[:, None])

    def _training(self, features: Tensor, inputs: dict[str, Any], target: Tensor | None) -> MilOutput:
        """Return the output without attention (some models need a second pass for it), with the model's losses."""
        uniform = features.new_full((len(features),), 1 / len(features))
        if target is not None and float(target) not in (0.0, 1.0):
            reason = (
                f"the target {float(target):g} is no class, and {type(self.model).__name__} adds losses of two classes"
            )
            raise ConfigError(reason, remedy="pass no target")
        known = torch.zeros(1, device=features.device) if target is None else target.reshape(1).float()
        logit, losses = self.model.compute_loss(known, **inputs)
        own = [loss for name, loss in losses.items() if name not in _CRITERION]
        auxiliary = torch.stack([loss.reshape(()) for loss in own]).sum() if own and target is not None else None
        return MilOutput(logit.reshape(1), uniform, None, auxiliary)

    def _inputs(self, features: Tensor, coords: ArrayLike | None) -> dict[str, Any]:
        inputs: dict[str, Any] = {"X": features[None]}
        if "mask" in self._takes:
            inputs["mask"] = features.new_ones((1, len(features)))
        if not self._takes & {"adj", "coords"}:
            return inputs
        if coords is None:
            name = type(self.model).__name__
            raise ConfigError(f"{name} needs the positions of tiles", remedy="pass the coordinates of the bag")
        grid = grid_of(np.asarray(coords))
        if "adj" in self._takes:
            inputs["adj"] = _neighbours(grid, features)
        if "coords" in self._takes:
            inputs["coords"] = torch.from_numpy(grid)[None].to(features.device)
        return inputs


def grid_of(coords: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return columns and rows of tiles, (N, 2) int64 from 0, from their coordinates in px.

    >>> grid_of(np.array([[512, 0], [1024, 0], [1536, 512]])).tolist()
    [[0, 0], [1, 0], [2, 1]]
    """
    origin = coords.min(0)
    steps = [np.diff(np.unique(axis)) for axis in coords.T]
    step = min((s.min() for s in steps if len(s)), default=1)
    grid: np.ndarray[Any, np.dtype[np.int64]] = np.rint((coords - origin) / step).astype(np.int64)
    return grid


def _neighbours(grid: np.ndarray[Any, Any], features: Tensor) -> Tensor:
    """Return the normalised adjacency of a grid, (1, N, N) sparse, as torchmil's own data sets do."""
    graphs = require("torchmil.utils", "train")
    count = len(grid)
    edges, weights = graphs.build_adj(grid, None, dist_thr=_NEIGHBOURS)
    weights = graphs.normalize_adj(edges, weights, n_nodes=count)
    if not edges.shape[1] or count == 1:
        edges, weights = graphs.add_self_loops(edges, weights, count)
    values = torch.as_tensor(np.asarray(weights), dtype=features.dtype)
    matrix = torch.sparse_coo_tensor(torch.as_tensor(np.asarray(edges)), values, (count, count), check_invariants=False)
    return torch.stack([matrix]).coalesce().to(features.device)


def _kinds(models: Any) -> dict[str, Any]:
    """Return the available models, by name."""
    found = {name: getattr(models, name) for name in sorted(dir(models))}
    base = ("MILModel", "MILModelWrapper")
    return {name: kind for name, kind in found.items() if hasattr(kind, "compute_loss") and name not in base}
