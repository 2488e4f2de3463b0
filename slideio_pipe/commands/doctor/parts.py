"""What installed packages bring by entry points: each is loaded, and a name that is taken is said."""

from __future__ import annotations

from collections.abc import Collection

from slideio_pipe.commands.doctor.findings import Finding, error_text
from slideio_pipe.errors import ConfigError
from slideio_pipe.parts.entry_points import GROUPS, Group, Part, clashes, parts_of


def examine_parts() -> list[Finding]:
    """Return a finding for each part; none if no package brings one."""
    return [finding for group in GROUPS for finding in _examine(group)]


def _examine(group: Group) -> list[Finding]:
    parts = parts_of(group)
    if not parts:
        return []
    hidden = clashes(parts, _ours(group))
    return [_finding(part, hidden=part in hidden) for part in parts]


def _finding(part: Part, *, hidden: bool) -> Finding:
    what = f"{GROUPS[part.group]} {part.name}"
    if hidden:
        found = f"of {part.origin} is not used: the name is taken"
        return Finding("parts", what, found, "broken", f"pass its import path, {part.value}")
    try:
        part.load()
    except ConfigError as error:
        return Finding("parts", what, f"fails: {error_text(error)}", "broken", f"pip install --upgrade {part.package}")
    return Finding("parts", what, f"of {part.origin} ({part.value})", "ok")


def _ours(group: Group) -> Collection[str]:
    """Return the names of the package's own parts of a group."""
    if group == "tissue":
        from slideio_pipe.tiles.config import METHODS

        return METHODS
    if group == "layouts":
        from slideio_pipe.export.layouts import LAYOUTS

        return LAYOUTS
    from slideio_pipe.features.encoders import known_encoders

    return [name for encoder in known_encoders() for name in (encoder.name, *encoder.aliases)]
