"""Points and boxes: in files of cells, on the slide, and in the px of drawn tiles.

In: files of cells, annotations. Out: ``Targets``, and counts of points for each tile.
Open first: ``targets.py``, then ``marks.py``.
"""
