"""`todm bench kernels`: times of the ops beside their peers, each only after its check.

`case.py` has the nouns, `clock.py` the method, `op_*.py` an op's cases each, `run.py` the order of things.
"""
