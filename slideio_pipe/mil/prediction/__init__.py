"""Predictions of a checkpoint: tables, heat maps, regions, top tiles.

In: a checkpoint, and slides, bags or features. Out: ``Prediction``, tables, pictures, GeoJSON.
Open first: ``predictor.py``.
"""
