"""Installed packages: those that every installation needs, and the extras, as the metadata of the package list them."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass

from packaging.requirements import Requirement

from slideio_pipe.commands.doctor.findings import Finding

PROJECT = "slideio-pipe"


@dataclass(frozen=True)
class Installed:
    """A requirement, and the version that is installed; "" if none is."""

    requirement: Requirement
    version: str

    @property
    def too_different(self) -> bool:
        """Whether a version is installed that the requirement does not allow."""
        return bool(self.version) and not self.requirement.specifier.contains(self.version, prereleases=True)

    def __str__(self) -> str:
        return f"{self.requirement.name} {self.version}".strip()


def requirements(extra: str = "") -> list[Requirement]:
    """Return what this machine needs for an extra of the installed package; "": for the package itself.

    Raise PackageNotFoundError if the package is not installed.
    """
    lines = map(Requirement, importlib.metadata.requires(PROJECT) or [])
    return [line for line in lines if _is_of(line, extra) and re.sub("[-_.]+", "-", line.name) != PROJECT]


def extras() -> list[str]:
    """Return the names of the extras of the installed package."""
    return importlib.metadata.metadata(PROJECT).get_all("Provides-Extra") or []


def installed(requirement: Requirement) -> Installed:
    """Return which version of a required package is installed."""
    try:
        return Installed(requirement, importlib.metadata.version(requirement.name))
    except importlib.metadata.PackageNotFoundError:
        return Installed(requirement, "")


def examine_packages() -> list[Finding]:
    """Return a finding for every package that is always needed; conda calls some of them otherwise."""
    try:
        needed = requirements()
    except importlib.metadata.PackageNotFoundError:
        found = "is not installed, only its files are here: what it needs is not known"
        return [Finding("packages", PROJECT, found, "optional", "pip install -e . in the checkout")]
    return [_of_package(installed(requirement)) for requirement in needed]


def _of_package(package: Installed) -> Finding:
    name, bounds = package.requirement.name, package.requirement.specifier
    if not package.version:
        return Finding("packages", name, "not by this name", "optional", f"pip install {name}")
    if package.too_different:
        remedy = f'pip install "{name}{bounds}"'
        return Finding("packages", name, f"{package.version}, which is not {bounds}", "optional", remedy)
    return Finding("packages", name, package.version)


def _is_of(line: Requirement, extra: str) -> bool:
    """Return whether a requirement is one of the extra on this machine; one of the package itself is of no extra."""
    if line.marker is None:
        return extra == ""
    always = line.marker.evaluate({"extra": ""})
    return always if extra == "" else line.marker.evaluate({"extra": extra}) and not always
