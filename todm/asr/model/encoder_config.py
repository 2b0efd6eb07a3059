"""Sizes of the encoder, and the constants of its time axis."""

import dataclasses
from typing import Literal

from todm.config import Config
from todm.errors import ConfigError
from todm.supernet.elastic import DropoutRule
from todm.supernet.space import Subnet

SUBSAMPLING = 4
FRAMES_PER_SECOND = 25
NUM_BINS = 80


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
