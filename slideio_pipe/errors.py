"""The exceptions and warnings of this package; they name the slide, the reason and the remedy.

::

    SlideioPipeError
    ├── SlideNotFoundError     (FileNotFoundError)  nothing at that path, or a directory that is no slide
    ├── UnsupportedSlideError  (ValueError)         not a slide, or pixels that are not 8-bit RGB
    ├── CorruptSlideError      (OSError)            a slide whose header or pixels cannot be read
    ├── MissingResolutionError (ValueError)         the mpp is needed and unknown
    ├── ConfigError            (ValueError)         an invalid argument or configuration
    ├── NoTissueError          (ValueError)         tissue is needed and none was found
    ├── OutputExistsError      (FileExistsError)    the output already exists
    ├── OutputError            (OSError)            the output cannot be written: permission, disk full
    ├── BagFormatError         (ValueError)         not a bag store, or a damaged one
    ├── MissingExtraError      (ImportError)        an optional package is needed
    ├── ForkError              (RuntimeError)       used in a process forked after libvips was used
    ├── WorkerError            (RuntimeError)       a worker process crashed, hung or took too much memory
    └── FailedSlidesError      (ExceptionGroup)     more slides failed than allowed; has the error of each

    SlideioPipeWarning (UserWarning)
    ├── EstimatedResolutionWarning   mpp derived from the objective power
    ├── ImplausibleResolutionWarning the mpp given makes the slide larger than a usual glass
    ├── EmptyTissueWarning           a tissue mask or a grid is empty
    ├── AlignedGridWarning           a grid aligned with stored tiles differs from the requested one
    ├── SkippedWarning               slides or tiles that could not be read were left out
    ├── LeftOutLevelsWarning         levels of a slide that are not used: their position is unknown
    ├── IncompleteSlideWarning       files of a slide seem to be missing
    ├── PartsWarning                 several files were found to be one slide
    ├── ClusterWarning               workers of a cluster that cannot be used
    ├── AlikeLabelsWarning           two labels of a cohort, one of which may be misspelt
    ├── OutsideSlideWarning          points or boxes that are not on their slide
    ├── RepeatedDrawsWarning         a DataLoader reads a bag again with the same draws
    ├── MissingCellsWarning          cells of a manifest that count as empty, such as NA
    ├── EncoderSettingsWarning       an encoder's settings contradict its hub's, or tiles are not what it is meant for
    ├── NumericIdsWarning            ids that a table stores as numbers, without leading zeros
    ├── NormalizationMovedWarning    the end of a transform runs on the device
    ├── PartNameWarning              a package brings a part whose name is taken
    ├── UnmatchedWarning             rows of a table or files of a folder without a counterpart
    └── UpsamplingWarning            a view finer than the slide

A reason or a remedy writes an argument of Python in braces, with its value or without: "pass {slide_mpp=0.25}", "lower
{min_tissue=}". It is shown as the surface writes it: ``slide_mpp=0.25`` in Python,
``--slide-mpp 0.25`` on the command line, a column for a cohort's table. ``worded`` selects the surface.
"""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Self

# Returns an argument as a surface writes it, from its name and its value in Python ("" without a value).
Words = Callable[[str, str], str]

ARGUMENT = re.compile(r"\{([\w.]+)=([^{}]*)\}")


def python_words(name: str, value: str) -> str:
    """Return an argument as written in a Python call."""
    return f"{name}={value}" if value else name


_WORDS: ContextVar[Words] = ContextVar("words", default=python_words)


@contextmanager
def worded(words: Callable[[Words], Words]) -> Iterator[None]:
    """Inside this context, errors and warnings name arguments by ``words(former function)``.

    Examples
    --------
    >>> error = OutputExistsError("already exists", slide="a", remedy="pass {overwrite=True} or another path")
    >>> with worded(lambda before: lambda name, value: f"--{name}"):
    ...     print(error)
    a: already exists; pass --overwrite or another path
    >>> print(error)
    a: already exists; pass overwrite=True or another path
    """
    token = _WORDS.set(words(_WORDS.get()))
    try:
        yield
    finally:
        _WORDS.reset(token)


def in_words(text: str) -> str:
    """Return a text with its arguments as the current surface writes them."""
    words = _WORDS.get()
    return ARGUMENT.sub(lambda found: words(found[1], found[2]), text)


class SlideioPipeError(Exception):
    """The root of all errors of this package.

    Parameters
    ----------
    reason : str
        The expected and the found value.
    slide : str, optional
        The slide, bag or file concerned.
    remedy : str, optional
        What to do about it; ``{slide_mpp=0.25}`` is an argument, in the words of the surface.

    Examples
    --------
    >>> print(MissingResolutionError("no mpp (aperio, no MPP tag)", slide="a.svs", remedy="pass {slide_mpp=0.25}"))
    a.svs: no mpp (aperio, no MPP tag); pass slide_mpp=0.25
    """

    def __init__(self, reason: str, *, slide: str | None = None, remedy: str | None = None) -> None:
        self._reason, self.slide, self._remedy = reason, slide, remedy
        super().__init__(str(self))

    @property
    def reason(self) -> str:
        """The expected and the found value."""
        return in_words(self._reason)

    @property
    def remedy(self) -> str | None:
        """What to do about it."""
        return None if self._remedy is None else in_words(self._remedy)

    @property
    def arguments(self) -> dict[str, str]:
        """The arguments of Python that are named, each with its value as Python writes it, "" without one."""
        return dict(ARGUMENT.findall(f"{self._reason} {self._remedy or ''}"))

    def __str__(self) -> str:
        head = f"{self.slide}: {self.reason}" if self.slide else self.reason
        return f"{head}; {self.remedy}" if self._remedy else head

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return partial(type(self), self._reason, slide=self.slide, remedy=self._remedy), ()


class SlideNotFoundError(SlideioPipeError, FileNotFoundError):
    """Nothing at that path, or a directory that is no slide."""


class UnsupportedSlideError(SlideioPipeError, ValueError):
    """Not a slide, or one whose pixels are not 8-bit RGB."""


class CorruptSlideError(SlideioPipeError, OSError):
    """A slide whose header or pixels cannot be read."""


class MissingResolutionError(SlideioPipeError, ValueError):
    """A resolution in micrometres per pixel is needed and none is known."""


class ConfigError(SlideioPipeError, ValueError):
    """An invalid argument or configuration."""


class NoTissueError(SlideioPipeError, ValueError):
    """Tissue is needed and none was found."""


class OutputExistsError(SlideioPipeError, FileExistsError):
    """The output already exists and overwriting was not requested."""


class OutputError(SlideioPipeError, OSError):
    """The output cannot be written: no permission, no space."""


class BagFormatError(SlideioPipeError, ValueError):
    """Not a bag store, or one that is damaged or of an unknown version."""

    tile: int | None = None  # the only tile that is damaged, if that is all


class MissingExtraError(SlideioPipeError, ImportError):
    """An optional package is needed and not installed."""


def require(package: str, extra: str | None = None) -> Any:
    """Import an optional package, or a module of one.

    Raise MissingExtraError if it is not installed, or is installed and cannot be imported.

    Parameters
    ----------
    package : str
        Its name, such as "h5py" or "pyarrow.parquet".
    extra : str, optional
        The extra of slideio-pipe that installs it; by default there is none.

    Examples
    --------
    >>> try:
    ...     require("nothing_of_that_name", "more")
    ... except MissingExtraError as error:
    ...     print(error)
    nothing_of_that_name is needed and not installed; pip install "slideio-pipe[more]"
    """
    # Only a first import changes the filters, which all threads share.
    quiet = nullcontext() if package in sys.modules else warnings.catch_warnings(action="ignore")
    try:
        with quiet:  # packages of packages warn about notebooks without widgets
            return importlib.import_module(package)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        raise _not_importable(package.partition(".")[0], extra, error) from error


def _not_importable(package: str, extra: str | None, error: Exception) -> MissingExtraError:
    missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
    if missing.partition(".")[0] == package:
        remedy = f"pip install {package}" if extra is None else f'pip install "slideio-pipe[{extra}]"'
        return MissingExtraError(f"{package} is needed and not installed", remedy=remedy)
    message = next(iter(str(error).strip().splitlines()), type(error).__name__)
    reason = f"{package} is needed and installed, but cannot be imported ({type(error).__name__}: {message})"
    return MissingExtraError(reason, remedy=import_remedy(package, error))


def import_remedy(package: str, error: BaseException) -> str:
    """Return what to do about a package that is installed and cannot be imported."""
    seen: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(seen) < 10:
        seen.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    if any("torchvision" in text for text in seen):
        return "install the torchvision that belongs to this torch, or remove it (pip uninstall torchvision)"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"pip install {error.name.partition('.')[0]}"
    return f"install it again: pip install --force-reinstall {package.partition('.')[0]}"


class ForkError(SlideioPipeError, RuntimeError):
    """A slide is used in a process that was forked after libvips was used."""


class WorkerError(SlideioPipeError, RuntimeError):
    """A worker process crashed, hung or took too much memory; or no worker starts."""


class FailedSlidesError(SlideioPipeError, ExceptionGroup):
    """More slides failed than allowed; ``exceptions`` are their errors, each once.

    Examples
    --------
    >>> errors = [CorruptSlideError("damaged", slide=name) for name in ("a.svs", "b.svs")]
    >>> FailedSlidesError("2 of 9 slides failed", errors).exceptions[1].slide
    'b.svs'
    """

    def __new__(
        cls, reason: str, errors: Sequence[Exception] = (), *, slide: str | None = None, remedy: str | None = None
    ) -> Self:
        # A group must not be empty: without errors it contains its own reason.
        return super().__new__(cls, reason, list(errors) or [SlideioPipeError(reason)])

    def __init__(
        self, reason: str, errors: Sequence[Exception] = (), *, slide: str | None = None, remedy: str | None = None
    ) -> None:
        self.errors = tuple(errors)
        super().__init__(reason, slide=slide, remedy=remedy)

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *map(str, self.errors)])

    def derive(self, errors: Sequence[Exception]) -> FailedSlidesError:  # type: ignore[override]
        """Return a group of some of the errors."""
        return FailedSlidesError(self._reason, errors, slide=self.slide, remedy=self._remedy)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return partial(FailedSlidesError, self._reason, self.errors, slide=self.slide, remedy=self._remedy), ()


class SlideioPipeWarning(UserWarning):
    """The root of all warnings of this package; they name arguments as errors do.

    Examples
    --------
    >>> str(SlideioPipeWarning("no tile has 50% tissue; lower {min_tissue=}"))
    'no tile has 50% tissue; lower min_tissue'
    """

    def __str__(self) -> str:
        return in_words(super().__str__())


class EstimatedResolutionWarning(SlideioPipeWarning):
    """The resolution is an estimate from the objective power."""


class ImplausibleResolutionWarning(SlideioPipeWarning):
    """A resolution was given that makes the slide larger than a usual glass."""


class EmptyTissueWarning(SlideioPipeWarning):
    """A tissue mask or a grid is empty."""


class AlignedGridWarning(SlideioPipeWarning):
    """A grid was snapped to the stored tiles: its tile size, stride or edge is not the requested one."""


class SkippedWarning(SlideioPipeWarning):
    """Slides or tiles that could not be read were left out, or are white."""


class LeftOutLevelsWarning(SlideioPipeWarning):
    """Levels of a slide are not used, because the positions of their pixels are unknown; finer ones are read."""


class IncompleteSlideWarning(SlideioPipeWarning):
    """Files of a slide seem to be missing; the existing ones are read."""


class PartsWarning(SlideioPipeWarning):
    """Several files that were given or found are parts of one slide, or folders were searched for slides."""


class ClusterWarning(SlideioPipeWarning):
    """A worker of a cluster is not used: it has another version, or no access to the output folder."""


class AlikeLabelsWarning(SlideioPipeWarning):
    """Two labels of a cohort differ so little, and one is so rare, that it may be the other misspelt."""


class MissingCellsWarning(SlideioPipeWarning):
    """Words of a cohort's table count as missing values but may be values: a class called "None"."""


class NumericIdsWarning(SlideioPipeWarning):
    """Ids of a table are stored as numbers, as Excel does: leading zeros that they had are lost."""


class UnmatchedWarning(SlideioPipeWarning):
    """Rows of a table, slides of a cohort or files of a folder have no counterpart; ``names`` are all of them."""

    def __init__(self, text: str, *, names: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.names = tuple(names)


class OutsideSlideWarning(SlideioPipeWarning):
    """Many points or boxes of annotations are outside their slide: they may be in another frame, or of another one."""


class RepeatedDrawsWarning(SlideioPipeWarning):
    """A DataLoader reads a bag twice in one epoch, with the same tiles and transforms."""


class EncoderSettingsWarning(SlideioPipeWarning):
    """Settings of an encoder contradict those on its hub, or its tiles have another scale than it is meant for."""


class NormalizationMovedWarning(SlideioPipeWarning):
    """A transform ends in Normalize or ToTensor: the end is taken off, and runs on the device."""


class PartNameWarning(SlideioPipeWarning):
    """An installed package brings an encoder, layout or tissue method whose name is taken; it is not used."""


class UpsamplingWarning(SlideioPipeWarning):
    """The requested view is finer than the slide: its pixels are interpolated."""


def warn_caller(warning: SlideioPipeWarning) -> None:
    """Issue a warning that points to the first line outside this package, at any call depth."""
    level, frame = 1, sys._getframe()  # warnings.warn can skip files from Python 3.12 on
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "slideio_pipe":
        level, frame = level + 1, frame.f_back
    warnings.warn(warning, stacklevel=level)
