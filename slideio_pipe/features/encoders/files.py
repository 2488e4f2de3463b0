"""Networks from files: TorchScript and exported programs, which are executable code; and weights, which are not."""

from __future__ import annotations

import hashlib
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from slideio_pipe.config import read_yaml
from slideio_pipe.errors import ConfigError, MissingExtraError, require
from slideio_pipe.features.encoders.facts import EncoderFacts
from slideio_pipe.files import not_there

SIDECARS = (".json", ".yaml", ".yml")
_NOT_OPENED = (
    "export it (torch.export.save), or build the network in Python and pass it to load_encoder; "
    "pickled networks are not opened: they run whatever is in them"
)


class Program(nn.Module):
    """An exported program as a module that can be moved between devices, with the constants in its graph."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        self._program, self._run = program, program.module()

    def forward(self, tiles: Tensor) -> Any:
        """Return what the program returns."""
        return self._run(tiles)

    def to(self, device: Any) -> Self:  # type: ignore[override]  # devices only: its dtypes are in its graph
        """Move it to a device and return it."""
        return type(self)(move_to_device_pass(self._program, torch.device(device)))

    def train(self, mode: bool = True) -> Self:
        """Do nothing: an exported program has only one mode."""
        del mode
        return self


def from_file(path: Path) -> EncoderFacts:
    """Return the network in a file, with the tile settings of a sidecar file.

    Raise ConfigError if it cannot be read, or is neither TorchScript nor an exported program.
    """
    if not path.is_file():
        remedy = "check the path; or pass timm:NAME, hf:NAME, or a name that slideio-pipe encoders lists"
        raise not_there(ConfigError, "no encoder is there", path, remedy)
    with _reading(path):
        names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if any(name.endswith("archive_format") for name in names):
        return _program(path)
    if any(name.endswith("constants.pkl") for name in names):
        return _torchscript(path)
    raise ConfigError("neither TorchScript nor an exported program", slide=str(path), remedy=_NOT_OPENED)


def _torchscript(path: Path) -> EncoderFacts:
    with _reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated, but files of it exist
        module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    return EncoderFacts(module, path.stem, str(path), file_digest(path), _sidecar(path))


def _program(path: Path) -> EncoderFacts:
    with _reading(path):
        program = torch.export.load(path)
    inputs = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    values = [inputs[name].meta["val"] for name in program.graph_signature.user_inputs if isinstance(name, str)]
    if len(values) != 1 or not isinstance(values[0], Tensor) or values[0].ndim != 4:
        raise ConfigError("the program takes something else than tiles", slide=str(path), remedy="export (n, 3, H, W)")
    count, _, height, width = (side if isinstance(side, int) else None for side in values[0].shape)
    config = dict(_sidecar(path))
    if height is not None and height == width:
        config.setdefault("input_size", height)
    more = {"batch": count, "dtype": values[0].dtype, "autocast": False}
    return EncoderFacts(Program(program), path.stem, str(path), file_digest(path), config, **more)  # type: ignore[arg-type]


def _sidecar(path: Path) -> Mapping[str, Any]:
    """Return the values for ``a.pt`` in ``a.pt.json``, ``a.json`` or the same in YAML; {} without a sidecar."""
    places = [path.with_name(path.name + end) for end in SIDECARS] + [path.with_suffix(end) for end in SIDECARS]
    for place in places:
        if place.is_file():
            found = read_yaml(place, "it should have mean, std and input_size")
            if not isinstance(found, Mapping):
                raise ConfigError("is no mapping", slide=str(place), remedy="give it mean, std and input_size")
            return found
    return {}


def read_weights(path: Path) -> dict[str, Any]:
    """Return a state dict from safetensors or from a PyTorch file, of which only tensors are unpickled.

    Raise ConfigError if it cannot be read, or contains more than weights.
    """
    with _reading(path):
        if path.suffix == ".safetensors":
            return dict(require("safetensors.torch", "timm").load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        found = found.get(key, found) if isinstance(found, dict) else found
    if not isinstance(found, dict):
        raise ConfigError("holds no state dict", slide=str(path), remedy="save model.state_dict()")
    return found


def file_digest(path: Path) -> str:
    """Return sixteen hex digits of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Convert any error of torch for a file into one of ours, without its log messages."""
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except (ConfigError, MissingExtraError):
        raise
    except Exception as error:
        message = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(f"cannot be read ({message})", slide=str(path), remedy=_NOT_OPENED) from error
    finally:
        log.setLevel(level)
