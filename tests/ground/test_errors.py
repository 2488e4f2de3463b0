"""Every error has the reason, the slide and the remedy, can be pickled, and is also a builtin error."""

from __future__ import annotations

import inspect
import pickle

import pytest

from slideio_pipe import errors

ERRORS = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.SlideioPipeError)]
WARNINGS = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.SlideioPipeWarning)]
BUILTINS = {
    "SlideNotFoundError": FileNotFoundError,
    "UnsupportedSlideError": ValueError,
    "CorruptSlideError": OSError,
    "MissingResolutionError": ValueError,
    "ConfigError": ValueError,
    "NoTissueError": ValueError,
    "OutputExistsError": FileExistsError,
    "OutputError": OSError,
    "BagFormatError": ValueError,
    "MissingExtraError": ImportError,
    "ForkError": RuntimeError,
    "WorkerError": RuntimeError,
    "FailedSlidesError": ExceptionGroup,
}


def test_the_docstring_draws_every_error_class() -> None:
    """With the builtin it also is."""
    assert {c.__name__ for c in ERRORS} == {"SlideioPipeError", *BUILTINS}
    for name, builtin in BUILTINS.items():
        assert issubclass(getattr(errors, name), builtin)
        line = next(line for line in (errors.__doc__ or "").splitlines() if name in line)
        assert f"({builtin.__name__})" in line
    for warning in WARNINGS:
        assert warning.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("cls", ERRORS)
def test_errors_pickle(cls: type[errors.SlideioPipeError]) -> None:
    """A worker process can send them complete."""
    original = cls("no mpp", slide="a.svs", remedy="pass slide_mpp=0.25")
    copy = pickle.loads(pickle.dumps(original))
    assert type(copy) is cls
    assert (str(copy), copy.reason, copy.slide, copy.remedy) == (
        "a.svs: no mpp; pass slide_mpp=0.25",
        "no mpp",
        "a.svs",
        "pass slide_mpp=0.25",
    )


@pytest.mark.parametrize("cls", ERRORS)
@pytest.mark.parametrize(
    ("slide", "remedy", "message"),
    [
        ("a.svs", "do this", "a.svs: why; do this"),
        (None, "do this", "why; do this"),
        ("a.svs", None, "a.svs: why"),
        (None, None, "why"),
    ],
)
def test_the_message_is_slide_reason_remedy(
    cls: type[errors.SlideioPipeError], slide: str | None, remedy: str | None, message: str
) -> None:
    """In this order, with those that are known; the builtin bases do not change it."""
    assert str(cls("why", slide=slide, remedy=remedy)) == message


@pytest.mark.parametrize("cls", WARNINGS)
def test_warnings_have_one_root(cls: type[Warning]) -> None:
    """One filter silences or raises all of them."""
    assert issubclass(cls, UserWarning)


@pytest.mark.parametrize("cls", ERRORS)
def test_an_error_names_arguments_as_the_surface_that_shows_it(cls: type[errors.SlideioPipeError]) -> None:
    """Also after a process boundary; elsewhere, and afterwards, as in Python."""
    remedy = "pass {slide_mpp=0.25}, or lower {min_tissue=}; {not an argument}"
    error = pickle.loads(pickle.dumps(cls("no {mpp=None}", slide="{a=1}.svs", remedy=remedy)))
    python = "{a=1}.svs: no mpp=None; pass slide_mpp=0.25, or lower min_tissue; {not an argument}"
    assert (str(error), error.args[0]) == (python, python)
    with errors.worded(lambda before: lambda name, value: f"<{name}|{value}|{before(name, value)}>"):
        shown = "pass <slide_mpp|0.25|slide_mpp=0.25>, or lower <min_tissue||min_tissue>; {not an argument}"
        assert (error.reason, error.remedy) == ("no <mpp|None|mpp=None>", shown)
        assert str(error) == f"{{a=1}}.svs: {error.reason}; {shown}"
    assert str(error) == python
    assert error.arguments == {"mpp": "None", "slide_mpp": "0.25", "min_tissue": ""}


def test_a_warning_names_arguments_as_the_surface_that_shows_it() -> None:
    """As errors do; it can be pickled."""
    warning = pickle.loads(pickle.dumps(errors.EmptyTissueWarning("no tile; lower {min_tissue=}")))
    assert str(warning) == "no tile; lower min_tissue"
    with errors.worded(lambda _: lambda name, value: "--min-tissue"):
        assert str(warning) == "no tile; lower --min-tissue"
