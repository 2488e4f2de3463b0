"""Text is printed unchanged."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from slideio_pipe.commands import terminal

LONG = "S07-truncated.svs: the file is truncated: its next directory is at byte 537,762; copy the slide again"


@pytest.mark.parametrize("text", ["a[0]", "[bold]a[/]", r"C:\slides\[red]a.svs", "[/red]", r"\\[b]"])
def test_brackets_and_backslashes_are_no_markup(text: str) -> None:
    """File names contain both: no part becomes a style or disappears."""
    with terminal.err.capture() as printed:
        terminal.warn(text)
    assert printed.get() == f"warning: {text}\n"


def screen(monkeypatch: pytest.MonkeyPatch, name: str, *, tty: bool) -> io.StringIO:
    """Replace a console by one of 40 columns, a terminal or a file, and return what it gets."""
    got = io.StringIO()
    console = Console(file=got, width=40, force_terminal=tty, color_system=None, highlight=False)
    monkeypatch.setattr(terminal, name, console)
    return got


@pytest.mark.parametrize("name", ["out", "err"])
def test_a_terminal_breaks_lines_between_words(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No word is broken; a file gets one line."""
    printed = terminal.warn if name == "err" else terminal.say
    got = screen(monkeypatch, name, tty=True)
    printed(LONG)
    lines = got.getvalue().splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 40
    assert " ".join(line.strip() for line in lines).removeprefix("warning: ") == LONG
    got = screen(monkeypatch, name, tty=False)
    printed(LONG)
    assert got.getvalue().removeprefix("warning: ") == f"{LONG}\n"


def test_a_command_to_be_copied_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a narrow terminal: a pasted command must not end where the line did."""
    got = screen(monkeypatch, "out", tty=True)
    terminal.say(LONG, copied=True)
    assert got.getvalue() == f"{LONG}\n"
