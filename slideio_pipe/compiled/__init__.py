"""Compiled tile programs: how tiles are sampled and coloured, in C, without the GIL.

In: programs of tiles as NumPy rows, decoded blocks, memory for the tiles. Out: the tiles' pixels.
Open first: ``library.py``, which runs programs; ``tile_program.h`` says what one is.
"""
