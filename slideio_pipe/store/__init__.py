"""Bag stores: tiles of one slide in one folder that any zarr v3 reader opens."""

from .stored_bag import StoredBag
from .zarr import open_bag, save_bag

__all__ = ["StoredBag", "open_bag", "save_bag"]
