"""The loss in Triton, for NVIDIA GPUs: nothing of size V is kept for the lattice.

Letters: N valid nodes, M nodes of a tile, K chosen nodes, J joiner width, V vocabulary. A tile lives
in a few buffers only while it is processed: a kernel makes the hidden values, the library's matmul the
logits (fp32 sums), and one kernel works on those node by node. README.md counts the work.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from todm.errors import ConfigError
from todm.kernels._dispatch import on_device_of
from todm.kernels._tune import require_gpu
from todm.kernels.rnnt_loss.problem import Problem, RnntLoss, Teacher
from todm.kernels.rnnt_loss.triton_joint import Chosen, Run, add_gradients, join
from todm.kernels.rnnt_loss.triton_lattice import occupancy
from todm.kernels.rnnt_loss.triton_nodes import (
    Coefficients,
    Distilled,
    Logits,
    Scores,
    diverge,
    gradient,
    score,
)

# All buffers of a tile together: at V = 500 and J = 512 some 33,000 nodes, 19,000 with a teacher.
# Enough work to hide ten launches, and far below the memory budget.
_TILE_BYTES = 128 << 20
# Elements: tensor cores need rows at multiples of 16 bytes, Triton strides of 16 elements.
_ALIGN = 16


def rnnt_loss(problem: Problem, *, tile_bytes: int = _TILE_BYTES) -> RnntLoss:
    """The op, see `todm.kernels.rnnt_loss.rnnt_loss`; `tile_bytes` is for tests and tuning.

    Raises:
        ConfigError: tensors that are not on a GPU, or more nodes than 32 bits can count.
    """
    p = problem
    require_gpu("rnnt_loss", p.enc_BTJ)
    num_nodes = p.enc_BTJ.shape[:2].numel() * p.pred_BUJ.shape[1]
    if num_nodes > torch.iinfo(torch.int32).max:
        raise ConfigError(
            f"rnnt_loss: {num_nodes} lattice nodes with padding are more than impl 'triton' can count "
            "(2^31 - 1): make the batch smaller"
        )
    work = _Work.plan(p, tile_bytes)
    with on_device_of(p.enc_BTJ):
        return RnntLoss(*_Loss.apply(p.enc_BTJ, p.pred_BUJ, p.weight_VJ, p.bias_V, work))


class _Joiner(NamedTuple):
    """The joiner's tensors: inputs as given, weight [V, J] padded, in the dtype of the matmul."""

    enc_BTJ: Tensor
    pred_BUJ: Tensor
    weight_VJ: Tensor
    bias_V: Tensor

    def logits(self, nodes_M: Tensor) -> tuple[Tensor, Logits]:
        """Hidden values of nodes [M, J padded], and their logits."""
        hidden_MJ = self.weight_VJ.new_empty(nodes_M.shape[0], self.weight_VJ.shape[1])
        join(self.enc_BTJ, self.pred_BUJ, nodes_M, hidden_MJ)
        logits_MV = _matmul(hidden_MJ, self.weight_VJ.T, self.bias_V.dtype)
        return hidden_MJ, Logits(logits_MV, self.bias_V)


@dataclasses.dataclass(frozen=True)
class _Work:
    """All that a call needs besides the student's four tensors."""

    problem: Problem
    tile_rows: int
    dtype: torch.dtype
    """Of the joiner's matmul."""
    wide: torch.dtype
    """Of scores and of sums of gradients."""
    nodes_N: Tensor
    """Valid nodes by their index in the padded [B, T, U + 1], int32."""
    labels_BU: Tensor
    """Label that may follow each position, 0 after the last; U + 1 columns."""
    lens: tuple[Tensor, Tensor]
    weight_BTU: Tensor | None
    """Weight of each node's divergence, zero where it would vanish in rounding."""

    @classmethod
    def plan(cls, p: Problem, tile_bytes: int) -> "_Work":
        dtype = p.matmul_dtype()
        wide = torch.promote_types(dtype, torch.float32)
        weight_BTU = None if p.teacher is None else p.node_weights().to(wide)
        if weight_BTU is not None:
            weight_BTU.masked_fill_(weight_BTU <= torch.finfo(wide).eps, 0.0)
        return cls(
            problem=p,
            tile_rows=max(1, tile_bytes // _row_bytes(p, dtype, wide)),
            dtype=dtype,
            wide=wide,
            nodes_N=p.valid().flatten().nonzero().squeeze(1).int(),
            labels_BU=p.labels().int(),
            lens=tuple(x.int() for x in p.lens()),
            weight_BTU=weight_BTU,
        )

    def tiles(self, num_rows: int) -> Iterator[slice]:
        for start in range(0, num_rows, self.tile_rows):
            yield slice(start, min(start + self.tile_rows, num_rows))

    def joiner(self, tensors: tuple[Tensor, ...] | Teacher) -> _Joiner:
        enc, pred, weight, bias = (x.detach().contiguous() for x in tensors[:4])
        V, J = weight.shape
        padding = (0, -J % _ALIGN, 0, -V % _ALIGN)
        weight = torch.nn.functional.pad(weight.to(self.dtype), padding)
        return _Joiner(enc, pred, weight, bias.to(self.wide))

    def teacher(self) -> _Joiner | None:
        return None if self.problem.teacher is None else self.joiner(self.problem.teacher)

    def per_node(self) -> Tensor:
        """An uninitialised number for each node of the padded lattice."""
        shape = (*self.problem.enc_BTJ.shape[:2], self.problem.pred_BUJ.shape[1])
        return torch.empty(shape, dtype=self.wide, device=self.nodes_N.device)

    def choose(self, matters_BTU: Tensor) -> Chosen:
        """Nodes that do not vanish in rounding, NaN included, which must show."""
        wanted_BTU = (matters_BTU <= torch.finfo(self.wide).eps).logical_not_()
        nodes_K = wanted_BTU.flatten().nonzero().squeeze(1).int()
        counts_F = wanted_BTU.flatten(0, 1).sum(1, dtype=torch.int32)
        starts_F = torch.nn.functional.pad(counts_F.cumsum(0, dtype=torch.int32), (1, 0))
        places_N = torch.full_like(wanted_BTU.flatten(), -1, dtype=torch.int32)
        places_N[nodes_K] = torch.arange(nodes_K.shape[0], device=nodes_K.device).int()
        return Chosen(nodes_K, starts_F, places_N)

    def runs(self, chosen: Chosen) -> list[Run]:
        """The chosen nodes in tiles."""
        tiles = list(self.tiles(chosen.nodes_K.shape[0]))
        ends = [i for tile in tiles for i in (tile.start, tile.stop - 1)]
        frames = (chosen.nodes_K[ends] // self.problem.pred_BUJ.shape[1]).tolist()
        return [
            Run(tile.start, tile.stop, first, last)
            for tile, first, last in zip(tiles, frames[::2], frames[1::2], strict=True)
        ]


class _Loss(torch.autograd.Function):
    """The gradients of the scores are occupancies, so they are known after the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        enc_BTJ: Tensor,
        pred_BUJ: Tensor,
        weight_VJ: Tensor,
        bias_V: Tensor,
        work: _Work,
    ) -> tuple[Tensor, Tensor, Tensor]:
        tensors = (enc_BTJ, pred_BUJ, weight_VJ, bias_V)
        scores, distilled = _nodes(work, work.joiner(tensors))
        if work.problem.delay_penalty:
            scores.label.add_(work.problem.delay().to(work.wide)[:, :, None])
        log_prob_B, node_BTU, arc_BTU = occupancy(
            scores.label,
            scores.blank,
            enc_lens_B=work.lens[0],
            target_lens_B=work.lens[1],
            topology=work.problem.topology,
        )
        divergence_B = torch.zeros_like(log_prob_B, dtype=work.wide)
        if distilled is not None:
            divergence_B = (distilled.value * work.weight_BTU).sum((1, 2))
        ctx.work = work
        ctx.save_for_backward(*tensors, scores.lse, node_BTU, arc_BTU, *(distilled or ()))
        ctx.mark_non_differentiable(node_BTU)
        return -log_prob_B.to(work.wide), divergence_B, node_BTU

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        *upstream: Tensor,
    ) -> tuple[Tensor | None, ...]:
        with on_device_of(ctx.saved_tensors[0]):
            return (*_gradients(ctx.work, ctx.saved_tensors, upstream), None)


def _nodes(work: _Work, student: _Joiner) -> tuple[Scores, Distilled | None]:
    """Scores of all nodes and, with a teacher, the divergence of those with a weight."""
    scores, teacher = Scores(*(work.per_node() for _ in Scores._fields)), work.teacher()
    if teacher is None or work.weight_BTU is None:
        for tile in work.tiles(work.nodes_N.shape[0]):
            nodes_M = work.nodes_N[tile]
            score(student.logits(nodes_M)[1], nodes_M, work.labels_BU, scores)
        return scores, None
    low = torch.empty_like(scores.lse, dtype=torch.int8)
    value, lse, mean = (work.per_node() for _ in range(3))
    distilled = Distilled(value.zero_(), lse, mean, low)
    heavy_H = work.weight_BTU.flatten()[work.nodes_N].nonzero().squeeze(1).int()
    for tile, rows_K in zip(*_by_tile(work, heavy_H), strict=True):
        nodes_M = work.nodes_N[tile]
        logits = student.logits(nodes_M)[1]
        score(logits, nodes_M, work.labels_BU, scores)
        if rows_K.shape[0]:
            nodes_K = nodes_M[rows_K]
            diverge(
                logits,
                teacher.logits(nodes_K)[1],
                rows_K=rows_K,
                nodes_K=nodes_K,
                labels_BU=work.labels_BU,
                lse=scores.lse,
                config=work.problem.divergence,
                out=distilled,
            )
        del logits  # before the next tile is allocated
    return scores, distilled


def _gradients(
    work: _Work, saved: tuple[Tensor, ...], upstream: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """By enc, pred, weight and bias, tile by tile over the nodes that matter."""
    tensors, (lse, node_BTU, arc_BTU, *rest) = saved[:4], saved[4:]
    distilled = Distilled(*rest) if rest else None
    student, teacher = work.joiner(tensors), work.teacher()
    matters_BTU = node_BTU if work.weight_BTU is None else node_BTU + work.weight_BTU
    chosen = work.choose(matters_BTU)
    coefficients = _coefficients(work, chosen.nodes_K, (node_BTU, arc_BTU), upstream)
    enc_BTJ, pred_BUJ, bias_V = (
        torch.zeros_like(x, dtype=work.wide, memory_format=torch.contiguous_format)
        for x in (tensors[0], tensors[1], tensors[3])
    )
    weight_VJ = torch.zeros_like(student.weight_VJ, dtype=work.wide)
    for run in work.runs(chosen):
        nodes_M = chosen.nodes_K[run.start : run.stop]
        hidden_MJ, logits = student.logits(nodes_M)
        grad_MV = hidden_MJ.new_empty(nodes_M.shape[0], weight_VJ.shape[0])
        bias_V += gradient(
            logits,
            None if teacher is None else teacher.logits(nodes_M)[1],
            nodes_K=nodes_M,
            labels_BU=work.labels_BU,
            lse=lse,
            coefficients=Coefficients(*(x[run.start : run.stop] for x in coefficients)),
            distilled=distilled,
            config=work.problem.divergence,
            out_KV=grad_MV,
        )
        del logits
        weight_VJ += _matmul(grad_MV.T, hidden_MJ, work.wide)
        grad_MJ = torch.mm(grad_MV, student.weight_VJ, out=hidden_MJ)
        add_gradients(grad_MJ, student[:2], chosen=chosen, run=run, out=(enc_BTJ, pred_BUJ))
        del hidden_MJ, grad_MV, grad_MJ  # before the next tile is allocated
    V, J = tensors[2].shape
    grads = (enc_BTJ, pred_BUJ, weight_VJ[:V, :J], bias_V)
    return tuple(g.to(x.dtype) for g, x in zip(grads, tensors, strict=True))


def _by_tile(work: _Work, heavy_H: Tensor) -> tuple[list[slice], list[Tensor]]:
    """The tiles, and for each the rows that are listed in `heavy_H`, counted from its first."""
    tiles = list(work.tiles(work.nodes_N.shape[0]))
    stops = torch.tensor([tile.stop for tile in tiles], device=heavy_H.device)
    ends = [0, *torch.searchsorted(heavy_H, stops.int()).tolist()]
    parts = zip(tiles, ends[:-1], ends[1:], strict=True)
    return tiles, [heavy_H[begin:end] - tile.start for tile, begin, end in parts]


def _coefficients(
    work: _Work, nodes_K: Tensor, visits: tuple[Tensor, Tensor], upstream: tuple[Tensor, ...]
) -> Coefficients:
    """For each chosen node, from the visits of nodes and label arcs and the gradients of both losses."""
    utterance_K = nodes_K // visits[0][0].numel()
    loss_K, divergence_K = (g[utterance_K] for g in upstream[:2])
    node_K, arc_K = (x.flatten()[nodes_K] * loss_K for x in visits)
    fastemit = work.problem.fastemit
    return Coefficients(
        softmax=node_K + fastemit * arc_K,
        blank=node_K - arc_K,
        label=(1 + fastemit) * arc_K,
        distil=torch.zeros_like(node_K)
        if work.weight_BTU is None
        else work.weight_BTU.flatten()[nodes_K] * divergence_K,
    )


def _matmul(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """Product with sums and result in `wide`."""
    if a.dtype == wide:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=wide)
    return a.to(wide) @ b.to(wide)  # the interpreter's CPU has no such product


def _row_bytes(p: Problem, dtype: torch.dtype, wide: torch.dtype) -> int:
    """Bytes of a tile's row: hidden values, logits and their gradient; the first two again for a teacher."""
    V, J = p.weight_VJ.shape
    row = J * dtype.itemsize + V * (wide.itemsize + dtype.itemsize)
    if p.teacher is not None:
        row += p.teacher.enc_BTJ.shape[2] * dtype.itemsize + V * wide.itemsize
    return row
