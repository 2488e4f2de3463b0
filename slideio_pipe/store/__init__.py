"""Bag stores: tiles of one slide in one folder that any zarr v3 reader opens."""

from slideio_pipe.store.save import open_bag, save_bag
from slideio_pipe.store.stored_bag import StoredBag

__all__ = ["StoredBag", "open_bag", "save_bag"]
