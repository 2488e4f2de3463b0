"""Lazy libvips images, and finished pictures.

In: a function that decodes tiles, or an array. Out: a lazy image, a tiled pyramid TIFF on disk, a Pillow picture.
Open first: ``virtual_tiff.py`` (any decoder as a lazy image).
"""
