"""Compressed language models as AWQ checkpoints of transformers, and such checkpoints as artifacts."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from todm.artifact import Artifact
from todm.compress import autoawq, storage
from todm.compress.config import AwqConfig, CompressConfig
from todm.compress.packed import W4Linear
from todm.errors import ArtifactError, ConfigError
from todm.llm.checkpoint import (
    CONFIG,
    TOKENIZER,
    allocate,
    assign,
    check_weights,
    empty_model,
    load_tokenizer,
    read_tensors,
    weight_files,
)
from todm.llm.config import LlmConfig


def write(
    out: Path,
    model: nn.Module,
    config: LlmConfig,
    *,
    assets: Path,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a directory that transformers and vLLM load: weights, config.json, tokenizer.

    Args:
        out: must not exist, or be empty; it appears when all is there.
        model: as compressed.
        config: of its artifact.
        assets: where the tokenizer's files lie.
        dtype: of all tensors that are not quantised; loaders expect float16, float32 loses nothing.

    Raises:
        ConfigError: a model that the layout cannot hold, or a place that is taken; before anything is
            written.
    """
    from safetensors.torch import save_file

    quantised = autoawq.quantization_config(model)
    tensors = autoawq.tensors_of(model, dtype=dtype)
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise ConfigError(f"{out} exists: choose another place or remove it")
    name = str(dtype).removeprefix("torch.")
    dtype_key = "torch_dtype" if "torch_dtype" in config.model else "dtype"
    table = {**config.model, dtype_key: name, "quantization_config": quantised}
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        contiguous = {n: t.contiguous() for n, t in tensors.items()}
        save_file(contiguous, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / CONFIG).write_text(json.dumps(table, indent=2) + "\n")
        # safetensors makes files that their owner alone may read.
        (temporary / "model.safetensors").chmod((temporary / CONFIG).stat().st_mode)
        for file in TOKENIZER:
            if (assets / file).is_file():
                shutil.copyfile(assets / file, temporary / file)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read(source: Path, described: Mapping[str, Any], quantised: object) -> nn.Module:
    """The model of an AWQ checkpoint, with packed layers.

    Args:
        source: its directory.
        described: its config.json.
        quantised: the table `quantization_config` of it.

    Raises:
        ArtifactError: it is quantised in another way, damaged, or not what its config says.
    """
    if not isinstance(quantised, dict):
        raise ArtifactError(f"{source}/{CONFIG}: quantization_config is not a table: copy it again")
    autoawq.group_of(quantised)
    model = empty_model(described)
    layers, rest = autoawq.layers_from(read_tensors(weight_files(source)), quantised)
    if not layers:
        raise ArtifactError(f"{source} says that it is quantised, and holds no quantised layer")
    _check(model, layers, rest, source)
    assign(model, rest, dtype=torch.float32)
    allocate(model)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    load_tokenizer(source)
    return model.eval()


def save(
    out: Path, config: LlmConfig, *, model: nn.Module, source: Path, write: Callable[[Path], None]
) -> Artifact:
    """Write a checkpoint that was read as an artifact of kind `compressed`.

    Args:
        out: its place.
        config: of the model.
        model: what `read` returned.
        source: where it was read.
        write: puts config.json, the tokenizer and texts into a directory.
    """
    layers = [m for m in model.modules() if isinstance(m, W4Linear)]
    symmetric = all(layer.zero_NG is None for layer in layers)
    awq = AwqConfig(group=layers[0].group, symmetric=symmetric)
    parent = Artifact(
        path=source,
        kind="checkpoint",
        config=config.to_json(),
        metrics={},
        parent=None,
        info={},
        hash=hashlib.sha256((source / CONFIG).read_bytes()).hexdigest(),
    )
    settings = CompressConfig(passes=("awq",), awq=awq)
    return storage.save(out, model, parent=parent, config=settings, reports=[], write=write)


def _check(
    model: nn.Module, layers: Mapping[str, W4Linear], rest: Mapping[str, Tensor], source: Path
) -> None:
    """Raises ArtifactError unless layers and tensors are those of the model."""
    known = dict(model.named_modules())
    for name, layer in layers.items():
        module = known.get(name, model)
        shape = (layer.out_features, layer.in_features)
        if not isinstance(module, nn.Linear) or tuple(module.weight.shape) != shape:
            raise ArtifactError(
                f"{source}: the quantised layer {name} is {layer.out_features} x {layer.in_features}, "
                f"and {CONFIG} says otherwise"
            )
    shapes = {n: tuple(t.shape) for n, t in rest.items()}
    shapes |= {f"{n}.weight": (m.out_features, m.in_features) for n, m in layers.items()}
    shapes |= {f"{n}.bias": tuple(m.bias.shape) for n, m in layers.items() if m.bias is not None}
    check_weights(model, shapes, source)
