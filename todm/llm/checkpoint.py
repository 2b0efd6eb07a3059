"""Directories of the transformers library: read offline, weights only, and no code from them is run.

Weights are safetensors, in one file or in shards with an index.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from todm.errors import ArtifactError, MissingExtra, first_line

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "generation_config.json", "chat_template.jinja",
)  # fmt: skip
LAYERS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
_NOT_BUILT_WITH = ("model_type", "auto_map", "dtype", "torch_dtype", "quantization_config")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def require() -> None:
    """Raises MissingExtra unless transformers and accelerate are installed."""
    for package in ("transformers", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "llm", "a language model")


def read_config(directory: Path) -> dict[str, Any]:
    """The config.json of a model.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    if (directory / "adapter_config.json").is_file() and not (directory / CONFIG).is_file():
        raise ArtifactError(
            f"{directory} is an adapter (LoRA), not a model: merge it into its model, and save that"
        )
    try:
        described = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"{directory} has no {CONFIG}: give a directory of transformers, as save_pretrained writes it"
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{directory}/{CONFIG} is damaged ({error}): copy it again") from None
    if not isinstance(described, dict) or not isinstance(described.get("model_type"), str):
        raise ArtifactError(
            f"{directory}/{CONFIG} names no model_type: it was not written by transformers"
        )
    return described


def weight_files(directory: Path) -> list[Path]:
    """The files of weights.

    Raises:
        ArtifactError: there are none, an index names a file that is missing or elsewhere, or weights
            are pickles.
    """
    if (directory / INDEX).is_file():
        try:
            names = set(json.loads((directory / INDEX).read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise ArtifactError(f"{directory}/{INDEX} is damaged: copy it again") from None
        strange = [n for n in names if not isinstance(n, str) or Path(n).name != n]
        if strange:
            raise ArtifactError(
                f"{directory}/{INDEX} names the file {strange[0]!r}, which lies outside the directory"
            )
        missing = sorted(n for n in names if not (directory / n).is_file())
        if missing:
            raise ArtifactError(
                f"{directory} is incomplete: {missing[0]} is missing; copy it again"
            )
        return [directory / n for n in sorted(names)]
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    pickles = sorted(p.name for p in directory.glob("*") if p.suffix in _PICKLES)
    if pickles:
        raise ArtifactError(
            f"{directory}/{pickles[0]} is a pickle, which can run any code and is never read: where you "
            "trust it, convert it with transformers' save_pretrained(..., safe_serialization=True)"
        )
    raise ArtifactError(f"{directory} has no weights: model.safetensors, or {INDEX} and its shards")


def shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, by name; weights are not read.

    Raises:
        ArtifactError: a file is damaged, or one name stands in two files.
    """
    from safetensors import SafetensorError, safe_open

    by_name: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                names = list(opened.keys())
                here = {n: tuple(opened.get_slice(n).get_shape()) for n in names}
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{file} is damaged ({error}): copy it again") from None
        if twice := by_name.keys() & here:
            raise ArtifactError(f"{file} holds {min(twice)}, which another file holds as well")
        by_name |= here
    return by_name


def read_tensors(files: list[Path]) -> dict[str, Tensor]:
    """All tensors, by name, mapped from the files: they take memory when they are touched.

    Raises:
        ArtifactError: a file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtifactError(f"{file} is damaged ({error}): copy it again") from None
    return tensors


def empty_model(config: Mapping[str, Any]) -> nn.Module:
    """The model of a config.json, its parameters without memory (on torch's meta device).

    Raises:
        ArtifactError: a model that this todm does not know, or that its config does not describe.
        MissingExtra: transformers is not installed.
    """
    require()
    from accelerate import init_empty_weights
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    name = config["model_type"]
    settings = {k: v for k, v in config.items() if k not in _NOT_BUILT_WITH}
    known = name in CONFIG_MAPPING and CONFIG_MAPPING[name] in MODEL_FOR_CAUSAL_LM_MAPPING
    if not known:
        raise ArtifactError(
            f"{name!r} is not a causal language model of the installed transformers: Llama, Mistral, "
            "Qwen2, Qwen3 and Gemma are, and code that comes with a checkpoint is never run"
        )
    try:
        described = CONFIG_MAPPING[name](**settings)
        with init_empty_weights(include_buffers=False):  # rotary frequencies have memory
            make: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(described)]
            model = make(described)
        model.tie_weights()  # a parameter registered twice is made twice on the meta device
    except Exception as error:  # noqa: BLE001 - every config and model raises its own
        first = " ".join(str(error).split())
        raise ArtifactError(
            f"the {name} that {CONFIG} describes cannot be built: {first}"
        ) from None
    _check_structure(model, name)
    return model.eval()


def check_weights(model: nn.Module, stored: Mapping[str, tuple[int, ...]], where: Path) -> None:
    """Raises ArtifactError unless the tensors of a checkpoint are those of the model."""
    wanted = {n: tuple(p.shape) for n, p in model.named_parameters(remove_duplicate=False)}
    tied = tied_names(model)
    missing = [n for n in wanted if n not in stored and tied.get(n) not in stored]
    if missing:
        raise ArtifactError(
            f"{where} lacks {len(missing)} of the model's {len(wanted)} tensors, such as {missing[0]}: "
            "it is incomplete, or belongs to another model"
        )
    for name, shape in stored.items():
        if name in wanted and shape != wanted[name]:
            raise ArtifactError(f"{where}: {name} is {shape}, and {CONFIG} says {wanted[name]}")
    # Old checkpoints store the frequencies of rotary embeddings, which are computed here.
    unknown = [n for n in stored if n not in wanted and not n.endswith("rotary_emb.inv_freq")]
    if unknown:
        raise ArtifactError(
            f"{where} holds {unknown[0]}, and the model has no such tensor: it belongs to another model"
        )


def tied_names(model: nn.Module) -> dict[str, str]:
    """For every parameter that is tied to an earlier one, the name of that one."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            tied[name] = known
    return tied


def assign(model: nn.Module, tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None) -> None:
    """Replace parameters with tensors; ties are kept.

    Args:
        model: with parameters on the meta device or anywhere.
        tensors: by name; either name of a tied parameter will do.
        dtype: copied to this dtype; None to take them as they are.
    """
    tied = tied_names(model)
    values = {
        tied.get(n, n): t if dtype is None else t.to(dtype, copy=True) for n, t in tensors.items()
    }
    model.load_state_dict(values, strict=False, assign=True)
    for name, first in tied.items():  # `assign` replaces a parameter under one name
        parent, _, own = name.rpartition(".")
        model.get_submodule(parent)._parameters[own] = model.get_parameter(first)


def allocate(model: nn.Module) -> None:
    """Allocate uninitialised memory for parameters that have none."""
    on_meta = {n: p for n, p in model.named_parameters() if p.is_meta}
    assign(model, {n: torch.empty(p.shape, device="cpu") for n, p in on_meta.items()}, dtype=None)


def load_tokenizer(directory: Path) -> Any:  # noqa: ANN401 - transformers' own
    """The tokenizer of a directory, read offline.

    Raises:
        ArtifactError: no readable one exists.
    """
    require()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # noqa: BLE001 - every tokenizer class raises its own
        raise ArtifactError(
            f"{directory} has no tokenizer that can be read ({first_line(error)}): copy tokenizer.json and "
            "tokenizer_config.json into it"
        ) from None


def _check_structure(model: nn.Module, name: str) -> None:
    try:
        blocks = list(model.get_submodule("model.layers").children())
        fits = all(isinstance(b.get_submodule(n), nn.Linear) for b in blocks for n in LAYERS)
    except AttributeError:
        blocks, fits = [], False
    if not blocks or not fits:
        raise ArtifactError(
            f"a {name} does not have the layers of the Llama family ({', '.join(LAYERS)} in each of "
            "model.layers): Llama, Mistral, Qwen2, Qwen3 and Gemma have"
        )
