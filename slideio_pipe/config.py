"""Frozen settings records and their YAML files; unknown keys and impossible values raise a readable error."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from slideio_pipe.errors import ConfigError
from slideio_pipe.files import not_there


class Record(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


R = TypeVar("R", bound=Record)


def checked(record: type[R], where: str | None, /, **values: Any) -> R:
    """Return a validated record.

    Raises
    ------
    ConfigError
        A value is invalid; the message names every such value.

    Examples
    --------
    >>> from pydantic import Field
    >>> class Grid(Record):
    ...     stride: int = Field(default=256, ge=1)
    >>> checked(Grid, None, stride=64).stride
    64
    >>> checked(Grid, "a.svs", stride=0)
    Traceback (most recent call last):
    ...
    slideio_pipe.errors.ConfigError: a.svs: stride=0: should be at least 1; see Grid
    """
    return validated(record, where, values, f"see {{{record.__name__}=}}")


def validated(record: type[R], where: str | None, values: Mapping[str, Any], remedy: str) -> R:
    try:
        return record.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_message(error, record), slide=where, remedy=remedy) from None


def read_yaml(path: str | Path, remedy: str) -> Any:
    """Return the contents of a YAML file.

    Raise ConfigError if the file cannot be read or is not YAML; ``remedy`` points to an example.
    """
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise not_there(ConfigError, f"cannot be read ({error.strerror})", path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f"line {mark.line + 1}: "
        reason = where + " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"is no YAML ({reason})", slide=str(path), remedy=remedy) from error


def load_record(record: type[R], path: str | Path, remedy: str, others: Sequence[str] = ()) -> R:
    """Return a validated record from YAML; keys in ``others`` are ignored, ``remedy`` points to an example.

    Raise ConfigError if the file is missing, is not a YAML mapping, or has unknown keys or impossible values.
    """
    values = read_yaml(path, remedy)
    if not isinstance(values, Mapping | None):
        raise ConfigError("is no mapping", slide=str(path), remedy=remedy)
    named = {str(key): value for key, value in (values or {}).items() if key not in others}
    return validated(record, str(path), named, remedy)


# Messages for pydantic's error types.
_MESSAGES = {
    "greater_than_equal": "should be at least {ge:g}",
    "greater_than": "should be more than {gt:g}",
    "less_than_equal": "should be at most {le:g}",
    "literal_error": "should be {expected}",
    "finite_number": "should be a finite number",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
    "model_type": "should be a section with keys of its own",
}


def _message(error: ValidationError, record: type[Record]) -> str:
    parts = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(step) for step in problem["loc"])
        kind, details = problem["type"], problem.get("ctx", {})
        if kind == "extra_forbidden":
            parts.append(f'unknown key "{place}"{_suggestion(record, problem["loc"])}')
        elif kind == "value_error":
            where = f"{{{place}=}}" if "." in place else place
            parts.append(f"{where}: {details['error']}" if place else str(details["error"]))
        elif kind == "missing":
            parts.append(f'"{place}" is missing')
        elif kind in _MESSAGES:
            parts.append(f"{place}={problem['input']!r}: {_MESSAGES[kind].format(**details)}")
        else:  # sections that are not mappings, and error types of later versions of pydantic
            parts.append(f"{place}={problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}")
    return "; ".join(parts)


def _suggestion(record: type[Record], place: tuple[int | str, ...]) -> str:
    """Return a suggestion for an unknown key: a similar key of its section, or the same name in another section."""
    *path, name = map(str, place)
    section: type[Record] | None = record
    for step in path:
        section = None if section is None else sections(section).get(step)
    similar = [] if section is None else difflib.get_close_matches(name, list(section.model_fields), 1, 0.7)
    elsewhere = [f"{at}.{name}" for at, other in sections(record).items() if name in other.model_fields]
    candidates = [".".join([*path, *similar]) if similar else "", *elsewhere]
    return next((f', did you mean "{key}"?' for key in candidates if key), "")


def sections(record: type[Record]) -> dict[str, type[Record]]:
    """Return the fields of a record that are records themselves."""
    found = {}
    for name, field in record.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Record):
                found[name] = kind
    return found
