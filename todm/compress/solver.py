"""The solver that SparseGPT and GPTQ share: change a column, and let later columns make good for it.

The layer's error is tr(dW H dW^T), H = X X^T + damping. With H^-1 = U^T U, U upper triangular, U_kk^2
is [H^-1]_kk after columns before k are fixed. Optimal brain surgeon: if column k becomes q_k, the
best change of the columns after it is

    w_j -= (w_k - q_k) / U_kk * U_kj,    j > k

GPTQ (arXiv 2210.17323), section 4, and SparseGPT (arXiv 2301.00774), section 3. Columns go from left
to right in blocks of about 128, and what lies beyond a block is updated once at its end.

Letters: N outputs, K columns (inputs), I columns of a step (a group of a mask or of a grid).
"""

from typing import Protocol

import torch
from torch import Tensor

from todm.compress.masks import nm_mask
from todm.kernels.matmul_w4 import Packed, pack, quantise_rtn

BLOCK = 128
DAMPING = 0.01
"""Of the mean of H's diagonal, as in both papers. A column that never saw an input has it alone, and
touches no other column."""


class Rule(Protocol):
    """What becomes of columns."""

    def begin(self, current_NI: Tensor, factor_I: Tensor, first: int) -> None:
        """A step of columns is reached: its values by now, U_kk of them, and the first one's place."""
        ...

    def column(self, current_N: Tensor, k: int) -> Tensor:
        """New values of column k."""
        ...


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
    if not bool(mean > 0):  # no input at all: every column stands for itself
        return eye_KK
    # With both axes turned round, H = V V^T has V upper triangular, and U is its inverse: nothing has
    # to be factored that is itself an inverse, and may have lost its definiteness to rounding.
    turned_KK = moment_KK.flip(0, 1)
    turned_KK.diagonal().add_(damping * mean)
    lower_KK = torch.linalg.cholesky(turned_KK)
    return torch.linalg.solve_triangular(lower_KK, eye_KK, upper=False).flip(0, 1)


def mend(weight_NK: Tensor, factor_KK: Tensor, rule: Rule, *, step: int) -> Tensor:
    """Apply a rule to every column from left to right, and let later ones make good for it.

    Args:
        weight_NK: the weight; not changed.
        factor_KK: what `inverse_factor` returned.
        rule: says what becomes of columns.
        step: columns that the rule looks at together; at most `BLOCK`.

    Returns:
        [N, K], of the factor's dtype.
    """
    assert 1 <= step <= BLOCK
    mended_NK, K = weight_NK.to(factor_KK.dtype, copy=True), weight_NK.shape[1]
    width = BLOCK // step * step
    for start in range(0, K, width):
        stop = min(start + width, K)
        error_NB = torch.empty_like(mended_NK[:, start:stop])
        for k in range(start, stop):
            if k % step == 0:
                end = min(k + step, K)
                rule.begin(mended_NK[:, k:end], factor_KK.diagonal()[k:end], k)
            new_N = rule.column(mended_NK[:, k], k)
            error_N = (mended_NK[:, k] - new_N) / factor_KK[k, k]
            mended_NK[:, k] = new_N
            mended_NK[:, k + 1 : stop] -= error_N[:, None] * factor_KK[k, k + 1 : stop]
            error_NB[:, k - start] = error_N
        mended_NK[:, stop:] -= error_NB @ factor_KK[start:stop, stop:]
    return mended_NK


class PruneRule:
    """SparseGPT: of every m columns, the n of largest w^2 / U_kk^2 are kept, chosen as they are reached.

    The paper's code calls U "Hinv", so its w^2 / diag(Hinv)^2 is this score.
    """

    def __init__(self, n: int, m: int, *, pairs: bool = False) -> None:
        """See `nm_mask`."""
        self._n, self._m, self._pairs = n, m, pairs
        self._chosen: list[Tensor] = []

    def begin(self, current_NI: Tensor, factor_I: Tensor, first: int) -> None:
        """Choose the mask of these columns."""
        score_NI = (current_NI / factor_I).square()
        self._chosen.append(nm_mask(score_NI, self._n, self._m, pairs=self._pairs))

    def column(self, current_N: Tensor, k: int) -> Tensor:
        """Its values, zero where the mask says so."""
        return current_N * self._chosen[-1][:, k % self._m]

    @property
    def mask_NK(self) -> Tensor:
        """All masks so far."""
        return torch.cat(self._chosen, 1)


class RoundRule:
    """GPTQ: every column is rounded to its group's grid, which is made when the group is reached.

    What a mask prunes stays zero; the columns after make good for that too.
    """

    def __init__(self, bits: int, group: int, *, symmetric: bool, mask_NK: Tensor | None) -> None:
        """See `matmul_w4.quantise_rtn`, which makes the grids."""
        self._bits, self._group, self._symmetric = bits, group, symmetric
        self._mask_NK = mask_NK
        self._scales: list[Tensor] = []
        self._zeros: list[Tensor] = []
        self._codes: list[Tensor] = []

    def begin(self, current_NI: Tensor, factor_I: Tensor, first: int) -> None:
        """Make the grid of these columns."""
        if self._mask_NK is not None:
            current_NI = current_NI * self._mask_NK[:, first : first + current_NI.shape[1]]
        grid = quantise_rtn(current_NI.float(), self._bits, group=None, symmetric=self._symmetric)
        middle_N1 = torch.full_like(grid.scale_NG, 1 << (self._bits - 1), dtype=torch.uint8)
        self._scales.append(grid.scale_NG)
        self._zeros.append(middle_N1 if grid.zero_NG is None else grid.zero_NG)

    def column(self, current_N: Tensor, k: int) -> Tensor:
        """Its values, rounded."""
        scale_N, zero_N = self._scales[-1][:, 0].double(), self._zeros[-1][:, 0].double()
        code_N = ((current_N / scale_N).round() + zero_N).clamp(0, (1 << self._bits) - 1)
        if self._mask_NK is not None:
            code_N = torch.where(self._mask_NK[:, k], code_N, zero_N)
        self._codes.append(code_N.to(torch.uint8))
        return ((code_N - zero_N) * scale_N).to(current_N.dtype)

    def packed(self) -> Packed:
        """The weight, after all columns."""
        zero_NG = None if self._symmetric else torch.cat(self._zeros, 1)
        return pack(
            torch.stack(self._codes, 1),
            torch.cat(self._scales, 1),
            zero_NG=zero_NG,
            bits=self._bits,
            group=self._group,
        )


def prune(
    weight_NK: Tensor, moment_KK: Tensor, n: int, m: int, *, pairs: bool = False
) -> tuple[Tensor, Tensor]:
    """SparseGPT's weight and mask.

    Args:
        weight_NK: [N, K] of which every m columns are a group.
        moment_KK: second moment of the inputs.
        n: kept.
        m: of how many.
        pairs: see `nm_mask`.

    Returns:
        [N, K] of the moment's dtype, and bool [N, K].
    """
    rule = PruneRule(n, m, pairs=pairs)
    mended_NK = mend(weight_NK, inverse_factor(moment_KK), rule, step=m)
    return mended_NK, rule.mask_NK


def round_to_grid(
    weight_NK: Tensor,
    moment_KK: Tensor,
    *,
    bits: int,
    group: int,
    symmetric: bool,
    mask_NK: Tensor | None = None,
) -> Packed:
    """GPTQ's weight, in the order of its columns (no act-order: kernels read groups as they lie).

    Args:
        weight_NK: the weight.
        moment_KK: second moment of the inputs.
        bits: 4 or 3.
        group: 32, 64 or 128 columns.
        symmetric: no zero points.
        mask_NK: weights that are kept; others are zero.
    """
    rule = RoundRule(bits, group, symmetric=symmetric, mask_NK=mask_NK)
    mend(weight_NK, inverse_factor(moment_KK), rule, step=group)
    return rule.packed()
