"""2:4 weights as they are stored: two values of every four inputs, and their positions.

    values [N, 2G]   of group g of output n: the entries at its two kept positions i0 < i1
    codes  [N, C]    uint8, C = ceil(G / 2): the nibble i0 | i1 << 2 of two groups, the even one low

The nibble is that of NVIDIA's sparse tensor cores (arXiv 2104.08378, section 3). Four 16-bit values
take 36 bits instead of 64, four int8 values 20 instead of 32.

Letters: N outputs, K inputs, G = ceil(K / 4) groups; the last group is padded with zeros.
"""

import dataclasses
import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from todm.errors import ConfigError
from todm.kernels._linear import check_vector
from todm.kernels.matmul_24.semi import SemiStructured, compress

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """A 2:4 weight [N, K]. Its expanded and compressed forms are made once, at their first use.

    Attributes:
        values_NH: Kept values, H = 2G.
        codes_NC: Their positions, uint8.
        num_inputs: K.
        scale_N: Scale per output channel; with int8 values, and only then.

    Raises:
        ConfigError: parts that do not belong together, or a code that does not name two positions.
    """

    values_NH: Tensor
    codes_NC: Tensor
    num_inputs: int
    scale_N: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the parts."""
        values, codes = self.values_NH, self.codes_NC
        groups = -(-self.num_inputs // 4)
        outputs = values.shape[0] if values.dim() else 0
        want = ((outputs, 2 * groups), (outputs, -(-groups // 2)))
        if (tuple(values.shape), tuple(codes.shape)) != want or 0 in want[0]:
            raise ConfigError(
                f"2:4 weight: values {tuple(values.shape)} and codes {tuple(codes.shape)} are not "
                f"the [N, {want[0][1]}] and [N, {want[1][1]}] of {self.num_inputs} inputs"
            )
        if values.dtype not in DTYPES or codes.dtype != torch.uint8:
            raise ConfigError(
                f"2:4 weight: values are {values.dtype} and codes {codes.dtype}; allowed are "
                "float32, float16, bfloat16 or int8, and uint8"
            )
        if (values.dtype == torch.int8) != (self.scale_N is not None):
            raise ConfigError("2:4 weight: int8 values need scale_N, other values have none")
        check_vector("2:4 weight", "scale_N", self.scale_N, outputs)
        first, second = self.positions()
        if not bool((first < second).all()):
            row, group = (first >= second).nonzero()[0].tolist()
            raise ConfigError(
                f"2:4 weight: the code of output {row}, group {group} does not name two positions: "
                "the file is damaged, pack the weight again"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.values_NH.shape[0], self.num_inputs

    @property
    def num_bytes(self) -> int:
        """Of values and codes."""
        return self.values_NH.nbytes + self.codes_NC.nbytes

    def positions(self) -> tuple[Tensor, Tensor]:
        """First and second kept position of every group, 0..3, uint8 [N, G] each."""
        both_NC2 = torch.stack([self.codes_NC & 15, self.codes_NC >> 4], -1)
        code_NG = both_NC2.flatten(1)[:, : self.values_NH.shape[1] // 2]
        return code_NG & 3, code_NG >> 2

    def to(self, device: torch.device | str) -> "Packed":
        """The same weight on another device."""
        scale_N = None if self.scale_N is None else self.scale_N.to(device)
        moved = (self.values_NH.to(device), self.codes_NC.to(device))
        return Packed(*moved, self.num_inputs, scale_N)

    @functools.cached_property
    def dense_NK(self) -> Tensor:
        """The weight with its zeros."""
        lanes = torch.arange(4, dtype=torch.uint8, device=self.codes_NC.device)
        first, second = self.positions()
        value_NG2 = self.values_NH.unflatten(1, (-1, 2))
        zero = torch.zeros_like(value_NG2[..., :1])
        dense_NG4 = torch.where(second[..., None] == lanes, value_NG2[..., 1:], zero)
        dense_NG4 = torch.where(first[..., None] == lanes, value_NG2[..., :1], dense_NG4)
        return dense_NG4.flatten(1)[:, : self.num_inputs].contiguous()

    @functools.cached_property
    def semi_structured(self) -> SemiStructured:
        """The weight as the GPU's sparse matrix library needs it."""
        return compress(self.dense_NK)


def check_24(weight_NK: Tensor) -> None:
    """Raises ConfigError, naming the first group of four inputs with more than two non-zeros."""
    nonzeros_NG = (_groups(weight_NK) != 0).sum(-1)
    if bool((nonzeros_NG > 2).any()):
        row, group = (nonzeros_NG > 2).nonzero()[0].tolist()
        raise ConfigError(
            f"2:4 weight: output {row}, group {group} (inputs {4 * group} to {4 * group + 3}) has "
            f"{int(nonzeros_NG[row, group])} non-zeros, allowed are 2 of 4: prune it first"
        )


def pack(weight_NK: Tensor, *, scale_N: Tensor | None = None) -> Packed:
    """Pack a weight that is 2:4 along its inputs; `dense_NK` of the result equals it.

    Args:
        weight_NK: float32, float16, bfloat16 or int8, at most two non-zeros of every four inputs.
        scale_N: Scale per output channel of int8 codes.

    Raises:
        ConfigError: a weight that is not [N, K], not 2:4, or of another dtype.
    """
    if weight_NK.dim() != 2 or 0 in weight_NK.shape or weight_NK.dtype not in DTYPES:
        raise ConfigError(
            f"2:4 weight: {weight_NK.dtype} {tuple(weight_NK.shape)} cannot be packed; float32, "
            "float16, bfloat16 or int8 [N, K] with N and K of at least 1 is needed"
        )
    weight_NK = weight_NK.detach()
    check_24(weight_NK)
    weight_NG4 = _groups(weight_NK)
    # Non-zeros first, then zeros from the left: a stable sort of "is it zero".
    order_NG4 = (weight_NG4 == 0).sort(dim=-1, stable=True).indices
    kept_NG2 = order_NG4[..., :2].sort(dim=-1).values
    values_NH = weight_NG4.gather(-1, kept_NG2).flatten(1)
    code_NG = (kept_NG2[..., 0] | kept_NG2[..., 1] << 2).to(torch.uint8)
    code_NC2 = F.pad(code_NG, (0, code_NG.shape[1] % 2)).unflatten(1, (-1, 2))
    codes_NC = code_NC2[..., 0] | code_NC2[..., 1] << 4
    return Packed(values_NH, codes_NC, weight_NK.shape[1], scale_N)


def _groups(weight_NK: Tensor) -> Tensor:
    """[N, G, 4], padded with zeros."""
    return F.pad(weight_NK, (0, -weight_NK.shape[1] % 4)).unflatten(1, (-1, 4))
