"""The exit codes of all commands, in one table."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """An exit code and what it means.

    >>> ExitCode.SOME_FAILED, ExitCode(130).meaning
    (<ExitCode.SOME_FAILED: 1>, 'interrupted with Ctrl+C')
    """

    DONE = 0
    SOME_FAILED = 1
    ERROR = 2
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """What it means, in words."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.SOME_FAILED: "some slides failed and are listed, the others are done",
    ExitCode.ERROR: "error: the message says what to do",
    ExitCode.INTERRUPTED: "interrupted with Ctrl+C",
}


def exit_codes_text() -> str:
    """Return the table as one line, for --help."""
    return f"Exit codes: {'; '.join(f'{code.value} {code.meaning}' for code in ExitCode)}."
