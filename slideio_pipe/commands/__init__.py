"""The command line: one file per command, each a thin layer over the Python API.

In: options. Out: printed lines, JSON, files; errors as one line and exit code 2.
Open first: ``app.py`` (all commands), ``options.py`` (all options).
"""
