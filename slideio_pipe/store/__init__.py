"""Bag stores: tiles of one slide in one folder that any zarr v3 reader opens."""

from slideio_pipe.store.stored_bag import StoredBag
from slideio_pipe.store.zarr import open_bag, save_bag

__all__ = ["StoredBag", "open_bag", "save_bag"]
