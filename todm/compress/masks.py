"""N:M masks: of every m neighbouring inputs of an output, n weights at most are kept.

SR-STE (arXiv 2102.04010), section 3. Groups lie along the inputs (dim 1 of a weight): the input
features of a linear layer, and the input channels of a convolution at each position of its kernel,
the direction that hardware multiplies along. The last group is short where K is not a
multiple of m, and keeps min(n, its size); so a prefix of whole groups of a valid mask is valid.

Letters: N outputs, K inputs, G = ceil(K / m) groups; a convolution has P kernel positions beside.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def nm_mask(scores: Tensor, n: int, m: int, *, pairs: bool = False) -> Tensor:
    """The mask that keeps the best n of every m entries; of equal scores the first is kept.

    Args:
        scores: [N, K, ...]; a larger one is kept, NaN never before a number.
        n: entries kept of a group.
        m: entries of a group, neighbours along dim 1.
        pairs: keep or drop two neighbours at a time, by the sum of their scores, as GPUSQ-ViT
            (arXiv 2305.10727) does with 4:8 for int4. n and m are even then.

    Returns:
        bool, of the shape of `scores`.
    """
    assert 0 < n < m, f"{n}:{m}"
    assert scores.dim() >= 2
    if not pairs:
        kept_NGm = _best(group_inputs(scores, m, fill=float("-inf")), n)
        return ungroup_inputs(kept_NGm, tuple(scores.shape))
    assert n % 2 == m % 2 == 0, f"pairs need even numbers, not {n}:{m}"
    pair_NGp = group_inputs(scores, m, fill=0.0).unflatten(-1, (m // 2, 2)).sum(-1)
    kept_NGm = _best(pair_NGp, n // 2).repeat_interleave(2, -1)
    return ungroup_inputs(kept_NGm, tuple(scores.shape))


def is_nm(weight: Tensor, n: int, m: int) -> bool:
    """Whether of every m entries along dim 1 at most n are not zero."""
    counts = group_inputs((weight != 0).to(torch.uint8), m, fill=0).sum(-1)
    return not bool((counts > n).any())


def sad(a: Tensor, b: Tensor) -> int:
    """Entries in which two masks of one shape differ: sum |a - b| (the SAD of SR-STE)."""
    assert a.shape == b.shape
    return int((a != b).sum())


def group_inputs(weight: Tensor, m: int, *, fill: float) -> Tensor:
    """Rows of groups along the inputs: [N, K] as [N, G, m], [N, K, kh, kw] as [N, kh, kw, G, m].

    Args:
        weight: [N, K, ...].
        m: entries of a group.
        fill: padding of the last group.
    """
    rows = weight.movedim(1, -1)
    return F.pad(rows, (0, -rows.shape[-1] % m), value=fill).unflatten(-1, (-1, m))


def ungroup_inputs(groups: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Inverse of `group_inputs` for a weight of this shape; the padding of the last group is dropped."""
    return groups.flatten(-2)[..., : shape[1]].movedim(-1, 1).contiguous()


def weight_matrix(weight: Tensor, m: int) -> Tensor:
    """A weight as the matrix of a product in which every m columns are a group.

    Args:
        weight: [N, K] or [N, K, kernel positions ...].
        m: entries of a group.

    Returns:
        [N, P * G * m]: kernel positions outside, inputs inside, each position padded with columns of
        zeros to whole groups.
    """
    return group_inputs(weight, m, fill=0.0).flatten(1)


def weight_of_matrix(matrix: Tensor, shape: tuple[int, ...], m: int) -> Tensor:
    """Inverse of `weight_matrix` for a weight of this shape."""
    groups = -(-shape[1] // m)
    return ungroup_inputs(matrix.view(shape[0], *shape[2:], groups, m), shape)


def _best(score_NGm: Tensor, n: int) -> Tensor:
    """The n largest along the last dim, the first of equals; NaN counts as the least.

    An entry is kept if fewer than n beat it. Sorting groups of four takes eight times as long.
    """
    score_NGm = score_NGm.nan_to_num(float("-inf"), float("inf"), float("-inf"))
    place = torch.arange(score_NGm.shape[-1], device=score_NGm.device)
    beaten = torch.zeros_like(score_NGm, dtype=torch.uint8)
    for j, other_NG1 in enumerate(score_NGm.split(1, -1)):
        beaten += (other_NG1 > score_NGm) | ((other_NG1 == score_NGm) & (place > j))
    return beaten < n
