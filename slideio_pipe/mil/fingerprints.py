"""Fingerprints of a training: of its slides with their labels and settings, and of the files that its settings name."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.ledger import fingerprint
from slideio_pipe.cohort.names import file_stem
from slideio_pipe.cohort.patients import CohortPatient
from slideio_pipe.mil.config import TrainConfig
from slideio_pipe.mil.feature_files import ENDINGS
from slideio_pipe.mil.tasks import Task
from slideio_pipe.presets import settings_file

PARTS = ("train", "val", "test")
_FEATURES, _FILE, _FOLDER, _PATIENT = "features ", "file ", "folder ", "patient "  # kinds of content
_SHOWN = 5  # slides, in messages
# Fields of a slide's entry, after its name.
_FACTS = ("label", "resolution", "content", "mask")
_SLIDES = len(_FACTS)  # the place of a patient's slides after them


def features_fingerprint(features: NDArray[Any]) -> str:
    """Return a fingerprint of features: of their shape, dtype and values."""
    values = np.ascontiguousarray(features)
    digest = hashlib.blake2b(f"{values.dtype}{values.shape}".encode(), digest_size=8)
    digest.update(values.view(np.uint8).reshape(-1).data)
    return _FEATURES + digest.hexdigest()


def file_of(slide: CohortSlide) -> str | None:
    """Return a fingerprint of a slide's file, None if it cannot be read."""
    return _fingerprint(slide.source) if isinstance(slide.source, Path) else None


def _fingerprint(path: Path | None) -> str | None:
    try:
        return None if path is None else (_FOLDER if path.is_dir() else _FILE) + fingerprint(path)
    except OSError:  # opening it will raise the error
        return None


def joined_contents(row: CohortSlide, contents: Sequence[str | None]) -> str | None:
    """Return the fingerprint of a slide, or one over the fingerprints of a patient's slides."""
    if not isinstance(row, CohortPatient):
        return contents[0]
    facts = [
        [slide.name, slide.mpp, content, _fingerprint(slide.mask)]
        for slide, content in zip(row.slides, contents, strict=True)
    ]
    return _PATIENT + hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def slide_entries(cohort: Cohort | None, task: Task, contents: Sequence[Sequence[str | None]]) -> list[list[Any]]:
    """Return [name, target, mpp, content, mask] of every row, as JSON values for a checkpoint.

    For a patient followed by [name, content] of each slide. ``contents`` has those of each row's slides.
    """
    if cohort is None:
        return []
    targets = task.targets(list(cohort)).reshape(len(cohort), -1).tolist()
    return [
        _entry(row, " ".join(f"{value:.12g}" for value in target), of_slides)
        for row, target, of_slides in zip(cohort, targets, contents, strict=True)
    ]


def _entry(row: CohortSlide, target: str, contents: Sequence[str | None]) -> list[Any]:
    joined = joined_contents(row, contents)
    if not isinstance(row, CohortPatient):
        return [row.name, target, row.mpp, joined, _fingerprint(row.mask)]
    of_slides = [[slide.name, content] for slide, content in zip(row.slides, contents, strict=True)]
    return [row.name, target, None, joined, None, of_slides]


def contents(config: TrainConfig) -> dict[str, str]:
    """Return fingerprints of the files that settings name: transforms, and an encoder's network."""
    files = {name: getattr(config, name) for name in ("slide_transform", "tile_transform")}
    found = {name: _settings_fingerprint(file) for name, file in files.items() if file is not None}
    source = config.encoder.source
    if source is not None and Path(source).expanduser().is_file():
        found["encoder"] = _fingerprint(Path(source).expanduser()) or ""
    return found


def _settings_fingerprint(transform: str) -> str:
    """Return a fingerprint of settings in YAML, without comments."""
    try:
        text = settings_file(transform, "transform").read_text(encoding="utf-8")
        content = json.dumps(yaml.safe_load(text), sort_keys=True, default=str)
    except (OSError, ValueError, yaml.YAMLError):  # reading it will raise the error
        return ""
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def other_slides(before: Any, now: Any) -> list[str]:
    """Return the differences between the slides of two trainings, each given as lists of entries per part."""
    was, is_now = (
        {str(entry[0]): (k, *entry[1:]) for k, part in enumerate(parts or ()) for entry in part}
        for parts in (before, now)
    )
    others: dict[str, str] = {}
    for name in sorted({*was, *is_now}):
        old, new = was.get(name), is_now.get(name)
        if old is None or new is None or old[0] != new[0]:
            others[name] = "in another part"
        elif len(old) == 2:  # entries of an earlier version, with only the label
            continue
        elif old != new:
            changed = [fact for fact, a, b in zip(_FACTS, old[1:], new[1:], strict=False) if a != b]
            others[name] = f"of another {changed[0] if changed else 'kind'}"
    if not others:
        return []
    shown = ", ".join(list(others)[:_SHOWN]) + (", …" if len(others) > _SHOWN else "")
    reasons = ", ".join(f"{reason} ({count})" for reason, count in Counter(others.values()).items())
    return [f"{len(others)} slides are others, {reasons}: {shown}"]


class KnownSlides:
    """The training, validation and test slides of a model, by name and content."""

    def __init__(self, parts: Sequence[Sequence[Sequence[Any]]] = ()) -> None:
        self._by_name: dict[str, tuple[str, str | None]] = {}
        self._by_content: dict[str, str] = {}
        for part, entries in zip(PARTS, parts, strict=False):
            for name, *facts in entries:
                content = facts[2] if len(facts) > 2 else None  # missing in checkpoints of earlier versions
                self._by_name.setdefault(stem(str(name)), (part, content))
                if content is not None:
                    self._by_content.setdefault(content, part)
                for slide, its in facts[_SLIDES] if len(facts) > _SLIDES else ():
                    self._by_name.setdefault(stem(str(slide)), (part, its))
                    if its is not None:
                        self._by_content.setdefault(its, part)

    def part(self, name: str, content: str | None) -> str | None:
        """Return "train", "val" or "test", or None for a slide that is not in the training.

        A file is recognised by its content under any name. It is recognised by its name only if contents cannot be
        compared: features may be computed again, and a bag be made of a slide.
        """
        if content in self._by_content:
            return self._by_content[str(content)]
        part, known = self._by_name.get(stem(name), (None, None))
        both_files = all(kind is not None and kind.startswith(_FILE) for kind in (known, content))
        return None if both_files else part


def stem(name: str) -> str:
    """Return the name of a slide without the endings of its file, bag and features.

    >>> stem("a.svs"), stem("a.features.zarr"), stem("a.h5")
    ('a', 'a', 'a')
    """
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    return file_stem(name)
