"""Text is printed unchanged."""

from __future__ import annotations

import pytest

from slideio_pipe.commands import terminal


@pytest.mark.parametrize("text", ["a[0]", "[bold]a[/]", r"C:\slides\[red]a.svs", "[/red]", r"\\[b]"])
def test_brackets_and_backslashes_are_no_markup(text: str) -> None:
    """File names contain both: no part becomes a style or disappears."""
    with terminal.err.capture() as printed:
        terminal.warn(text)
    assert printed.get() == f"warning: {text}\n"
