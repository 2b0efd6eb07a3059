"""The lattice in Triton: every node's sum of paths before and after it, then the occupancies.

One program per utterance and direction. Lane i of a program owns label position i, counted from the
end where the direction starts; `reached`, the index of its frame counted the same way, is s - i at step s
of the `standard` lattice (an anti-diagonal) and s in `one_symbol`. A path stays in its lane (a blank) or
comes from lane i - 1 (a label), whose value was stored one step before in both topologies.

Sums run to thousands of nats and their differences matter to 1e-6: they are float64.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from todm.kernels.rnnt_loss.lattice import Occupancy
from todm.kernels.rnnt_loss.problem import Topology

_BLOCK_N = 1024
# Log of a sum over no path: finite, so that the difference of two is not NaN.
NOWHERE = tl.constexpr(-1e30)


def occupancy(
    label_BTU: Tensor,
    blank_BTU: Tensor,
    *,
    enc_lens_B: Tensor,
    target_lens_B: Tensor,
    topology: Topology,
) -> Occupancy:
    """Like `lattice.occupancy`, but reads nothing beyond an utterance's end.

    Args:
        label_BTU: Scores of the labels, contiguous, float32 or float64.
        blank_BTU: Scores of the blanks, likewise.
        enc_lens_B: Frames of each utterance, int32.
        target_lens_B: Labels of each utterance, int32.
        topology: Which lattice.

    Returns:
        `log_prob_B` in float64, the occupancies in the dtype of the scores and zero outside.
    """
    B, T, U1 = label_BTU.shape
    paths_2BTU = torch.empty(2, B, T, U1, dtype=torch.float64, device=label_BTU.device)
    lens = (enc_lens_B, target_lens_B)
    standard = topology == "standard"
    block = triton.next_power_of_2(U1)
    path_kernel[(B, 2)](
        label_BTU,
        blank_BTU,
        *lens,
        paths_2BTU,
        B,
        T,
        U1,
        STANDARD=standard,
        BLOCK_U=block,
        num_warps=num_warps(block),
        num_stages=1,
    )
    node_BTU, arc_BTU = torch.empty_like(label_BTU), torch.empty_like(label_BTU)
    occupancy_kernel[(triton.cdiv(T * U1, _BLOCK_N), B)](
        label_BTU,
        paths_2BTU,
        *lens,
        node_BTU,
        arc_BTU,
        B,
        T,
        U1,
        STANDARD=standard,
        BLOCK_N=_BLOCK_N,
    )
    return Occupancy(paths_2BTU[1, :, 0, 0], node_BTU, arc_BTU)


def num_warps(block: int) -> int:
    """A thread for each label position, up to 512."""
    return min(16, max(1, block // 32))


@triton.jit(do_not_specialize=["B", "T", "U1"])
def path_kernel(
    label_ptr,
    blank_ptr,
    enc_lens_ptr,
    target_lens_ptr,
    paths_ptr,
    B,
    T,
    U1,
    STANDARD: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    """Log-sum over the paths to each node (direction 0) or from it (1), [2, B, T, U + 1]."""
    b, backward = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    frames, labels = tl.load(enc_lens_ptr + b), tl.load(target_lens_ptr + b)
    label_ptr += b * T * U1
    blank_ptr += b * T * U1
    paths_ptr += (backward * B + b) * T * U1
    lane = tl.arange(0, BLOCK_U)
    u = tl.where(backward == 1, labels - lane, lane)
    # A forward step takes the arc's score at the node it leaves, a backward step at the node itself.
    left = 1 - backward.to(tl.int32)
    towards = 1 - 2 * left
    own = tl.where(lane == 0, 0.0, NOWHERE).to(tl.float64)
    # No pipelining: a step loads values that the step before has stored.
    for s in tl.range(0, frames + labels if STANDARD else frames, num_stages=1):
        reached = s - lane if STANDARD else s + tl.zeros_like(lane)
        active = (lane <= labels) & (reached >= 0) & (reached < frames)
        t = tl.where(backward == 1, frames - 1 - reached, reached)
        stays = active & ((reached > 0) | (backward == 1))
        blank = tl.load(blank_ptr + (t - left) * U1 + u, mask=stays, other=0.0)
        comes = active & (lane > 0)
        if STANDARD:
            t_label, t_from, known = t, t, comes
        else:
            comes = comes & ((reached > 0) | (backward == 1))
            t_label, t_from, known = t - left, t + towards, comes & (reached > 0)
        label = tl.load(label_ptr + t_label * U1 + u - left, mask=comes, other=0.0)
        before = tl.load(paths_ptr + t_from * U1 + u + towards, mask=known, other=NOWHERE)
        if not STANDARD:
            # The last arc may be a label: it comes from beyond the last frame.
            before = tl.where(comes & (reached == 0) & (lane == 1), 0.0, before)
        value = _log_add(own + blank, before + label)
        own = tl.where(active, value, own)
        tl.store(paths_ptr + t * U1 + u, value, mask=active)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["B", "T", "U1"])
def occupancy_kernel(
    label_ptr,
    paths_ptr,
    enc_lens_ptr,
    target_lens_ptr,
    node_ptr,
    arc_ptr,
    B,
    T,
    U1,
    STANDARD: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Visits of BLOCK_N nodes and of their label arcs."""
    b = tl.program_id(1).to(tl.int64)
    frames, labels = tl.load(enc_lens_ptr + b), tl.load(target_lens_ptr + b)
    base = b * T * U1
    before_ptr, after_ptr = paths_ptr + base, paths_ptr + B * T * U1 + base
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    t, u = n // U1, n % U1
    inside = (t < frames) & (u <= labels)
    total = tl.load(after_ptr)
    before = tl.load(before_ptr + n, mask=inside, other=NOWHERE) - total
    after = tl.load(after_ptr + n, mask=inside, other=0.0)
    comes = inside & (u < labels)
    if STANDARD:
        onward = tl.load(after_ptr + n + 1, mask=comes, other=NOWHERE)
    else:
        onward = tl.load(after_ptr + n + U1 + 1, mask=comes & (t + 1 < frames), other=NOWHERE)
        onward = tl.where(comes & (t + 1 == frames) & (u + 1 == labels), 0.0, onward)
    label = tl.load(label_ptr + base + n, mask=comes, other=0.0)
    at = n < T * U1
    tl.store(node_ptr + base + n, tl.exp(before + after).to(node_ptr.dtype.element_ty), mask=at)
    arc = tl.exp(before + label + onward)
    tl.store(arc_ptr + base + n, arc.to(arc_ptr.dtype.element_ty), mask=at)


@triton.jit
def _log_add(a, b):
    return tl.where(a > b, a, b) + tl.log(1.0 + tl.exp(-tl.abs(a - b)))
