"""Ops for any model, one package each: signature, reference, implementations, maths and figures.

from todm.kernels.rnnt_loss import rnnt_loss
"""
