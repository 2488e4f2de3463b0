"""Encoders of the caller's own modules, by import path, and of installed packages, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from slideio_pipe.errors import ConfigError, SlideioPipeError
from slideio_pipe.features.encoders.encoder import Encoder
from slideio_pipe.parts.entry_points import part_named
from slideio_pipe.parts.import_path import import_object, is_import_path

_HUBS = ("timm:", "hf:")


def is_own_encoder(source: str) -> bool:
    """Return whether a source is an import path.

    >>> is_own_encoder("my_module:make_encoder"), is_own_encoder("timm:resnet18")
    (True, False)
    """
    return is_import_path(source) and not source.startswith(_HUBS)


def own_encoder(source: str, folders: Sequence[Path] = ()) -> nn.Module | Encoder:
    """Return what an import path names or, of a class or a function, what it returns without arguments.

    Raise ConfigError if there is no such object, it cannot be called, or it is neither a network nor an ``Encoder``.

    Parameters
    ----------
    source : str
        Such as ``my_module:make_encoder``.
    folders : sequence of paths
        Searched first.
    """
    return _made(import_object(source, folders), source)


def encoder_of_package(name: str, known: bool) -> nn.Module | Encoder | None:
    """Return the encoder that an installed package brings under a name; None if there is none, or it is one of ours.

    Raise ConfigError if it cannot be loaded or called, or is neither a network nor an ``Encoder``.
    """
    part = part_named("encoders", name, [name] if known else ())
    return None if part is None else _made(part.load(), f"{name} of {part.origin}")


def _made(found: Any, source: str) -> nn.Module | Encoder:
    """Return a network or an ``Encoder``, or what a class or a function returns without arguments."""
    if callable(found) and not isinstance(found, nn.Module | Encoder):
        try:
            found = found()
        except SlideioPipeError:
            raise
        except Exception as error:  # any code may run in it
            message = next(iter(str(error).strip().splitlines()), "")
            reason = f"it cannot be called without arguments ({type(error).__name__}: {message})"
            raise ConfigError(reason, slide=source, remedy="name a function that makes the network") from error
    if not isinstance(found, nn.Module | Encoder):
        reason = f"it is a {type(found).__name__}, neither an nn.Module nor an Encoder"
        raise ConfigError(reason, slide=source, remedy="return a network, or load_encoder(network, …)")
    return found
