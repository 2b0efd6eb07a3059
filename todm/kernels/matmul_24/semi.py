"""2:4 products on sparse tensor cores, through torch's binding of cuSPARSELt or CUTLASS.

Both compute W x^T with W sparse, [N, K] times [K, M], and need sizes in multiples (torch 2.11,
`torch/sparse/semi_structured.py`): zeros pad them. CUTLASS serves GPUs of capability 8.x only.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from todm.errors import ConfigError
from todm.kernels.matmul_int8.torch_impl import zero_padded

# By library and bytes per value: N, K and M must be multiples of these.
_MULTIPLES = {
    ("cusparselt", 1): (32, 32, 16),
    ("cusparselt", 2): (16, 16, 8),
    ("cutlass", 1): (16, 128, 16),
    ("cutlass", 2): (32, 64, 8),
}


class SemiStructured(NamedTuple):
    """A weight as `library` keeps it.

    Attributes:
        library: `cusparselt` or `cutlass`.
        values: The kept values; for cuSPARSELt with their positions.
        positions: CUTLASS's metadata.
        shape: N and K without the padding.
        padded: N and K with it.
    """

    library: str
    values: Tensor
    positions: Tensor | None
    shape: tuple[int, int]
    padded: tuple[int, int]


def library(device: torch.device) -> str | None:
    """Which library multiplies on this device; None if there is none."""
    if device.type != "cuda":
        return None
    if torch.backends.cusparselt.is_available():
        return "cusparselt"
    return "cutlass" if torch.cuda.get_device_capability(device)[0] == 8 else None


def compress(dense_NK: Tensor) -> SemiStructured:
    """Compress a 2:4 weight for the library of its device.

    Raises:
        ConfigError: the device has no library, or the library does not support this dtype.
    """
    name = library(dense_NK.device)
    if name is None or dense_NK.dtype not in (torch.float16, torch.bfloat16, torch.int8):
        raise no_kernel(dense_NK.dtype, dense_NK.device)
    (outputs, inputs), (n, k, _) = dense_NK.shape, _MULTIPLES[name, dense_NK.itemsize]
    padded_NK = zero_padded(dense_NK, -outputs % n, -inputs % k).contiguous()
    if name == "cusparselt":
        values, positions = torch._cslt_compress(padded_NK), None
    else:
        values, positions = sparse_semi_structured_from_dense_cutlass(padded_NK)
    padded = (padded_NK.shape[0], padded_NK.shape[1])
    return SemiStructured(name, values, positions, (outputs, inputs), padded)


def no_kernel(dtype: torch.dtype, device: torch.device) -> ConfigError:
    """The error for a weight that no sparse kernel multiplies."""
    return ConfigError(
        f"matmul_24: algorithm='sparse' has no kernel for {dtype} on {device}: float16, bfloat16 or int8 "
        "on a GPU with cuSPARSELt (or of capability 8.x) is needed; use algorithm='dense'"
    )


def matmul(x_MK: Tensor, weight: SemiStructured, bias_N: Tensor | None = None) -> Tensor:
    """X times the weight's transpose, [M, N]: int32 from int8, else of x's dtype with the bias added."""
    rows, (outputs, inputs) = x_MK.shape[0], weight.shape
    multiple = _MULTIPLES[weight.library, x_MK.itemsize][2]
    x_MK = zero_padded(x_MK, -rows % multiple, weight.padded[1] - inputs).contiguous()
    out_dtype = torch.int32 if x_MK.dtype == torch.int8 else None
    if bias_N is not None:
        bias_N = F.pad(bias_N.to(x_MK.dtype), (0, weight.padded[0] - outputs))
    values, positions, x_KM = weight.values, weight.positions, x_MK.t()
    if positions is None:
        y_NM = torch._cslt_sparse_mm(values, x_KM, bias=bias_N, out_dtype=out_dtype)
    elif bias_N is None:
        y_NM = torch._sparse_semi_structured_mm(values, positions, x_KM, out_dtype=out_dtype)
    else:
        y_NM = torch._sparse_semi_structured_addmm(bias_N, values, positions, x_KM)
    return y_NM[:outputs, :rows].t()
