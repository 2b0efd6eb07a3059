"""Weights of 4 or 3 bits as the kernels read them.

Inputs come in blocks of 128, and a block has R lanes: lane r holds inputs r, r + R, r + 2R, ... With
4 bits R is 16, a lane one word of 8 codes, code j at bits 4j. With 3 bits R is 4, a lane 32 codes in
three words: word i has codes 10i to 10i + 9 in its low 30 bits; the top bits of the three words hold
codes 30 (top two bits of word 0, bit 30 of word 2) and 31 (top two of word 1, bit 31 of word 2).

Letters: N outputs, K inputs, G groups of inputs, B = ceil(K / 128) blocks, J = 4 bits B words.
"""

import dataclasses
import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from todm.errors import ConfigError
from todm.kernels._linear import DTYPES

BLOCK = 128
LANES = {3: 4, 4: 16}
GROUPS = (32, 64, 128)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """A weight [N, K]: w_nk = scale_ng (code_nk - zero_ng), g = k // group.

    Attributes:
        words_NJ: Codes, int32; see the module.
        scale_NG: Of each group of inputs; the last group may be short.
        zero_NG: The code of zero in each group, uint8; None means 2^(bits - 1) everywhere (symmetric).
        pre_quant_scale_K: Factor of each input, if AWQ's scale could not be folded into the previous layer.
        bits: 4 or 3.
        group: Inputs of a group: 32, 64, 128, or K.
        num_inputs: K.

    Raises:
        ConfigError: parts that do not belong together.
    """

    words_NJ: Tensor
    scale_NG: Tensor
    zero_NG: Tensor | None = None
    pre_quant_scale_K: Tensor | None = None
    bits: int
    group: int
    num_inputs: int

    def __post_init__(self) -> None:
        """Check the parts."""
        check_format(self.bits, self.group, self.num_inputs)
        words, scale, zero = self.words_NJ, self.scale_NG, self.zero_NG
        N = words.shape[0] if words.dim() else 0
        J = -(-self.num_inputs // BLOCK) * 4 * self.bits
        if tuple(words.shape) != (N, J) or N == 0 or words.dtype != torch.int32:
            raise ConfigError(
                f"w{self.bits} weight: words_NJ is {words.dtype} {tuple(words.shape)}; "
                f"{self.num_inputs} inputs need int32 [N, {J}] with N of at least 1: pack makes it"
            )
        grid = (N, -(-self.num_inputs // self.group))
        if tuple(scale.shape) != grid or scale.dtype not in DTYPES or not scale.isfinite().all():
            raise ConfigError(
                f"w{self.bits} weight: scale_NG is {scale.dtype} {tuple(scale.shape)}; finite "
                f"floating numbers {grid} are needed, one for each group of {self.group} inputs"
            )
        if zero is not None and (tuple(zero.shape) != grid or zero.dtype != torch.uint8):
            raise ConfigError(
                f"w{self.bits} weight: zero_NG is {zero.dtype} {tuple(zero.shape)}; uint8 {grid} is "
                "needed, or None for a symmetric weight"
            )
        _check_codes(f"w{self.bits} weight: zero_NG", zero, self.bits)
        factors = self.pre_quant_scale_K
        inputs = (self.num_inputs,)
        if factors is not None and (tuple(factors.shape) != inputs or factors.dtype not in DTYPES):
            raise ConfigError(
                f"w{self.bits} weight: pre_quant_scale_K is {factors.dtype} {tuple(factors.shape)}; one "
                f"floating factor for each of the {self.num_inputs} inputs is needed"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.words_NJ.shape[0], self.num_inputs

    @property
    def num_bytes(self) -> int:
        """Of words, scales and zeros."""
        zeros = 0 if self.zero_NG is None else self.zero_NG.nbytes
        return self.words_NJ.nbytes + self.scale_NG.nbytes + zeros

    def to(self, device: torch.device | str) -> "Packed":
        """The same weight on another device."""
        parts = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **parts)

    def codes_NK(self) -> Tensor:
        """The codes, uint8 [N, K]."""
        words_NJ, N = self.words_NJ.contiguous(), self.words_NJ.shape[0]
        if self.bits == 4:
            shifts = 4 * torch.arange(8, dtype=torch.int32, device=words_NJ.device)
            codes_NBPR = words_NJ.view(N, -1, 1, 16) >> shifts[:, None] & 15
        else:
            codes_NBPR = _codes_of_three_words(words_NJ.view(N, -1, 3, 4))
        return codes_NBPR.to(torch.uint8).flatten(1)[:, : self.num_inputs]

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [N, K], rounded once from float32; `pre_quant_scale_K` is not in it."""
        zero_NG = 1 << (self.bits - 1) if self.zero_NG is None else self._per_input(self.zero_NG)
        steps_NK = self.codes_NK().float() - zero_NG
        return (steps_NK * self._per_input(self.scale_NG)).to(dtype)

    def _per_input(self, values_NG: Tensor) -> Tensor:
        return values_NG.float().repeat_interleave(self.group, 1)[:, : self.num_inputs]

    @functools.cached_property
    def copies(self) -> dict[torch.dtype, Tensor]:
        """Where `cache_dequantised=True` keeps the dequantised weight, by dtype."""
        return {}


def check_format(bits: int, group: int, num_inputs: int) -> None:
    """Raises ConfigError for bits or groups that no kernel supports."""
    if bits not in LANES:
        raise ConfigError(f"matmul_w4: {bits} bits are given, allowed are 3 and 4")
    if group not in (*GROUPS, num_inputs) or group < 1:
        raise ConfigError(
            f"matmul_w4: groups of {group} inputs are given, allowed are 32, 64, 128, or all "
            f"{num_inputs}"
        )


def pack(
    codes_NK: Tensor,
    scale_NG: Tensor,
    *,
    zero_NG: Tensor | None = None,
    pre_quant_scale_K: Tensor | None = None,
    bits: int = 4,
    group: int | None = 128,
) -> Packed:
    """Pack codes unchanged, such as those of a search for better scales.

    Args:
        codes_NK: uint8, below 2^bits.
        scale_NG: Scale of each group of inputs.
        zero_NG: uint8; None for a symmetric weight.
        pre_quant_scale_K: Factor of each input.
        bits: 4 or 3.
        group: 32, 64, 128, or None for all inputs. The last group may be shorter.

    Raises:
        ConfigError: shapes, dtypes or codes that do not fit.
    """
    if codes_NK.dim() != 2 or 0 in codes_NK.shape or codes_NK.dtype != torch.uint8:
        raise ConfigError(
            f"matmul_w4: the codes are {codes_NK.dtype} {tuple(codes_NK.shape)}; uint8 [N, K] with N "
            "and K of at least 1 is needed"
        )
    N, K = codes_NK.shape
    group = K if group is None else group
    check_format(bits, group, K)
    _check_codes("matmul_w4: codes_NK", codes_NK, bits)
    codes_NBPR = F.pad(codes_NK, (0, -K % BLOCK)).view(N, -1, BLOCK // LANES[bits], LANES[bits])
    words_NBR = _side_by_side(codes_NBPR.int(), 4) if bits == 4 else _three_words(codes_NBPR.int())
    parts = {"scale_NG": scale_NG, "zero_NG": zero_NG, "pre_quant_scale_K": pre_quant_scale_K}
    return Packed(words_NJ=words_NBR.flatten(1), **parts, bits=bits, group=group, num_inputs=K)


def _check_codes(name: str, codes: Tensor | None, bits: int) -> None:
    if codes is not None and int(codes.max()) >= 1 << bits:
        raise ConfigError(
            f"{name} holds {int(codes.max())}, but {bits} bits end at {(1 << bits) - 1}"
        )


def _side_by_side(codes_NBPR: Tensor, bits: int) -> Tensor:
    """[N, B, R]: the codes of a lane in a word, the first lowest."""
    shifts = bits * torch.arange(codes_NBPR.shape[2], dtype=torch.int32, device=codes_NBPR.device)
    return (codes_NBPR << shifts[:, None]).sum(2, dtype=torch.int32)


def _three_words(codes_NBPR: Tensor) -> Tensor:
    """[N, B, 3, R]: 32 codes of a lane in three words."""
    words = [_side_by_side(codes_NBPR[:, :, 10 * i : 10 * i + 10], 3) for i in range(3)]
    last, very_last = codes_NBPR[:, :, 30], codes_NBPR[:, :, 31]
    words[0] |= (last & 3) << 30
    words[1] |= (very_last & 3) << 30
    words[2] |= (last >> 2) << 30 | (very_last >> 2) << 31
    return torch.stack(words, 2)


def _codes_of_three_words(words_NB3R: Tensor) -> Tensor:
    """[N, B, 32, R]."""
    shifts = 3 * torch.arange(10, dtype=torch.int32, device=words_NB3R.device)
    low_NB3TR = words_NB3R[:, :, :, None] >> shifts[:, None] & 7
    top = words_NB3R >> 30 & 3
    last = top[:, :, 0] | (top[:, :, 2] & 1) << 2
    very_last = top[:, :, 1] | top[:, :, 2] >> 1 << 2
    return torch.cat([low_NB3TR.flatten(2, 3), torch.stack([last, very_last], 2)], 2)
