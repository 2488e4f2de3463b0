"""Processes that do the work of a run: on this machine, on Dask, on SLURM.

In: tasks, one per slide, with limits of time and memory. Out: their outcomes; a process that crashes fails one slide.
Open first: ``pool.py``.
"""
