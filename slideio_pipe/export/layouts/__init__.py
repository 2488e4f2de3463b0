"""Bags in the layouts that other MIL tools read, and coordinates of theirs as bags of pixels."""

from slideio_pipe.export.layouts.clam import from_clam
from slideio_pipe.export.layouts.registry import LAYOUTS, Converted, convert
from slideio_pipe.export.layouts.trident import from_trident

__all__ = ["LAYOUTS", "Converted", "convert", "from_clam", "from_trident"]
