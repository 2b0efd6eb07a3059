"""What is minimised: RNN-T loss, distillation from the step's largest net, and CTC for the alignment.

Wraps the model, so that one call is one forward of one subnet.
Every term is a sum over the batch, divided by its labels: their weights keep their meaning when a
batch, its padding or the number of processes changes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from todm.asr.data.batch import Batch
from todm.asr.encoder_distance import encoder_distance
from todm.asr.flat_start import flat_alignment
from todm.asr.model.encoder import EncoderCommon
from todm.asr.model.transducer import JoinerInputs, Rnnt
from todm.config import Config
from todm.errors import ConfigError
from todm.kernels.rnnt_loss import IMPLS, Divergence, RnntLoss, Teacher, rnnt_loss
from todm.supernet.sandwich import Objective
from todm.supernet.shared import Share
from todm.supernet.space import Subnet


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Config):
    """Weights of the loss terms; ramps are fractions of the planned updates.

    Attributes:
        topology: lattice of the RNN-T loss; `one_symbol` is what greedy search on a device does.
        rnnt_impl: implementation of the loss; None leaves it to the dispatch rule.
        fastemit: FastEmit lambda (arXiv 2010.11148): label gradients are multiplied by 1 + lambda;
            1e-3 to 1e-2 are usual.
        delay_penalty: reward per frame of earliness of a label, in nats (k2's delay_penalty).
        ctc_start: weight of the CTC loss at the beginning.
        ctc_end: its weight from `ctc_until` on.
        ctc_until: where the CTC weight reaches `ctc_end`.
        align_until: until here the CTC head learns labels laid evenly over the speech instead
            (a flat start: CTC and RNN-T alone find their first alignment only after hundreds of
            updates, docs/log.md).
        distill: what students learn from the largest net. At the nodes of the lattice: the `alpha`
            divergence (AlphaNet, arXiv 2102.07954), `kl`, or `collapsed`, KL over {blank, next
            label, rest} (arXiv 2011.06110). Before the lattice: `encoder`, see `encoder_distance`.
            Or `none`.
        divergence: constants of the three on the lattice; `kind` is `distill`.
        distill_weight: lambda.
        distill_from: where distillation starts.
        distill_full: where it reaches its full weight; at once if this is before `distill_from`.
        student_rnnt: whether students also learn from the transcript. If not (AlphaNet), they have
            the CTC loss alone until distillation starts, and then the largest net alone.
    """

    topology: Literal["standard", "one_symbol"] = "one_symbol"
    rnnt_impl: str | None = None
    fastemit: float = 0.0
    delay_penalty: float = 0.0
    ctc_start: float = 1.0
    ctc_end: float = 0.2
    ctc_until: float = 0.3
    align_until: float = 0.0
    distill: Literal["alpha", "kl", "collapsed", "encoder", "none"] = "alpha"
    divergence: Divergence = dataclasses.field(default_factory=Divergence)
    distill_weight: float = 1.0
    distill_from: float = 0.3
    distill_full: float = 0.4
    student_rnnt: bool = True

    def __post_init__(self) -> None:
        if self.rnnt_impl not in (None, *IMPLS):
            raise ConfigError(
                f"objective.rnnt_impl is {self.rnnt_impl!r}: allowed are {', '.join(IMPLS)}, or null"
            )
        weights = ("fastemit", "delay_penalty", "ctc_start", "ctc_end", "distill_weight")
        self.check("objective", weights, holds=lambda v: v >= 0, allowed="0 or more is needed")
        times, allowed = (
            ("ctc_until", "align_until", "distill_from", "distill_full"),
            "a fraction from 0 to 1",
        )
        self.check("objective", times, holds=lambda v: 0 <= v <= 1, allowed=allowed)
        if self.divergence.kind != Divergence().kind:
            raise ConfigError("objective.divergence.kind comes from objective.distill: set that")
        if not self.student_rnnt and (self.distill == "none" or not self.distill_weight):
            raise ConfigError(
                "objective.student_rnnt=false leaves students nothing to learn from without "
                "distillation: set objective.distill and a distill_weight above 0"
            )
        self._check_torchaudio()

    def _check_torchaudio(self) -> None:
        beyond = (
            self.topology != "standard"
            or self.on_lattice is not None
            or self.fastemit > 0
            or self.delay_penalty > 0
        )
        if self.rnnt_impl == "torchaudio" and beyond:
            raise ConfigError(
                "objective.rnnt_impl 'torchaudio' knows the standard topology only, no distillation on "
                "the lattice, fastemit or delay_penalty: set topology=standard and distill=none or "
                "encoder, or leave rnnt_impl out"
            )

    @property
    def on_lattice(self) -> Divergence | None:
        """The divergence at the nodes of the lattice, if students learn by one."""
        if self.distill in ("encoder", "none"):
            return None
        return self.divergence.replace(kind=self.distill)


class Common(NamedTuple):
    """What every pass of a step uses: the encoder's part, and the predictor's outputs [B, U + 1, J]."""

    encoder: EncoderCommon
    pred_BUJ: Tensor | None


class RnntObjective(Objective):
    """The loss of one subnet on one batch."""

    def __init__(self, model: Rnnt, config: ObjectiveConfig, *, label_sizes: Sequence[int]) -> None:
        """Wrap a model; `label_sizes` is the length of every label in letters, for the flat start."""
        super().__init__()
        self.model = model
        self.config = config
        self.register_buffer("sizes_V", torch.tensor(label_sizes), persistent=False)
        self.sizes_V: Tensor

    def common(self, batch: Batch, *, progress: float, share: Share) -> Common:
        """What the passes of a step compute alike; arguments as of `forward`."""
        encoder = self.model.encoder.common(
            batch.features_BTF,
            batch.feature_lens_B,
            chunk=batch.chunk,
            wait=batch.wait,
            share=share,
        )
        if self._is_flat_start(progress):
            return Common(encoder, None)
        return Common(encoder, share(self._predict(batch)))

    def forward(
        self,
        batch: Batch,
        *,
        subnet: Subnet | None,
        teacher: Teacher | None,
        progress: float,
        common: Common | None = None,
    ) -> tuple[dict[str, Tensor], Teacher | None]:
        """Loss per label, and the pass as a teacher of later ones.

        The largest net teaches with the very logits it is trained with, dropout and all, detached:
        a second pass in evaluation mode would cost as much as a student (AlphaNet and AttentiveNAS
        do the same). Dropout is drawn in each pass; features, masks and chunk are the step's.

        Args:
            batch: features, labels and the chunk size of this step.
            subnet: active subnet.
            teacher: from the pass of the largest net in the same step; None for that pass itself.
            progress: fraction of the planned updates done.
            common: from `common` with the same batch and progress.

        Returns:
            `loss` with its gradient and detached parts (`rnnt`, `ctc`, `divergence`,
            `flat_start`), all per label; and the pass as a teacher, None during a flat start.
        """
        model = self.model
        enc, lens = model.encode(
            batch.features_BTF,
            batch.feature_lens_B,
            subnet=subnet,
            chunk=batch.chunk,
            wait=batch.wait,
            common=common and common.encoder,
        )
        if self._is_flat_start(progress):
            loss = self._flat_start(enc, batch) / batch.num_labels
            return {"loss": loss, "flat_start": loss.detach()}, None
        weights = self._weights(progress, student=teacher is not None)
        active_teacher = teacher if weights["divergence"] else None
        pred_BUJ = common.pred_BUJ if common is not None else self._predict(batch)
        assert pred_BUJ is not None, "the common part belongs to another progress"
        joiner = model.joiner_inputs(enc, pred_BUJ)
        by_encoder = self.config.distill == "encoder"
        result = lattice_loss(
            joiner,
            lens,
            batch,
            self.config,
            teacher=None if by_encoder else active_teacher,
        )
        sums = {"rnnt": result.loss_B.sum()}
        if active_teacher is not None:
            sums["divergence"] = (
                encoder_distance(joiner[0], active_teacher.enc_BTJ, lens)
                if by_encoder
                else result.divergence_B.sum()
            )
        if model.ctc is not None:
            sums["ctc"] = _ctc_loss(model.ctc(enc), lens, batch)
        parts = {name: value / batch.num_labels for name, value in sums.items()}
        loss = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        teacher_out = Teacher._make(x.detach() for x in (*joiner, result.occupancy))
        return {"loss": loss, **{k: v.detach() for k, v in parts.items()}}, teacher_out

    def _is_flat_start(self, progress: float) -> bool:
        return self.model.ctc is not None and progress < self.config.align_until

    def _predict(self, batch: Batch) -> Tensor:
        return self.model.predict_sequence(batch.targets_BU, batch.reset_BU)

    def _flat_start(self, enc_BTD: Tensor, batch: Batch) -> Tensor:
        """Cross entropy with the labels of `flat_alignment`, scaled to one term per label."""
        assert self.model.ctc is not None
        labels_BT = flat_alignment(batch, self.sizes_V, enc_BTD.shape[1])
        logits = self.model.ctc(enc_BTD).float()
        total = F.cross_entropy(logits.transpose(1, 2), labels_BT, ignore_index=-1, reduction="sum")
        frames = (labels_BT >= 0).sum().clamp(min=1)
        return total * (batch.target_lens_B.sum() / frames)

    def _weights(self, progress: float, *, student: bool) -> dict[str, float]:
        """The weight of each term, for the largest net or a student."""
        config = self.config
        at = min(1.0, progress / max(config.ctc_until, 1e-9))
        ctc = config.ctc_start + at * (config.ctc_end - config.ctc_start)
        distill = self._ramp(progress) if student else 0.0
        if config.student_rnnt or not student:
            losses = {"rnnt": 1.0, "ctc": ctc}
        else:
            losses = {"rnnt": 0.0, "ctc": 0.0 if distill else ctc}
        return {**losses, "divergence": distill}

    def _ramp(self, progress: float) -> float:
        """Weight of the distillation, 0 before `distill_from`."""
        config = self.config
        if config.distill == "none":
            return 0.0
        at = (progress - config.distill_from) / max(config.distill_full - config.distill_from, 1e-9)
        return config.distill_weight * min(1.0, max(0.0, at))


def lattice_loss(
    joiner: JoinerInputs,
    lens_B: Tensor,
    batch: Batch,
    config: ObjectiveConfig,
    *,
    teacher: Teacher | None = None,
) -> RnntLoss:
    """The RNN-T loss, and the divergence from a teacher at the nodes of its lattice if there is one.

    Args:
        joiner: from `Rnnt.joiner_inputs`.
        lens_B: frames of each utterance after subsampling.
        batch: its labels.
        config: of the lattice; the divergence is alpha where `distill` names none on the lattice.
        teacher: of the same lattice, detached.
    """
    return rnnt_loss(
        *joiner,
        batch.targets_BU,
        lens_B,
        batch.target_lens_B,
        topology=config.topology,
        teacher=teacher,
        divergence=None if teacher is None else config.on_lattice or Divergence(),
        fastemit=config.fastemit,
        delay_penalty=config.delay_penalty,
        impl=config.rnnt_impl,
    )


def _ctc_loss(logits_BTV: Tensor, lens_B: Tensor, batch: Batch) -> Tensor:
    """The sum over the batch, a scalar."""
    return F.ctc_loss(
        logits_BTV.float().log_softmax(-1).transpose(0, 1),
        batch.targets_BU,
        lens_B,
        batch.target_lens_B,
        reduction="sum",
        zero_infinity=True,
    )
