"""Encoders, and features of bags and cohorts.

In: bags or slides, and encoders. Out: features beside the tiles or in a store of their own.
Open first: ``encode_bag.py``; encoders are in ``encoders/``.
"""
