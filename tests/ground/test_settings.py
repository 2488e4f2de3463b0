"""Every key of a settings file is described, in words that a reader of the file needs."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType
from typing import get_args

import pytest
from pydantic.fields import FieldInfo

from slideio_pipe.cohort.workers.config import ClusterConfig
from slideio_pipe.config import Record, sections
from slideio_pipe.export.config import ExportConfig
from slideio_pipe.mil.config import TrainConfig
from slideio_pipe.streaming.config import LoaderConfig

FILES = (ExportConfig, LoaderConfig, TrainConfig, ClusterConfig)


def keys(record: type[Record], place: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield each key of a record and of its sections, as ``section.key``."""
    for name, field in record.model_fields.items():
        yield f"{place}{name}", field
        if name in sections(record):
            yield from keys(sections(record)[name], f"{place}{name}.")


KEYS = [pytest.param(field, id=f"{file.__name__}-{name}") for file in FILES for name, field in keys(file)]


@pytest.mark.parametrize("field", KEYS)
def test_every_key_has_a_description(field: FieldInfo) -> None:
    """One or several sentences; where null may be given, what null means."""
    text = field.description
    assert text, "give it Field(description=...)"
    assert text.endswith(".")
    assert text[0].isupper() or text.startswith("µm")
    if NoneType in get_args(field.annotation):
        assert "null" in text


def test_every_section_says_what_it_is_for() -> None:
    """A record with a docstring of its own, not the one of ``Record``."""
    for file in FILES:
        for record in (file, *sections(file).values()):
            assert record.__doc__
            assert record.__doc__ != Record.__doc__
