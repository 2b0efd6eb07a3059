"""The linear layers that the three matmuls are measured on, and their check on samples.

Letters: M rows, K inputs, N outputs.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from todm.bench.kernels.case import Case, Checked, Subject, Work, compare

Oracle = Callable[[Tensor, Tensor], Tensor]
"""The product at indices of rows and of outputs."""
LAYERS: dict[str, tuple[tuple[int, int], ...]] = {
    # [N, K]. `full960` of todm/recipe.py: feed-forward layers of 2048; then twice and four times wider.
    "encoder-512": ((2048, 512), (512, 2048)),
    "encoder-1024": ((4096, 1024),),
    "encoder-2048": ((2048, 2048),),
    # The MLPs of Dosovitskiy et al. (arXiv 2010.11929), table 1.
    "vit-b": ((3072, 768), (768, 3072)),
    "vit-l": ((4096, 1024), (1024, 4096)),
    # Llama 3 (arXiv 2407.21783), table 3: queries, keys and values; output; gate and up; down.
    "llama-8b": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
    "8192": ((8192, 8192),),
}
ROWS = (1, 16, 64, 512, 4096, 16384)
MANY_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048, 4096, 16384)
"""Of the 8192 layer, where few rows and many part."""
QUICK = ((1, 512, 512), (16, 512, 512), (64, 768, 256))
"""M, N, K that a CPU does in milliseconds."""
LAUNCH_BOUND = 1e11
"""Operations that take some 0.2 ms on an H200, where launching a few kernels still shows."""
ALLOWED = {"float32": 1e-5, "bfloat16": 1e-2}
"""Relative error of outputs: sums in another order, or rounded once to bfloat16."""
_SAMPLES = 16


def linear_cases(op: str, device: str) -> list[Case]:
    """All layers with all numbers of rows; on a CPU those that are quick, and the encoder's."""
    dtype = "bfloat16" if device == "cuda" else "float32"
    quick = [_case(op, "quick", sizes, dtype=dtype) for sizes in QUICK]
    if device == "cpu":
        return quick + [
            _case(op, "encoder-512", (M, N, K), dtype=dtype)
            for N, K in LAYERS["encoder-512"]
            for M in (1, 16, 256)
        ]
    return quick + [
        _case(op, name, (M, N, K), dtype=dtype)
        for name, layers in LAYERS.items()
        for N, K in layers
        for M in (MANY_ROWS if name == "8192" else ROWS)
    ]


def _case(op: str, shape: str, sizes: tuple[int, int, int], *, dtype: str) -> Case:
    named = dict(zip("MNK", sizes, strict=True))
    return Case(op=op, shape=shape, sizes=named, dtype=dtype, quick=shape == "quick")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer's activation and float weight, drawn anew from one seed.

    Attributes:
        x_MK: activation, of the case's dtype.
        weight_NK: float32.
    """

    x_MK: Tensor
    weight_NK: Tensor

    @classmethod
    def draw(cls, case: Case, device: str) -> "Layer":
        """Normal numbers; outputs are about as large as inputs."""
        draw = torch.Generator(device).manual_seed(0)
        M, N, K = (case.sizes[k] for k in "MNK")
        x_MK = torch.randn(M, K, generator=draw, device=device).to(getattr(torch, case.dtype))
        weight_NK = torch.randn(N, K, generator=draw, device=device) * K**-0.5
        return cls(x_MK, weight_NK)

    @property
    def graph(self) -> bool:
        """Whether launching takes about as long as computing."""
        return 2.0 * self.x_MK.numel() * self.weight_NK.shape[0] <= LAUNCH_BOUND

    @property
    def allowed(self) -> float:
        """Relative error of an output of x's dtype."""
        return ALLOWED[str(self.x_MK.dtype).removeprefix("torch.")]

    def work(self, weight_bytes: float, unit: str, *, num_outputs: int, out_bytes: int = 0) -> Work:
        """2MNK operations on x, a weight of so many bytes, and y (`out_bytes` each, x's if 0)."""
        M, K = self.x_MK.shape
        written = M * num_outputs * (out_bytes or self.x_MK.itemsize)
        flops = 2.0 * M * num_outputs * K
        return Work(flops=flops, bytes=self.x_MK.nbytes + weight_bytes + written, unit=unit)

    def float_unit(self) -> str:
        """Compute roof of a product of x's dtype."""
        return str(self.x_MK.dtype).removeprefix("torch.")

    def dense(self, weight_NK: Tensor) -> Subject:
        """The library's product with a weight that is not packed: the baseline of all three."""
        weight_NK = weight_NK.to(self.x_MK.dtype)
        return Subject(
            name="F.linear",
            run=lambda: F.linear(self.x_MK, weight_NK),
            check=lambda: self.check_float(lambda: F.linear(self.x_MK, weight_NK), weight_NK),
            work=self.work(weight_NK.nbytes, self.float_unit(), num_outputs=weight_NK.shape[0]),
            graph=self.graph,
        )

    def check_float(
        self, run: Callable[[], Tensor], weight_NK: Tensor, *, allowed: float | None = None
    ) -> Checked:
        """The output against the product in float64, on sampled rows and outputs."""

        def oracle(rows: Tensor, outputs: Tensor) -> Tensor:
            return self.x_MK[rows].double() @ weight_NK[outputs].double().t()

        return self.check(run, oracle, allowed=allowed)

    def check(
        self,
        run: Callable[[], Tensor],
        oracle: Oracle,
        *,
        allowed: float | None = None,
    ) -> Checked:
        """The output of the very call that is timed, at up to 16 rows and 16 outputs.

        Args:
            run: gives [M, N].
            oracle: what it should be.
            allowed: relative error; that of x's dtype if None.
        """
        y_MN = run()
        rows, outputs = (_spread(n, y_MN.device) for n in y_MN.shape)
        got = y_MN[rows][:, outputs]
        limit = self.allowed if allowed is None else allowed
        return compare([got], [oracle(rows, outputs)], allowed=limit, whole=[y_MN])


def once(oracle: Oracle) -> Oracle:
    """An oracle that is asked once: the samples of a layer are the same for all subjects."""
    found: list[Tensor] = []

    def ask(rows: Tensor, outputs: Tensor) -> Tensor:
        if not found:
            found.append(oracle(rows, outputs))
        return found[0]

    return ask


def _spread(size: int, device: torch.device) -> Tensor:
    """Up to 16 places from the first to the last."""
    return torch.linspace(0, size - 1, min(size, _SAMPLES), device=device).round().long().unique()


def impls(device: str) -> Sequence[str]:
    """Of ours, those that are measured: the device's default first."""
    return ("triton", "torch") if device == "cuda" else ("torch",)
