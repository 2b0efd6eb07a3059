"""The event files are read back by a parser of their own, which checks every checksum bit by bit."""

import struct

import pytest

from todm.train.monitor import METRICS, TENSORBOARD, Monitor, read_metrics
from todm.train.tensorboard import EventFile, Point


def _crc32c(data):
    """Castagnoli's polynomial, most significant bit first, on reversed bits: not the table of the writer."""

    def mirrored(value, bits):
        return int(f"{value:0{bits}b}"[::-1], 2)

    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= mirrored(byte, 8) << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x1EDC6F41 if crc >> 31 else 0)) & 0xFFFFFFFF
    return mirrored(crc ^ 0xFFFFFFFF, 32)


def _masked(data):
    crc = _crc32c(data)
    return ((crc >> 15) | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8 & 0xFFFFFFFF


def _varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not data[at - 1] & 0x80:
            return value, at


def _fields(data):
    """Number and value of every field of a protobuf message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(key & 7)
            if size is None:
                size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def _records(data):
    at = 0
    while at < len(data):
        head, (crc,) = data[at : at + 8], struct.unpack("<I", data[at + 8 : at + 12])
        assert crc == _masked(head)
        (size,) = struct.unpack("<Q", head)
        body = data[at + 12 : at + 12 + size]
        at += 16 + size
        assert struct.unpack("<I", data[at - 4 : at])[0] == _masked(body)
        yield body


def _read_events(directory):
    """(step, wall time, scalars) of every event but the first, from the only file of a directory."""
    (path,) = directory.iterdir()
    version, *events = _records(path.read_bytes())
    assert dict(_fields(version))[3] == b"brain.Event:2"
    found = []
    for event in events:
        fields = dict(_fields(event))
        scalars = {}
        for number, value in _fields(fields[5]):
            parts = dict(_fields(value))
            assert number == 1
            scalars[parts[1].decode()] = struct.unpack("<f", parts[2])[0]
        found.append((fields[2], struct.unpack("<d", fields[1])[0], scalars))
    return found


def test_the_parser_knows_a_published_checksum():
    assert _crc32c(b"123456789") == 0xE3069283


def test_what_is_written_is_read(tmp_path):
    board = EventFile(tmp_path / "board")
    board.add(Point(1, 12.5, {"train/loss": 2.5, "dev error/grün": -1e-3}))
    board.add(Point(300_000, 13.0, {"train/loss": 0.0}))
    first, second = _read_events(tmp_path / "board")
    assert first[:2] == (1, 12.5)
    assert first[2] == {"train/loss": 2.5, "dev error/grün": pytest.approx(-1e-3)}
    assert second == (300_000, 13.0, {"train/loss": 0.0})


def test_a_restart_leaves_one_file_with_the_given_points(tmp_path):
    EventFile(tmp_path).add(Point(1, 1.0, {"x": 1.0}))
    board = EventFile(tmp_path)
    board.restart([Point(1, 1.0, {"x": 3.0})])
    board.add(Point(2, 2.0, {"x": 4.0}))
    assert _read_events(tmp_path) == [(1, 1.0, {"x": 3.0}), (2, 2.0, {"x": 4.0})]


def test_a_run_has_every_point_once_after_it_was_resumed(tmp_path):
    board = tmp_path / TENSORBOARD
    with Monitor(tmp_path, 100) as monitor:
        for update in (10, 20, 30):
            monitor.trained(update, {"loss": 2.5, "rnnt smallest": 3.0})
        monitor.evaluated(20, {"largest": {"error": 0.5}, "smallest": {"error": 0.75}})
    before = _read_events(board)
    assert [step for step, _, _ in before] == [10, 20, 30, 20]
    assert before[0][2] == {"train/loss": 2.5, "train/rnnt smallest": 3.0}
    assert before[3][2] == {"dev error/largest": 0.5, "dev error/smallest": 0.75}
    with Monitor(tmp_path, 100) as monitor:
        monitor.resume(25)
        monitor.note("restart")
        monitor.trained(30, {"loss": 2.0})
    after = _read_events(board)
    assert [step for step, _, _ in after] == [10, 20, 20, 30]
    assert after[:2] == before[:2]  # with the times they were first written at


def test_figures_that_are_not_finite_are_left_out(tmp_path):
    """JSON has none, and TensorBoard would not draw them."""
    Monitor(tmp_path, 10).trained(1, {"loss": 1.0, "grad_norm": float("inf")})
    (row,) = read_metrics(tmp_path / METRICS)
    assert row.keys() == {"kind", "update", "loss", "time"}
    assert _read_events(tmp_path / TENSORBOARD)[0][2] == {"train/loss": 1.0}
