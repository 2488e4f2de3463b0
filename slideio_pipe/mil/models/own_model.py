"""The caller's own aggregator as a model: any module from the features of a bag to logits."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from slideio_pipe.errors import ConfigError, SlideioPipeError
from slideio_pipe.mil.models.bag_model import BagModel, MilOutput

_TRIED_TILES = 7  # of the made bag for a trial: unlike any number of logits or widths that is common


class Aggregator(Protocol):
    """What an aggregator of one's own should be: an ``nn.Module`` with this ``forward``.

    For ``fit(model=…)``, as an instance, or as a class or function that is called with the number of features per tile
    and of logits (and ``model.settings``); or by import path: ``model: my_module:MyAggregator``.

    - ``features`` are those of one bag, (N, D) float32, without a batch axis. N differs from bag to bag.
      ``model.standardize`` scales them to mean 0 and deviation 1.
    - A parameter named ``coords`` gets the level-0 px of the tiles' corners, (N, 2) int64, of patients their columns
      and rows. With the default None it may be None, where they are unknown; without a default such features are
      refused.
    - It returns logits, (outputs,): one for two classes, a number or a risk; else one per class.
    - Or logits and the attention, (N,): the share of each tile, not negative; only its proportions matter. Without it
      there are no heat maps. Return it in evaluation at least.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import slideio_pipe as sp
    >>> class MyAggregator(nn.Module):
    ...     def __init__(self, in_features, outputs, hidden=8):
    ...         super().__init__()
    ...         self.score = nn.Sequential(nn.Linear(in_features, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    ...         self.head = nn.Linear(in_features, outputs)
    ...     def forward(self, features):
    ...         attention = torch.softmax(self.score(features)[:, 0], 0)
    ...         return self.head(attention @ features), attention
    >>> folder = Path(tempfile.mkdtemp())
    >>> for k in range(6):
    ...     torch.save(torch.randn(5, 16) + k % 2, folder / f"s{k}.pt")
    >>> _ = (folder / "study.csv").write_text("slide,label\\n" + "\\n".join(f"s{k}.pt,{k % 2}" for k in range(6)))
    >>> quick = {"epochs": 1, "validation": 0, "bootstrap": 0, "accelerator": "cpu"}
    >>> fitted = sp.fit(folder / "study.csv", {"fit": quick}, folder / "run", model=MyAggregator, progress=False)
    >>> sp.load_predictor(fitted.folder, model=MyAggregator).predict(folder / "s0.pt").attention.shape
    (5,)
    """

    def __call__(self, features: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the logits of a bag, (outputs,), or logits and attention, (N,)."""


class OwnModel(BagModel):
    """An aggregator of the caller with our interface; its output is checked at every call.

    Parameters
    ----------
    aggregator : nn.Module
        See ``Aggregator``.
    in_features, outputs : int
        D, and the number of logits.
    name : str
        For messages.
    """

    def __init__(self, aggregator: nn.Module, in_features: int, outputs: int, name: str) -> None:
        super().__init__(in_features, outputs)
        self.aggregator = aggregator
        self._name = name
        parameters = inspect.signature(aggregator.forward).parameters
        self._takes_coords = "coords" in parameters
        self._needs_coords = self._takes_coords and parameters["coords"].default is inspect.Parameter.empty

    def forward(self, features: Tensor, coords: ArrayLike | None = None, target: Tensor | None = None) -> MilOutput:
        """Return the output for a bag of (N, D) features; raise ConfigError if the aggregator's does not fit."""
        del target
        prepared = self.prepared(features)
        places: dict[str, Tensor | None] = {}
        if self._needs_coords and coords is None:
            reason = f"{self._name} needs the positions of tiles, and these are unknown"
            raise ConfigError(reason, remedy="give coords the default None, or use features with coordinates")
        if self._takes_coords:
            known = None if coords is None else torch.from_numpy(np.asarray(coords)).to(features.device)
            places["coords"] = known
        return self._checked(self.aggregator(prepared, **places), tuple(prepared.shape))

    def _checked(self, found: Any, given: tuple[int, ...]) -> MilOutput:
        """Return the output in our form."""
        if isinstance(found, MilOutput):
            logits, attention = found.logits, found.attention
        elif isinstance(found, tuple | list) and len(found) == 2:
            logits, attention = found
        else:
            logits, attention = found, None
        of = f"of {self._name} for features {given}"
        remedy = f"return logits ({self.outputs},), or (logits, attention) with attention ({given[0]},)"
        if not isinstance(logits, Tensor):
            raise ConfigError(f"the output {of} is {_kind(found)}, not a tensor", remedy=remedy)
        if logits.numel() != self.outputs or logits.ndim > 2 or not logits.is_floating_point():
            reason = f"the output {of} is {_kind(logits)}, and {self.outputs} logits are needed"
            raise ConfigError(reason, remedy=remedy)
        if attention is not None:
            attention = self._shares(attention, given, of)
        if not self.training and not bool(torch.isfinite(logits).all()):
            raise ConfigError(f"the output {of} is not finite", remedy="look for a division by 0, or lower fit.lr")
        rest = (found.instances, found.auxiliary) if isinstance(found, MilOutput) else (None, None)
        return MilOutput(logits.reshape(self.outputs), attention, *rest)

    def _shares(self, attention: Any, given: tuple[int, ...], of: str) -> Tensor:
        """Return attention as shares that sum to 1."""
        count = given[0]
        if not isinstance(attention, Tensor) or tuple(attention.shape) not in ((count,), (count, 1), (1, count)):
            reason = f"the attention {of} is {_kind(attention)}, and ({count},) is needed"
            raise ConfigError(reason, remedy="return one share per tile, or no attention")
        shares = attention.reshape(count)
        if self.training:  # not used, and a check would wait for the device
            return shares
        shares = shares.to(torch.promote_types(shares.dtype, torch.float32))
        total = shares.sum()
        if not bool(torch.isfinite(total) & (shares >= 0).all() & (total > 0)):
            reason = f"the attention {of} has negative shares, or they do not have a finite sum above 0"
            raise ConfigError(reason, remedy="return it after a softmax over the tiles")
        return shares / total


def own_model(given: Any, in_features: int, outputs: int, settings: Mapping[str, Any], name: str) -> OwnModel:
    """Return a model of the caller, a new one at each call: of an instance a copy.

    Raise ConfigError if it cannot be made, or is no module.

    Parameters
    ----------
    given : nn.Module or callable
        A callable is called with ``in_features``, ``outputs`` and the settings.
    in_features, outputs : int
    settings : mapping
    name : str
        For messages.
    """
    module = _copied(given, settings, name) if isinstance(given, nn.Module) else None
    if module is None:
        if not callable(given):
            reason = f"the model is {_kind(given)}, neither a module nor a callable that makes one"
            raise ConfigError(reason, slide=name, remedy="pass an nn.Module, its class, or a function")
        module = _made(given, in_features, outputs, settings, name)
    if any(value.is_meta for value in (*module.parameters(), *module.buffers())):
        reason = "its parameters are on no device (meta)"
        raise ConfigError(reason, slide=name, remedy="make it without torch.device('meta'), or call to_empty")
    return OwnModel(module.cpu(), in_features, outputs, name)


def _copied(given: nn.Module, settings: Mapping[str, Any], name: str) -> nn.Module:
    if settings:
        reason = f"model.settings has {', '.join(settings)}, and the model is made already"
        raise ConfigError(reason, slide=name, remedy="pass its class, or leave the settings out")
    try:
        return deepcopy(given)
    except Exception as error:  # of hooks, handles and tensors with a graph
        reason = f"it cannot be copied ({type(error).__name__}: {_first_line(error)}), and each fold needs its own"
        raise ConfigError(reason, slide=name, remedy="pass its class, or a function that makes it") from error


def _made(given: Any, in_features: int, outputs: int, settings: Mapping[str, Any], name: str) -> nn.Module:
    shown = ", ".join([str(in_features), str(outputs), *(f"{key}={value!r}" for key, value in settings.items())])
    try:
        module = given(in_features, outputs, **settings)
    except SlideioPipeError:
        raise
    except Exception as error:
        reason = f"{getattr(given, '__name__', name)}({shown}) fails ({type(error).__name__}: {_first_line(error)})"
        remedy = "it is called with the features per tile and the number of logits; other arguments: model.settings"
        raise ConfigError(reason, slide=name, remedy=remedy) from error
    if not isinstance(module, nn.Module):
        reason = f"it makes {_kind(module)}, no nn.Module"
        raise ConfigError(reason, slide=name, remedy="return a module")
    return module


def tried(model: OwnModel, name: str) -> OwnModel:
    """Return a model that was tried on a made bag, in evaluation and in training.

    Random numbers and buffers do not change; lazy layers get their shapes. Raise ConfigError if it does not work, its
    output does not fit, or its logits have no gradient.
    """
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(_TRIED_TILES, model.in_features, generator=generator)
    coords = np.stack([np.arange(_TRIED_TILES) % 3, np.arange(_TRIED_TILES) // 3], 1) * 512
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.no_grad():
                model.eval()(features, coords)
            logits = deepcopy(model).train()(features.requires_grad_(), coords).logits
        except SlideioPipeError:
            raise
        except Exception as error:  # any code may run in it
            reason = f"does not work on features {tuple(features.shape)} ({type(error).__name__}: {_first_line(error)})"
            remedy = "it gets one bag, (N, D): features[None] adds a batch axis, and the output should not have it"
            raise ConfigError(reason, slide=name, remedy=remedy) from error
    if not logits.requires_grad:
        raise ConfigError("its logits have no gradient", slide=name, remedy="leave out detach, item and no_grad")
    return model


def weights_text(module: nn.Module) -> str:
    """Return the number of a module's tensors and values, and a digest of their names and shapes, for comparison.

    >>> weights_text(nn.Linear(3, 2))
    '2 tensors, 8 values (2fd9)'
    """
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    digest = hashlib.sha256(str(sorted(shapes.items())).encode()).hexdigest()[:4]
    return f"{len(shapes)} tensors, {sum(math.prod(shape) for shape in shapes.values()):,} values ({digest})"


def _kind(value: Any) -> str:
    """Return what a value is, in words."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
