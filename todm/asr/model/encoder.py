"""The MH-SSM encoder: subsampling, then blocks of a multi-head state-space mixer and an FFN.

MH-SSM: Fathullah et al., arXiv 2305.12498. Every head is a state-space model whose parameters are
shared by its channels; heads come in pairs of which one gates the other. One set of weights serves
every chunk size: the forward recurrence carries its state over all time, the backward one restarts
in every chunk of C frames (a look-ahead of at most one chunk).

Letters: B batch, T frames (100 per second before subsampling, 25 after), D width of the model,
H heads = 2 * pairs, P channels per head, N state modes, C frames of a chunk.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from todm.asr.model.encoder_config import (
    NUM_BINS,
    SUBSAMPLING,
    EncoderConfig,
)
from todm.asr.model.mixer import SILU_GAIN, Mixer, recurrences_of, small_uniform
from todm.asr.model.recurrence import Recurrence
from todm.asr.model.wait import Wait
from todm.supernet.elastic import AdaptiveDropout, Axes, ElasticLinear
from todm.supernet.shared import Share
from todm.supernet.space import Subnet


class Subsampling(nn.Module):
    """Normalise, stack `context` frames every 4 and project. Looks back only.

    The mean and scale of the features lie here, since a device does not normalise. Before the first
    frame the (normalised) history is zero.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.context = config.context
        self.register_buffer("mean", torch.zeros(NUM_BINS))
        self.register_buffer("scale", torch.ones(NUM_BINS))
        self.mean: Tensor
        self.scale: Tensor
        self.hidden = nn.Linear(config.context * NUM_BINS, config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)
        # A gain of the signal adds a constant to all bins: zero-mean filters start blind to it.
        nn.init.normal_(self.hidden.weight, std=(config.context * NUM_BINS) ** -0.5)
        self.hidden.weight.data -= self.hidden.weight.data.mean(1, keepdim=True)
        nn.init.normal_(self.out.weight, std=SILU_GAIN * config.d_model**-0.5)

    @property
    def history(self) -> int:
        """Frames of look-back."""
        return self.context - SUBSAMPLING

    def normalise(self, features_BTF: Tensor) -> Tensor:
        """Features with zero mean and unit variance per bin."""
        return (features_BTF - self.mean) * self.scale

    def forward(self, normal_BTF: Tensor, history_BTF: Tensor) -> Tensor:
        """T frames (a multiple of 4) after `history` frames -> [B, T / 4, D]."""
        x = torch.cat([history_BTF, normal_BTF], 1)
        count = normal_BTF.shape[1] // SUBSAMPLING
        own = x[:, self.history :].reshape(x.shape[0], count, SUBSAMPLING * NUM_BINS)
        before = x[:, : count * SUBSAMPLING].reshape(x.shape[0], count, SUBSAMPLING * NUM_BINS)
        if self.history != SUBSAMPLING:
            before = before[..., : self.history * NUM_BINS]
        stacked = torch.cat([before, own], -1) if self.history else own
        return self.out(F.silu(self.hidden(stacked)))


class Block(nn.Module):
    """x + Mixer(LN(x)), then x + FFN(LN(x))."""

    def __init__(self, config: EncoderConfig, ffn: int, pairs: int) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(config.d_model)
        self.mixer = Mixer(config, pairs)
        self.ffn_norm = nn.LayerNorm(config.d_model)
        self.up = ElasticLinear(config.d_model, ffn)
        self.down = ElasticLinear(ffn, config.d_model)
        self.ffn, self.pairs = ffn, pairs
        nn.init.normal_(self.up.weight, std=config.d_model**-0.5)
        nn.init.normal_(self.down.weight, std=0.5 * SILU_GAIN * ffn**-0.5)
        self.dropout = AdaptiveDropout(config.dropout, config.dropout_rule)

    @staticmethod
    def axes(config: EncoderConfig) -> Axes:
        """Elastic axes by parameter of the block."""
        return {
            **{f"mixer.{k}": v for k, v in Mixer.axes(config).items()},
            "up.weight": {0: ("ffn", 1)},
            "up.bias": {0: ("ffn", 1)},
            "down.weight": {1: ("ffn", 1)},
        }

    def feed_forward(self, x_BTD: Tensor, width: int, *, student: bool = False) -> Tensor:
        """The second half of the block."""
        rate = {"ratio": width / self.ffn, "student": student, "training": self.training}
        h = F.silu(self.up(self.ffn_norm(x_BTD), out_features=width))
        return x_BTD + self.dropout(self.down(self.dropout(h, **rate)), **rate)

    def forward(
        self,
        x_BTD: Tensor,
        mask_TB1: Tensor,
        *,
        ffn: int | None,
        pairs: int | None,
        chunk: int,
        student: bool,
        wait: Wait | None = None,
        recurrences: list[list[Recurrence]] | None = None,
    ) -> Tensor:
        """A whole sequence at the given widths (None: its own); `student`: the net is not the largest."""
        ffn = self.ffn if ffn is None else ffn
        pairs = self.pairs if pairs is None else pairs
        past = {"chunk": chunk, "wait": wait, "recurrences": recurrences}
        mixed = self.mixer(self.mixer_norm(x_BTD), mask_TB1, pairs=pairs, **past)
        ratio = pairs / self.pairs
        x = x_BTD + self.dropout(mixed, ratio=ratio, student=student, training=self.training)
        return self.feed_forward(x, ffn, student=student)


class EncoderCommon(NamedTuple):
    """What all subnets compute alike on one batch.

    Attributes:
        x_BTD: input of the first block.
        recurrences: of every block of the supernet.
    """

    x_BTD: Tensor
    recurrences: list[list[list[Recurrence]]]


class Encoder(nn.Module):
    """Subsampling, blocks, and one final norm that all subnets share."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.subsampling = Subsampling(config)
        self.blocks = nn.ModuleList(
            Block(config, f, p) for f, p in zip(config.ffn, config.pairs, strict=True)
        )
        self.norm = nn.LayerNorm(config.d_model)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.bias.data.copy_(small_uniform(config.d_model))

    def forward(
        self,
        features_BTF: Tensor,
        lens_B: Tensor,
        *,
        subnet: Subnet | None = None,
        chunk: int = 16,
        wait: Wait | None = None,
        common: EncoderCommon | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode whole utterances.

        Args:
            features_BTF: log-mel features; what lies beyond a length is ignored.
            lens_B: true lengths in frames.
            subnet: active subnet; None uses everything.
            chunk: C in subsampled frames, 0 for the whole utterance.
            wait: what was heard before, in loops of whole chunks: whole utterances (chunk 0) look ahead.
            common: from `common` with the same batch.

        Returns:
            [B, T', D] with T' a whole number of chunks, and the lengths lens // 4.
        """
        assert wait is None or (chunk and not wait.frames % chunk), "a wait is whole chunks"
        lens = lens_B // SUBSAMPLING
        x = self.embed(features_BTF, lens_B, chunk, wait) if common is None else common.x_BTD
        steps = torch.arange(x.shape[1], device=x.device)
        mask = (steps[:, None] < lens).unsqueeze(-1).to(x.dtype)
        student = subnet is not None and self.config.narrow(subnet) != self.config
        for position, index in enumerate(subnet.blocks if subnet else range(len(self.blocks))):
            block = self.blocks[index]
            # A plain model's blocks are all called alike, which compression block by block relies on.
            ffn = subnet.width("ffn", position) if subnet else None
            pairs = subnet.width("pairs", position) if subnet else None
            past = {"chunk": chunk, "wait": wait}
            if common is not None:
                past["recurrences"] = common.recurrences[index]
            x = block(x, mask, ffn=ffn, pairs=pairs, student=student, **past)
        return self.norm(x), lens

    def common(
        self,
        features_BTF: Tensor,
        lens_B: Tensor,
        *,
        chunk: int,
        wait: Wait | None = None,
        share: Share,
    ) -> EncoderCommon:
        """What the passes of several subnets over one batch need to compute only once.

        Args:
            features_BTF: as of `forward`.
            lens_B: as of `forward`.
            chunk: as of `forward`.
            wait: as of `forward`.
            share: see `todm.supernet.shared`.
        """
        x = self.embed(features_BTF, lens_B, chunk, wait)
        mixers = [m for m in self.blocks.modules() if isinstance(m, Mixer)]
        found = recurrences_of(mixers, frames=x.shape[1], chunk=chunk, wait=wait)
        recurrences = [[[r.map(share) for r in stage] for stage in block] for block in found]
        return EncoderCommon(share(x), recurrences)

    def embed(
        self, features_BTF: Tensor, lens_B: Tensor, chunk: int, wait: Wait | None = None
    ) -> Tensor:
        """Normalise, zero what lies beyond each length, pad to whole chunks and subsample."""
        num_frames = features_BTF.shape[1]
        padding = -num_frames % (SUBSAMPLING * max(1, chunk))
        steps = torch.arange(num_frames, device=features_BTF.device)
        inside = (steps < lens_B[:, None]).unsqueeze(-1)
        x = self.subsampling.normalise(features_BTF).masked_fill(~inside, 0.0)
        x = F.pad(x, (0, 0, 0, padding))
        history = x.new_zeros(x.shape[0], self.subsampling.history, NUM_BINS)
        if wait is not None:
            history = wait.history(x, history, SUBSAMPLING)
        return self.subsampling(x, history)
