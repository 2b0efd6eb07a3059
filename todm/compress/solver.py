"""The solver that SparseGPT and GPTQ share: change a column, and let later columns compensate for it.

The layer's error is tr(dW H dW^T), H = X X^T + damping. With H^-1 = U^T U, U upper triangular, U_kk^2
is [H^-1]_kk after columns before k are fixed. Optimal brain surgeon: if column k becomes q_k, the
best change of the columns after it is

    w_j -= (w_k - q_k) / U_kk * U_kj,    j > k

GPTQ (arXiv 2210.17323), section 4, and SparseGPT (arXiv 2301.00774), section 3. Columns go from left
to right in blocks of about 128; columns beyond a block are updated once at its end.

Letters: N outputs, K columns (inputs), I columns of a step (a group of a mask or of a grid).
"""

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 128
DAMPING = 0.01
"""Of the mean of H's diagonal, as in both papers. A column that never saw an input has only the damping,
and changes no other column."""


Rule = Callable[[Tensor, Tensor, int], Callable[[Tensor, int], Tensor]]
"""Called when a step of columns is reached, with their values by then [N, I], U_kk of each [I], and the
place of the first one; returns the function from (values [N], i) of column i of the step to new values."""


def inverse_factor(moment_KK: Tensor, *, damping: float = DAMPING) -> Tensor:
    """U, upper triangular, of which U^T U is the inverse of the damped second moment.

    Args:
        moment_KK: H, symmetric, at best float64.
        damping: of the mean diagonal, added to the diagonal.

    Returns:
        [K, K], of H's dtype.
    """
    mean = moment_KK.diagonal().mean()
    eye_KK = torch.eye(moment_KK.shape[0], dtype=moment_KK.dtype, device=moment_KK.device)
    if not bool(mean > 0):  # no input at all: columns are independent
        return eye_KK
    # With both axes reversed, H = V V^T has V upper triangular, and U is its inverse: no inverse has to
    # be factored, which may have lost its definiteness to rounding.
    reversed_KK = moment_KK.flip(0, 1)
    reversed_KK.diagonal().add_(damping * mean)
    lower_KK = torch.linalg.cholesky(reversed_KK)
    return torch.linalg.solve_triangular(lower_KK, eye_KK, upper=False).flip(0, 1)


def obs_update(weight_NK: Tensor, factor_KK: Tensor, rule: Rule, *, step: int) -> Tensor:
    """Apply a rule to every column from left to right, and let later columns compensate for it.

    Args:
        weight_NK: the weight; not changed.
        factor_KK: what `inverse_factor` returned.
        rule: gives the new values of columns.
        step: columns that the rule looks at together; at most `BLOCK`.

    Returns:
        [N, K], of the factor's dtype.
    """
    assert 1 <= step <= BLOCK
    new_NK, K = weight_NK.to(factor_KK.dtype, copy=True), weight_NK.shape[1]
    width = BLOCK // step * step
    for start in range(0, K, width):
        stop = min(start + width, K)
        error_NB = torch.empty_like(new_NK[:, start:stop])
        column = None
        for k in range(start, stop):
            if column is None or k % step == 0:
                end = min(k + step, K)
                column = rule(new_NK[:, k:end], factor_KK.diagonal()[k:end], k)
            new_N = column(new_NK[:, k], k % step)
            error_N = (new_NK[:, k] - new_N) / factor_KK[k, k]
            new_NK[:, k] = new_N
            new_NK[:, k + 1 : stop] -= error_N[:, None] * factor_KK[k, k + 1 : stop]
            error_NB[:, k - start] = error_N
        new_NK[:, stop:] -= error_NB @ factor_KK[start:stop, stop:]
    return new_NK
