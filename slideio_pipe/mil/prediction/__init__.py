"""What a checkpoint says of slides: predictions, heat maps, regions, top tiles.

In: a checkpoint, and slides, bags or features. Out: ``Prediction``, tables, pictures, GeoJSON.
Open first: ``predictor.py``.
"""
