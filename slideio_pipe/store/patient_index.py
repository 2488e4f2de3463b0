"""A patient's bag on disk: a small JSON file that names the stored bags of its slides; no pixel is copied.

::

    {"patient_bag": {"version": 1, "patient": "P01", "label": 1,
                     "slides": [{"name": "a.svs", "bag": "a.bag.zarr", "tiles": 812}, …]}}

Paths are relative to the file where they can be, so that a folder of bags may be moved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideio_pipe.errors import BagFormatError, ConfigError
from slideio_pipe.files import not_there, write_file
from slideio_pipe.store.stored_bag import StoredBag
from slideio_pipe.tiles.bag import Label
from slideio_pipe.tiles.patient_bag import PatientBag

VERSION = 1
KEY = "patient_bag"
SUFFIX = ".patient.json"
_MAX_BYTES = 2**20  # a larger file is none of these


@dataclass(frozen=True, slots=True)
class Indexed:
    """What an index lists; no bag is opened."""

    patient: str | None
    label: Label
    bags: tuple[Path, ...]

    def is_of(self, patient: str, label: Label, bags: Sequence[Path]) -> bool:
        """Return whether it is the index of this patient; without a label, that of the bags counts."""
        return (self.patient, self.bags) == (patient, tuple(bags)) and label in (None, self.label)


def is_patient_index(path: Path) -> bool:
    """Return whether a file is the index of a patient's bag, of any version."""
    return path.is_file() and path.stat().st_size <= _MAX_BYTES and _content(path) is not None


def save_patient(bag: PatientBag, path: str | Path, *, overwrite: bool = False) -> PatientBag:
    """Write the index of a patient's bag, and return the bag opened from it.

    Raise ConfigError if the bag of a slide is not stored as it is; OutputExistsError, OutputError.
    """
    target = Path(path).absolute()
    write_file(target, index_bytes(index_of(bag, target.parent)), overwrite=overwrite)
    return open_patient(target)


def index_of(bag: PatientBag, folder: Path) -> dict[str, Any]:
    """Return the index of a patient's bag for a file in ``folder``, as JSON values.

    Raise ConfigError if the bag of a slide is not stored as it is.
    """
    slides = [
        {"name": slide.name, "bag": _relative(slide.path, folder), "tiles": len(slide)}
        for slide in map(_stored, bag.slides)
    ]
    return {"version": VERSION, "patient": bag.patient, "label": bag.label, "slides": slides}


def index_bytes(index: dict[str, Any]) -> bytes:
    """Return an index as the content of its file."""
    return f"{json.dumps({KEY: index}, indent=1)}\n".encode()


def indexed(path: Path) -> Indexed | None:
    """Return what an index lists; None if there is none, or it is damaged."""
    found = _content(path) if path.is_file() else None
    try:
        bags = tuple(Path(os.path.normpath(path.parent / slide["bag"])) for slide in (found or {})["slides"])
        return Indexed((found or {})["patient"], (found or {})["label"], bags)
    except (KeyError, TypeError):
        return None


def open_patient(path: str | Path) -> PatientBag:
    """Return the bag of a patient; no tile is read.

    Raise BagFormatError if it is no such index, or a newer or damaged one, or the bag of a slide is not there or is
    another one.
    """
    file = Path(path).absolute()
    found = _content(file)
    if found is None:
        raise BagFormatError("no index of a patient's bag", slide=str(file), remedy="pass what save_bag wrote")
    if not isinstance(found.get("version"), int) or found["version"] > VERSION:
        reason = f"a patient's bag of version {found.get('version')!r}; this package reads version {VERSION}"
        raise BagFormatError(reason, slide=str(file), remedy="upgrade slideio-pipe")
    try:
        listed = [(str(slide["name"]), file.parent / slide["bag"], int(slide["tiles"])) for slide in found["slides"]]
        patient, label = found["patient"], found["label"]
    except (KeyError, TypeError, ValueError) as error:
        raise BagFormatError(f"it is damaged ({error!r})", slide=str(file), remedy="save the bag again") from error
    slides = [_opened(file, *slide) for slide in listed]
    return PatientBag(slides, patient=patient, label=label)


def _opened(file: Path, name: str, path: Path, tiles: int) -> StoredBag:
    if not path.exists():
        raise not_there(BagFormatError, f"the bag of slide {name} is not there: {path}", file)
    bag = StoredBag(path)
    if len(bag) != tiles:
        reason = f"the bag of slide {name} has {len(bag):,} tiles, and had {tiles:,}: {path}"
        raise BagFormatError(reason, slide=str(file), remedy="save the patient's bag again")
    return bag


def _stored(slide: Any) -> StoredBag:
    if isinstance(slide, StoredBag):
        return slide
    reason = f"the bag of slide {slide.name} is no stored one, and the bag of a patient copies no pixels"
    raise ConfigError(reason, remedy="save the bag of each slide, and make the PatientBag of these: open_bag(path)")


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on another drive of Windows
        return str(path)


def _content(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    content = found.get(KEY) if isinstance(found, dict) else None
    return content if isinstance(content, dict) else None
