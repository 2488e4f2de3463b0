"""What the shell completes, beside the names of options: presets, layouts, keys of settings. No NumPy is loaded."""

from __future__ import annotations

from collections.abc import Callable

from slideio_pipe.commands.settings import settings
from slideio_pipe.presets import Kind, presets

# Of convert; a test compares them with the layouts that there are.
LAYOUTS = ("clam", "clam-pixels", "trident", "stamp", "torchmil", "webdataset", "memmap", "hf")


def preset_names(*kinds: Kind) -> Callable[[str], list[tuple[str, str]]]:
    """Return a function that completes the names of presets of some kinds, or of all."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        found = [preset for preset in presets().values() if preset.kind in kinds or not kinds]
        return [(preset.name, preset.summary) for preset in found if preset.name.startswith(incomplete)]

    return complete


def setting_keys(incomplete: str) -> list[tuple[str, str]]:
    """Complete the keys of settings files, with what they mean."""
    found = [setting for setting in settings().values() if setting.key.startswith(incomplete)]
    return [(setting.key, setting.description) for setting in found]


def changes(incomplete: str) -> list[tuple[str, str]]:
    """Complete the keys of --set."""
    found = [setting for setting in settings().values() if not setting.keys and "train" in setting.commands]
    return [(f"{one.key}=", one.description) for one in found if one.key.startswith(incomplete)]


def encoder_names(incomplete: str) -> list[tuple[str, str]]:
    """Complete the names of known encoders."""
    from slideio_pipe.features.encoders.known import known_encoders

    found = [encoder for encoder in known_encoders() if encoder.name.startswith(incomplete.lower())]
    return [(encoder.name, f"{encoder.width:,} features; {encoder.licence}") for encoder in found]


def one_of(*words: str) -> Callable[[str], list[str]]:
    """Return a function that completes one of some words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]
