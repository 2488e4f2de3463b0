"""Three executors of one ``Draw``: a lazy libvips graph, decoded tiles on the CPU, a batch on a device.

In: a ``Draw`` and pixels. Out: augmented pixels, the same within one grey level from each of the three.
Open first: ``cpu.py``; ``cpu_steps.py`` and ``device_steps.py`` hold the formulas.
"""
