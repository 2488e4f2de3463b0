"""What ``slideio-pipe demo`` makes: slides, a cohort, a study to train on.

In: a folder. Out: generated slides, bags, pictures, manifests.
Open first: ``slides.py``.
"""
