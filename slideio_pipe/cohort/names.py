"""What the files of a slide are called."""

from __future__ import annotations

import re

from slideio_pipe.errors import ConfigError

SUFFIX = ".bag.zarr"


# What goes from a slide's name: an ending, but not a number as in an identifier of DICOM (1.2.840.113619).
_ENDING = re.compile(r"(\.ome)?\.[a-z][a-z0-9]*$", re.IGNORECASE)


def bag_name(slide_name: str) -> str:
    """Return what the bag of a slide is called.

    >>> bag_name("a.ome.tif"), bag_name("1.2.840.113619")
    ('a.bag.zarr', '1.2.840.113619.bag.zarr')
    """
    return f"{_ENDING.sub('', slide_name) or slide_name}{SUFFIX}"


def stem_of(name: str) -> str:
    """Return what files of a slide are called.

    Raises
    ------
    ConfigError
        The name would be a file in another folder.

    Examples
    --------
    >>> stem_of("a.ome.tif"), stem_of("TCGA-CR-7395.0a1b.svs"), stem_of("b")
    ('a', 'TCGA-CR-7395.0a1b', 'b')
    """
    stem = _ENDING.sub("", name) or name
    if stem in ("", ".", "..") or "/" in stem or "\\" in stem or "\0" in stem:
        raise ConfigError("the slide's name is no file name", slide=name, remedy="give the slide another name")
    return stem
