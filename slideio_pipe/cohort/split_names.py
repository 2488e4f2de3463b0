"""Names of splits in tables."""

from __future__ import annotations

# Names in other tools' tables, in any case: those of Hugging Face's datasets library, except "dev", "eval" and
# "evaluation", which are ambiguous.
NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def split_of(name: str | None) -> str | None:
    """Return the standard name of a split: train, val or test for known names, others unchanged.

    >>> split_of("Validation"), split_of("Testing"), split_of("external")
    ('val', 'test', 'external')
    """
    return None if name is None else NAMES.get(name.strip().casefold(), name)
