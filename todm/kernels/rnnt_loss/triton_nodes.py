"""The nodes in Triton: scores, divergence from a teacher, and the gradient by the logits.

A row of logits (without bias) belongs to one node. A program has a few rows and walks over V; the second
read of a row comes from the cache. A few numbers are kept per node, in tensors over the padded lattice:
the log-sum-exp of its logits, and the fields of `Distilled`. The maths is that of `divergence.py`.
"""

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from todm.kernels.rnnt_loss.problem import Divergence

_BLOCK_M, _WARPS = 8, 4


class Logits(NamedTuple):
    """Of a tile's nodes: [M, V and padding] without bias, and the bias."""

    logits_MV: Tensor
    bias_V: Tensor

    def settings(self) -> tuple[int, dict[str, int]]:
        """V, and the launch options that fit it."""
        V = self.bias_V.shape[0]
        block = min(2048 // self.bias_V.itemsize, triton.next_power_of_2(V))
        return V, {"BLOCK_M": _BLOCK_M, "BLOCK_V": block, "num_warps": _WARPS}


class Scores(NamedTuple):
    """Of each node of the padded lattice, [B, T, U + 1]; not set outside an utterance."""

    label: Tensor
    blank: Tensor
    lse: Tensor


class Distilled(NamedTuple):
    """Of each node of the padded lattice; but for `value`, not set where nothing is distilled."""

    value: Tensor
    """Divergence, zero where nothing is distilled."""
    lse: Tensor
    """Log-sum-exp of the teacher's logits."""
    mean: Tensor
    """Sum of m over V at the alpha that won; `collapsed`: P/Q of the rest."""
    low: Tensor
    """Whether `alpha_min` won, int8."""


class Coefficients(NamedTuple):
    """Of the softmax, blank, label and distillation terms of a row's gradient, [K] each."""

    softmax: Tensor
    blank: Tensor
    label: Tensor
    distil: Tensor
    """Zero where nothing is distilled; then the teacher's numbers are not read."""


def score(student: Logits, nodes_M: Tensor, labels_BU: Tensor, out: Scores) -> None:
    """Write the scores of a tile's nodes; `labels_BU` has U + 1 columns, the last one without a label."""
    V, options = student.settings()
    _, T, U1 = out.lse.shape
    M = nodes_M.shape[0]
    score_kernel[(triton.cdiv(M, _BLOCK_M),)](
        *student, nodes_M, labels_BU, *out, M, T, U1, V, student.logits_MV.stride(0), **options
    )


def diverge(
    student: Logits,
    teacher: Logits,
    *,
    rows_K: Tensor,
    nodes_K: Tensor,
    labels_BU: Tensor,
    lse: Tensor,
    config: Divergence,
    out: Distilled,
) -> None:
    """Write the divergence of K nodes, and the numbers that its gradient needs.

    Args:
        student: Logits of a tile.
        teacher: Logits of the K nodes.
        rows_K: Rows of the K nodes in the student's, int32.
        nodes_K: The nodes, int32.
        labels_BU: As in `score`.
        lse: The student's, as in `Scores`.
        config: Kind and constants.
        out: Where to write.
    """
    V, options = student.settings()
    _, T, U1 = lse.shape
    K = nodes_K.shape[0]
    divergence_kernel[(triton.cdiv(K, _BLOCK_M),)](
        *student,
        *teacher,
        rows_K,
        nodes_K,
        labels_BU,
        lse,
        *out,
        K,
        T,
        U1,
        V,
        student.logits_MV.stride(0),
        **_constants(config),
        **options,
    )


def gradient(
    student: Logits,
    teacher: Logits | None,
    *,
    nodes_K: Tensor,
    labels_BU: Tensor,
    lse: Tensor,
    coefficients: Coefficients,
    distilled: Distilled | None,
    config: Divergence,
    out_KV: Tensor,
) -> Tensor:
    """Write the gradient by the logits of K nodes to `out_KV`, with zeros in its padding.

    Returns:
        Its sum over rows [V], taken before it is rounded to the dtype of `out_KV`.
    """
    V, options = student.settings()
    _, T, U1 = lse.shape
    K, width = out_KV.shape
    rows = triton.cdiv(K, _BLOCK_M)
    sums_RV = lse.new_empty(rows, V)
    gradient_kernel[(rows, triton.cdiv(width, options["BLOCK_V"]))](
        *student,
        *(teacher or student),
        nodes_K,
        labels_BU,
        lse,
        *coefficients,
        *((lse,) * 3 if distilled is None else distilled[1:]),
        out_KV,
        sums_RV,
        K,
        T,
        U1,
        V,
        width,
        student.logits_MV.stride(0),
        DISTIL=distilled is not None,
        **_constants(config),
        **options,
    )
    return sums_RV.sum(0)


def _constants(config: Divergence) -> dict[str, float | bool]:
    """KL(p | q) is the alpha-divergence at 1."""
    kl = config.kind == "kl"
    return {
        "COLLAPSED": config.kind == "collapsed",
        "LOW": 1.0 if kl else float(config.alpha_min),
        "HIGH": 1.0 if kl else float(config.alpha_max),
        "LOG_CLIP": math.log(config.clip),
    }


@triton.jit(do_not_specialize=["num_rows", "T", "U1"])
def score_kernel(
    logits_ptr,
    bias_ptr,
    nodes_ptr,
    labels_ptr,
    label_out_ptr,
    blank_out_ptr,
    lse_out_ptr,
    num_rows,
    T,
    U1,
    V,
    stride,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Scores of BLOCK_M nodes."""
    m, inside = _rows(num_rows, BLOCK_M)
    node = tl.load(nodes_ptr + m)
    label = _label(labels_ptr, node, T, U1)
    row_ptr = logits_ptr + m.to(tl.int64) * stride
    lse = _log_sum_exp(row_ptr, bias_ptr, V, stride, BLOCK_M, BLOCK_V)
    tl.store(label_out_ptr + node, _logit(row_ptr, bias_ptr, label) - lse, mask=inside)
    tl.store(blank_out_ptr + node, _logit(row_ptr, bias_ptr, label * 0) - lse, mask=inside)
    tl.store(lse_out_ptr + node, lse, mask=inside)


@triton.jit(do_not_specialize=["num_rows", "T", "U1"])
def divergence_kernel(
    logits_ptr,
    bias_ptr,
    teacher_ptr,
    teacher_bias_ptr,
    rows_ptr,
    nodes_ptr,
    labels_ptr,
    lse_ptr,
    value_ptr,
    teacher_lse_ptr,
    mean_ptr,
    low_ptr,
    num_rows,
    T,
    U1,
    V,
    stride,
    COLLAPSED: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    LOG_CLIP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Divergence of BLOCK_M nodes; arguments as in `diverge`."""
    m, inside = _rows(num_rows, BLOCK_M)
    node = tl.load(nodes_ptr + m)
    label = _label(labels_ptr, node, T, U1)
    q_ptr = logits_ptr + tl.load(rows_ptr + m).to(tl.int64) * stride
    p_ptr = teacher_ptr + m.to(tl.int64) * stride
    q_lse = tl.load(lse_ptr + node)
    p_lse = _log_sum_exp(p_ptr, teacher_bias_ptr, V, stride, BLOCK_M, BLOCK_V)
    zero = tl.zeros_like(q_lse)
    # Sums over V: of m and of the terms of the value, at HIGH and at LOW; or Q and P of the rest.
    high_sum, high_value, low_sum, low_value = zero, zero, zero, zero
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        here = (v < V)[None, :]
        logq = _logits(q_ptr, bias_ptr, v, V, stride) - q_lse[:, None]
        logp = _logits(p_ptr, teacher_bias_ptr, v, V, stride) - p_lse[:, None]
        if COLLAPSED:
            rest = here & (v > 0)[None, :] & (v[None, :] != label[:, None])
            high_sum += tl.sum(tl.where(rest, tl.exp(logq), 0.0), 1)
            high_value += tl.sum(tl.where(rest, tl.exp(logp), 0.0), 1)
        else:
            mass, term = _terms(logq, logp, HIGH, LOG_CLIP)
            high_sum += tl.sum(tl.where(here, mass, 0.0), 1)
            high_value += tl.sum(tl.where(here, term, 0.0), 1)
            if LOW != HIGH:
                mass, term = _terms(logq, logp, LOW, LOG_CLIP)
                low_sum += tl.sum(tl.where(here, mass, 0.0), 1)
                low_value += tl.sum(tl.where(here, term, 0.0), 1)
    if COLLAPSED:
        tiny: tl.constexpr = 1.1754943508222875e-38
        mean = high_value / tl.maximum(high_sum, tiny)
        value = high_value * tl.log(tl.maximum(mean, tiny))
        logq = _logit(q_ptr, bias_ptr, label * 0) - q_lse
        logp = _logit(p_ptr, teacher_bias_ptr, label * 0) - p_lse
        value += tl.exp(logp) * (logp - logq)
        logq = _logit(q_ptr, bias_ptr, label) - q_lse
        logp = _logit(p_ptr, teacher_bias_ptr, label) - p_lse
        value += tl.where(label > 0, tl.exp(logp) * (logp - logq), 0.0)
        wins = label < 0
    else:
        mean, value = _finish(high_sum, high_value, HIGH)
        wins = label < 0
        if LOW != HIGH:
            low_mean, low = _finish(low_sum, low_value, LOW)
            wins = low > value
            mean = tl.where(wins, low_mean, mean)
            value = tl.where(wins, low, value)
    tl.store(value_ptr + node, value, mask=inside)
    tl.store(teacher_lse_ptr + node, p_lse, mask=inside)
    tl.store(mean_ptr + node, mean, mask=inside)
    tl.store(low_ptr + node, wins.to(tl.int8), mask=inside)


@triton.jit(do_not_specialize=["num_rows", "T", "U1"])
def gradient_kernel(
    logits_ptr,
    bias_ptr,
    teacher_ptr,
    teacher_bias_ptr,
    nodes_ptr,
    labels_ptr,
    lse_ptr,
    softmax_factor_ptr,
    blank_factor_ptr,
    label_factor_ptr,
    distil_factor_ptr,
    teacher_lse_ptr,
    mean_ptr,
    low_ptr,
    out_ptr,
    sums_ptr,
    num_rows,
    T,
    U1,
    V,
    width,
    stride,
    DISTIL: tl.constexpr,
    COLLAPSED: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    LOG_CLIP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Gradient by BLOCK_V logits of BLOCK_M nodes; arguments as in `gradient`."""
    m, inside = _rows(num_rows, BLOCK_M)
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    node = tl.load(nodes_ptr + m)
    label = _label(labels_ptr, node, T, U1)
    is_label, is_blank = v[None, :] == label[:, None], (v == 0)[None, :]
    q_ptr = logits_ptr + m.to(tl.int64) * stride
    logq = _logits(q_ptr, bias_ptr, v, V, stride) - tl.load(lse_ptr + node)[:, None]
    q = tl.exp(logq)
    grad = q * tl.load(softmax_factor_ptr + m)[:, None]
    grad -= tl.where(is_blank, tl.load(blank_factor_ptr + m)[:, None], 0.0)
    grad -= tl.where(is_label, tl.load(label_factor_ptr + m)[:, None], 0.0)
    if DISTIL:
        factor = tl.load(distil_factor_ptr + m)
        some = factor != 0
        p_lse = tl.load(teacher_lse_ptr + node, mask=some, other=1e30)
        mean = tl.load(mean_ptr + node, mask=some, other=0.0)[:, None]
        p_ptr = teacher_ptr + m.to(tl.int64) * stride
        logp = _logits(p_ptr, teacher_bias_ptr, v, V, stride) - p_lse[:, None]
        if COLLAPSED:
            distil = tl.where(is_label | is_blank, q - tl.exp(logp), q * (1.0 - mean))
        else:
            mass, _ = _terms(logq, logp, HIGH, LOG_CLIP)
            if LOW != HIGH:
                low = tl.load(low_ptr + node, mask=some, other=0)
                low_mass, _ = _terms(logq, logp, LOW, LOG_CLIP)
                mass = tl.where((low != 0)[:, None], low_mass, mass)
            distil = q * mean - mass
        grad += tl.where(some[:, None], distil * factor[:, None], 0.0)
    grad = tl.where(inside[:, None] & (v < V)[None, :], grad, 0.0)
    tl.store(sums_ptr + tl.program_id(0) * V + v, tl.sum(grad, 0), mask=v < V)
    at = m.to(tl.int64)[:, None] * width + v[None, :]
    here = inside[:, None] & (v < width)[None, :]
    tl.store(out_ptr + at, grad.to(out_ptr.dtype.element_ty), mask=here)


@triton.jit
def _rows(num_rows, BLOCK_M: tl.constexpr):
    """Rows of this program; beyond the end they repeat the last one, which is safe to read."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    return tl.minimum(m, num_rows - 1), m < num_rows


@triton.jit
def _label(labels_ptr, node, T, U1):
    return tl.load(labels_ptr + node // U1 // T * U1 + node % U1)


@triton.jit
def _logit(row_ptr, bias_ptr, v):
    return tl.load(row_ptr + v) + tl.load(bias_ptr + v)


@triton.jit
def _logits(row_ptr, bias_ptr, v, V, stride):
    """[M, V]; beyond V a logit that changes no sum, finite so that no difference is NaN.

    The padding of a row is read too: a mask that ends at a multiple of 16 allows reads of four numbers
    at once.
    """
    here = v < V
    logits = tl.load(row_ptr[:, None] + v[None, :], mask=(v < stride)[None, :], other=0.0)
    logits += tl.load(bias_ptr + v, mask=here, other=0.0)[None, :]
    return tl.where(here[None, :], logits, -1e30)


@triton.jit
def _log_sum_exp(row_ptr, bias_ptr, V, stride, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr):
    top = tl.full([BLOCK_M], -1e30, bias_ptr.dtype.element_ty)
    total = tl.zeros_like(top)
    for start in range(0, V, BLOCK_V):
        logits = _logits(row_ptr, bias_ptr, start + tl.arange(0, BLOCK_V), V, stride)
        higher = tl.maximum(top, tl.max(logits, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
        top = higher
    return top + tl.log(total)


@triton.jit
def _terms(logq, logp, ALPHA: tl.constexpr, LOG_CLIP: tl.constexpr):
    """The masses m = q rho, and the terms of the value where it does not follow from the sum of m."""
    ratio = logp - logq
    if ALPHA == 1.0:
        mass = tl.exp(logp)
        term = mass * ratio
    else:
        q = tl.exp(logq)
        if ALPHA == 0.0:
            mass = q * ratio
        else:
            # A sum takes the dtype of its tensor; a number given to minimum() is float32.
            limit = tl.zeros_like(ratio) + LOG_CLIP
            mass = tl.exp(tl.minimum(ratio * ALPHA, limit)) * q / ALPHA
        term = mass * 0.0
    return mass, term


@triton.jit
def _finish(total, terms, ALPHA: tl.constexpr):
    """Mean of rho, and the value."""
    if ALPHA == 1.0:
        mean, value = tl.zeros_like(total) + 1.0, terms
    elif ALPHA == 0.0:
        mean, value = total, -total
    else:
        mean, value = total, (total * ALPHA - 1.0) / (ALPHA * (ALPHA - 1.0))
    return mean, value
