"""Parts that installed packages bring by entry points: encoders, layouts and tissue methods, each with a name.

A package names them in its ``pyproject.toml``; nothing of it is imported before a part is used::

    [project.entry-points."slideio_pipe.tissue"]
    grandmother = "her_package.tissue:find"
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from slideio_pipe.errors import ConfigError, PartNameWarning, warn_caller

Group = Literal["encoders", "layouts", "tissue"]
# Kind of part, in messages.
GROUPS: dict[Group, str] = {"encoders": "encoder", "layouts": "layout", "tissue": "tissue method"}


@dataclass(frozen=True, slots=True)
class Part:
    """A part that an installed package brings."""

    group: Group
    name: str
    value: str  # its import path
    package: str
    version: str
    entry_point: EntryPoint

    @property
    def origin(self) -> str:
        """The package and its version."""
        return f"{self.package} {self.version}".strip()

    def load(self) -> Any:
        """Return the object; raise ConfigError, with the package's name, if it cannot be imported."""
        try:
            return self.entry_point.load()
        except Exception as error:  # a package may raise anything
            text = next(iter(str(error).strip().splitlines()), "")
            raise ConfigError(
                f"the {GROUPS[self.group]} of {self.origin} cannot be loaded from {self.value} "
                f"({type(error).__name__}: {text})",
                slide=self.name,
                remedy=f"pip install --upgrade {self.package}, or report this to its authors",
            ) from error


def parts_of(group: Group) -> tuple[Part, ...]:
    """Return the parts of a group that installed packages bring, ordered by name and package; none is imported."""
    return _parts(group, tuple(sys.path))


def part_named(group: Group, name: str, ours: Collection[str] = ()) -> Part | None:
    """Return the part of this name, or None if there is none or the name is one of ours.

    Warns
    -----
    PartNameWarning
        The name is one of ours, or of several packages, of which the first in alphabetical order is used.
    """
    found = [part for part in parts_of(group) if part.name == name]
    if name in ours:
        if found:
            _warn_of_clash(found, "the one of slideio-pipe is used")
        return None
    if len(found) > 1:
        _warn_of_clash(found, f"that of {found[0].origin} is used")
    return found[0] if found else None


def clashes(parts: Iterable[Part], ours: Collection[str]) -> list[Part]:
    """Return the parts that are never used: their name is one of ours, or of a package before theirs."""
    seen = set(ours)
    hidden = []
    for part in parts:
        if part.name in seen:
            hidden.append(part)
        seen.add(part.name)
    return hidden


def _warn_of_clash(found: list[Part], used: str) -> None:
    owners = " and ".join(part.origin for part in found)
    bring = "brings" if len(found) == 1 else "bring"
    warn_caller(PartNameWarning(f'{owners} {bring} the {GROUPS[found[0].group]} "{found[0].name}"; {used}'))


@lru_cache(maxsize=8)
def _parts(group: Group, path: tuple[str, ...]) -> tuple[Part, ...]:
    """Return the parts of a group for one search path: reading it takes milliseconds."""
    del path
    parts = []
    for each in entry_points(group=f"slideio_pipe.{group}"):
        package = each.dist
        name, version = ("an unnamed package", "") if package is None else (package.name, package.version)
        parts.append(Part(group, each.name, each.value, name, version, each))
    return tuple(sorted(parts, key=lambda part: (part.name, part.package)))
