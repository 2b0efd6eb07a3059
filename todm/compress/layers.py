"""What a pass may change, linear layers and convolutions, and its account of each one.

Letters: M rows, N outputs, K inputs, C channels of one group of a convolution, P kernel positions.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from todm.errors import ConfigError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
LAYERS = (nn.Linear, *CONVOLUTIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerResult:
    """What a pass did to a layer.

    Attributes:
        what: in a few words, such as `2:4 wanda`; empty if the layer was left unchanged.
        why_not: the reason, if it was left unchanged.
        input_factor_K: factor of the layer's input from now on, since an earlier layer took over its
            inverse (AWQ).
        output_factor_N: factor of the layer's output from now on (that earlier layer).
        figures: anything worth reporting (`ratio` of AWQ's scale, a clipped share).
    """

    what: str = ""
    why_not: str = ""
    input_factor_K: Tensor | None = None
    output_factor_N: Tensor | None = None
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)


def why_not_a_layer(module: nn.Module) -> str:
    """Why a pass cannot change a module; empty for a linear layer or a convolution."""
    if isinstance(module, LAYERS):
        return ""
    return f"{type(module).__name__} is neither a linear layer nor a convolution"


def why_not_packed(module: nn.Module, form: str) -> str:
    """Why a layer has no packed form of this name; empty for a linear layer."""
    if isinstance(module, CONVOLUTIONS):
        return f"a convolution has no kernel for {form}"
    return why_not_a_layer(module)


def weight_of(module: nn.Module) -> nn.Parameter:
    """The weight of a layer, [N, K] or [N, C, kernel ...]."""
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def finite_weight(name: str, module: nn.Module) -> Tensor:
    """The weight of a layer, detached.

    Raises:
        ConfigError: it holds NaN or infinity.
    """
    weight = weight_of(module).detach()
    if not bool(weight.isfinite().all()):
        raise ConfigError(
            f"{name}: its weight holds NaN or infinity; repair the model, or leave the layer out with "
            f"exclude={name}"
        )
    return weight


def num_groups(module: nn.Module) -> int:
    """Groups of a convolution, which share no input; 1 for a linear layer."""
    return module.groups if isinstance(module, CONVOLUTIONS) else 1


def input_rows(module: nn.Module, x: Tensor, *, m: int = 1) -> list[Tensor]:
    """Rows that the matrix of a layer's weight (`masks.weight_matrix`) multiplies.

    Args:
        module: linear layer or convolution.
        x: its input, [..., K], or [B, channels, sizes ...] with or without B.
        m: entries of a group of an N:M mask; the channels of a convolution are padded to whole groups,
            as those of its matrix are.

    Returns:
        float32 [M, columns], one for each group of a convolution.
    """
    if isinstance(module, nn.Linear):
        assert x.shape[-1] == module.in_features
        x_MK = x.reshape(-1, x.shape[-1]).float()
        return [F.pad(x_MK, (0, -x_MK.shape[1] % m))]
    assert isinstance(module, CONVOLUTIONS)
    x_GMPC = _unfold(module, x.float())
    return list(F.pad(x_GMPC, (0, -x_GMPC.shape[-1] % m)).flatten(2))


def _unfold(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """[groups, M, P, C]: the patch under every output position of a convolution."""
    sizes = len(module.kernel_size)
    x = x if x.dim() == sizes + 2 else x[None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    if sizes == 1:
        x = x[:, :, None]
    kernel, dilation, stride = (
        (1, *size) if sizes == 1 else tuple(size)
        for size in (module.kernel_size, module.dilation, module.stride)
    )
    positions = torch.Size(kernel).numel()
    x_BAL = F.unfold(x, kernel, dilation=dilation, stride=stride)
    x_BGCPL = x_BAL.unflatten(1, (module.groups, -1, positions))
    return x_BGCPL.permute(1, 0, 4, 3, 2).flatten(1, 2)
