"""The MH-SSM encoder: subsampling, then blocks of a multi-head state-space mixer and an FFN.

MH-SSM: Fathullah et al., arXiv 2305.12498. Every head is a state-space model whose parameters are
shared by its channels; heads come in pairs of which one gates the other. One set of weights serves
every chunk size: the forward recurrence carries its state over all time, the backward one restarts
in every chunk of C frames (a look-ahead of at most one chunk).

Letters: B batch, T frames (100 per second before subsampling, 25 after), D width of the model,
H heads = 2 * pairs, P channels per head, N state modes, C frames of a chunk.
"""

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from todm.asr.model.wait import Wait
from todm.config import Config
from todm.errors import ConfigError
from todm.kernels.mh_ssm import Ssm, discretise, mh_ssm
from todm.supernet.elastic import AdaptiveDropout, Axes, DropoutRule, ElasticLinear
from todm.supernet.space import Subnet

SUBSAMPLING = 4
FRAMES_PER_SECOND = 25
NUM_BINS = 80
_SILU_GAIN = 1.7  # 1 / rms(SiLU(x)) for a standard normal x


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(Config):
    """Sizes of the encoder; `ffn` and `pairs` have one entry per block.

    Attributes:
        d_model: width of the residual stream.
        ffn: inner width of every block's feed-forward layer.
        pairs: gate pairs of every block's mixer.
        head_channels: P, channels of a head.
        state: N, complex modes of a head.
        context: stacked feature frames that the subsampling reads (8: four before, four of its own).
        lookahead: `chunk` has a backward recurrence inside each chunk, `none` is causal.
        dropout: the largest net's rate, after each mixer and twice in each FFN.
        dropout_rule: how a subnet's rate follows its width (`todm.supernet.elastic`).
        step_range: time steps of the forward heads, from slow to fast.
        memory_seconds: longest time constant of a mode, None for no limit. What a state holds is then
            settled by as much sound as training hears, and hours of it bring nothing new.
        backward_step_range: time steps of the backward heads.
    """

    d_model: int = 128
    ffn: tuple[int, ...] = (512,) * 6
    pairs: tuple[int, ...] = (8,) * 6
    head_channels: int = 16
    state: int = 16
    context: int = 8
    lookahead: Literal["chunk", "none"] = "chunk"
    dropout: float = 0.1
    dropout_rule: DropoutRule = "adaptive"
    step_range: tuple[float, float] = (4e-3, 6e-2)
    memory_seconds: float | None = 4.0
    backward_step_range: tuple[float, float] = (1e-2, 6e-2)

    def __post_init__(self) -> None:
        if len(self.ffn) != len(self.pairs) or not self.ffn:
            raise ConfigError(
                f"encoder.ffn has {len(self.ffn)} blocks and encoder.pairs {len(self.pairs)}: "
                "one entry per block is needed"
            )
        wrong = [w for w in (*self.ffn, self.d_model, self.head_channels) if w < 16 or w % 16]
        if wrong:
            raise ConfigError(f"encoder widths must be multiples of 16, not {wrong[0]}")
        if self.state < 1 or min(self.pairs) < 1:
            raise ConfigError("encoder.state and encoder.pairs must be at least 1")
        for low, high in (self.step_range, self.backward_step_range):
            if not 0 < low <= high:
                raise ConfigError(f"encoder step range [{low}, {high}]: positive, the lower first")
        if not SUBSAMPLING <= self.context <= 2 * SUBSAMPLING:
            raise ConfigError(
                f"encoder.context is {self.context}: {SUBSAMPLING} to {2 * SUBSAMPLING}"
            )
        if self.memory_seconds is not None and self.memory_seconds <= 0:
            raise ConfigError(
                f"encoder.memory_seconds is {self.memory_seconds}: more than 0, or null for no limit"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"encoder.dropout is {self.dropout}: at least 0 and below 1")

    def narrow(self, subnet: Subnet) -> "EncoderConfig":
        """The plain encoder of a subnet."""
        widths = dict(subnet.widths)
        return self.replace(ffn=widths["ffn"], pairs=widths["pairs"])


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
        nn.init.normal_(self.out.weight, std=_SILU_GAIN * config.d_model**-0.5)

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
        scale = _SILU_GAIN * (self.directions * width) ** -0.5
        self.mix = nn.Parameter(
            scale * torch.randn(self.STAGES, self.directions, heads, width, width)
        )
        self.mix_bias = nn.Parameter(_small(self.STAGES, heads, width))

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

    def ssms(self, heads: int) -> list[list[Ssm]]:
        """Discrete models by stage and direction, of the first `heads` heads."""
        log_dt = self.log_dt[:, :, :heads]
        ssm = discretise(
            log_dt,
            self.log_neg_re[:, :, :heads].maximum(self.least_decay - log_dt.unsqueeze(-1)),
            self.im[:, :, :heads],
            self.c[:, :, :heads],
            self.skip[:, :, :heads],
        )
        by_stage = zip(*(p.unbind(0) for p in ssm), strict=True)
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

    def after(self, ys: list[Tensor], stage: int) -> Tensor:
        """SiLU and the head's own linear map of the outputs of all directions: [H, T, B, P].

        MH-SSM has GELU; SiLU costs a quarter on a CPU (docs/log.md).
        """
        heads, frames, batch, width = ys[0].shape
        out = self.mix_bias[stage, :heads, None]
        for direction, y in enumerate(ys):
            active = F.silu(y).reshape(heads, -1, width)
            out = torch.baddbmm(out, active, self.mix[stage, direction, :heads])
        return out.reshape(heads, frames, batch, width)

    def forward(
        self, x_BTD: Tensor, mask_TB1: Tensor, *, pairs: int, chunk: int, wait: Wait | None = None
    ) -> Tensor:
        """A whole sequence.

        Args:
            x_BTD: normalised input.
            mask_TB1: 1 inside an utterance, 0 beyond its end.
            pairs: active gate pairs.
            chunk: C; T is a multiple of it. 0: the whole utterance.
            wait: what was heard before.
        """
        h = self.split(x_BTD, pairs)
        for stage, (ahead, *back) in enumerate(self.ssms(2 * pairs)):
            h = h * mask_TB1
            state = wait and wait.state(h, ahead)
            ys = [mh_ssm(h, ahead, state_H2NBP=state, want_state=False)[0]]
            ys += [mh_ssm(h, b, reverse=True, reset=chunk)[0] for b in back]
            h = self.after(ys, stage)
        return self.join(h)


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
        nn.init.normal_(self.down.weight, std=0.5 * _SILU_GAIN * ffn**-0.5)
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
    ) -> Tensor:
        """A whole sequence at the given widths (None: its own); `student`: the net is not the largest."""
        ffn = self.ffn if ffn is None else ffn
        pairs = self.pairs if pairs is None else pairs
        mixed = self.mixer(self.mixer_norm(x_BTD), mask_TB1, pairs=pairs, chunk=chunk, wait=wait)
        ratio = pairs / self.pairs
        x = x_BTD + self.dropout(mixed, ratio=ratio, student=student, training=self.training)
        return self.feed_forward(x, ffn, student=student)


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
                module.bias.data.copy_(_small(config.d_model))

    def forward(
        self,
        features_BTF: Tensor,
        lens_B: Tensor,
        *,
        subnet: Subnet | None = None,
        chunk: int = 16,
        wait: Wait | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode whole utterances.

        Args:
            features_BTF: log-mel features; what lies beyond a length is ignored.
            lens_B: true lengths in frames.
            subnet: active subnet; None uses everything.
            chunk: C in subsampled frames, 0 for the whole utterance.
            wait: what was heard before, in loops of whole chunks: whole utterances (chunk 0) look ahead.

        Returns:
            [B, T', D] with T' a whole number of chunks, and the lengths lens // 4.
        """
        assert wait is None or (chunk and not wait.frames % chunk), "a wait is whole chunks"
        lens = lens_B // SUBSAMPLING
        x = self.embed(features_BTF, lens_B, max(1, chunk), wait)
        steps = torch.arange(x.shape[1], device=x.device)
        mask = (steps[:, None] < lens).unsqueeze(-1).to(x.dtype)
        student = subnet is not None and self.config.narrow(subnet) != self.config
        for position, index in enumerate(subnet.blocks if subnet else range(len(self.blocks))):
            block = self.blocks[index]
            # A plain model's blocks are all called alike, which compression block by block relies on.
            ffn = subnet.width("ffn", position) if subnet else None
            pairs = subnet.width("pairs", position) if subnet else None
            x = block(x, mask, ffn=ffn, pairs=pairs, chunk=chunk, student=student, wait=wait)
        return self.norm(x), lens

    def embed(
        self, features_BTF: Tensor, lens_B: Tensor, chunk: int, wait: Wait | None = None
    ) -> Tensor:
        """Normalise, zero what lies beyond each length, pad to whole chunks and subsample."""
        num_frames = features_BTF.shape[1]
        padding = -num_frames % (SUBSAMPLING * chunk)
        steps = torch.arange(num_frames, device=features_BTF.device)
        inside = (steps < lens_B[:, None]).unsqueeze(-1)
        x = self.subsampling.normalise(features_BTF).masked_fill(~inside, 0.0)
        x = F.pad(x, (0, 0, 0, padding))
        history = x.new_zeros(x.shape[0], self.subsampling.history, NUM_BINS)
        if wait is not None:
            history = wait.history(x, history, SUBSAMPLING)
        return self.subsampling(x, history)


def _plain_adam(value: Tensor) -> nn.Parameter:
    """A parameter for a plain Adam group: steps relative to its size, as of ScaledAdam, would destroy it."""
    parameter = nn.Parameter(value)
    parameter._plain_adam = True  # pyright: ignore[reportAttributeAccessIssue]
    return parameter


def _small(*shape: int) -> Tensor:
    """Initial biases: ScaledAdam's steps are relative, so from zero they would hardly grow."""
    return torch.empty(shape).uniform_(-0.02, 0.02)


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
