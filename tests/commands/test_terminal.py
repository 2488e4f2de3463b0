"""What is printed is the text as it is."""

from __future__ import annotations

import pytest

from slideio_pipe.commands import terminal


@pytest.mark.parametrize("text", ["a[0]", "[bold]a[/]", r"C:\slides\[red]a.svs", "[/red]", r"\\[b]"])
def test_brackets_and_backslashes_are_no_markup(text: str) -> None:
    """Names of files hold both: no part is taken for a style, or left out."""
    with terminal.err.capture() as printed:
        terminal.warn(text)
    assert printed.get() == f"warning: {text}\n"
