"""Extension of griffe: the comment beside a field of a record is its description."""

from __future__ import annotations

import re
from typing import Any

import griffe

_COMMENT = re.compile(r"#\s+(?!type:|noqa)(.+)$")


class FieldComments(griffe.Extension):
    """Take the description of an attribute without a docstring from the comment on its line."""

    def on_attribute_instance(self, *, attr: Any, **_: Any) -> None:
        """Called for every attribute."""
        if attr.docstring is None and attr.lineno and not attr.name.startswith("_"):
            found = _COMMENT.search(" ".join(attr.lines[-1:]))
            if found:
                text = found[1].strip()
                attr.docstring = griffe.Docstring(text[0].upper() + text[1:], lineno=attr.lineno, parent=attr)
