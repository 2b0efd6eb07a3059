"""The linear layers on which the three matmuls are measured, and their check on samples.

Letters: M rows, K inputs, N outputs.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
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
"""Of the 8192 layer, to show where few and many rows differ."""
QUICK = ((1, 512, 512), (16, 512, 512), (64, 768, 256))
"""M, N, K that take milliseconds on a CPU."""
LAUNCH_BOUND = 1e11
"""Operations that take some 0.2 ms on an H200, where launching a few kernels still matters."""
ALLOWED = {"float32": 1e-5, "bfloat16": 1e-2}
"""Relative error of outputs: sums in another order, or one rounding to bfloat16."""
_SAMPLES = 16


def linear_cases(op: str, device: str) -> list[Case]:
    """All layers with all numbers of rows; on a CPU the quick ones and the encoder's."""
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
    """A layer's activation and float weight, drawn from one seed.

    Attributes:
        x_MK: activation, of the case's dtype.
        weight_NK: float32.
    """

    x_MK: Tensor
    weight_NK: Tensor

    @classmethod
    def draw(cls, case: Case, device: str) -> "Layer":
        """Normal numbers, scaled so that outputs are about as large as inputs."""
        draw = torch.Generator(device).manual_seed(0)
        M, N, K = (case.sizes[k] for k in "MNK")
        x_MK = torch.randn(M, K, generator=draw, device=device).to(getattr(torch, case.dtype))
        weight_NK = torch.randn(N, K, generator=draw, device=device) * K**-0.5
        return cls(x_MK, weight_NK)

    @property
    def dtype(self) -> str:
        """Of x; also the name of its compute roof."""
        return str(self.x_MK.dtype).removeprefix("torch.")

    def subject(
        self,
        name: str,
        run: Callable[[], Tensor],
        oracle: Oracle,
        *,
        stored: float,
        unit: str = "",
        allowed: float | None = None,
        ours: bool = False,
    ) -> Subject:
        """An implementation on this layer.

        Args:
            name: of the implementation.
            run: gives [M, N].
            oracle: the right result at samples.
            stored: bytes of the weight.
            unit: compute roof; that of x's dtype if empty.
            allowed: relative error; that of x's dtype if None.
            ours: it is not a peer.
        """
        (M, K), N = self.x_MK.shape, self.weight_NK.shape[0]
        out_bytes = 4 if self.x_MK.dtype == torch.int8 else self.x_MK.itemsize  # sums are int32
        moved = self.x_MK.nbytes + stored + M * N * out_bytes
        return Subject(
            name=name,
            run=run,
            check=lambda: self.check(run, oracle, allowed=allowed),
            work=Work(flops=2.0 * M * N * K, bytes=moved, unit=unit or self.dtype),
            ours=ours,
            graph=2.0 * M * N * K <= LAUNCH_BOUND,
        )

    def dense(self, weight_NK: Tensor) -> Subject:
        """The library's product with a weight that is not packed: the baseline of all three."""
        weight_NK = weight_NK.to(self.x_MK.dtype)
        run = functools.partial(F.linear, self.x_MK, weight_NK)
        return self.subject("F.linear", run, self.product(weight_NK), stored=weight_NK.nbytes)

    def torchao(
        self,
        name: str,
        config: Any,  # noqa: ANN401 - torchao's own
        *,
        stored: float,
        allowed: float,
        unit: str = "",
    ) -> Subject:
        """A layer of torchao: it quantises in its own way and is compared with the float product."""
        from torchao.quantization import quantize_

        N, K = self.weight_NK.shape
        linear = nn.Linear(K, N, bias=False, device=self.x_MK.device, dtype=self.x_MK.dtype)
        linear.weight.data.copy_(self.weight_NK)
        quantize_(linear, config)
        linear.requires_grad_(False)  # noqa: FBT003
        run, oracle = functools.partial(linear, self.x_MK), self.product(self.weight_NK)
        return self.subject(name, run, oracle, stored=stored, unit=unit, allowed=allowed)

    def product(self, weight_NK: Tensor) -> Oracle:
        """The product in float64."""
        return lambda rows, outputs: self.x_MK[rows].double() @ weight_NK[outputs].double().t()

    def check(
        self, run: Callable[[], Tensor], oracle: Oracle, *, allowed: float | None = None
    ) -> Checked:
        """Check the output of the timed call, at up to 16 rows and 16 outputs.

        Args:
            run: gives [M, N].
            oracle: the right result at samples.
            allowed: relative error; that of x's dtype if None.
        """
        y_MN = run()
        rows, outputs = (_spread(n, y_MN.device) for n in y_MN.shape)
        got = y_MN[rows][:, outputs]
        limit = ALLOWED[self.dtype] if allowed is None else allowed
        return compare([got], [oracle(rows, outputs)], allowed=limit, whole=[y_MN])


def once(oracle: Oracle) -> Oracle:
    """An oracle that computes once: the samples of a layer are the same for all subjects."""
    found: list[Tensor] = []

    def cached(rows: Tensor, outputs: Tensor) -> Tensor:
        if not found:
            found.append(oracle(rows, outputs))
        return found[0]

    return cached


def _spread(size: int, device: torch.device) -> Tensor:
    """Up to 16 places from the first to the last."""
    return torch.linspace(0, size - 1, min(size, _SAMPLES), device=device).round().long().unique()


def impls(device: str) -> Sequence[str]:
    """Those of our implementations that are measured, the device's default first."""
    return ("triton", "torch") if device == "cuda" else ("torch",)
