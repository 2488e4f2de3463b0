"""Parts that a user or another package brings: found by an import path, or by the name of an entry point.

In: ``my_module:MyPart``, or a name that an installed package gives. Out: the object.
Open first: ``import_path.py``; ``entry_points.py`` has the names of packages.
"""
