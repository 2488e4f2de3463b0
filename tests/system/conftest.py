"""The browser of the tests of the viewer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browser import Browser, chromium


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    """One browser for all tests of a file."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def browser(started: Any) -> Iterator[Browser]:
    """A new window of 1000×700 px."""
    window = started.new_page(viewport={"width": 1000, "height": 700})
    opened = Browser(window)
    yield opened
    window.close()
