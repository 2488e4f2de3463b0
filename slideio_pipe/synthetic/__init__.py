"""Generated H&E slides with known truth, for demos and tests.

In: a size, a seed, lesions, a stain. Out: an Aperio SVS file, and masks of what was painted.
Open first: ``slide.py``.
"""
