"""What is minimised: RNN-T loss, distillation from the step's largest net, and CTC for the alignment.

Wraps the model, so that one call is one forward of one subnet, also under DistributedDataParallel.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from todm.asr.data import SUBSAMPLING, Batch
from todm.asr.model import BLANK, Rnnt
from todm.config import Config
from todm.errors import ConfigError
from todm.kernels.rnnt_loss import Divergence, Teacher, rnnt_loss
from todm.supernet.space import Subnet


@dataclasses.dataclass(frozen=True)
class TrainingBatch:
    """A batch, and what all passes of a step and all processes share.

    Attributes:
        batch: features after augmentation, and labels.
        chunk: C of this step, 0 for whole utterances.
        num_labels: labels of the batch, averaged over processes: the unit of the loss.
    """

    batch: Batch
    chunk: int
    num_labels: float

    @property
    def ids(self) -> list[str]:
        """Names of the utterances."""
        return self.batch.ids

    def to(self, device: torch.device) -> "TrainingBatch":
        """The same on a device."""
        return dataclasses.replace(self, batch=self.batch.to(device))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Config):
    """Weights of the loss terms; ramps are fractions of the planned updates.

    Attributes:
        topology: lattice of the RNN-T loss; `one_symbol` is what greedy search on a device does.
        rnnt_impl: implementation of the loss; None leaves it to the dispatch rule.
        fastemit: FastEmit lambda, rewards early labels.
        delay_penalty: penalty per frame of delay on labels.
        ctc_start: weight of the CTC loss at the beginning.
        ctc_end: its weight from `ctc_until` on.
        ctc_until: where the CTC weight has come down.
        align_until: until here the CTC head learns labels laid evenly over the speech instead
            (a flat start: CTC and RNN-T alone find their first alignment only after hundreds of
            updates, docs/log.md).
        distill: divergence of students from the largest net: alpha, kl, collapsed or none.
        distill_weight: lambda.
        distill_from: where distillation starts.
        distill_full: where it reaches its full weight.
        student_rnnt: whether students also have the RNN-T loss (else distillation only).
    """

    topology: Literal["standard", "one_symbol"] = "one_symbol"
    rnnt_impl: Literal["torch", "reference", "torchaudio"] | None = None
    fastemit: float = 0.0
    delay_penalty: float = 0.0
    ctc_start: float = 1.0
    ctc_end: float = 0.2
    ctc_until: float = 0.3
    align_until: float = 0.0
    distill: Literal["alpha", "kl", "collapsed", "none"] = "alpha"
    distill_weight: float = 1.0
    distill_from: float = 0.3
    distill_full: float = 0.4
    student_rnnt: bool = True

    def __post_init__(self) -> None:
        beyond = (
            self.topology != "standard"
            or self.distill != "none"
            or self.fastemit
            or self.delay_penalty
        )
        if self.rnnt_impl == "torchaudio" and beyond:
            raise ConfigError(
                "objective.rnnt_impl 'torchaudio' knows the standard topology only, no distillation, "
                "fastemit or delay_penalty: set topology=standard and distill=none, or leave rnnt_impl out"
            )


class Told(NamedTuple):
    """What the largest net leaves for its students, detached."""

    joiner: Teacher


class RnntObjective(nn.Module):
    """The loss of one subnet on one batch."""

    def __init__(self, model: Rnnt, config: ObjectiveConfig, *, label_sizes: Sequence[int]) -> None:
        """Wrap a model; `label_sizes` is the length of every label in letters, for the flat start."""
        super().__init__()
        self.model = model
        self.config = config
        self.register_buffer("sizes_V", torch.tensor(label_sizes), persistent=False)
        self.sizes_V: Tensor

    def forward(
        self, step: TrainingBatch, *, subnet: Subnet | None, teacher: Told | None, progress: float
    ) -> tuple[dict[str, Tensor], Told | None]:
        """Loss per label, and what students of this pass may learn from.

        Args:
            step: features, labels and the chunk size of this step.
            subnet: active subnet.
            teacher: left by the largest net in the same step; None for the largest itself.
            progress: fraction of the planned updates done.

        Returns:
            `loss` with its gradient, detached parts (`rnnt`, `ctc`, `divergence`, `flat_start`), all
            per label.
        """
        model, config, batch = self.model, self.config, step.batch
        enc, lens = model.encode(
            batch.features_BTF, batch.feature_lens_B, subnet=subnet, chunk=step.chunk
        )
        if model.ctc is not None and progress < config.align_until:
            loss = self._flat_start(enc, batch) / step.num_labels
            return {"loss": loss, "flat_start": loss.detach()}, None
        projected = model.project_encoder(enc)
        pred = model.predict_sequence(batch.targets_BU)
        distill = self._ramp(progress) if teacher is not None else 0.0
        result = rnnt_loss(
            projected,
            pred,
            model.output.weight,
            model.output.bias,
            batch.targets_BU,
            lens,
            batch.target_lens_B,
            topology=config.topology,
            teacher=teacher.joiner if teacher is not None and distill else None,
            divergence=Divergence(kind=config.distill) if distill else None,  # pyright: ignore[reportArgumentType]
            fastemit=config.fastemit,
            delay_penalty=config.delay_penalty,
            impl=config.rnnt_impl,
        )
        parts = {"rnnt": result.loss_B.sum() / step.num_labels}
        loss = parts["rnnt"] if teacher is None or config.student_rnnt else parts["rnnt"] * 0.0
        if distill:
            parts["divergence"] = result.divergence_B.sum() / step.num_labels
            loss = loss + distill * parts["divergence"]
        if model.ctc is not None:
            parts["ctc"] = self._ctc(enc, lens, batch) / step.num_labels
            loss = loss + self._ctc_weight(progress) * parts["ctc"]
        told = Told(
            Teacher(
                projected.detach(),
                pred.detach(),
                model.output.weight.detach(),
                model.output.bias.detach(),
                result.occupancy,
            )
        )
        return {"loss": loss, **{k: v.detach() for k, v in parts.items()}}, told

    def _ctc(self, enc_BTD: Tensor, lens_B: Tensor, batch: Batch) -> Tensor:
        assert self.model.ctc is not None
        logits = self.model.ctc(enc_BTD).float().log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(
            logits,
            batch.targets_BU,
            lens_B,
            batch.target_lens_B,
            reduction="sum",
            zero_infinity=True,
        )

    def _flat_start(self, enc_BTD: Tensor, batch: Batch) -> Tensor:
        """Cross entropy with the labels of `flat_alignment`, scaled to one term per label."""
        assert self.model.ctc is not None
        labels_BT = flat_alignment(batch, self.sizes_V, enc_BTD.shape[1])
        logits = self.model.ctc(enc_BTD).float()
        total = F.cross_entropy(logits.transpose(1, 2), labels_BT, ignore_index=-1, reduction="sum")
        frames = (labels_BT >= 0).sum().clamp(min=1)
        return total * (batch.target_lens_B.sum() / frames)

    def _ctc_weight(self, progress: float) -> float:
        at = min(1.0, progress / max(self.config.ctc_until, 1e-9))
        return self.config.ctc_start + at * (self.config.ctc_end - self.config.ctc_start)

    def _ramp(self, progress: float) -> float:
        """Weight of the distillation, 0 before `distill_from`."""
        config = self.config
        if config.distill == "none":
            return 0.0
        at = (progress - config.distill_from) / max(config.distill_full - config.distill_from, 1e-9)
        return config.distill_weight * min(1.0, max(0.0, at))


@torch.no_grad()
def flat_alignment(batch: Batch, sizes_V: Tensor, num_frames: int) -> Tensor:
    """Labels laid over the loud part of each utterance in proportion to their letters.

    The loud part is between the first and the last frame whose mean log energy is above the middle
    between the utterance's quiet and loud frames (10th and 90th percentile).

    Args:
        batch: features (before subsampling) and labels.
        sizes_V: letters of every label.
        num_frames: frames after subsampling.

    Returns:
        Labels, int64 [B, num_frames]: blank in the quiet parts, -1 beyond the end.
    """
    energy_BT = batch.features_BTF.mean(-1)
    steps = torch.arange(energy_BT.shape[1], device=energy_BT.device)
    inside_BT = steps < batch.feature_lens_B[:, None]
    masked = energy_BT.masked_fill(~inside_BT, float("nan"))
    low, high = (torch.nanquantile(masked, q, 1) for q in (0.1, 0.9))
    loud_BT = inside_BT & (energy_BT > ((low + high) / 2)[:, None])
    first_B = torch.where(loud_BT, steps, steps[-1]).amin(1) / SUBSAMPLING
    last_B = torch.where(loud_BT, steps + 1, 0).amax(1) / SUBSAMPLING
    frames = torch.arange(num_frames, device=energy_BT.device) + 0.5
    share_BT = (frames - first_B[:, None]) / (last_B - first_B).clamp(min=1)[:, None]
    used_BU = (
        torch.arange(batch.targets_BU.shape[1], device=frames.device) < batch.target_lens_B[:, None]
    )
    ends_BU = (sizes_V[batch.targets_BU] * used_BU).cumsum(1)
    at_BT = share_BT * ends_BU[:, -1:]
    index_BT = torch.searchsorted(ends_BU.to(at_BT.dtype), at_BT, right=True)
    labels_BT = batch.targets_BU.gather(1, index_BT.clamp(max=batch.targets_BU.shape[1] - 1))
    labels_BT = labels_BT.masked_fill((share_BT < 0) | (share_BT >= 1), BLANK)
    return labels_BT.masked_fill(frames * SUBSAMPLING >= batch.feature_lens_B[:, None], -1)
