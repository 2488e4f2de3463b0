"""A simulated CUDA for a torch built for the CPU: asynchronous, with real numbers; see README.md."""
