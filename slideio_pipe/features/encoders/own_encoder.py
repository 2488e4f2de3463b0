"""Encoders of the caller's own modules, by import path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from slideio_pipe.errors import ConfigError, SlideioPipeError
from slideio_pipe.features.encoders.encoder import Encoder
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
    found = import_object(source, folders)
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
