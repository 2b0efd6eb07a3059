"""`todm bench kernels`: times of the ops beside their peers, each only after its check.

`case.py` defines the terms, `clock.py` the method, each `op_*.py` the cases of an op, `run.py` the sequence.
"""
