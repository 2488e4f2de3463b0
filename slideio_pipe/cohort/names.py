"""Names of a slide's files."""

from __future__ import annotations

import re

from slideio_pipe.errors import ConfigError

SUFFIX = ".bag.zarr"
# The ending removed from a slide's name: not a number as in a DICOM identifier (1.2.840.113619).
_ENDING = re.compile(r"(\.ome)?\.[a-z][a-z0-9]*$", re.IGNORECASE)


def bag_name(slide_name: str) -> str:
    """Return the name of a slide's bag.

    >>> bag_name("a.ome.tif"), bag_name("1.2.840.113619")
    ('a.bag.zarr', '1.2.840.113619.bag.zarr')
    """
    return f"{_ENDING.sub('', slide_name) or slide_name}{SUFFIX}"


def file_stem(name: str) -> str:
    """Return the stem of a slide's files; raise ConfigError if the name would point to another folder.

    Examples
    --------
    >>> file_stem("a.ome.tif"), file_stem("TCGA-CR-7395.0a1b.svs"), file_stem("b")
    ('a', 'TCGA-CR-7395.0a1b', 'b')
    """
    stem = _ENDING.sub("", name) or name
    if stem in ("", ".", "..") or "/" in stem or "\\" in stem or "\0" in stem:
        raise ConfigError("the slide's name is no file name", slide=name, remedy="give the slide another name")
    return stem
