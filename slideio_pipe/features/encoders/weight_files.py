"""The weights of known encoders: in the cache of the hub, downloaded, or files of the caller."""

from __future__ import annotations

import hashlib
import importlib.util
from contextlib import suppress
from pathlib import Path

from slideio_pipe.errors import ConfigError, require
from slideio_pipe.features.encoders.known import KnownEncoder, known_encoders

TIMM_SETTINGS = "config.json"
# How to install what builds an encoder.
_AUTHORS_PACKAGES = {"conch": "pip install git+https://github.com/mahmoodlab/CONCH.git"}


def cached_file(encoder: KnownEncoder, *names: str) -> Path | None:
    """Return a file of the encoder's repository in the hub's cache, the first of several names; None without one."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    hub = require("huggingface_hub", "transformers")
    for name in names:
        found = hub.try_to_load_from_cache(encoder.hub, name)
        if isinstance(found, str):
            return Path(found)
    return None


def has_weights(encoder: KnownEncoder) -> bool:
    """Return whether the encoder's weights are in the hub's cache."""
    return cached_file(encoder, *encoder.files) is not None


def package(encoder: KnownEncoder) -> str:
    """Return the package that builds the encoder."""
    return {"titan": "transformers"}.get(encoder.library, encoder.library)


def has_package(encoder: KnownEncoder) -> bool:
    """Return whether the package that builds the encoder is installed; it is not imported."""
    return importlib.util.find_spec(package(encoder)) is not None


def install_command(encoder: KnownEncoder) -> str:
    """Return the command that installs the package that builds the encoder."""
    return _AUTHORS_PACKAGES.get(encoder.library, f'pip install "slideio-pipe[{package(encoder)}]"')


def weights_file(encoder: KnownEncoder, given: str) -> Path:
    """Return the file of an encoder's weights: the given one, or the hub's, which is downloaded if need be.

    Raise ConfigError if there is none, with the ways to get it, or if it is known to be of another encoder.
    """
    if given:
        file = Path(given).expanduser()
        if file.is_dir():  # a copy of the hub's repository
            file = next((file / name for name in encoder.files if (file / name).is_file()), file / encoder.files[0])
        if not file.is_file():
            raise ConfigError("no weights are there", slide=str(file), remedy="check the path")
        refuse_others(encoder, file)
        return file
    found = cached_file(encoder, *encoder.files)
    return _download(encoder) if found is None else found


def fetch_settings(encoder: KnownEncoder, name: str) -> None:
    """Download a file of settings into the hub's cache, where weights were just downloaded; do nothing without it."""
    with suppress(Exception):  # the hub raises a dozen classes; the settings are only compared with ours
        require("huggingface_hub", "transformers").hf_hub_download(encoder.hub, name)


def unavailable(encoder: KnownEncoder, error: BaseException | str) -> ConfigError:
    """Return the error of an encoder whose weights cannot be had, with the ways to get them."""
    message = error if isinstance(error, str) else first_line(error)
    accept = f"accept the licence ({encoder.licence}) at {encoder.url} and log in (hf auth login)"
    place = f"FOLDER of a copy of {encoder.hub}" if encoder.library in ("transformers", "titan") else "FILE"
    download = f"download {encoder.files[0]} from {encoder.url} and pass {encoder.name}@{place}"
    online = "run it once on a machine with a network, or " if encoder.gated is False else f"{accept}; or "
    elsewhere = "" if encoder.address is None else f" (also: {encoder.address})"
    return ConfigError(
        f"its weights are not on this machine, and cannot be downloaded ({message})",
        slide=encoder.name,
        remedy=f"{online}{download}{elsewhere}",
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _download(encoder: KnownEncoder) -> Path:
    hub, errors = (require(name, "transformers") for name in ("huggingface_hub", "huggingface_hub.errors"))
    for name in encoder.files:
        try:
            found = Path(hub.hf_hub_download(encoder.hub, name))
            fetch_settings(encoder, TIMM_SETTINGS)
            return found
        except Exception as error:  # the hub and its network raise a dozen classes
            absent = isinstance(error, errors.EntryNotFoundError) and not isinstance(error, FileNotFoundError)
            if name == encoder.files[-1] or not absent:  # FileNotFoundError: not in the cache, and no network
                raise unavailable(encoder, error) from error
    raise unavailable(encoder, "it has no files")


def refuse_others(encoder: KnownEncoder, file: Path) -> None:
    """Raise ConfigError if a file is known to have the weights of another encoder, which may have the same shapes."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    others = {name: value for name, value in encoder.others_sha256.items() if digest.startswith(value)}
    for other in known_encoders():
        if other.name != encoder.name and digest in other.sha256.values():
            others[other.name] = digest
    if others:
        name = next(iter(others))
        reason = f"has the weights of {name}, not of {encoder.name} (SHA-256 {digest[:8]}…)"
        raise ConfigError(reason, slide=str(file), remedy=f"pass the weights of {encoder.name}: {encoder.url}")
