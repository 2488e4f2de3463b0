"""The exact gradient of a bag larger than memory: features without a graph, their gradient, then each chunk again.

The loss of a bag depends on its tiles only through their features. So with features h, loss L and the encoder's
parameters w, dL/dw is the sum over tiles of (dh/dw)ᵀ dL/dh, for any division into chunks:

::

    pass 1   chunk ──encoder, no graph──▶ features (N, D) ──model──▶ loss ──backward──▶ dL/dh (N, D)
    pass 2   chunk ──encoder, graph──▶ h, then h.backward(its rows of dL/dh): weights accumulate their gradient

Nothing is approximated; only features and their gradient grow with the bag. The last chunk keeps its graph from the
first pass, so that a bag of one chunk is plain back-propagation.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slideio_pipe.errors import ConfigError, SlideioPipeError
from slideio_pipe.streaming.device import on_device, release_activations

BatchNorm = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
# Allowed relative difference of a tile's features between the passes: kernels may sum in another order.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


class TwoPass:
    """Encodes bags in chunks, and computes the exact gradient of the encoder for any loss of their features.

    Parameters
    ----------
    encoder : nn.Module
        From tiles (n, 3, H, W) to features (n, D), each tile independently. May be wrapped in DistributedDataParallel.
        Dropout draws the same in both passes. Batch norm uses its running statistics and does not update them:
        statistics of a chunk would make the result depend on the chunk size.
    backward : callable, optional
        Called as ``backward(features, gradient)`` instead of ``torch.autograd.backward``.
    no_sync : callable, optional
        Returns the context in which processes do not average gradients; by default the encoder's ``no_sync``.

    Raises
    ------
    ConfigError
        A layer normalises over the tiles of a chunk and has no running statistics.

    Examples
    --------
    >>> encoder, model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), nn.Linear(4, 1)
    >>> chunks = [torch.rand(5, 3, 2, 2), torch.rand(2, 3, 2, 2)]
    >>> bag = TwoPass(encoder).encode(chunks)
    >>> loss = model(bag.features).mean()
    >>> loss.backward()
    >>> bag.backward()
    >>> tuple(bag.features.shape), tuple(encoder[1].weight.grad.shape)
    ((7, 4), (4, 12))
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        backward: Callable[[Tensor, Tensor], object] = torch.autograd.backward,
        no_sync: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        self.encoder = encoder
        self._backward = backward
        self._no_sync = getattr(encoder, "no_sync", None) if no_sync is None else no_sync
        for name, layer in encoder.named_modules():
            if isinstance(layer, BatchNorm[0]) and not layer.track_running_stats:
                raise ConfigError(
                    f"{name} normalises over the tiles of a chunk, so that gradients of chunks are not exact",
                    remedy="use track_running_stats=True, group norm or layer norm",
                )

    def encode(self, chunks: Iterable[Tensor], *, sync: bool = True, keep_graph: bool = True) -> EncodedBag:
        """Return the features of a bag, first pass; then compute a loss, call its backward, and ``bag.backward()``.

        Parameters
        ----------
        chunks : iterable of (n, 3, H, W) tensors
            Iterated twice, with the same result: a list, or an object whose ``__iter__`` restarts.
        sync : bool
            Whether DistributedDataParallel averages gradients over processes after this bag; False while gradients of
            several bags are accumulated.
        keep_graph : bool
            Whether the last chunk keeps its graph until ``backward``; False if many bags are encoded before it.

        Raises
        ------
        ConfigError
            The bag is empty, the encoder's output is not (n, D), it changes its buffers, or a chunk does not fit in
            memory; then the message names a chunk size that fits.
        """
        features, states = [], []
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.encoder.parameters())
        autocast = _ambient_autocast()
        buffers = _buffers(self.encoder) if trains else {}
        graph: Tensor | None = None
        with frozen_batch_norm(self.encoder), kept_casts():
            for number, (chunk, last) in enumerate(_marked(chunks)):
                states.append(_random_state(chunk.device))
                keeps = trains and last and keep_graph
                syncs = sync and keeps and number == 0
                if keeps:
                    torch.clear_autocast_cache()  # of casts without a graph, which have no gradient
                with torch.set_grad_enabled(keeps), autocast(), self.synchronised(syncs):
                    found = self.forward(chunk)
                features.append(found.detach())
                graph = found if keeps else None
        if not features:
            raise ConfigError("a bag without a tile has no features", remedy="leave it out")
        _check_buffers(self.encoder, buffers)
        leaf = torch.cat(features).requires_grad_(trains)
        sizes = [len(part) for part in features]
        return EncodedBag(leaf, self, chunks, sizes, states, graph, autocast, sync, pending=trains)

    def forward(self, chunk: Tensor) -> Tensor:
        """Return the features of a chunk, (n, D)."""
        try:
            with on_device(chunk.device):
                found = self.encoder(chunk)
        except torch.OutOfMemoryError as error:
            release_activations(error)
            raise self.too_large(chunk) from error
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(chunk):
            kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(f"the encoder made {kind} of {len(chunk)} tiles", remedy="return (n, D) features")
        return found

    def backward(self, features: Tensor, gradient: Tensor) -> torch.OutOfMemoryError | None:
        """Backpropagate a gradient through the graph of a chunk; return the error if memory is too small.

        It is not raised here: a fitting chunk size is measured after the caller has freed the graph.
        """
        try:
            self._backward(features, gradient)
        except torch.OutOfMemoryError as error:
            release_activations(error)
            del features  # the error also refers to this frame
            return error
        return None

    def synchronised(self, wanted: bool) -> AbstractContextManager[Any]:
        """Prevent gradient averaging between processes unless ``wanted``; the forward pass must run inside."""
        return nullcontext() if wanted or self._no_sync is None else self._no_sync()

    @property
    def is_distributed(self) -> bool:
        """Whether there may be several processes."""
        return self._no_sync is not None

    def too_large(self, chunk: Tensor) -> SlideioPipeError:
        """Return the error for a chunk that does not fit, with a size that does; the failed attempt must be freed."""
        fits = chunk_that_fits(self.encoder, chunk)
        remedy = (
            f"pass {{chunk_size={fits}}}" if fits else "use a smaller encoder or smaller tiles: not even one tile fits"
        )
        return ConfigError(f"a chunk of {len(chunk)} tiles does not fit into memory", remedy=remedy)


@dataclass(slots=True)
class EncodedBag:
    """The features of a bag, and the state for the second pass; made by ``TwoPass.encode``."""

    features: Tensor  # (N, D), a leaf: the second pass starts from its gradient
    _passes: TwoPass
    _chunks: Iterable[Tensor]
    _sizes: list[int]
    _states: list[Any]
    _graph: Tensor | None  # graph of the last chunk
    _autocast: Any
    _sync: bool
    pending: bool  # whether the second pass has not run yet

    def backward(self) -> None:
        """Add the gradient of the loss to the encoder's parameters: the second pass, once, after ``loss.backward()``.

        Chunks whose features have zero gradient (most of them under max pooling) are not computed again. Raise
        ConfigError if the loss does not depend on the features, or the chunks differ from the first pass.
        """
        if not self.pending:
            return
        gradient, graph = self.features.grad, self._graph
        if gradient is None:
            raise ConfigError("the features have no gradient", remedy="call loss.backward() before bag.backward()")
        self.pending, self._graph = False, None
        parts = torch.split(gradient, self._sizes)
        chosen = [k for k, matters in enumerate(_with_gradient(parts)) if matters]
        if graph is not None:
            error = self._passes.backward(graph, parts[-1])
            del graph
            if error is not None:
                raise self._passes.too_large(self._last_chunk()) from error
            chosen = [k for k in chosen if k < len(parts) - 1]
            if len(parts) == 1:
                return
        if chosen or (self._sync and self._passes.is_distributed):
            # All processes must synchronise, even if no other chunk of this bag has a gradient: any chunk will do.
            self._second_pass(parts, chosen or [0])

    def _second_pass(self, parts: Sequence[Tensor], chosen: Sequence[int]) -> None:
        passes, found, device = self._passes, 0, self.features.device
        same: dict[int, Tensor] = {}
        with (
            kept_casts(),
            frozen_batch_norm(passes.encoder),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            for k, (chunk, _) in enumerate(_marked(self._chunks)):
                found += len(chunk)
                if k not in chosen:
                    continue
                _set_random_state(self._states[k], chunk.device)
                with passes.synchronised(self._sync and k == chosen[-1]):
                    with self._autocast():
                        repeated = passes.forward(chunk)
                    same[k] = self._is_same(k, repeated)
                    error = passes.backward(repeated, parts[k])
                    if error is not None:
                        del repeated
                        raise passes.too_large(chunk) from error
                if k == chosen[-1]:
                    _check_same(same)
                    return
        raise ConfigError(f"the second pass has {found} tiles, the first {sum(self._sizes)}", remedy=_REMEDY)

    def _last_chunk(self) -> Tensor:
        for chunk, last in _marked(self._chunks):
            if last:
                return chunk
        raise ConfigError("the second pass has no tile", remedy=_REMEDY)

    def _is_same(self, number: int, repeated: Tensor) -> Tensor:
        """Return whether a chunk has the features of the first pass, without waiting for its device."""
        start = sum(self._sizes[:number])
        before = self.features.detach()[start : start + self._sizes[number]]
        if repeated.shape != before.shape:
            reason = f"chunk {number} has {len(repeated)} tiles in the second pass, {len(before)} in the first"
            raise ConfigError(reason, remedy=_REMEDY)
        most = _TOLERANCE.get(repeated.dtype, 1e-3) * before.abs().max().clamp(min=1e-6)
        same = (repeated.detach() - before).abs().max() <= most
        return same | ~before.isfinite().all()  # NaN in the loss is left to the caller


def _check_same(same: dict[int, Tensor]) -> None:
    """Raise if a chunk has changed, with one wait for all: a wrong gradient would only show in poor results."""
    flags = torch.stack(list(same.values())).tolist()
    for number, flag in zip(same, flags, strict=True):
        if not flag:
            raise ConfigError(f"chunk {number} has other features in the second pass", remedy=_REMEDY)


_REMEDY = "yield the same chunks in every iteration, and draw random numbers in the encoder with torch only"


@contextmanager
def frozen_batch_norm(encoder: nn.Module) -> Iterator[None]:
    """Context in which batch norm uses its running statistics without updating them."""
    layers = [layer for layer in encoder.modules() if isinstance(layer, BatchNorm) and layer.training]
    layers = [layer for layer in layers if layer.track_running_stats]
    try:
        for layer in layers:
            layer.eval()
        yield
    finally:
        for layer in layers:
            layer.train()


def _marked(chunks: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Yield each non-empty chunk, and whether it is the last."""
    before: Tensor | None = None
    for chunk in chunks:
        if not len(chunk):
            continue
        if before is not None:
            yield before, False
        before = chunk
    if before is not None:
        yield before, True


def _with_gradient(parts: Sequence[Tensor]) -> list[bool]:
    """Return which chunks have a non-zero gradient, with one device synchronisation."""
    return [bool(flag) for flag in torch.stack([(part != 0).any() for part in parts]).tolist()]


def _ambient_autocast() -> Any:
    """Return a context manager that restores the caller's autocast, now and in the second pass."""
    kinds = [
        (kind, torch.get_autocast_dtype(kind)) for kind in ("cuda", "cpu", "xpu") if torch.is_autocast_enabled(kind)
    ]

    @contextmanager
    def enter() -> Iterator[None]:
        with ExitStack() as stack:
            for kind, dtype in kinds:
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            yield

    return enter


@contextmanager
def kept_casts() -> Iterator[None]:
    """Context in which autocast keeps weights that it has cast, from one chunk to the next; none are kept after it.

    Otherwise they are dropped at the end of the outermost autocast, which here is each chunk's.
    """
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()


def _buffers(encoder: nn.Module) -> dict[str, tuple[int, Tensor]]:
    """Return each buffer with its write counter."""
    return {name: (buffer._version, buffer.detach().clone()) for name, buffer in encoder.named_buffers()}


def _check_buffers(encoder: nn.Module, before: dict[str, tuple[int, Tensor]]) -> None:
    """Raise if a forward pass changed a buffer; DistributedDataParallel writes buffers with equal values."""
    now = dict(encoder.named_buffers())
    for name, (version, value) in before.items():
        if now[name]._version != version and not torch.equal(now[name], value):
            raise ConfigError(
                f"the encoder changes {name} in being used, so that two passes differ",
                remedy="put that layer into eval()",
            )


def _random_state(device: torch.device) -> Any:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: Any, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def chunk_that_fits(encoder: nn.Module, tiles: Tensor) -> int:
    """Return the largest half, quarter, … of a chunk that fits in memory with its graph; 0 if not even one tile fits.

    Parameters
    ----------
    encoder : nn.Module
    tiles : (n, 3, H, W) tensor
        A chunk that did not fit.
    """
    count = len(tiles) // 2
    while count:
        gc.collect()  # frees reference cycles of the failed attempt
        if tiles.device.type == "cuda":
            torch.cuda.empty_cache()
        if _fits(encoder, tiles[:count]):
            return count
        count //= 2
    return 0


def _fits(encoder: nn.Module, tiles: Tensor) -> bool:
    """Return whether tiles fit in memory with their graph; frees the result in both cases."""
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    try:
        with on_device(tiles.device), torch.enable_grad():
            out = encoder(tiles).sum()
            if parameters:
                torch.autograd.grad(out, parameters, allow_unused=True)
    except torch.OutOfMemoryError:
        return False
    return True
