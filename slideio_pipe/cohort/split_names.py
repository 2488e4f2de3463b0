"""What tables call the splits of a study."""

from __future__ import annotations

# What other tools write, in any case: the names that Hugging Face's datasets library takes, but for "dev", "eval" and
# "evaluation", which mean training, validation or test by whom you ask.
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
    """Return what a split is called here: train, val or test for the names in use, others as they are.

    >>> split_of("Validation"), split_of("Testing"), split_of("external")
    ('val', 'test', 'external')
    """
    return None if name is None else NAMES.get(name.strip().casefold(), name)
