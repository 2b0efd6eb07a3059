"""A streaming Conformer (Gulati et al. 2020, arXiv 2005.08100), the peer of the MH-SSM in timings.

A plain one with random weights: macaron feed-forward halves, attention over the chunk and a cache of
keys and values, a causal depthwise convolution with its cache. It has no relative positions and every
chunk sees a full cache, so it does slightly less work than a real Conformer and none that depends on
the data. Its state is packed into two tensors, like the MH-SSM's.

Letters: N streams, C frames of a chunk, L frames of left context, D width, H heads, W kernel.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from todm.errors import ConfigError

NUM_BINS, SUBSAMPLING = 80, 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConformerConfig:
    """Sizes, with the defaults of streaming recipes: 2.56 s of left context, kernels of 31."""

    d_model: int
    num_blocks: int
    joiner_dim: int
    chunk: int
    heads: int = 4
    left: int = 64
    kernel: int = 31

    @property
    def num_params(self) -> int:
        """Weights of the encoder, counted without allocating them."""
        with torch.device("meta"):
            return sum(p.numel() for p in StreamingConformer(self).parameters())


def of_size(num_params: int, *, joiner_dim: int, chunk: int) -> ConformerConfig:
    """The Conformer with the nearest number of parameters, and a width of 8 to 24 times its blocks.

    Raises:
        ConfigError: none is within 5 %.
    """
    best: ConformerConfig | None = None
    for blocks in range(2, 25):
        for width in range(max(16, 8 * blocks), 24 * blocks + 1, 8):
            one = ConformerConfig(
                d_model=width, num_blocks=blocks, joiner_dim=joiner_dim, chunk=chunk
            )
            # About 23 D^2 per block; only sizes near the target are counted exactly.
            if abs(23 * width * width * blocks / num_params - 1) > 0.25:
                continue
            if best is None or _off(one, num_params) < _off(best, num_params):
                best = one
    if best is None or _off(best, num_params) > 0.05:
        raise ConfigError(f"no Conformer has about {num_params} parameters: choose a larger bundle")
    return best


class StreamingConformer(nn.Module):
    """x [N, 4C, 80], keys and values [1, N, S0], convolution caches [1, N, S1] -> [N, C, J], both."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(SUBSAMPLING * NUM_BINS, config.d_model)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_blocks))
        self.project = nn.Linear(config.d_model, config.joiner_dim)

    @property
    def state_sizes(self) -> tuple[int, int]:
        """Sizes of a stream's two states."""
        config = self.config
        per_block = (2 * config.left * config.d_model, (config.kernel - 1) * config.d_model)
        return config.num_blocks * per_block[0], config.num_blocks * per_block[1]

    def forward(self, x_NTF: Tensor, state0: Tensor, state1: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        config = self.config
        keys = state0[0].reshape(-1, config.num_blocks, 2, config.left, config.d_model)
        convs = state1[0].reshape(-1, config.num_blocks, config.kernel - 1, config.d_model)
        x = self.embed(x_NTF.reshape(-1, config.chunk, SUBSAMPLING * NUM_BINS))
        new_keys, new_convs = [], []
        for index, block in enumerate(self.blocks):
            x, key, conv = block(x, keys[:, index], convs[:, index])
            new_keys.append(key.flatten(1))
            new_convs.append(conv.flatten(1))
        new0, new1 = torch.cat(new_keys, 1).unsqueeze(0), torch.cat(new_convs, 1).unsqueeze(0)
        return self.project(x), new0, new1


class _Block(nn.Module):
    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        width = config.d_model
        self.config = config
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(6))
        self.up1, self.down1 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.up2, self.down2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate, self.point = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.depthwise = nn.Conv1d(width, width, config.kernel, groups=width)

    def forward(
        self, x_NCD: Tensor, cache_N2LD: Tensor, conv_NWD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x_NCD + 0.5 * self.down1(F.silu(self.up1(self.norms[0](x_NCD))))
        mixed, cache = self._attend(self.norms[1](x), cache_N2LD)
        x = x + mixed
        mixed, conv = self._convolve(self.norms[2](x), conv_NWD)
        x = x + mixed
        x = x + 0.5 * self.down2(F.silu(self.up2(self.norms[3](x))))
        return self.norms[4](x), cache, conv

    def _attend(self, x_NCD: Tensor, cache_N2LD: Tensor) -> tuple[Tensor, Tensor]:
        heads, width = self.config.heads, self.config.d_model
        query, key, value = self.qkv(x_NCD).split(width, -1)
        keys = torch.cat([cache_N2LD[:, 0], key], 1)
        values = torch.cat([cache_N2LD[:, 1], value], 1)
        split = [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, keys, values)]
        scores = split[0] @ split[1].transpose(-1, -2) * (width // heads) ** -0.5
        mixed = (scores.softmax(-1) @ split[2]).transpose(1, 2).flatten(2)
        kept = torch.stack([keys[:, -self.config.left :], values[:, -self.config.left :]], 1)
        return self.out(mixed), kept

    def _convolve(self, x_NCD: Tensor, conv_NWD: Tensor) -> tuple[Tensor, Tensor]:
        gated = torch.cat([conv_NWD, F.glu(self.gate(x_NCD), -1)], 1)
        mixed = self.depthwise(gated.transpose(1, 2)).transpose(1, 2)
        return self.point(F.silu(self.norms[5](mixed))), gated[:, -(self.config.kernel - 1) :]


def _off(config: ConformerConfig, num_params: int) -> float:
    return abs(config.num_params / num_params - 1)
