"""Numbers on the quality of tiles: focus, pen, folds, bubbles and glass; and which tiles they drop.

In: a bag, or a grid and limits. Out: ``TileQuality``, or the grid of the good tiles.
Open first: ``good_tiles.py``, then ``masks.py`` and ``focus.py`` with the formulas.
"""
