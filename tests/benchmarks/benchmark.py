"""Shared by all benchmarks: arguments, `--quick` among them, and the check of the result."""

from __future__ import annotations

import argparse
from typing import Any


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that prints a script's own description, with `--quick`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sizes of seconds: does it run, and is its result right?")
    return parser


def parsed(parser: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """Return the arguments; with `--quick`, those that are not given have other defaults."""
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**quick)
    return parser.parse_args()


def require(holds: bool, what: str) -> None:
    """End with exit code 1 if a result is wrong."""
    if not holds:
        raise SystemExit(f"WRONG RESULT: {what}")
