"""Scalars in TensorBoard's file format, without its package.

A file is a sequence of records (TFRecord): length, checksum of the length, data, checksum of the
data. The data is a protobuf `Event`, of which these fields are written:

    Event    1 wall_time double, 2 step int64, 3 file_version string, 5 summary Summary
    Summary  1 value repeated Value
    Value    1 tag string, 2 simple_value float

Checksums are CRC-32C (Castagnoli), rotated and shifted as TFRecord wants ("masked").
"""

import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from todm.files import append

_VERSION = "brain.Event:2"
_POLYNOMIAL = 0x82F63B78  # of CRC-32C, bits reversed
_MASK = 0xA282EAD8


class Point(NamedTuple):
    """Some scalars of one step."""

    step: int
    wall_time: float
    scalars: Mapping[str, float]


class EventFile:
    """The event file of a run, the only one in its directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path: Path | None = None

    def restart(self, points: Iterable[Point] = ()) -> None:
        """Begin a new file with these points in the place of all older ones.

        A new name, since a TensorBoard that is looking on has the old file open.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        now = time.time()
        path = self._directory / f"events.out.tfevents.{now:.6f}.todm"
        version = _double(1, now) + _bytes(3, _VERSION.encode())
        path.write_bytes(_record(version) + b"".join(_record(_event(p)) for p in points))
        for old in self._directory.glob("events.out.tfevents.*.todm"):
            if old != path:
                old.unlink()
        self._path = path

    def add(self, point: Point) -> None:
        """Append a point."""
        if self._path is None:
            self.restart()
        assert self._path is not None
        append(self._path, _record(_event(point)))


def _event(point: Point) -> bytes:
    values = (
        _bytes(1, _bytes(1, tag.encode()) + _key(2, 5) + struct.pack("<f", value))
        for tag, value in point.scalars.items()
    )
    step = _key(2, 0) + _varint(point.step)
    return _double(1, point.wall_time) + step + _bytes(5, b"".join(values))


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


def _table_entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = tuple(_table_entry(byte) for byte in range(256))


def _key(field: int, wire: int) -> bytes:
    """What stands before a field; wire type 0 is a varint, 1 eight bytes, 2 with a length, 5 four bytes."""
    return _varint(field << 3 | wire)


def _bytes(field: int, data: bytes) -> bytes:
    return _key(field, 2) + _varint(len(data)) + data


def _double(field: int, value: float) -> bytes:
    return _key(field, 1) + struct.pack("<d", value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
