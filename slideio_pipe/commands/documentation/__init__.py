"""Documentation made from the code, and the site of guide and reference that ``slideio-pipe docs`` opens.

In: commands, settings, docstrings, pages of examples/guide. Out: ``configs/*.json``, pages of the reference, the site.
Open first: ``write_pages.py`` (pages from the code), then ``site_hooks.py`` (the site) and ``site_search.py``.
"""
