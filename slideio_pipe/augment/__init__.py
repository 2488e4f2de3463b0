"""Augmentation drawn once: from a transform to a record of plain numbers, and from the record to pixels.

``colour_transforms`` and ``geometric_transforms`` are what a user writes, ``adopt`` says what becomes of
albumentationsxl's own, ``drawing`` turns either into a ``Draw``, and ``lazy``, ``cpu`` and ``on_device`` execute it.
Importing this package loads none of them.
"""
