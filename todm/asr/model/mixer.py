"""The mixer of MH-SSM: heads of a state-space model, of which one gates the other.

Letters: B batch, T frames, D width of the model, H heads = 2 * pairs, P channels per head, N state modes,
C frames of a chunk.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from todm.asr.model.encoder_config import FRAMES_PER_SECOND, EncoderConfig
from todm.asr.model.recurrence import Recurrence
from todm.asr.model.wait import Wait
from todm.kernels.mh_ssm import Ssm, discretise
from todm.supernet.elastic import Axes, ElasticLinear

SILU_GAIN = 1.7  # 1 / rms(SiLU(x)) for a standard normal x


class Mixer(nn.Module):
    """Multi-head SSM: project into H heads, two stacked SSMs per head, one head of a pair gates the other.

    Each of the two stages runs a forward and (with look-ahead) a backward recurrence, then SiLU and
    a linear map of the head's own channels.
    """

    STAGES = 2

    def __init__(self, config: EncoderConfig, pairs: int) -> None:
        super().__init__()
        self.channels, self.pairs = config.head_channels, pairs
        longest = config.memory_seconds or math.inf
        self.least_decay = -math.log(longest * FRAMES_PER_SECOND)
        self.directions = 2 if config.lookahead == "chunk" else 1
        heads, width = 2 * pairs, config.head_channels
        shape = (self.STAGES, self.directions, heads)
        self.w_in = ElasticLinear(config.d_model, heads * width)
        self.w_out = ElasticLinear(pairs * width, config.d_model)
        self.log_dt = _plain_adam(_initial_steps(config, pairs, self.STAGES))
        self.log_neg_re = _plain_adam(torch.full((*shape, config.state), math.log(0.5)))
        self.im = _plain_adam(
            math.pi * torch.arange(config.state).float().expand(*shape, -1).clone()
        )
        # One of the directions is enough.
        direct = torch.tensor([1.0, 0.0])[: self.directions, None]
        self.skip = _plain_adam(direct.expand(shape).clone())
        self.c = nn.Parameter(torch.randn(*shape, config.state, 2) / math.sqrt(2))
        # Chosen so that a mixer, as an FFN, starts at about half the scale of its input.
        nn.init.normal_(self.w_in.weight, std=config.d_model**-0.5)
        nn.init.normal_(self.w_out.weight, std=(pairs * width) ** -0.5)
        scale = SILU_GAIN * (self.directions * width) ** -0.5
        self.mix = nn.Parameter(
            scale * torch.randn(self.STAGES, self.directions, heads, width, width)
        )
        self.mix_bias = nn.Parameter(small_uniform(self.STAGES, heads, width))

    @staticmethod
    def axes(config: EncoderConfig) -> Axes:
        """Elastic axes by parameter; the unit is a gate pair."""
        pair = {2: ("pairs", 2)}
        width = config.head_channels
        return {
            "w_in.weight": {0: ("pairs", 2 * width)},
            "w_in.bias": {0: ("pairs", 2 * width)},
            "w_out.weight": {1: ("pairs", width)},
            **dict.fromkeys(("log_dt", "log_neg_re", "im", "skip", "c", "mix"), pair),
            "mix_bias": {1: ("pairs", 2)},
        }

    def ssms(self) -> list[list[Ssm]]:
        """Discrete models of all heads by stage and direction."""
        by_stage = zip(*(p.unbind(0) for p in discrete([self])), strict=True)
        return [
            [Ssm(*parts) for parts in zip(*(p.unbind(0) for p in stage), strict=True)]
            for stage in by_stage
        ]

    def split(self, x_BTD: Tensor, pairs: int) -> Tensor:
        """Project into heads: [H, T, B, P]."""
        width = 2 * pairs * self.channels
        h = self.w_in(x_BTD, out_features=width)
        return (
            h.reshape(*x_BTD.shape[:2], 2 * pairs, self.channels).permute(2, 1, 0, 3).contiguous()
        )

    def join(self, h_HTBP: Tensor) -> Tensor:
        """Gate one head of each pair with the other and project back: [B, T, D]."""
        gated = h_HTBP[0::2] * F.silu(h_HTBP[1::2])
        return self.w_out(gated.permute(2, 1, 0, 3).flatten(2))

    def after(self, directions: list[tuple[Tensor, Tensor]], stage: int) -> Tensor:
        """SiLU and the head's own linear map of all outputs, each given with its map: [H, T, B, P].

        MH-SSM has GELU; SiLU costs a quarter on a CPU (docs/log.md).
        """
        heads, frames, batch, width = directions[0][0].shape
        out = self.mix_bias[stage, :heads, None]
        for y_HTBP, mix_HPP in directions:
            out = torch.baddbmm(out, F.silu(y_HTBP).reshape(heads, -1, width), mix_HPP)
        return out.reshape(heads, frames, batch, width)

    def forward(
        self,
        x_BTD: Tensor,
        mask_TB1: Tensor,
        *,
        pairs: int,
        chunk: int,
        wait: Wait | None = None,
        recurrences: list[list[Recurrence]] | None = None,
    ) -> Tensor:
        """A whole sequence.

        Args:
            x_BTD: normalised input.
            mask_TB1: 1 inside an utterance, 0 beyond its end.
            pairs: active gate pairs.
            chunk: C; T is a multiple of it. 0: the whole utterance.
            wait: what was heard before.
            recurrences: of all pairs, if they are known; see `recurrences_of`.
        """
        if recurrences is None:
            (recurrences,) = recurrences_of([self], frames=x_BTD.shape[1], chunk=chunk, wait=wait)
        h = self.split(x_BTD, pairs)
        for stage, directions in enumerate(recurrences):
            h = h * mask_TB1
            active = [recurrence.first(2 * pairs) for recurrence in directions]
            h = self.after([(r.run(h), r.mix_HPP) for r in active], stage)
        return self.join(h)


def recurrences_of(
    mixers: Sequence[Mixer], *, frames: int, chunk: int, wait: Wait | None = None
) -> list[list[list[Recurrence]]]:
    """The recurrences of mixers by stage and direction, worked out for all of them at once.

    That takes dozens of small operations, which cost the same for one head as for all.

    Args:
        mixers: of one encoder.
        frames: T.
        chunk: C, 0 for the whole utterance.
        wait: what was heard before.
    """
    heads = [2 * mixer.pairs for mixer in mixers]
    ssm, mix = discrete(mixers), torch.cat([mixer.mix for mixer in mixers], 2)
    found = []
    for direction in range(mixers[0].directions):
        back = direction > 0
        whole = Recurrence.of(
            Ssm(*(p[:, direction].flatten(0, 1) for p in ssm)),
            mix[:, direction].flatten(0, 1),
            frames=frames,
            reset=chunk if back else 0,
            reverse=back,
            wait=None if back else wait,
        )
        found.append(whole.split(heads * Mixer.STAGES))
    by_stage = list(zip(*found, strict=True))
    return [
        [list(by_stage[stage * len(mixers) + i]) for stage in range(Mixer.STAGES)]
        for i in range(len(mixers))
    ]


def discrete(mixers: Sequence[Mixer]) -> Ssm:
    """Discrete models by stage, direction and head, the heads of all mixers one after the other."""

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(mixer, name) for mixer in mixers], 2)

    log_dt = joined("log_dt")
    least = mixers[0].least_decay - log_dt.unsqueeze(-1)
    return discretise(
        log_dt, joined("log_neg_re").maximum(least), joined("im"), joined("c"), joined("skip")
    )


def small_uniform(*shape: int) -> Tensor:
    """Initial biases: ScaledAdam's steps are relative, so from zero they would hardly grow."""
    return torch.empty(shape).uniform_(-0.02, 0.02)


def _plain_adam(value: Tensor) -> nn.Parameter:
    """A parameter for a plain Adam group: steps relative to its size, as of ScaledAdam, would destroy it."""
    parameter = nn.Parameter(value)
    parameter._plain_adam = True  # pyright: ignore[reportAttributeAccessIssue]
    return parameter


def _initial_steps(config: EncoderConfig, pairs: int, stages: int) -> Tensor:
    """Log dt per stage, direction and head.

    Pairs follow a bit-reversed order from slow to fast, so that every prefix spans both.
    """
    rank = torch.tensor(_bit_reversed(pairs)).float()
    at = ((rank + 0.5) / pairs).repeat_interleave(2)
    ranges = (config.step_range, config.backward_step_range)[
        : 2 if config.lookahead == "chunk" else 1
    ]
    rows = [math.log(low) + at * (math.log(high) - math.log(low)) for low, high in ranges]
    return torch.stack(rows).expand(stages, -1, -1).clone()


def _bit_reversed(count: int) -> list[int]:
    """0 .. count-1 such that every prefix is spread evenly over the range."""
    bits = max(1, (count - 1).bit_length())
    order = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits)]
    kept = [i for i in order if i < count]
    return [sorted(kept).index(i) for i in kept]
