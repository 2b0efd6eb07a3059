"""An ONNX file looked over before a runtime loads it: a bundle is data from a stranger.

The file is read here as the protobuf message that it is, without the package `onnx`, and only for what
could reach beyond it or beyond its size: weights in other files, operators of other domains, operators
that load things or run without end, and tensors that claim to be larger than the file.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from todm.errors import BundleError

_DOMAINS = ("", "ai.onnx", "com.microsoft")
_REFUSED = {
    "EPContext": "loads compiled code",
    "Loop": "can run without end",
    "PyOp": "runs code",
}
_DEPTH = 24  # of graphs in nodes in graphs; those of `todm export` reach 6
_AXES = 16
# Which fields of which message hold which message: those of onnx.proto that are followed.
_CHILDREN = {
    "model": {7: "graph", 8: "opset", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 9: "opset"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
}
_DIMS, _EXTERNAL_DATA, _DATA_LOCATION = 1, 13, 14  # of a tensor
_OP_TYPE, _NODE_DOMAIN, _OPSET_DOMAIN = 4, 7, 1
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


def check_onnx(path: Path) -> None:
    """Refuse an ONNX file that is more than a graph and its weights.

    Raises:
        BundleError: it is no ONNX file, or it holds something no bundle has.
    """
    try:
        _walk("model", memoryview(path.read_bytes()), path, 0)
    except (IndexError, ValueError):
        raise BundleError(
            f"{path} cannot be read as an ONNX file: export the bundle again"
        ) from None


def _walk(kind: str, message: memoryview, path: Path, depth: int) -> None:
    """Follow a message and those in it."""
    if depth > _DEPTH:
        raise _refusal(path, "graphs nested too deeply")
    if kind == "sparse":
        raise _refusal(path, "a sparse tensor")
    if kind == "tensor":
        _check_tensor(message, path)
        return
    children = _CHILDREN.get(kind, {})
    for number, value in _fields(message):
        if number in children:
            _walk(children[number], _message(value), path, depth + 1)
        elif (kind, number) in (("node", _NODE_DOMAIN), ("opset", _OPSET_DOMAIN)):
            if (domain := _text(value)) not in _DOMAINS:
                raise _refusal(path, f"operators of the domain {domain!r}")
        elif (kind, number) == ("node", _OP_TYPE) and (name := _text(value)) in _REFUSED:
            raise _refusal(path, f"the operator {name}, which {_REFUSED[name]}")


def _check_tensor(message: memoryview, path: Path) -> None:
    """Refuse weights in another file, and more elements than two a byte."""
    dims: list[int] = []
    for number, value in _fields(message):
        if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
            raise _refusal(path, "weights in another file")
        if number == _DIMS:
            dims += [value] if isinstance(value, int) else _varints(value)
    # A negative size is a varint of 2^63 or more.
    if len(dims) > _AXES or math.prod(dims) > 2 * len(message):
        raise _refusal(path, "a tensor that is larger than the file")


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The number and the value of every field.

    Raises:
        IndexError: the message ends early.
        ValueError: it is no protobuf message.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(wire)
        if wire == _BYTES:
            size, at = _varint(message, at)
        if size is None or at + size > len(message):
            raise ValueError(wire)
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError(at)


def _varints(packed: memoryview) -> list[int]:
    at, values = 0, list[int]()
    while at < len(packed):
        value, at = _varint(packed, at)
        values.append(value)
    return values


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError(value)
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode()


def _refusal(path: Path, what: str) -> BundleError:
    return BundleError(f"{path} holds {what}: no bundle of todm does, and it is not loaded")
