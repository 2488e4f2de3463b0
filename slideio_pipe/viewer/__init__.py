"""The slide viewer: a local server and one page, in which a slide is seen under a live augmentation.

In: slides, bags, cohorts, predictions, and a transform. Out: a page with deep zoom, layers and controls.
Open first: ``explore.py`` (what starts it), then ``tile_source.py`` (pixels) and ``pages.py`` (what each address is).
"""
