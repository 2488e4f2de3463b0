"""Counts the operations that torch runs: those that copy to another dtype, and those that wait for a device."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

# They run no kernel: views, and memory that is not written.
VIEWS = {
    "view", "permute", "unsqueeze", "slice", "select", "expand", "unbind", "t", "transpose", "alias", "detach",
    "empty", "empty_like", "new_empty", "empty_strided", "split", "unfold", "as_strided", "_unsafe_view", "lift_fresh",
}  # fmt: skip
WAITS = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero")


class CountedOperations(TorchDispatchMode):
    """Context that counts operations by name, for instance "mul"."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and run one."""
        name = func._schema.name.split("::")[1].rstrip("_")
        self.names[name] += 1
        if name == "_to_copy" and isinstance(args[0], nn.Parameter):
            self.names["cast of a weight"] += 1
        return func(*args, **(kwargs or {}))

    @property
    def kernels(self) -> int:
        """The number of operations that run a kernel on a device."""
        return sum(count for name, count in self.names.items() if name not in VIEWS and " " not in name)

    @property
    def waits(self) -> int:
        """The number of operations for which the host waits."""
        return sum(self.names[name] for name in WAITS)
