"""Networks of bags, and the exact gradient of a bag larger than memory.

In: features or tiles of a bag. Out: logits and attention.
Open first: ``bag_model.py``, then ``two_pass.py``.
"""
