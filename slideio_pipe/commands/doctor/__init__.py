"""Whether an installation works: nothing is believed that can be tried.

In: the installed packages and the machine. Out: findings, printed or as JSON. Open first: ``command.py``.
"""
