"""Ops for any model, one package each: signature, reference, implementations, maths and figures.

    from todm.kernels.rnnt_loss import rnnt_loss

The packages are exported here, not the functions: a function of its package's name would hide it.
"""

from todm.kernels import matmul_24, matmul_int8, matmul_w4, mh_ssm, rnnt_loss

__all__ = ["matmul_24", "matmul_int8", "matmul_w4", "mh_ssm", "rnnt_loss"]
