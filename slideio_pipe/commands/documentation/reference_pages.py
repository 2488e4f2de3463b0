"""Pages of the reference that are made from the code: public names by room, and errors."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import slideio_pipe
from slideio_pipe import errors
from slideio_pipe.commands.documentation.error_examples import ERROR_EXAMPLES

# Title and introduction of each room's page, in the order of a tile's life.
ROOMS = {
    "slides": ("Slides", "A slide, its levels and resolution, and views of it at any resolution."),
    "tiles": ("Tissue, grids, bags", "Which parts of a slide are tiles, and the bag that reads them."),
    "augment": ("Augmentation", "Random transforms, and the record of what was drawn."),
    "streaming": ("Streaming", "Tiles to a device: one bag in order, or a cohort in epochs."),
    "store": ("Stores", "Bags on disk."),
    "cohort": ("Cohorts", "Which slides a study has, its splits, and resumable work over all of them."),
    "export": ("Export", "Slides to bags and masks, and the layouts of other tools."),
    "features": ("Features", "Encoders, and features of bags and cohorts."),
    "mil": ("Training and predicting", "Models with one label per slide."),
    "viewer": ("Viewer", "Slides in the browser and in notebooks."),
    "synthetic": ("Generated slides", "Slides with known truth, for trying things out and for tests."),
    "errors": ("Errors", "The roots of all errors and warnings; [Errors](../errors.md) lists the classes."),
}


def reference_pages() -> dict[str, str]:
    """Return the Markdown of each page by its path below ``reference/``.

    Examples
    --------
    >>> pages = reference_pages()
    >>> "::: slideio_pipe.TileBag" in pages["python/tiles.md"], "### `ForkError`" in pages["errors.md"]
    (True, True)
    """
    pages = {f"python/{room}.md": _room_page(room, names) for room, names in names_by_room().items()}
    return {"python/index.md": _index_page(), **pages, "errors.md": errors_page()}


def names_by_room() -> dict[str, list[str]]:
    """Return the public names of each room, in the order in which ``slideio_pipe`` lists them."""
    rooms: dict[str, list[str]] = {room: [] for room in ROOMS}
    for name, module in slideio_pipe._PUBLIC.items():
        rooms[module.partition(".")[0]].append(name)
    return rooms


def _index_page() -> str:
    lines = ["# Python", "", "Every public name of `import slideio_pipe as sp`, in the order of a tile's life.", ""]
    for room, names in names_by_room().items():
        title, about = ROOMS[room]
        lines += [f"## [{title}]({room}.md)", "", about.replace("(../", "("), ""]
        lines += ["| name | |", "| --- | --- |"]
        lines += [f"| [`sp.{name}`]({room}.md#slideio_pipe.{name}) | {_first_line(name)} |" for name in names]
        lines.append("")
    return "\n".join(lines)


def _first_line(name: str) -> str:
    """Return the first sentence of a docstring, for a cell of a table."""
    text = " ".join((inspect.getdoc(getattr(slideio_pipe, name)) or "").split("\n\n")[0].split())
    return text.replace("|", "\\|").replace("``", "`")


def _room_page(room: str, names: list[str]) -> str:
    title, about = ROOMS[room]
    lines = [f"# {title}", "", about, ""]
    for name in names:
        lines += [f"::: slideio_pipe.{name}", "", f"Source: `{_source(name)}`", ""]
    return "\n".join(lines)


def _source(name: str) -> str:
    """Return the file in which a public name is defined, from the root of the repository."""
    path = Path(inspect.getsourcefile(getattr(slideio_pipe, name)) or "")
    return path.relative_to(Path(slideio_pipe.__file__).parents[1]).as_posix()


def errors_page() -> str:
    """Return the page of errors and warnings: meaning, builtin class, an example and its remedy."""
    lines = [
        "# Errors and warnings",
        "",
        "Every error of this package is an `sp.SlideioPipeError`, and also the builtin error that you would expect.",
        "`except FileNotFoundError` catches a missing slide, too. A message names the slide, the reason and, after a",
        "semicolon, the remedy. On the command line an error is one line on standard error, and the exit code is 2.",
        "The classes are in `slideio_pipe.errors`. [When something goes wrong](../15_problems.md)",
        "explains them by task.",
        "",
        "## Errors",
        "",
    ]
    for name in _classes():
        if issubclass(getattr(errors, name), errors.SlideioPipeError):
            lines += _entry(name)
    lines += [
        "## Warnings",
        "",
        'Every warning is an `sp.SlideioPipeWarning`. `warnings.simplefilter("error", sp.SlideioPipeWarning)`',
        "makes them errors.",
        "",
    ]
    for name in _classes():
        if issubclass(getattr(errors, name), errors.SlideioPipeWarning):
            lines += _entry(name)
    return "\n".join(lines)


def _classes() -> list[str]:
    """Return the classes of ``errors.py`` in the order of the file."""
    tree = ast.parse(inspect.getsource(errors))
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


def _entry(name: str) -> list[str]:
    kind = getattr(errors, name)
    builtin = [base.__name__ for base in kind.__bases__ if base.__module__ == "builtins" and base is not Exception]
    meaning = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()).replace("``", "`")
    also = f" It is also a `{builtin[0]}`." if builtin else ""
    lines = [f"### `{name}`", "", meaning + also, ""]
    if name in ERROR_EXAMPLES:
        message, remedy = ERROR_EXAMPLES[name]
        lines += ["```text", message, "```", "", f"What to do: {remedy}", ""]
    return lines
