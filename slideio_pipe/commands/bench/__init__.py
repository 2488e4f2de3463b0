"""Reading slides, timed against other readers: each in a process of its own, in turns, on the same tiles."""
