"""How one step of an algorithm is carried out: recorded, recomputed, compiled, with fixed weights.

A step is a pure function of tensors, so that it can be carried out again with the same result.
"""
