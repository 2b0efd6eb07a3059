"""What passes may do: linear layers and convolutions, their weights and the rows that meet them.

Letters: M rows, N outputs, K inputs, C channels of one group of a convolution, P kernel positions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from todm.errors import ConfigError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
Layer = nn.Linear | nn.Conv1d | nn.Conv2d


def why_not_a_layer(module: nn.Module) -> str:
    """Why a pass cannot do a module, or an empty string for a linear layer or a convolution."""
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        return ""
    return f"{type(module).__name__} is no linear layer and no convolution"


def why_not_packed(module: nn.Module, form: str) -> str:
    """Why a layer has no packed form of this name, or an empty string for a linear layer."""
    if isinstance(module, CONVOLUTIONS):
        return f"a convolution has no kernel for {form}"
    return why_not_a_layer(module)


def finite_weight(name: str, module: nn.Module) -> Tensor:
    """The weight of a layer, [N, K] or [N, C, kernel ...].

    Raises:
        ConfigError: it holds NaN or infinity.
    """
    assert isinstance(module, (nn.Linear, *CONVOLUTIONS))
    weight = module.weight.detach()
    if not bool(weight.isfinite().all()):
        raise ConfigError(
            f"{name}: its weight holds NaN or infinity; mend the model, or leave the layer out with "
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
        m: entries of a group of an N:M mask; a convolution's channels are filled up to whole groups,
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
    """[groups, M, P, C]: what every output position of a convolution looks at."""
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
