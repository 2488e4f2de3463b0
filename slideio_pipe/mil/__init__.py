"""Multiple-instance learning: one label per slide, thousands of tiles.

In: a cohort with labels, and a configuration. Out: checkpoints, metrics, plots.
Open first: ``fit.py``; networks are in ``models/``, predictions of a checkpoint are in ``prediction/``.
"""
