"""Slides to bags, masks and layouts of other tools, and back.

In: a slide or a cohort, and a configuration. Out: bag stores, tissue masks, files of CLAM, TRIDENT, STAMP and others.
Open first: ``slide.py`` (one slide), ``cohort.py`` (many).
"""
