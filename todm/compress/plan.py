"""Which layers are compressed: all linear and convolution layers of the blocks, except kept or excluded ones.

Every parameter of a model with two axes or more is accounted for, done or not.
"""

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn

from todm.compress import packed
from todm.compress.adapter import ModelAdapter
from todm.compress.config import CompressConfig
from todm.compress.layers import LAYERS
from todm.errors import ConfigError


class Planned(NamedTuple):
    """A parameter with two axes or more: its kind and size, and why it is left unchanged (or "")."""

    kind: str
    num_weights: int
    why_not: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """The layers of a model.

    Attributes:
        all: every parameter with two axes or more, by the name of its layer.
        chosen: those to compress.
        named: those that must be compressed.
        layers: linear and convolution layers, chosen or not.
        blocks: names of the blocks.
    """

    all: Mapping[str, Planned]
    chosen: tuple[str, ...]
    named: tuple[str, ...]
    layers: tuple[str, ...]
    blocks: tuple[str, ...]

    def block_of(self, name: str) -> str:
        """The block a layer lies in, "" outside all."""
        return next((b for b in self.blocks if name.startswith(f"{b}.")), "")

    def chosen_in(self, block: str) -> list[str]:
        """The chosen layers of a block, or those outside all blocks ("")."""
        return [name for name in self.chosen if self.block_of(name) == block]


def select(adapter: ModelAdapter, config: CompressConfig) -> Plan:
    """Decide about every layer, before any work.

    Raises:
        ConfigError: a model already compressed; a name or pattern that fits no layer; a named layer
            that no pass can do.
    """
    modules = dict(adapter.model.named_modules())
    _refuse_compressed(modules)
    parameters = {name: (kind, count) for name, kind, count in _parameters(modules)}
    _check_patterns(parameters, config)
    blocks = tuple(
        f"{block_list}.{child}"
        for block_list in adapter.block_lists
        for child, _ in adapter.model.get_submodule(block_list).named_children()
    )
    layers = tuple(n for n in parameters if isinstance(modules.get(n), LAYERS))
    whys = {n: _why_not(n, adapter, config, blocks, is_layer=n in layers) for n in parameters}
    named = tuple(n for n in config.include if n in parameters)
    for name in named:
        if name not in layers:
            raise ConfigError(
                f"{name} is named to be compressed and is a {parameters[name][0]}: only linear and "
                "convolution layers can be; leave it out of --include"
            )
    chosen = tuple(n for n in parameters if not whys[n])
    if not chosen:
        raise ConfigError(
            "no layer is left to compress: all are kept or excluded; name some with --include"
        )
    return Plan(
        all={n: Planned(*parameters[n], whys[n]) for n in parameters},
        chosen=chosen,
        named=named,
        layers=layers,
        blocks=blocks,
    )


def matches(name: str, pattern: str) -> bool:
    """Whether a layer is meant by a name or pattern."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _why_not(
    name: str,
    adapter: ModelAdapter,
    config: CompressConfig,
    blocks: tuple[str, ...],
    *,
    is_layer: bool,
) -> str:
    if not is_layer:
        return "not a linear or convolution layer"
    if any(matches(name, p) for p in config.exclude):
        return "excluded"
    if any(matches(name, p) for p in config.include):
        return ""
    kept = next((why for p, why in adapter.kept.items() if matches(name, p)), "")
    inside = any(name.startswith(f"{b}.") for b in blocks)
    return kept or ("" if inside else "outside the blocks")


def _parameters(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, int]]:
    """Name, kind and number of weights of every parameter with two axes or more.

    A layer's `weight` goes by the layer's name, and a tensor shared by two layers counts once.
    """
    seen: set[int] = set()
    for name, module in modules.items():
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.ndim < 2 or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            shape = "x".join(map(str, parameter.shape))
            if own == "weight":
                yield name, f"{_kind(module)} {shape}", parameter.numel()
            else:
                yield f"{name}.{own}".removeprefix("."), f"parameter {shape}", parameter.numel()


def _kind(module: nn.Module) -> str:
    names = {nn.Linear: "linear", nn.Conv1d: "conv", nn.Conv2d: "conv", nn.Embedding: "embedding"}
    return next((v for k, v in names.items() if isinstance(module, k)), type(module).__name__)


def _refuse_compressed(modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        if isinstance(module, packed.PackedLinear):
            raise ConfigError(
                f"{name} is compressed already ({type(module).__name__}): compress the model it was "
                "made of"
            )


def _check_patterns(names: Mapping[str, tuple[str, int]], config: CompressConfig) -> None:
    for flag, patterns in (("include", config.include), ("exclude", config.exclude)):
        for pattern in patterns:
            if not any(matches(name, pattern) for name in names):
                raise ConfigError(
                    f"--{flag} {pattern!r} fits no layer: names are such as {', '.join(list(names)[:3])}"
                )
