"""A tissue model in ONNX: what its sidecar says of its input and its classes, and one run of it.

The sidecar of ``model.onnx`` is ``model.yaml``, ``model.yml`` or ``model.json`` beside it, or ``model.onnx.yaml``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from slideio_pipe.config import Record, load_record
from slideio_pipe.errors import ConfigError, require

ENDINGS = (".yaml", ".yml", ".json")
# Names of classes that are glass, if the sidecar does not list them.
_GLASS = ("background", "glass")
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}

Three = Annotated[tuple[float, float, float], Field()]
Classes = tuple[str | int, ...]


class OnnxSidecar(Record):
    """What a tissue model takes and gives."""

    mpp: float = Field(gt=0, le=100, description="µm per px of the input.")
    tile_size: int = Field(ge=8, description="Side of the square input, px.")
    overlap: int | None = Field(
        default=None, ge=0, description="Overlap of neighbouring inputs, px. null: an eighth of tile_size."
    )
    layout: Literal["NCHW", "NHWC"] = Field(default="NCHW", description="Order of the input's and output's axes.")
    channels: Literal["RGB", "BGR"] = Field(default="RGB", description="Order of the input's channels.")
    scale: float = Field(default=255.0, gt=0, description="Pixels, 0 to 255, are divided by this first.")
    mean: Three = Field(default=(0.0, 0.0, 0.0), description="Then this is subtracted, one per channel.")
    std: Three = Field(default=(1.0, 1.0, 1.0), description="Then they are divided by this.")
    classes: tuple[str, ...] = Field(min_length=1, description="Names of the classes, in the order of the output.")
    tissue: Classes = Field(min_length=1, description="Names or numbers of the classes that are tissue.")
    background: Classes | None = Field(
        default=None,
        description="Classes that are glass, whose small holes in tissue are filled. All others are artefacts, which "
        "are never tissue. null: the classes called background or glass.",
    )
    activation: Literal["none", "sigmoid"] = Field(
        default="none", description="Of an output of one channel: sigmoid if it is a logit."
    )
    threshold: float = Field(default=0.5, description="Of an output of one channel: tissue is at least this.")
    input: str | None = Field(default=None, description="Name of the input. null: the only one.")
    output: str | None = Field(default=None, description="Name of the output. null: the first.")
    providers: tuple[str, ...] = Field(
        default=("CPUExecutionProvider",), min_length=1, description="Where onnxruntime computes, best first."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.std) <= 0:
            raise ValueError("std should be more than 0")
        if self.overlap is not None and self.overlap >= self.tile_size:
            raise ValueError("overlap should be smaller than tile_size")
        for name in (*self.tissue, *(self.background or ())):
            self.number(name)
        if set(self.numbers(self.tissue)) & set(self.numbers(self.background or ())):
            raise ValueError("a class is tissue or background, not both")
        return self

    def number(self, name: str | int) -> int:
        """Return the number of a class; raise ValueError if there is none."""
        if isinstance(name, str) and name in self.classes:
            return self.classes.index(name)
        if isinstance(name, int) and 0 <= name < len(self.classes):
            return name
        raise ValueError(f"there is no class {name!r}; classes has {', '.join(self.classes)}")

    def numbers(self, names: Classes) -> list[int]:
        """Return the numbers of classes."""
        return [self.number(name) for name in names]

    def kinds(self) -> NDArray[np.uint8]:
        """Return for each class 0 if it is glass, 1 if it is tissue, 2 if it is an artefact."""
        glass = self.background
        if glass is None:
            named = tuple(name for name in self.classes if name.lower() in _GLASS)
            glass = named or tuple(name for name in self.classes if self.number(name) not in self.numbers(self.tissue))
        kinds = np.full(len(self.classes), 2, np.uint8)
        kinds[self.numbers(glass)] = 0
        kinds[self.numbers(self.tissue)] = 1
        return kinds

    @property
    def shared(self) -> int:
        """Overlap of neighbouring inputs, px."""
        return self.tile_size // 8 if self.overlap is None else self.overlap


class OnnxModel:
    """A loaded model with its sidecar.

    Parameters
    ----------
    path : Path
        The ``.onnx`` file.
    threads : int
        Of onnxruntime.

    Raises
    ------
    ConfigError
        The file or its sidecar is not there, is damaged, or contradicts the other.
    MissingExtraError
        onnxruntime is not installed.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.path = path.expanduser()
        if not self.path.is_file():
            raise ConfigError("there is no such model", slide=str(path), remedy="check the path after onnx:")
        self.about = load_record(OnnxSidecar, sidecar_of(self.path), "see the example in the guide, page Tissue")
        runtime = require("onnxruntime", "onnx")
        available = runtime.get_available_providers()
        missing = [name for name in self.about.providers if name not in available]
        if missing:
            reason = f"onnxruntime has no {missing[0]} here (it has {', '.join(available)})"
            raise self._wrong(reason, "correct providers in the sidecar")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4
        try:
            self._session = runtime.InferenceSession(str(self.path), options, providers=list(self.about.providers))
        except Exception as error:  # a dozen unrelated classes
            reason = f"cannot be loaded ({' '.join(str(error).split())[:200]})"
            raise self._wrong(reason, "export it again; external weights must be beside it") from error
        self._input = self._one(self._session.get_inputs(), self.about.input, "input")
        self._output = self._one(self._session.get_outputs(), self.about.output, "output")
        self._dtype = _DTYPES.get(self._input.type)
        if self._dtype is None:
            raise self._wrong(f"its input is {self._input.type}", "export it with an input of float32 or uint8")
        self.batch = self._check_shape()

    @property
    def facts(self) -> dict[str, Any]:
        """Name, digest and sidecar, JSON values for provenance."""
        return {"model": self.path.name, "sha256": digest_of(self.path), "sidecar": self.about.model_dump(mode="json")}

    def labels(self, tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the class of each pixel of tiles (n, T, T, 3) uint8 RGB, (n, T, T); n is at most ``batch``."""
        count, side = len(tiles), self.about.tile_size
        (found,) = self._run(self._prepared(tiles))
        scores = np.asarray(found)
        if self.about.layout == "NHWC" and scores.ndim == 4:
            scores = scores.transpose(0, 3, 1, 2)
        if scores.ndim == 3:  # classes already
            labels = scores
        elif scores.ndim == 4 and scores.shape[1] == 1:
            labels = self._is_tissue(scores[:, 0])
        else:
            expected = len(self.about.classes)
            if scores.ndim != 4 or scores.shape[1] != expected:
                raise self._wrong_output(scores.shape, f"{expected} classes")
            labels = scores.argmax(axis=1)
        times = side // max(1, labels.shape[-1])
        if labels.shape != (count, side // max(1, times), side // max(1, times)) or side % max(1, times):
            raise self._wrong_output(scores.shape, f"a size of {side} px or a whole part of it")
        if labels.size and not 0 <= labels.min() <= labels.max() < max(2, len(self.about.classes)):
            last = len(self.about.classes) - 1
            raise self._wrong(f"its output has class {labels.max()}, and classes end at {last}", "correct classes")
        return labels.astype(np.uint8).repeat(times, axis=1).repeat(times, axis=2)

    def _is_tissue(self, scores: NDArray[Any]) -> NDArray[np.intp]:
        """Return the class of pixels with one score: the first class of ``tissue``, or another."""
        values = 1 / (1 + np.exp(-scores.astype(np.float32))) if self.about.activation == "sigmoid" else scores
        tissue = self.about.number(self.about.tissue[0])
        other = next((k for k in range(len(self.about.classes)) if k != tissue), None)
        if other is None:
            reason = "its output has one channel, and classes has one name"
            raise self._wrong(reason, "name two classes, such as [background, tissue]")
        return np.where(values >= self.about.threshold, tissue, other)

    def _prepared(self, tiles: NDArray[np.uint8]) -> NDArray[Any]:
        values = tiles if self.about.channels == "RGB" else tiles[..., ::-1]
        if self._dtype is np.uint8:
            prepared: NDArray[Any] = values
        else:
            mean, std = (np.asarray(each, np.float32) for each in (self.about.mean, self.about.std))
            prepared = ((values.astype(np.float32) / np.float32(self.about.scale) - mean) / std).astype(self._dtype)
        return np.ascontiguousarray(prepared.transpose(0, 3, 1, 2) if self.about.layout == "NCHW" else prepared)

    def _run(self, values: NDArray[Any]) -> list[Any]:
        try:
            found: list[Any] = self._session.run([self._output.name], {self._input.name: values})
        except Exception as error:
            reason = f"failed on an input of shape {values.shape} ({' '.join(str(error).split())[:200]})"
            raise self._wrong(reason, "compare layout and tile_size of the sidecar with the model") from error
        return found

    def _one(self, found: list[Any], name: str | None, what: str) -> Any:
        names = [each.name for each in found]
        if name is None and (what == "output" or len(found) == 1):
            return found[0]
        if name not in names:
            given = f"no {what} {name!r}" if name else f"{len(found)} {what}s"
            raise self._wrong(f"has {given} (it has {', '.join(names)})", f"name one as {what} in the sidecar")
        return found[names.index(name)]

    def _check_shape(self) -> int:
        """Return the number of tiles of a run; raise ConfigError if the input's shape is not the sidecar's."""
        shape, side = list(self._input.shape), self.about.tile_size
        wanted = [None, 3, side, side] if self.about.layout == "NCHW" else [None, side, side, 3]
        fits = len(shape) == 4 and all(
            not isinstance(size, int) or expected in (None, size) for size, expected in zip(shape, wanted, strict=True)
        )
        if not fits:
            reason = f"its input has the shape {tuple(shape)}, and the sidecar says {tuple(wanted[1:])} for each tile"
            raise self._wrong(reason, "correct layout or tile_size of the sidecar")
        return shape[0] if isinstance(shape[0], int) else 4

    def _wrong(self, reason: str, remedy: str) -> ConfigError:
        return ConfigError(reason, slide=str(self.path), remedy=remedy)

    def _wrong_output(self, shape: tuple[int, ...], wanted: str) -> ConfigError:
        reason = f"its output has the shape {shape}, and the sidecar says {wanted} ({self.about.layout})"
        return self._wrong(reason, "correct classes, tile_size or layout of the sidecar, or name another output")


def sidecar_of(model: Path) -> Path:
    """Return the sidecar of a model; raise ConfigError if there is none."""
    named = [model.with_suffix(ending) for ending in ENDINGS]
    named += [model.with_name(f"{model.name}{ending}") for ending in ENDINGS]
    found = next((file for file in named if file.is_file()), None)
    if found is None:
        remedy = f"write {named[0].name}: the guide has an example, page Tissue"
        raise ConfigError("the model has no sidecar beside it", slide=str(model), remedy=remedy)
    return found


def model_fingerprint(model: Path) -> dict[str, str]:
    """Return digests of a model and its sidecar; raise ConfigError if one is not there."""
    if not model.is_file():
        raise ConfigError("there is no such model", slide=str(model), remedy="check the path after onnx:")
    return {"tissue_model": digest_of(model), "tissue_sidecar": digest_of(sidecar_of(model))}


def digest_of(model: Path) -> str:
    """Return sixteen hex digits of the SHA-256 of a file."""
    with model.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
