"""One line of the report, and how a proof becomes one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

_COLOURS = re.compile(r"\x1b\[[\d;]*m")  # of a terminal, in messages of torch
# "untried": installed, and not used by a quick report. "optional": missing, and only some work needs it. "broken": it
# is there and does not work; the main job does without. "problem": the main job cannot run.
Status = Literal["ok", "untried", "optional", "broken", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    group: str
    what: str
    found: str
    status: Status = "ok"
    remedy: str = ""


def guarded(group: str, what: str, examine: Callable[[], Finding]) -> Finding:
    """Return what ``examine`` found; a broken installation may raise anything, which is a problem and no traceback."""
    try:
        return examine()
    except Exception as error:
        return Finding(group, what, f"fails: {error_text(error)}", "problem", "install slideio-pipe again")


def error_text(error: BaseException) -> str:
    """Return an error as one line of at most 300 characters."""
    text = " ".join(_COLOURS.sub("", str(error)).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:299]}…"


def report_of(findings: list[Finding]) -> dict[str, Any]:
    """Return the report as JSON values."""
    return {
        "healthy": all(finding.status != "problem" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }
