"""Random augmentation: drawn once into a record of plain numbers, then applied to pixels.

In: a transform (ours or one of albumentationsxl) and a seed. Out: a ``Draw``, and augmented pixels.
Open first: ``draw.py`` (the record), then ``compose.py``; a new transform starts in ``*_transforms.py``.
"""
