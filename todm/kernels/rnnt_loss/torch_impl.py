"""The loss in torch, tile by tile, for CPU and GPU: nothing of size V is kept for the lattice.

Letters: N valid nodes, M nodes of a tile, K chosen nodes of a tile, J joiner width, V vocabulary.
Nodes are packed: utterance by utterance, frame by frame, no padding. A tile is a run of frames,
its joiner inputs are added by broadcasting within each utterance's rectangle of frames x positions.
Small batches keep each tile's hidden values and log-probabilities for the backward pass (speed),
others recompute them (memory).
"""

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from todm.kernels._dispatch import on_device_of
from todm.kernels.rnnt_loss.divergence import node_divergence
from todm.kernels.rnnt_loss.lattice import occupancy
from todm.kernels.rnnt_loss.problem import Problem, RnntLoss, Teacher

# Bytes of a tile's hidden values and logits. Small tiles stay in a core's cache; with threads, larger
# ones mean fewer barriers, the main cost on a busy machine; a GPU needs large ones.
_TILE_BYTES = {"one thread": 2 << 20, "threads": 8 << 20, "gpu": 256 << 20}
_KEEP_BYTES = {"cpu": 64 << 20, "gpu": 512 << 20}
# A tile with more than this share of chosen nodes is computed whole: choosing rows costs a copy.
_DENSE = 0.7


def rnnt_loss(
    problem: Problem, *, tile_bytes: int | None = None, keep_bytes: int | None = None
) -> RnntLoss:
    """The op, see `todm.kernels.rnnt_loss.rnnt_loss`; the sizes are for tests and tuning."""
    p = problem
    kind = p.enc_BTJ.device.type
    place = "cpu" if kind == "cpu" else "gpu"
    room = place if place == "gpu" else "one thread" if torch.get_num_threads() == 1 else "threads"
    work = _Work.plan(
        p,
        tile_bytes=_TILE_BYTES[room] if tile_bytes is None else tile_bytes,
        keep_bytes=_KEEP_BYTES[place] if keep_bytes is None else keep_bytes,
    )
    with on_device_of(p.enc_BTJ):
        return RnntLoss(*_Loss.apply(p.enc_BTJ, p.pred_BUJ, p.weight_VJ, p.bias_V, work))


class _Rectangle(NamedTuple):
    """Frames `start..stop` of one utterance, all its positions; `row` is its place in the tile."""

    b: int
    start: int
    stop: int
    positions: int
    row: int


class _Tile(NamedTuple):
    rows: slice
    parts: list[_Rectangle]


class _Joiner(NamedTuple):
    """The joiner's tensors in the dtype of its matmul; the bias in that of the scores."""

    enc_BTJ: Tensor
    pred_BUJ: Tensor
    weight_VJ: Tensor
    bias_V: Tensor

    def hidden(self, tile: _Tile) -> Tensor:
        """tanh(enc + pred) of a whole tile, [M, J]."""
        M, J = tile.rows.stop - tile.rows.start, self.enc_BTJ.shape[2]
        out_MJ = self.enc_BTJ.new_empty(M, J)
        for b, start, stop, positions, row in tile.parts:
            part = out_MJ[row : row + (stop - start) * positions]
            torch.add(
                self.enc_BTJ[b, start:stop, None],
                self.pred_BUJ[b, None, :positions],
                out=part.view(stop - start, positions, J),
            )
        return _tanh_(out_MJ)

    def hidden_at(self, nodes_K: Tensor) -> Tensor:
        """tanh(enc + pred) of chosen nodes, given by their index in the padded [B, T, U + 1]."""
        (_, T, _), U1 = self.enc_BTJ.shape, self.pred_BUJ.shape[1]
        frames_K = nodes_K // U1
        positions_K = (frames_K // T) * U1 + nodes_K % U1
        out_KJ = self.enc_BTJ.flatten(0, 1).index_select(0, frames_K)
        return _tanh_(out_KJ.add_(self.pred_BUJ.flatten(0, 1).index_select(0, positions_K)))

    def log_probs(self, hidden_MJ: Tensor) -> Tensor:
        """[M, V], in the dtype of the scores."""
        if hidden_MJ.dtype == self.bias_V.dtype:
            return torch.addmm(self.bias_V, hidden_MJ, self.weight_VJ.T).log_softmax(1)
        logits_MV = torch.mm(hidden_MJ, self.weight_VJ.T).to(self.bias_V.dtype)
        return logits_MV.add_(self.bias_V).log_softmax(1)


@dataclasses.dataclass(frozen=True)
class _Work:
    """All that a call needs besides the student's four tensors."""

    problem: Problem
    tiles: list[_Tile]
    keep: bool
    dtype: torch.dtype
    """Of the joiner's matmul."""
    valid_BTU: Tensor
    nodes_N: Tensor
    """Index of each packed node in the padded [B, T, U + 1]."""
    label_N: Tensor
    """Label that may follow, 0 after the last."""
    weight_N: Tensor | None
    """Weight of each node's divergence."""

    @classmethod
    def plan(cls, p: Problem, *, tile_bytes: int, keep_bytes: int) -> "_Work":
        dtype = p.matmul_dtype()
        row_bytes = (p.weight_VJ.shape[0] + p.weight_VJ.shape[1]) * dtype.itemsize
        valid_BTU = p.valid()
        labels_BTU = p.labels()[:, None].expand_as(valid_BTU)
        nodes_N = valid_BTU.flatten().nonzero().squeeze(1)
        return cls(
            problem=p,
            tiles=_tiles(p.enc_lens, p.target_lens, max(1, tile_bytes // row_bytes)),
            keep=nodes_N.shape[0] * row_bytes <= keep_bytes,
            dtype=dtype,
            valid_BTU=valid_BTU,
            nodes_N=nodes_N,
            label_N=labels_BTU.flatten()[nodes_N],
            weight_N=None if p.teacher is None else p.node_weights().flatten()[nodes_N],
        )

    def joiner(self, tensors: tuple[Tensor, ...] | Teacher) -> _Joiner:
        wide = torch.promote_types(self.dtype, torch.float32)
        enc, pred, weight, bias = (x.detach().contiguous() for x in tensors[:4])
        return _Joiner(
            enc.to(self.dtype), pred.to(self.dtype), weight.to(self.dtype), bias.to(wide)
        )

    def teacher(self) -> _Joiner | None:
        return None if self.problem.teacher is None else self.joiner(self.problem.teacher)

    def negligible(self) -> float:
        """Nodes with less weight vanish in rounding, and are skipped."""
        return torch.finfo(torch.promote_types(self.dtype, torch.float32)).eps


class _Chosen(NamedTuple):
    """Nodes of a tile that take part in the backward pass; all of them where `index_K` is None."""

    index_K: Tensor | None
    num_rows: int
    nodes_K: Tensor
    label_K: Tensor

    @classmethod
    def of(cls, work: _Work, tile: _Tile, node_N: Tensor) -> "_Chosen":
        # Not `>`: a NaN must show in the gradients too.
        wanted_M = ~(node_N[tile.rows] <= work.negligible())
        index_K = wanted_M.nonzero().squeeze(1)
        nodes_M, label_M = work.nodes_N[tile.rows], work.label_N[tile.rows]
        if index_K.shape[0] > _DENSE * wanted_M.shape[0]:
            return cls(None, wanted_M.shape[0], nodes_M, label_M)
        return cls(index_K, wanted_M.shape[0], nodes_M[index_K], label_M[index_K])

    def take(self, x_M: Tensor) -> Tensor:
        return x_M if self.index_K is None else x_M.index_select(0, self.index_K)

    def spread(self, x_K: Tensor) -> Tensor:
        """Back to the whole tile, zero elsewhere."""
        if self.index_K is None:
            return x_K
        out_M = x_K.new_zeros(self.num_rows, *x_K.shape[1:])
        return out_M.index_copy_(0, self.index_K, x_K)


class _Loss(torch.autograd.Function):
    """The gradients of the scores are occupancies, so they are known after the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        enc_BTJ: Tensor,
        pred_BUJ: Tensor,
        weight_VJ: Tensor,
        bias_V: Tensor,
        work: _Work,
    ) -> tuple[Tensor, Tensor, Tensor]:
        tensors = (enc_BTJ, pred_BUJ, weight_VJ, bias_V)
        student, teacher = work.joiner(tensors), work.teacher()
        keep = work.keep and any(ctx.needs_input_grad)
        scores_2N = student.bias_V.new_empty(2, work.nodes_N.shape[0])
        divergence_N = torch.zeros_like(scores_2N[0])
        kept: list[Tensor] = []
        for tile in work.tiles:
            hidden_MJ = student.hidden(tile)
            logq_MV = student.log_probs(hidden_MJ)
            scores_2N[0, tile.rows] = logq_MV.gather(1, work.label_N[tile.rows, None]).squeeze(1)
            scores_2N[1, tile.rows] = logq_MV[:, 0]
            kept += [hidden_MJ, logq_MV] if keep else []
            if teacher is not None and work.weight_N is not None:
                heavy = _Chosen.of(work, tile, work.weight_N)
                value_K, grad_KV = _distil(work, tile, heavy, heavy.take(logq_MV), teacher)
                divergence_N[tile.rows] = heavy.spread(value_K)
                kept += [heavy.spread(grad_KV)] if keep else []
        loss_B, node_BTU, label_BTU = _sum_paths(work, scores_2N)
        weights_2N = torch.stack([node_BTU, label_BTU]).flatten(1)[:, work.nodes_N]
        ctx.work, ctx.kept = work, keep
        ctx.save_for_backward(*tensors, weights_2N.to(scores_2N.dtype), *kept)
        divergence_BTU = divergence_N.new_zeros(node_BTU.shape)
        divergence_BTU.view(-1)[work.nodes_N] = divergence_N
        node_BTU = node_BTU.to(scores_2N.dtype)
        ctx.mark_non_differentiable(node_BTU)
        return loss_B.to(scores_2N.dtype), divergence_BTU.sum((1, 2)), node_BTU

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401 - torch's context
        *upstream: Tensor,
    ) -> tuple[Tensor | None, ...]:
        work, tensors, weights_2N = ctx.work, ctx.saved_tensors[:4], ctx.saved_tensors[4]
        kept = iter(ctx.saved_tensors[5:])
        student, teacher = work.joiner(tensors), work.teacher()
        out = [x.new_zeros(x.shape, dtype=student.bias_V.dtype) for x in tensors]
        utterance_N = work.nodes_N // work.valid_BTU[0].numel()
        loss_N, divergence_N = (g[utterance_N] for g in upstream[:2])
        matters_N = weights_2N[0] if work.weight_N is None else weights_2N[0] + work.weight_N
        for tile in work.tiles:
            chosen = _Chosen.of(work, tile, matters_N)
            if ctx.kept:
                hidden_KJ, logq_KV = chosen.take(next(kept)), chosen.take(next(kept))
            else:
                hidden_KJ, logq_KV = _recompute(student, tile, chosen)
            weights_2K = chosen.take((weights_2N[:, tile.rows] * loss_N[tile.rows]).T)
            grad_KV = _score_gradient(logq_KV, chosen.label_K, weights_2K, work.problem.fastemit)
            if teacher is not None:
                distil_KV = (
                    chosen.take(next(kept))
                    if ctx.kept
                    else _distil(work, tile, chosen, logq_KV, teacher)[1]
                )
                grad_KV.addcmul_(distil_KV, chosen.take(divergence_N[tile.rows])[:, None])
            _through_joiner(out, student, tile, chosen, hidden_KJ, grad_KV)
        return (*(g.to(x.dtype) for g, x in zip(out, tensors, strict=True)), None)


def _recompute(student: _Joiner, tile: _Tile, chosen: _Chosen) -> tuple[Tensor, Tensor]:
    """Hidden values and log-probabilities of the chosen nodes, recomputed."""
    hidden_KJ = (
        student.hidden(tile) if chosen.index_K is None else student.hidden_at(chosen.nodes_K)
    )
    return hidden_KJ, student.log_probs(hidden_KJ)


def _distil(
    work: _Work, tile: _Tile, chosen: _Chosen, logq_KV: Tensor, teacher: _Joiner
) -> tuple[Tensor, Tensor]:
    """Weighted divergence of the chosen nodes, and its gradient by the student's logits."""
    assert work.weight_N is not None
    weight_K = chosen.take(work.weight_N[tile.rows]).to(logq_KV.dtype)
    logp_KV = teacher.log_probs(teacher.hidden_at(chosen.nodes_K))
    return node_divergence(
        logq_KV,
        logp_KV,
        label_N=chosen.label_K,
        weight_N=weight_K,
        config=work.problem.divergence,
    )


def _score_gradient(
    logq_KV: Tensor, label_K: Tensor, weights_K2: Tensor, fastemit: float
) -> Tensor:
    """Gradient of the loss by the logits, from the occupancies of nodes and of label arcs."""
    node_K, arc_K = weights_K2.unbind(1)
    grad_KV = logq_KV.exp().mul_((node_K + fastemit * arc_K)[:, None])
    grad_KV[:, 0] -= node_K - arc_K
    label_K1 = label_K[:, None]
    factor_K1 = (1 + fastemit) * arc_K[:, None]
    return grad_KV.scatter_(1, label_K1, grad_KV.gather(1, label_K1).sub_(factor_K1))


def _through_joiner(
    out: list[Tensor],
    student: _Joiner,
    tile: _Tile,
    chosen: _Chosen,
    hidden_KJ: Tensor,
    grad_KV: Tensor,
) -> None:
    """Add one tile's gradients to those of enc, pred, weight and bias."""
    enc_BTJ, pred_BUJ, weight_VJ, bias_V = out
    bias_V += grad_KV.sum(0)
    grad_KV = grad_KV.to(hidden_KJ.dtype)
    if weight_VJ.dtype == hidden_KJ.dtype:
        weight_VJ.addmm_(grad_KV.T, hidden_KJ)
    else:
        weight_VJ += grad_KV.T @ hidden_KJ
    grad_KJ = grad_KV @ student.weight_VJ
    grad_KJ = torch.ops.aten.tanh_backward(grad_KJ, hidden_KJ)
    grad_MJ = chosen.spread(grad_KJ)
    for b, start, stop, positions, row in tile.parts:
        part = grad_MJ[row : row + (stop - start) * positions]
        part = part.view(stop - start, positions, -1)
        enc_BTJ[b, start:stop] = part.sum(1, dtype=enc_BTJ.dtype)
        pred_BUJ[b, :positions] += part.sum(0, dtype=pred_BUJ.dtype)


def _sum_paths(work: _Work, scores_2N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [B], node and label-arc occupancy [B, T, U + 1], in float64."""
    wide = torch.float32 if scores_2N.device.type == "mps" else torch.float64
    scores_2BTU = torch.zeros(2, *work.valid_BTU.shape, dtype=wide, device=scores_2N.device)
    scores_2BTU.view(2, -1)[:, work.nodes_N] = scores_2N.to(wide)
    if work.problem.delay_penalty:
        scores_2BTU[0] += work.problem.delay()[:, :, None]
    enc_lens_B, target_lens_B = work.problem.lens()
    log_prob_B, node_BTU, label_BTU = occupancy(
        scores_2BTU[0],
        scores_2BTU[1],
        enc_lens_B=enc_lens_B,
        target_lens_B=target_lens_B,
        valid_BTU=work.valid_BTU,
        topology=work.problem.topology,
    )
    return -log_prob_B, node_BTU, label_BTU


def _tanh_(x: Tensor) -> Tensor:
    """In place. On a CPU torch's tanh takes three times as long as its sigmoid."""
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        return x.mul_(2).sigmoid_().mul_(2).sub_(1)
    return x.tanh_()


def _tiles(enc_lens: list[int], target_lens: list[int], num_rows: int) -> list[_Tile]:
    """Cut the packed nodes into tiles of about `num_rows`, never inside a frame."""
    tiles: list[_Tile] = []
    parts: list[_Rectangle] = []
    begin = used = 0
    for b, (frames, labels) in enumerate(zip(enc_lens, target_lens, strict=True)):
        start = 0
        while start < frames:
            if parts and used + labels + 1 > num_rows:
                tiles.append(_Tile(slice(begin, begin + used), parts))
                begin, used, parts = begin + used, 0, []
            stop = min(frames, start + max(1, (num_rows - used) // (labels + 1)))
            parts.append(_Rectangle(b, start, stop, labels + 1, used))
            used += (stop - start) * (labels + 1)
            start = stop
    return [*tiles, _Tile(slice(begin, begin + used), parts)]
