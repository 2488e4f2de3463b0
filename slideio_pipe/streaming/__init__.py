"""Tiles to a device: one bag in order, or a cohort in epochs.

In: a bag, or a cohort with a configuration. Out: normalised float16 batches, chunks and whole bags.
Open first: ``stream.py`` (one bag), ``loader.py`` (many).
"""
