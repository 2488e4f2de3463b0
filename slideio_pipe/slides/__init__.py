"""A slide, its levels and resolution, and its pixels at any resolution.

In: a path or an array. Out: ``Slide``, ``SlideView``, and rectangles of pixels.
Open first: ``slide.py``, then ``sampling.py``; readers of file formats are in ``backends/``.
"""
