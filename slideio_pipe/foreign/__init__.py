"""Bags in the layouts that other MIL tools read, and coordinates of theirs as bags of pixels."""

from slideio_pipe.foreign.clam import from_clam
from slideio_pipe.foreign.converting import LAYOUTS, Converted, convert
from slideio_pipe.foreign.trident import from_trident

__all__ = ["LAYOUTS", "Converted", "convert", "from_clam", "from_trident"]
