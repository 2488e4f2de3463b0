"""Puts the simulated devices into torch, for the rest of the process."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.cuda._sanitizer as sanitizer

from cuda_sim import scheduler
from cuda_sim.memory import Memory, real_empty
from cuda_sim.scheduler import Simulation, simulation
from cuda_sim.tensors import SimulatedTensor, allocate, launch
from slideio_pipe.streaming import device as streaming_device

MADE_FOR = "2.13.0"
_FACTORIES = ("tensor", "arange", "zeros", "full", "ones", "rand", "randn", "randint")
_kept: list[Any] = []  # the library of kernels lives as long as something refers to it


def reason_not_to() -> str | None:
    """Return why nothing can be simulated here, or None."""
    if torch.__version__.split("+")[0] != MADE_FOR:
        return f"the simulated CUDA is made for torch {MADE_FOR}, here is {torch.__version__}"
    if torch.version.cuda is not None or torch.version.hip is not None:
        return "this torch has a CUDA of its own"
    if shutil.which("g++") is None:
        return "there is no g++"
    return None if sys.platform == "linux" else "it is built on Linux only"


def build(folder: Path) -> Path:
    """Compile the guard, once per folder, and return the library."""
    library, root = folder / "guard.so", Path(torch.__file__).parent
    if not library.exists():
        source = Path(__file__).with_name("guard.cpp")
        options = ["-shared", "-fPIC", "-std=c++20", f"-I{root / 'include'}"]
        linked = [f"-L{root / 'lib'}", "-lc10", f"-Wl,-rpath,{root / 'lib'}"]
        subprocess.run(["g++", *options, str(source), "-o", str(library), *linked], check=True, capture_output=True)
    return library


def reset(policy: str, seed: int = 0) -> Simulation:
    """Begin a simulation, without the streams that the package keeps for its process."""
    streaming_device._copy_streams.clear()
    sim = scheduler.start(Simulation(policy, seed))
    sim.memory = Memory(sim)
    return sim


def install(library: Path) -> None:
    """Have torch find two CUDA devices."""
    if _kept:
        return
    reset("lazy")
    ctypes.CDLL(str(library))
    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("empty.memory_format", _empty, "CUDA")
    kernels.impl("empty_strided", _empty_strided, "CUDA")
    _kept.append(kernels)
    # Modules take new parameters when they move: the values of a wrapped tensor cannot be replaced.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    for name, value in _replacements().items():
        setattr(torch.cuda, name, value)
    # A stack for every kernel would take nine tenths of the time.
    sanitizer.traceback = SimpleNamespace(  # type: ignore[assignment]
        StackSummary=traceback.StackSummary, walk_stack=lambda frame: iter(())
    )
    torch.inference_mode = torch.no_grad  # type: ignore[misc]  # inference tensors cannot be wrapped
    torch.empty = _torch_empty
    torch.Tensor.is_pinned = _is_pinned  # type: ignore[method-assign]
    torch.Tensor.pin_memory = _pinned  # type: ignore[method-assign]
    for name in _FACTORIES:
        setattr(torch, name, _made_on_host(getattr(torch, name)))


def _replacements() -> dict[str, Any]:
    """Return the replacements of parts of torch.cuda; random numbers of the device are not simulated."""
    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: scheduler.DEVICES,
        "Stream": scheduler.Stream,
        "Event": scheduler.Event,
        "stream": scheduler.stream_context,
        "device": scheduler.DeviceContext,
        "current_stream": scheduler.current_stream,
        "default_stream": scheduler.default_stream,
        "set_stream": scheduler.set_stream,
        "current_device": lambda: simulation().device(),
        "set_device": scheduler.set_device,
        "synchronize": scheduler.synchronize,
        "_sleep": lambda cycles: launch(simulation().device(), "sleep", lambda: None, [], []),
        "empty_cache": lambda: None,
        "cudart": _runtime,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
        "get_device_name": lambda *_: "simulated",
        "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": lambda *_: (10**11, 10**11),
    }


def _runtime() -> Any:
    """Return what is used of the runtime's own functions."""
    memory = simulation().memory
    return SimpleNamespace(cudaHostRegister=memory.register, cudaHostUnregister=memory.unregister)


def _empty(size: Any, dtype: Any = None, layout: Any = None, device: Any = None, **more: Any) -> SimulatedTensor:
    more.pop("pin_memory", None)
    kept = more.get("memory_format") or torch.contiguous_format
    shape = torch.empty(size, dtype=dtype, device="meta", memory_format=kept)
    return allocate(shape.size(), shape.stride(), shape.dtype, scheduler.index_of(device))


def _empty_strided(
    size: Any, stride: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> SimulatedTensor:
    return allocate(size, stride, dtype or torch.get_default_dtype(), scheduler.index_of(device))


def _torch_empty(*size: Any, pin_memory: bool = False, **more: Any) -> torch.Tensor:
    if not pin_memory:
        return real_empty(*size, **more)
    shape = size if isinstance(size[0], int) else size[0]
    return simulation().memory.page_locked(shape, more.get("dtype", torch.float32))


def _is_pinned(tensor: torch.Tensor, *_: Any) -> bool:
    return type(tensor) is torch.Tensor and simulation().memory.is_page_locked(tensor)


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return simulation().memory.page_locked(tensor.shape, tensor.dtype).copy_(tensor)


def _made_on_host(factory: Any) -> Any:
    """Return a function that makes a tensor on the host and moves it to the requested device."""

    def made(*arguments: Any, device: Any = None, **more: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != "cuda":
            return factory(*arguments, **more, **({} if device is None else {"device": device}))
        return factory(*arguments, **more).to(device)

    return made
