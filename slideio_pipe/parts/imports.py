"""Objects of a user's own module by their import path, ``my_module:MyPart``, as a file of settings names them."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from slideio_pipe.errors import ConfigError

_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_IMPORT_PATH = re.compile(f"({_NAME}):({_NAME})")


def is_import_path(text: str) -> bool:
    """Return whether a text has the form of an import path.

    Texts with the prefixes of encoders have it as well: test ``timm:``, ``hf:`` and the like before.

    >>> is_import_path("my_module:MyPart"), is_import_path("settings/mine.yaml"), is_import_path("C:/mine")
    (True, False, False)
    """
    return _IMPORT_PATH.fullmatch(text) is not None


def load_object(path: str, kind: str, *, folder: str | Path | None = None) -> Any:
    """Return the object of an import path: a class, a function, or anything else that a module has.

    Parameters
    ----------
    path : str
        ``module:attribute``; both may have dots.
    kind : str
        What it is used as, for messages: "aggregator", "tissue method".
    folder : str or Path, optional
        Of the file that names it. Modules are found among those that are installed, then in this folder, then in the
        working directory; see ``importable``.

    Raises
    ------
    ConfigError
        It is no import path, there is no such module or attribute, or the module cannot be imported.

    Examples
    --------
    >>> load_object("math:sqrt", "metric")(9.0)
    3.0
    >>> load_object("math:sqr", "metric")
    Traceback (most recent call last):
    ...
    slideio_pipe.errors.ConfigError: math:sqr: the module math has no "sqr" (metric); did you mean "sqrt"?
    """
    found = _IMPORT_PATH.fullmatch(path) if isinstance(path, str) else None
    if found is None:
        reason = f"is no import path of a module's attribute ({kind})"
        raise ConfigError(reason, slide=str(path), remedy="write my_module:MyPart, with a colon between them")
    folders = [Path(each).expanduser().resolve() for each in (folder, ".") if each is not None]
    for each in folders:
        importable(each)
    made: Any = _module(path, found[1], kind, folders)
    where = _described(made)
    for name in found[2].split("."):
        try:
            made = getattr(made, name)
        except AttributeError:
            names = [each for each in dir(made) if not each.startswith("_")]
            remedy = _nearest(name, names) or "correct the name after the colon"
            raise ConfigError(f'{where} has no "{name}" ({kind})', slide=path, remedy=remedy) from None
        where = name
    return made


def importable(folder: str | Path) -> None:
    """Make the modules in a folder importable, after all that are installed, for this process and its workers.

    Worker processes get ``sys.path``: they load a class or function again by its name.
    """
    place = str(Path(folder).expanduser().resolve())
    if place not in sys.path:
        sys.path.append(place)
        importlib.invalidate_caches()


def import_path_of(made: object) -> str | None:
    """Return the import path of a function or class; None for one that another process would not find by it.

    That is a lambda, a function inside a function, an object, or anything of a script or notebook (``__main__``).

    >>> import_path_of(Path), import_path_of(lambda: 1)
    ('pathlib:Path', None)
    """
    module, name = getattr(made, "__module__", None), getattr(made, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module in ("__main__", "__mp_main__"):
        return None
    found: Any = sys.modules.get(module)
    for each in name.split("."):
        found = getattr(found, each, None)
    path = f"{module}:{name}"
    return path if found is made and is_import_path(path) else None


def source_digest(made: object) -> str | None:
    """Return 16 hex digits of the source text of a function or class, or of an object's class; None if it has none.

    It differs after a change of the function itself, not of what it calls.

    >>> source_digest(source_digest) == source_digest(source_digest), source_digest(len)
    (True, None)
    """
    named = made if inspect.isroutine(made) or inspect.isclass(made) else type(made)
    try:
        text = inspect.getsource(named)
    except (OSError, TypeError):  # compiled, or typed at a prompt
        return None
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _module(path: str, name: str, kind: str, folders: list[Path]) -> ModuleType:
    """Return a module, imported now if it was not."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise _no_module(path, error.name, kind, folders) from None
        raise _not_importable(path, name, kind, error) from error
    except Exception as error:  # a user's module may raise anything
        raise _not_importable(path, name, kind, error) from error
    _check_place(path, name.partition(".")[0], kind, folders)
    return module


def _no_module(path: str, name: str, kind: str, folders: list[Path]) -> ConfigError:
    beside = [file.stem for each in folders for file in each.glob("*.py")]
    places = " and ".join(dict.fromkeys(map(str, folders)))
    remedy = _nearest(name, beside) or f"put {name}.py there, or install it"
    return ConfigError(f"no module {name} is installed or in {places} ({kind})", slide=path, remedy=remedy)


def _not_importable(path: str, name: str, kind: str, error: Exception) -> ConfigError:
    text = next(iter(str(error).strip().splitlines()), "")
    reason = f"the module {name} cannot be imported ({kind}): {type(error).__name__}{f': {text}' if text else ''}"
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    remedy = f"pip install {missing.partition('.')[0]}" if missing else f"correct the module: python -c 'import {name}'"
    return ConfigError(reason, slide=path, remedy=remedy)


def _check_place(path: str, top: str, kind: str, folders: list[Path]) -> None:
    """Raise ConfigError if another module of the same name hides the one in the first folder that has it."""
    here = next((found for each in folders if (found := _file_in(each, top)) is not None), None)
    there = getattr(sys.modules.get(top), "__file__", None)
    if here is not None and there is not None and Path(there).resolve() != here:
        reason = f"{here} is hidden by another module of its name, {there} ({kind})"
        raise ConfigError(reason, slide=path, remedy="give the file another name")


def _file_in(folder: Path, top: str) -> Path | None:
    """Return the file of a module or package in a folder."""
    files = (folder / f"{top}.py", folder / top / "__init__.py")
    return next((file.resolve() for file in files if file.is_file()), None)


def _described(module: ModuleType) -> str:
    return f"the module {module.__name__}"


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), 1, 0.6)
    return f'did you mean "{close[0]}"?' if close else ""
