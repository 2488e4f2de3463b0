"""Bags and features on disk: one zarr v3 folder per slide, which any zarr reader opens.

In: a bag. Out: a store, written whole or not at all, and ``StoredBag``, which reads it.
Open first: ``save.py``, then ``metadata.py`` and ``shards.py`` (the bytes); settings and defaults: ``config.py``.
"""

from slideio_pipe.store.augmented_bag import AugmentedBag
from slideio_pipe.store.reduced import add_reduced
from slideio_pipe.store.save import open_bag, save_bag
from slideio_pipe.store.stored_bag import StoredBag

__all__ = ["AugmentedBag", "StoredBag", "add_reduced", "open_bag", "save_bag"]
