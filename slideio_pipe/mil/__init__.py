"""Multiple-instance learning: one label per slide, thousands of tiles."""
