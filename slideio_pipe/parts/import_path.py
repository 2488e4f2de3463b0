"""Objects of the caller's own modules, named as ``my_module:MyAggregator``."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from slideio_pipe.errors import ConfigError, SlideioPipeError

_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_PATH = re.compile(rf"({_NAME}):({_NAME})")


def is_import_path(text: Any) -> bool:
    """Return whether a text names an object of a module.

    >>> is_import_path("my_module:MyAggregator"), is_import_path("uni"), is_import_path("a/b.py:c")
    (True, False, False)
    """
    return isinstance(text, str) and _PATH.fullmatch(text) is not None


def import_object(path: str, folders: Iterable[str | Path] = ()) -> Any:
    """Return the object of an import path; its module is looked up in ``folders``, the current folder, and as usual.

    The folder of the module stays at the end of ``sys.path``, for worker processes and for imports inside functions.

    Parameters
    ----------
    path : str
        ``module:name``, such as ``my_module:MyAggregator`` or ``package.module:Class.method``.
    folders : iterable of paths, optional
        Searched first, in this order.

    Raises
    ------
    ConfigError
        There is no such module, it cannot be imported, another module has its name, or it has no such object.

    Examples
    --------
    >>> import_object("slideio_pipe.geometry:Sice")
    Traceback (most recent call last):
    ...
    slideio_pipe.errors.ConfigError: slideio_pipe.geometry:Sice: the module has no Sice; did you mean Size?
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise ConfigError("is no import path", slide=path, remedy="write module:name, such as my_module:MyAggregator")
    found: Any = _module(path, match[1], _searched(folders))
    for name in match[2].split("."):
        if not hasattr(found, name):
            close = difflib.get_close_matches(name, [one for one in dir(found) if not one.startswith("_")], 1, 0.6)
            what = "module" if isinstance(found, ModuleType) else "class"
            remedy = f"did you mean {close[0]}?" if close else "check the name"
            raise ConfigError(f"the {what} has no {name}", slide=path, remedy=remedy)
        found = getattr(found, name)
    return found


def is_imported(path: str) -> bool:
    """Return whether the module of an import path was imported."""
    return path.partition(":")[0] in sys.modules


def code_digest(path: str) -> dict[str, str]:
    """Return a digest of the code of an imported module, by its file; comments and empty lines do not count.

    Empty for modules without a source.
    """
    module = sys.modules[path.partition(":")[0]]
    file = Path(str(module.__file__)) if getattr(module, "__file__", None) else None
    if file is None or file.suffix != ".py" or not file.is_file():
        return {}
    lines = file.read_text(encoding="utf-8").splitlines()
    code = [line.rstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return {file.name: hashlib.sha256("\n".join(code).encode()).hexdigest()[:16]}


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


def _searched(folders: Iterable[str | Path]) -> list[Path]:
    places = [Path(folder).expanduser().absolute() for folder in folders]
    return list(dict.fromkeys([*places, Path.cwd()]))


def _module(path: str, name: str, folders: list[Path]) -> ModuleType:
    found = next(((place, file) for place in folders if (file := _file(place, name)) is not None), None)
    if found is None and name.partition(".")[0] in sys.stdlib_module_names:
        # A checkpoint names what is imported and called: nothing of Python itself may be.
        raise ConfigError(f"{name} is a module of Python itself", slide=path, remedy="name a module of your own")
    try:
        with _first_on_path(None if found is None else found[0]):
            module = importlib.import_module(name)
    except SlideioPipeError:
        raise
    except Exception as error:  # any code may run in it
        absent = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        raise (_no_module(path, name, folders) if absent else _not_importable(path, error)) from error
    own = getattr(module, "__file__", None)
    if found is not None and (own is None or not Path(own).exists() or not found[1].samefile(own)):
        reason = f"another module is called {name}, of {own or 'Python itself'}, not {found[1]}"
        raise ConfigError(reason, slide=path, remedy="rename one of them, or start a new process")
    return module


def _file(folder: Path, name: str) -> Path | None:
    """Return the file of a module in a folder, if it is there."""
    place = folder.joinpath(*name.split("."))
    candidates = (place.with_name(f"{place.name}.py"), place / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


@contextmanager
def _first_on_path(folder: Path | None) -> Iterator[None]:
    """Look modules up in a folder first, and afterwards last."""
    if folder is None:
        yield
        return
    place, known = str(folder), str(folder) in sys.path
    importlib.invalidate_caches()  # the file may have been written a moment ago
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)
        if not known:
            sys.path.append(place)


def _no_module(path: str, name: str, folders: list[Path]) -> ConfigError:
    close = difflib.get_close_matches(name, [file.stem for place in folders for file in place.glob("*.py")], 1, 0.6)
    remedy = f"did you mean {close[0]}? " if close else ""
    remedy += "it should be in the current folder, or installed"
    shown = " or ".join(str(place) for place in folders)
    return ConfigError(f"there is no module {name} in {shown}, and none is installed", slide=path, remedy=remedy)


def _not_importable(path: str, error: Exception) -> ConfigError:
    message = next(iter(str(error).strip().splitlines()), "")
    reason = f"its module cannot be imported ({type(error).__name__}: {message})"
    return ConfigError(reason, slide=path, remedy="run it with Python, which shows the line")
