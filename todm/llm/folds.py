"""Where AWQ's scales go in a block, by the names that transformers gives its layers.

They are those of CLIP, SigLIP, Whisper and the Llama family. A layer with another name keeps its scale.
"""

import torch
from torch import nn

from todm.compress.adapter import Fold

_QUERY, _KEY, _VALUE = (f"self_attn.{name}_proj" for name in ("q", "k", "v"))
_BEFORE_ATTENTION = ("input_layernorm", "layer_norm1", "self_attn_layer_norm")
_BEFORE_MLP = (
    "pre_feedforward_layernorm",  # Gemma 2 and 3, whose post-norms lie elsewhere
    "post_attention_layernorm",
    "layer_norm2",
    "final_layer_norm",
)


def folds_of(block: nn.Module) -> list[Fold]:
    """Norms take over what attention and the MLP read, the gate's partner what the last layer reads.

    The values take over what the attention's output layer reads where every head has its own (shapes
    match: not with grouped queries, where one row of v feeds several inputs).
    """
    modules = dict(block.named_modules())
    folds: list[Fold] = []
    if {_QUERY, _KEY, _VALUE} <= set(modules):
        layers = (_QUERY, _KEY, _VALUE)
        folds.append(_after_norm(layers, "self_attn", _BEFORE_ATTENTION, modules))
    for out in ("self_attn.o_proj", "self_attn.out_proj"):
        if out in modules:
            same = _side(modules.get(_VALUE), 0) == _side(modules[out], 1)
            folds.append(Fold(layers=(out,), inspect=out, into=_VALUE if same else None))
    prefix = "mlp." if "mlp" in modules else ""
    for first, partner, last in (("gate_proj", "up_proj", "down_proj"), ("fc1", None, "fc2")):
        layers = tuple(f"{prefix}{n}" for n in (first, partner) if n and f"{prefix}{n}" in modules)
        if f"{prefix}{first}" in modules:
            inspect = "mlp" if prefix else layers[0]
            folds.append(_after_norm(layers, inspect, _BEFORE_MLP, modules))
            last, linear = f"{prefix}{last}", f"{prefix}{partner}" if partner else None
            folds.append(Fold(layers=(last,), inspect=last, into=linear))
    return folds


def _after_norm(
    layers: tuple[str, ...], inspect: str, norms: tuple[str, ...], modules: dict[str, nn.Module]
) -> Fold:
    """Layers behind a norm, if there is one (OLMo 2 has none in front)."""
    norm = next((name for name in norms if name in modules), None)
    offset = _offset(modules[norm]) if norm else 0.0
    return Fold(layers=layers, inspect=inspect, into=norm, offset=offset)


@torch.no_grad()
def _offset(norm: nn.Module) -> float:
    """What a norm adds to its stored weight: 1 in Gemma, 0 elsewhere. Measured on an input."""
    weight = norm.get_parameter("weight")
    # Of mean 0 and mean square 1, so both kinds of norm pass it on as it is, times their gain.
    signs = torch.ones_like(weight)
    signs[1::2] = -1
    bias = norm._parameters.get("bias")
    gain = (norm(signs * 1e3) - (0 if bias is None else bias)) * signs
    return float((gain - weight).float().median().round())


def _side(layer: nn.Module | None, axis: int) -> int:
    """Outputs (0) or inputs (1) of a linear layer; -1 of another."""
    sizes = (getattr(layer, "out_features", -1), getattr(layer, "in_features", -2))
    return int(sizes[axis])
