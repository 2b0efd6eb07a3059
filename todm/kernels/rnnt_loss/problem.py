"""Arguments and results of every implementation of the loss, and the checks they share.

Letters: B utterances, T frames, U labels (U + 1 label positions), J joiner width, V vocabulary,
N valid lattice nodes (t, u) of a batch. A tensor named `_BTU` or `pred_BUJ` has U + 1 positions.
"""

import dataclasses
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from todm.config import Config
from todm.errors import ConfigError

Topology = Literal["standard", "one_symbol"]


class Teacher(NamedTuple):
    """The teacher's joiner inputs and node weights, all detached."""

    enc_BTJ: Tensor
    pred_BUJ: Tensor
    weight_VJ: Tensor
    bias_V: Tensor
    occupancy: Tensor
    """[B, T, U + 1], as the teacher's own call returned it."""


class RnntLoss(NamedTuple):
    """Loss and divergence per utterance, in nats; and the node occupancy, detached."""

    loss_B: Tensor
    divergence_B: Tensor
    occupancy: Tensor
    """[B, T, U + 1]: the probability that the alignment visits (t, u), given the labels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergence(Config):
    """How far a student's node is from its teacher's, and how nodes are weighted.

    `alpha` takes per node the larger of the alpha-divergences at `alpha_min` and `alpha_max`;
    `kl` is KL(teacher | student); `collapsed` is KL over {blank, next label, the rest}.
    """

    kind: Literal["alpha", "kl", "collapsed"] = "alpha"
    alpha_min: float = -1.0
    alpha_max: float = 1.0
    clip: float = 5.0
    """Upper bound of (p/q)^alpha; not applied at alpha = 0 and 1."""
    weighting: Literal["occupancy", "uniform"] = "occupancy"
    """`uniform` spreads the same total, the sum of occupancy, evenly over the utterance's nodes."""
    min_weight: float = 0.0
    """Nodes with less teacher weight are skipped, which saves work."""

    def __post_init__(self) -> None:
        """Check the values."""
        if not (self.clip > 0 and self.min_weight >= 0):
            raise ConfigError(
                f"clip is {self.clip} and min_weight {self.min_weight}: "
                "clip must be above 0, min_weight at least 0"
            )


@dataclasses.dataclass(frozen=True)
class Problem:
    """One call, checked. `enc_lens` and `target_lens` are on the host."""

    enc_BTJ: Tensor
    pred_BUJ: Tensor
    weight_VJ: Tensor
    bias_V: Tensor
    targets_BU: Tensor
    enc_lens: list[int]
    target_lens: list[int]
    topology: Topology
    teacher: Teacher | None
    divergence: Divergence
    fastemit: float
    delay_penalty: float

    def check(self) -> None:
        """Raises ConfigError with the first thing that is wrong, naming the utterance."""
        self._check_shapes()
        self._check_lens()
        self._check_targets()
        self._check_teacher()

    def lens(self) -> tuple[Tensor, Tensor]:
        """Frames and labels per utterance, int64 [B] each, on the inputs' device."""
        device = self.enc_BTJ.device
        return torch.tensor(self.enc_lens, device=device), torch.tensor(
            self.target_lens, device=device
        )

    def matmul_dtype(self) -> torch.dtype:
        """The dtype of the joiner's matmul: autocast's, else the promotion of its two factors."""
        kind = self.enc_BTJ.device.type
        if torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return torch.promote_types(self.enc_BTJ.dtype, self.weight_VJ.dtype)

    def labels(self) -> Tensor:
        """The label that may follow each position [B, U + 1], 0 where none may; int64."""
        _, target_lens_B = self.lens()
        inside = torch.arange(self.targets_BU.shape[1], device=target_lens_B.device)
        inside = inside < target_lens_B[:, None]
        return torch.nn.functional.pad(self.targets_BU.long().masked_fill(~inside, 0), (0, 1))

    def valid(self) -> Tensor:
        """True at the nodes [B, T, U + 1] inside an utterance."""
        enc_lens_B, target_lens_B = self.lens()
        t = torch.arange(self.enc_BTJ.shape[1], device=self.enc_BTJ.device)
        u = torch.arange(self.pred_BUJ.shape[1], device=self.enc_BTJ.device)
        in_time = t < enc_lens_B[:, None]
        in_labels = u <= target_lens_B[:, None]
        return in_time[:, :, None] & in_labels[:, None, :]

    def without_padding(self, enc_BTJ: Tensor, pred_BUJ: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of a joiner with zeros where they are padded: NaN times zero would be NaN."""
        valid_BTU = self.valid()
        return (
            enc_BTJ.masked_fill(~valid_BTU[:, :, :1], 0.0),
            pred_BUJ.masked_fill(~valid_BTU[:, 0, :, None], 0.0),
        )

    def delay(self) -> Tensor:
        """Added to the label scores of each frame [B, T], so that late labels lose."""
        enc_lens_B, _ = self.lens()
        t = torch.arange(self.enc_BTJ.shape[1], device=self.enc_BTJ.device)
        return self.delay_penalty * ((enc_lens_B[:, None] - 1) / 2 - t)

    def node_weights(self) -> Tensor:
        """Factor of each node's divergence, [B, T, U + 1]; zero outside."""
        assert self.teacher is not None
        valid_BTU = self.valid()
        weights_BTU = self.teacher.occupancy.detach().masked_fill(~valid_BTU, 0.0)
        if self.divergence.weighting == "uniform":
            total_B = weights_BTU.sum((1, 2)) / valid_BTU.sum((1, 2))
            weights_BTU = total_B[:, None, None] * valid_BTU
        return weights_BTU.masked_fill(weights_BTU < self.divergence.min_weight, 0.0)

    def _check_shapes(self) -> None:
        (B, T, J), V, U = self.enc_BTJ.shape, self.weight_VJ.shape[0], self.targets_BU.shape[1]
        needed = {
            "pred_BUJ": (tuple(self.pred_BUJ.shape), (B, U + 1, J)),
            "weight_VJ": (tuple(self.weight_VJ.shape), (V, J)),
            "bias_V": (tuple(self.bias_V.shape), (V,)),
            "targets_BU": (tuple(self.targets_BU.shape), (B, U)),
            "enc_lens_B": ((len(self.enc_lens),), (B,)),
            "target_lens_B": ((len(self.target_lens),), (B,)),
        }
        for name, (given, want) in needed.items():
            if given != want:
                raise ConfigError(
                    f"rnnt_loss: {name} has shape {given}; with enc_BTJ {(B, T, J)} and "
                    f"{U} labels it must be {want}"
                )
        if self.topology not in ("standard", "one_symbol"):
            raise ConfigError(f"rnnt_loss: topology {self.topology!r} is not standard | one_symbol")

    def _check_lens(self) -> None:
        T, U = self.enc_BTJ.shape[1], self.targets_BU.shape[1]
        for b, (frames, labels) in enumerate(zip(self.enc_lens, self.target_lens, strict=True)):
            if not 1 <= frames <= T:
                raise ConfigError(f"rnnt_loss: utterance {b} has {frames} frames, allowed 1..{T}")
            if not 0 <= labels <= U:
                raise ConfigError(f"rnnt_loss: utterance {b} has {labels} labels, allowed 0..{U}")
            if self.topology == "one_symbol" and labels > frames:
                raise ConfigError(
                    f"rnnt_loss: utterance {b} has {labels} labels in {frames} frames, which no "
                    "one_symbol path can hold: leave it out, or use topology='standard'"
                )

    def _check_targets(self) -> None:
        V, U = self.weight_VJ.shape[0], self.targets_BU.shape[1]
        _, target_lens_B = self.lens()
        inside = torch.arange(U, device=target_lens_B.device) < target_lens_B[:, None]
        bad = ((self.targets_BU < 1) | (self.targets_BU >= V)) & inside
        if bool(bad.any()):
            b, u = bad.nonzero()[0].tolist()
            raise ConfigError(
                f"rnnt_loss: label {u} of utterance {b} is {int(self.targets_BU[b, u])}, "
                f"allowed 1..{V - 1} (0 is the blank)"
            )

    def _check_teacher(self) -> None:
        if self.teacher is None:
            return
        given = [tuple(t.shape) for t in self.teacher]
        (B, T, _), V = self.enc_BTJ.shape, self.weight_VJ.shape[0]
        J, U1 = self.teacher.enc_BTJ.shape[-1], self.pred_BUJ.shape[1]
        want = [(B, T, J), (B, U1, J), (V, J), (V,), (B, T, U1)]
        for name, has, needs in zip(Teacher._fields, given, want, strict=True):
            if has != needs:
                raise ConfigError(f"rnnt_loss: teacher.{name} has shape {has}, must be {needs}")
