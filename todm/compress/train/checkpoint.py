"""The checkpoint of a training that compression does, in one file without pickle.

Tensors are stored as safetensors; everything around them as JSON in its header. A file is written
beside its place, synced and renamed, so that there is always a whole one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from todm.errors import TrainingError
from todm.files import write_bytes

_HEADER = "state"


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state: tables, lists, tuples, numbers, texts, None and tensors, in any depth.

    Raises:
        OSError: it cannot be written; the file that was there is as it was.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    header = json.dumps(_encode(state, tensors))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(tensors, {_HEADER: header}))


def read(path: Path) -> dict[str, Any] | None:
    """The state that was written, on the CPU; None if there is no file.

    Raises:
        TrainingError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as found:
            tensors = {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118
            return _decode(json.loads(found.metadata()[_HEADER]), tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise TrainingError(f"{path} cannot be read ({error}): remove it to start again") from None


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401 - JSON
    """JSON in which containers and tensors are marked; tensors are added to the table."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy: safetensors refuses tensors that share memory, as tied weights do.
        tensors[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, _encode(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(inner, tensors) for inner in value]}
    assert value is None or isinstance(value, (bool, int, float, str)), type(value)
    return value


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401 - JSON
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in inner}
    return {"list": list, "tuple": tuple}[kind](_decode(item, tensors) for item in inner)
