"""Bags in the layouts of other MIL tools, and their coordinates as bags of pixels.

In: bags. Out: files of CLAM, TRIDENT, STAMP, torchmil, WebDataset, TensorDict and Hugging Face datasets.
Open first: ``item.py`` (one bag, and the base class ``Layout``); ``registry.py`` lists the layouts.
"""

from slideio_pipe.export.layouts.clam import from_clam
from slideio_pipe.export.layouts.registry import LAYOUTS, Converted
from slideio_pipe.export.layouts.trident import from_trident

__all__ = ["LAYOUTS", "Converted", "from_clam", "from_trident"]
