"""Select slides of a cohort by the values of their columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from slideio_pipe.cohort.split_names import split_of
from slideio_pipe.errors import ConfigError

_SHOWN = 10


def is_wanted(value: Any, wanted: Any) -> bool:
    """Return whether a value is a wanted one, one of several, or one that a function accepts.

    A number and its text are the same.

    >>> is_wanted(1, "1"), is_wanted("low", ["low", "high"]), is_wanted(None, None), is_wanted(61, lambda age: age > 60)
    (True, True, True, True)
    """
    if callable(wanted):
        return bool(wanted(value))
    if isinstance(wanted, Iterable) and not isinstance(wanted, str):
        return any(is_wanted(value, each) for each in wanted)
    if value is None or wanted is None:
        return value is wanted
    return bool(value == wanted) or str(value) == str(wanted)


def standard_split(wanted: Any) -> Any:
    """Return wanted splits by their standard names; "valid" means "val"."""
    if isinstance(wanted, str):
        return split_of(wanted)
    if isinstance(wanted, Iterable):
        return [standard_split(each) for each in wanted]
    return wanted


def refuse_none(column: str, wanted: Any, values: Iterable[Any]) -> None:
    """Raise that no slide has a wanted value, with the existing ones."""
    known = sorted({str(value) for value in values if value is not None})
    available = ", ".join(known[:_SHOWN]) + (", …" if len(known) > _SHOWN else "") or "none"
    if column in ("split", "fold"):
        part = f'split "{wanted}"' if column == "split" and isinstance(wanted, str) else f"{column} {wanted}"
        raise ConfigError(f"no slide is in {part} (there are: {available})", remedy="split the cohort first")
    asked = "a value that the function accepts" if callable(wanted) else repr(wanted)
    raise ConfigError(f'no slide has {asked} in "{column}" (there are: {available})', remedy="select another value")
