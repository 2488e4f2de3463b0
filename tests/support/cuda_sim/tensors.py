"""Tensors on a simulated device: every operation is queued on the current stream of their device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cuda_sim.memory import Owner, real_empty
from cuda_sim.scheduler import Stream, current_stream, index_of, simulation

aten = torch.ops.aten
_READS_BACK = (aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default)
_ALIASES = ("detach", "alias", "lift_fresh", "_reshape_alias")
_UNSET = ("empty_like", "new_empty", "new_empty_strided")


class SimulatedTensor(Tensor):
    """A tensor of a simulated device; ``inner`` holds its values once they are computed."""

    inner: Tensor
    owner: Owner
    index: int  # of the device

    @staticmethod
    def __new__(cls, inner: Tensor, owner: Owner, index: int) -> SimulatedTensor:
        """Wrap memory of a device."""
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("cuda", index),
        )
        made.inner, made.owner, made.index = inner, owner, index
        return made

    def __repr__(self, **_: Any) -> str:
        return f"SimulatedTensor({tuple(self.shape)}, {self.dtype}, cuda:{self.index})"

    def record_stream(self, stream: Stream) -> None:
        """Prevent reuse of the memory before a stream has passed the tensor's end."""
        self.owner.block.other_streams.add(stream)

    def data_ptr(self) -> int:
        """Return an address."""
        return self.inner.data_ptr()

    def is_pinned(self, *_: Any) -> bool:
        """Return False: that is a property of host memory."""
        return False

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Queue an operation."""
        return _dispatched(func, args, kwargs or {})


def allocate(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, index: int) -> SimulatedTensor:
    """Return uninitialised memory of the current stream of a device."""
    count = torch.empty_strided(size, stride, dtype=dtype, device="meta").untyped_storage().nbytes()
    block = simulation().memory.take(count, current_stream(index))
    inner = real_empty(0, dtype=dtype).set_(block.data.untyped_storage(), 0, tuple(size), tuple(stride))
    return SimulatedTensor(inner, Owner(block), index)


def launch(index: int, name: str, work: Callable[[], object], reads: list[Any], writes: list[Any]) -> Stream:
    """Queue work on the current stream of a device, and let the sanitizer check for races."""
    sim, stream = simulation(), current_stream(index)
    read, written = ({id(t.owner.block) for t in tensors} for tensors in (reads, writes))
    with sim.lock:
        sim.contexts.add(index)
        found = sim.sanitizer._handle_kernel_launch(
            stream.cuda_stream, read - written, written, set(), name, defaultdict(list)
        )
        sim.races.extend(found)
        stream.push(work)
    return stream


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, SimulatedTensor) else value


def _simulated(values: Any) -> list[SimulatedTensor]:
    return [value for value in pytree.tree_leaves(values) if isinstance(value, SimulatedTensor)]


def _dispatched(func: Any, args: Any, kwargs: Any) -> Any:
    if func is aten.copy_.default:
        return copy(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    if func is aten._to_copy.default:
        return _converted(*args, **kwargs)
    if func is aten.is_pinned.default:
        return False
    tensors = _simulated((args, kwargs))
    inner = pytree.tree_map(_inner, (args, kwargs))
    if func in _READS_BACK:
        for tensor in tensors:
            current_stream(tensor.index).synchronize()
        return func(*inner[0], **inner[1])
    if len({tensor.index for tensor in tensors}) != 1:
        raise RuntimeError("tensors of two devices in one operation")
    schema = func._schema
    if schema.name.split("::")[1] in _ALIASES or any(_is_alias(each) for each in schema.returns):
        views = func(*inner[0], **inner[1])
        return pytree.tree_map(lambda t: _wrapped(t, tensors[0]), views)
    if schema.is_mutable:
        return _in_place(func, args, kwargs, inner, tensors)
    return _computed(func, inner, tensors)


def _is_alias(returned: Any) -> bool:
    return returned.alias_info is not None and not returned.alias_info.is_write


def _wrapped(value: Any, source: SimulatedTensor) -> Any:
    return SimulatedTensor(value, source.owner, source.index) if isinstance(value, Tensor) else value


def _in_place(func: Any, args: Any, kwargs: Any, inner: Any, tensors: list[SimulatedTensor]) -> Any:
    """Queue an operation that writes to its arguments."""
    written = {a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    named = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    goals = _simulated([value for name, value in named.items() if name in written])
    launch(tensors[0].index, func._schema.name, lambda: func(*inner[0], **inner[1]), tensors, goals)
    return goals[0] if len(goals) == 1 else tuple(goals)


def _computed(func: Any, inner: Any, tensors: list[SimulatedTensor]) -> Any:
    """Queue an operation with new results; of those whose shape depends on values the device is waited for."""
    index, name = tensors[0].index, func._schema.name
    args, kwargs = inner
    kwargs = kwargs | ({"device": torch.device("cpu")} if "device" in kwargs else {})
    shapes = _result_shapes(func, args, kwargs)
    if shapes is None:
        current_stream(index).synchronize()
        return pytree.tree_map(lambda value: _uploaded(value, index), func(*args, **kwargs))
    out = pytree.tree_map(lambda t: _like(t, index) if isinstance(t, Tensor) else t, shapes)
    results = _simulated(out)
    if name.split("::")[1] in _UNSET:
        return out
    goals = [result.inner for result in results]

    def work() -> None:
        found = [value for value in pytree.tree_leaves(func(*args, **kwargs)) if isinstance(value, Tensor)]
        for goal, value in zip(goals, found, strict=True):
            if value.numel():  # on the CPU, batch norm in evaluation has no statistics to return
                goal.copy_(value)

    launch(index, name, work, tensors, results)
    return out


_shapes: dict[Any, Any] = {}  # working them out takes longer than computing small tiles


def _result_shapes(func: Any, args: Any, kwargs: Any) -> Any:
    """Return the results as meta tensors, or None if they depend on values."""
    key = (func, _key(args), _key(kwargs))
    if key not in _shapes:
        meta = pytree.tree_map(_as_meta, (args, kwargs))
        device = {"device": torch.device("meta")} if "device" in kwargs else {}
        try:
            _shapes[key] = func(*meta[0], **(meta[1] | device))
        except (RuntimeError, NotImplementedError):
            _shapes[key] = None
    return _shapes[key]


def _key(value: Any) -> Any:
    """Return the parts of an argument that decide shapes, hashable."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.stride()
    if isinstance(value, list | tuple):
        return tuple(_key(each) for each in value)
    if isinstance(value, dict):
        return tuple((name, _key(each)) for name, each in value.items())
    return type(value), value


def _as_meta(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")


def _like(shape: Tensor, index: int) -> SimulatedTensor:
    return allocate(shape.size(), shape.stride(), shape.dtype, index)


def _uploaded(value: Any, index: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    made = _like(value, index)
    made.inner.copy_(value)
    return made


def copy(goal: Tensor, source: Tensor, non_blocking: bool) -> Tensor:
    """Queue a copy; it runs beside the CPU only on request and with page-locked host memory."""
    page_locked = simulation().memory.is_page_locked
    if isinstance(goal, SimulatedTensor) and isinstance(source, SimulatedTensor):
        if goal.index != source.index:
            raise NotImplementedError("a copy between devices")
        to, taken = goal.inner, source.inner
        launch(goal.index, "copy", lambda: to.copy_(taken), [source], [goal])
    elif isinstance(goal, SimulatedTensor):
        to, late = goal.inner, non_blocking and page_locked(source)
        values = source if late else source.clone()  # other memory is staged before the call returns
        stream = launch(goal.index, "to device", lambda: to.copy_(values), [], [goal])
        if not non_blocking:
            stream.synchronize()
    elif isinstance(source, SimulatedTensor):
        taken = source.inner
        stream = launch(source.index, "to host", lambda: goal.copy_(taken), [source], [])
        if not non_blocking or not page_locked(goal):
            stream.synchronize()
    return goal


def _converted(
    tensor: Tensor,
    *,
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool | None = None,
    non_blocking: bool = False,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """Return a tensor as another type, or on another device: ``Tensor.to``."""
    here = torch.device("cuda", tensor.index) if isinstance(tensor, SimulatedTensor) else tensor.device
    target, kind = here if device is None else torch.device(device), dtype or tensor.dtype
    shape = torch.empty_like(_as_meta(tensor), dtype=kind, memory_format=memory_format or torch.preserve_format)
    if target.type == "cuda":
        return copy(_like(shape, index_of(target)), tensor, non_blocking)
    if isinstance(tensor, SimulatedTensor) and kind != tensor.dtype:
        tensor = copy(_like(shape, tensor.index), tensor, True)  # converted on the device
    memory = simulation().memory.page_locked(shape.size(), kind) if non_blocking else None
    goal = torch.empty_strided(shape.size(), shape.stride(), dtype=kind) if memory is None else memory
    return copy(goal, tensor, non_blocking)
