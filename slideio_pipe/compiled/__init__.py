"""Compiled tile programs: how tiles are sampled and coloured, in C, without the GIL.

In: programs of tiles as NumPy rows, decoded blocks, memory for the tiles. Out: the tiles' pixels.
Open first: ``tile_program.h``, which says what a program is; then ``library.py``, which runs it.
"""
