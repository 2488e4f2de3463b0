"""Documentation made from the code.

In: the commands, the settings records. Out: ``configs/*.json`` and pages of ``examples/guide/reference/``.
Open first: ``write_pages.py``.
"""
