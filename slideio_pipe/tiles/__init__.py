"""Which parts of a slide are tiles, and the bag that reads them.

In: a slide or a view. Out: ``TissueMask``, ``Annotations``, ``TileGrid``, ``TileBag``.
Open first: ``tile_bag.py``, then ``reader.py``.
"""
