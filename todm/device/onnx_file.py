"""Check an ONNX file before a runtime loads it: a bundle comes from a stranger.

The protobuf message is read here without the package `onnx`, which a device does not have. Refused are
weights in other files, operators of other domains, operators that load things or run without end,
tensors that claim to be larger than the file, and every field that the exporter does not write: what this
file does not know, it does not let pass.
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
# Fields of onnx.proto that hold a message which is followed, and fields that are passed over. Of a
# tensor, external data is not among them; of a function, default attributes are not.
_CHILDREN = {
    "model": {7: "graph", 8: "opset", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 9: "opset"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
}
_PLAIN = {
    "model": {1, 2, 3, 4, 5, 6, 14},
    "graph": {2, 10, 11, 12, 13, 16},
    "function": {1, 4, 5, 6, 8, 10, 13, 14},
    "node": {1, 2, 3, 4, 6, 7, 8, 9},
    "attribute": {1, 2, 3, 4, 7, 8, 9, 13, 20, 21},
    "opset": {1, 2},
    "tensor": {1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16},
}
_DIMS, _EXTERNAL_DATA, _DATA_LOCATION = 1, 13, 14  # of a tensor
_OP_TYPE, _NODE_DOMAIN, _OPSET_DOMAIN = 4, 7, 1
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


def check_onnx(path: Path) -> None:
    """Refuse an ONNX file that holds more than a graph and its weights.

    Raises:
        BundleError: it is not an ONNX file, or it holds something that no bundle has.
    """
    try:
        _walk("model", memoryview(path.read_bytes()), path, 0)
    except (IndexError, ValueError):
        raise BundleError(
            f"{path} cannot be read as an ONNX file: export the bundle again"
        ) from None


def _walk(kind: str, message: memoryview, path: Path, depth: int) -> None:
    """Check a message and the messages in it."""
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
            continue
        _check_known(kind, number, path)
        if (kind, number) in (("node", _NODE_DOMAIN), ("opset", _OPSET_DOMAIN)):
            if (domain := _text(value)) not in _DOMAINS:
                raise _refusal(path, f"operators of the domain {domain!r}")
        elif (kind, number) == ("node", _OP_TYPE) and (name := _text(value)) in _REFUSED:
            raise _refusal(path, f"the operator {name}, which {_REFUSED[name]}")


def _check_tensor(message: memoryview, path: Path) -> None:
    """Refuse weights in another file, and more than two elements per byte."""
    dims: list[int] = []
    for number, value in _fields(message):
        if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
            raise _refusal(path, "weights in another file")
        _check_known("tensor", number, path)
        if number == _DIMS:
            dims += [value] if isinstance(value, int) else _varints(value)
    # A negative size is a varint of 2^63 or more.
    if len(dims) > _AXES or math.prod(dims) > 2 * len(message):
        raise _refusal(path, "a tensor that is larger than the file")


def _check_known(kind: str, number: int, path: Path) -> None:
    if number not in _PLAIN[kind]:
        raise _refusal(path, f"field {number} in a message of the kind {kind}")


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The number and the value of every field.

    Raises:
        IndexError: the message ends early.
        ValueError: it is not a protobuf message.
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
    return BundleError(f"{path} holds {what}, which no bundle of todm does: it is not loaded")
