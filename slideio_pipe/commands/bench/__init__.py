"""``slideio-pipe bench``: readers of slides timed on the same tiles, in turns, each in a process of its own.

In: slides, cases, and a Python environment with the other readers. Out: ratios, with medians and ranges.
Open first: ``run.py``, then ``cases.py``.
"""
