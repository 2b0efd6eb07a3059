"""Bundles from strangers: spoilt in any way, they are refused with a one-line message."""

import hashlib
import json
import os
import random
import shutil

import numpy as np
import pytest

from todm.device.bundle import open_bundle
from todm.device.contract import validate
from todm.device.onnx_file import check_onnx
from todm.device.recognizer import StreamingRecognizer
from todm.errors import BundleError

FILES = (
    "README.md", "bpe.model", "bpe.vocab", "decoder.int8.onnx", "decoder.onnx", "encoder.int8.onnx",
    "encoder.int8.rr.onnx", "encoder.onnx", "joiner.int8.onnx", "joiner.onnx", "manifest.json",
    "offline/encoder.int8.onnx", "offline/encoder.int8.rr.onnx", "offline/encoder.onnx",
    "test_wavs/0.wav", "test_wavs/expected.json", "tokens.txt",
)  # fmt: skip
WRONG = (None, True, -1, 3, 1.5, float("nan"), float("inf"), 10**400, "x", [], ["x"], {}, {"x": []})


def use(path):
    """All that a device does with a bundle."""
    bundle = open_bundle(path)
    validate(bundle)
    return StreamingRecognizer(bundle).transcribe(np.zeros(4000, np.float32))


def one_sentence(path, spoilt):
    """The one-line message with which a bundle is refused."""
    with pytest.raises(BundleError) as refusal:
        use(path)
    text = str(refusal.value)
    assert text.isprintable(), spoilt
    assert 20 < len(text) < 500 + len(str(path)), spoilt
    return text


def spoil_manifest(path, change):
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def rehash(path, name):
    data = (path / name).read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    spoil_manifest(path, lambda manifest: manifest["files"].update({name: entry}))


def test_every_file_is_spoilt_here(golden):
    found = {p.relative_to(golden).as_posix() for p in golden.rglob("*") if p.is_file()}
    assert found == set(FILES)
    use(golden)


def truncated(file):
    file.write_bytes(file.read_bytes()[:-2])  # of the manifest more than its last line feed


def emptied(file):
    file.write_bytes(b"")


def flipped(file):
    data = bytearray(file.read_bytes())
    data[random.Random(file.name).randrange(len(data))] ^= 0x80  # no longer ASCII, if it was
    file.write_bytes(data)


def replaced(file):
    file.write_bytes(random.Random(0).randbytes(file.stat().st_size))


def lengthened(file):
    file.write_bytes(file.read_bytes() + b"\0")


def swapped(file):
    other = "bpe.vocab" if file.name == "bpe.model" else "bpe.model"
    root = file.parent if (file.parent / other).exists() else file.parent.parent
    shutil.copy(root / other, file)


def removed(file):
    file.unlink()


def linked(file):
    kept = file.with_name(f"{file.name}.kept")
    file.rename(kept)
    file.symlink_to(kept.name)


def linked_to_itself(file):
    file.unlink()
    file.symlink_to(file.name)


def made_a_folder(file):
    file.unlink()
    file.mkdir()


def made_a_pipe(file):
    file.unlink()
    os.mkfifo(file)


HOW = (
    truncated, emptied, flipped, replaced, lengthened, swapped, removed, linked, linked_to_itself,
    made_a_folder, made_a_pipe,
)  # fmt: skip


@pytest.mark.parametrize("how", HOW, ids=lambda how: how.__name__)
def test_every_file_spoilt_in_every_way(golden, tmp_path, how):
    for name in FILES:
        path = tmp_path / name.replace("/", "_")
        shutil.copytree(golden, path)
        how(path / name)
        one_sentence(path, name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("encoder.int4.onnx", "its manifest does not list"),
        ("extra.bin", "its manifest does not list"),
        ("a/b/c.txt", "its manifest does not list"),
        ("a/b/c/d/e/f.txt", "more files or folders"),
        ("a\x1b[2Jb", "strange name"),
        ("two words", "strange name"),
        ("-rf", "strange name"),
    ],
)
def test_an_added_file_is_refused(spoilable, name, words):
    (spoilable / name).parent.mkdir(parents=True, exist_ok=True)
    (spoilable / name).write_bytes(b"anything")
    assert words in one_sentence(spoilable, name)


def test_hidden_files_are_passed_over(spoilable):
    (spoilable / ".DS_Store").write_bytes(b"anything")
    (spoilable / ".git").mkdir()
    use(spoilable)


def test_too_many_files_are_refused(spoilable):
    for number in range(1001):
        (spoilable / f"{number}.txt").touch()
    with pytest.raises(BundleError, match="more files or folders"):
        open_bundle(spoilable)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", ".", "./tokens.txt", ".x",
                                  "\ud800", "a\0b", "x\x1b[2J", "C:\\x", "tokens.txt/"])  # fmt: skip
def test_names_that_are_not_plain(spoilable, name):
    (spoilable / ".x").write_bytes((spoilable / "tokens.txt").read_bytes())
    spoil_manifest(spoilable, lambda m: m["files"].update({name: m["files"]["tokens.txt"]}))
    one_sentence(spoilable, name)


FIELDS = ("kind", "format_version", "config", "parent", "metrics", "info", "versions", "files")


@pytest.mark.parametrize("field", FIELDS)
def test_manifest_fields_of_every_wrong_type(golden, tmp_path, field):
    whole = json.loads((golden / "manifest.json").read_text())
    shutil.copytree(golden, tmp_path / "bundle")
    for wrong in WRONG:
        if type(wrong) is type(whole[field]) or (
            field == "parent" and (wrong is None or wrong == "x")
        ):
            continue
        (tmp_path / "bundle" / "manifest.json").write_text(json.dumps({**whole, field: wrong}))
        one_sentence(tmp_path / "bundle", (field, wrong))


@pytest.mark.parametrize("field", ["bytes", "sha256"])
def test_entries_of_every_wrong_type(golden, tmp_path, field):
    shutil.copytree(golden, tmp_path / "bundle")
    right = json.loads((golden / "manifest.json").read_text())
    entry = right["files"]["tokens.txt"]
    for wrong in (*WRONG, float(entry["bytes"]), str(entry["bytes"]), 1 << 60, 64 * "0"):
        files = {**right["files"], "tokens.txt": {**entry, field: wrong}}
        (tmp_path / "bundle" / "manifest.json").write_text(json.dumps({**right, "files": files}))
        one_sentence(tmp_path / "bundle", wrong)


@pytest.mark.parametrize("entry", [None, 3, "x", [], {}, {"bytes": 1}, {"sha256": 64 * "0"}])
def test_entries_that_are_none(spoilable, entry):
    spoil_manifest(spoilable, lambda m: m["files"].update({"tokens.txt": entry}))
    one_sentence(spoilable, entry)


@pytest.mark.parametrize(
    "field",
    ["tail_seconds", "chunk_seconds", "endpoint_seconds", "subnet", "compressed", "target"],
)
def test_info_of_every_wrong_type(golden, tmp_path, field):
    shutil.copytree(golden, tmp_path / "bundle")
    right = json.loads((golden / "manifest.json").read_text())
    numbers, tables = field.endswith("_seconds"), field in ("subnet", "compressed")
    for wrong in (*WRONG, 101, -0.5):
        number = isinstance(wrong, int | float) and not isinstance(wrong, bool)
        if (numbers and number and 0 <= wrong <= 100) or (tables and isinstance(wrong, dict)):
            continue
        if field == "target" and isinstance(wrong, str):
            continue
        manifest = {**right, "info": {**right["info"], field: wrong}}
        (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(manifest))
        one_sentence(tmp_path / "bundle", wrong)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '{"kind": "bundle"', "\ufeff{}", "null", '"bundle"',
     " " * (1 << 24) + "{}"],
    ids=["lists", "tables", "digits", "cut", "mark", "null", "string", "long"],
)  # fmt: skip
def test_manifests_that_are_none(spoilable, text):
    (spoilable / "manifest.json").write_text(text)
    one_sentence(spoilable, text[:10])


def test_manifest_that_is_not_text(spoilable):
    (spoilable / "manifest.json").write_bytes(b"\xff\xfe\x00")
    one_sentence(spoilable, "bytes")


def field(number, data):
    """A field of a protobuf message that is a message or text; of an int, its varint."""
    if isinstance(data, int):
        return varint(number << 3) + varint(data)
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def nested(depth):
    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))
    return graph


GRAPH, OPSET, FUNCTION = 7, 8, 25
STRANGE = {
    "external data": (field(GRAPH, field(5, field(13, field(1, b"location")))), "another file"),
    "its location": (field(GRAPH, field(5, field(14, 1))), "another file"),
    "in a subgraph": (
        field(GRAPH, field(1, field(5, field(6, field(5, field(14, 1)))))), "another file"
    ),
    "in an attribute": (field(GRAPH, field(1, field(5, field(5, field(14, 1))))), "another file"),
    "domain": (field(GRAPH, field(1, field(7, b"my.ops"))), "the domain 'my.ops'"),
    "terminal": (field(GRAPH, field(1, field(7, b"\x1b[2J"))), "the domain"),
    "opset": (field(OPSET, field(1, b"my.ops")), "the domain 'my.ops'"),
    "function": (field(FUNCTION, field(7, field(7, b"my.ops"))), "the domain 'my.ops'"),
    "Loop": (field(GRAPH, field(1, field(4, b"Loop"))), "without end"),
    "EPContext": (field(GRAPH, field(1, field(4, b"EPContext"))), "compiled code"),
    "huge": (field(GRAPH, field(5, field(1, 1 << 40) + field(9, b"1234"))), "larger than the file"),
    "huge, packed": (field(GRAPH, field(5, field(1, varint(1 << 40)))), "larger than the file"),
    "negative": (field(GRAPH, field(5, field(1, (1 << 64) - 1))), "larger than the file"),
    "axes": (field(GRAPH, field(5, 99 * field(1, 1))), "larger than the file"),
    "sparse": (field(GRAPH, field(15, b"")), "sparse"),
    "deep": (field(GRAPH, nested(200)), "nested"),
    "training": (field(20, b""), "field 20 in a message of the kind model"),
    "default of a function": (
        field(FUNCTION, field(11, field(5, field(13, b"")))), "field 11 in a message of the kind function"
    ),
    "long tag": (varint(1 << 40 | GRAPH << 3 | 2) + b"\0", "in a message of the kind model"),
    "configuration": (field(GRAPH, field(1, field(10, b""))), "field 10 in a message of the kind node"),
    "segment": (field(GRAPH, field(5, field(3, b""))), "field 3 in a message of the kind tensor"),
    "no message": (field(GRAPH, 3), "cannot be read"),
    "no text": (field(GRAPH, field(1, field(7, b"\xff"))), "cannot be read"),
    "early end": (varint(GRAPH << 3 | 2) + varint(99), "cannot be read"),
    "long varint": (10 * b"\xff" + b"\x01", "cannot be read"),
    "group": (varint(GRAPH << 3 | 3), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", STRANGE)
def test_graphs_that_are_more_than_a_graph(golden, tmp_path, case):
    data, words = STRANGE[case]
    # Messages one after the other are one message.
    (tmp_path / "joiner.onnx").write_bytes((golden / "joiner.onnx").read_bytes() + data)
    with pytest.raises(BundleError, match=words) as refusal:
        check_onnx(tmp_path / "joiner.onnx")
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".onnx")])
def test_every_graph_of_a_bundle_is_looked_over(spoilable, name):
    (spoilable / name).write_bytes((spoilable / name).read_bytes() + STRANGE["external data"][0])
    rehash(spoilable, name)
    assert "another file" in one_sentence(spoilable, name)


def test_every_cut_of_a_graph_is_read_without_another_error(golden, tmp_path):
    """Where the file ends in the middle of a field; a cut between two fields is a shorter message."""
    data = (golden / "joiner.onnx").read_bytes()
    refused = 0
    for end in range(0, len(data), 41):
        (tmp_path / "cut.onnx").write_bytes(data[:end])
        try:
            check_onnx(tmp_path / "cut.onnx")
        except BundleError:
            refused += 1
    assert refused > 0.9 * len(data) / 41


@pytest.mark.parametrize("size", ["99999999", "9" * 5000, "16777217", "٣٢", "0x20", "0"])
@pytest.mark.parametrize("key", ["T", "d_model", "num_encoder_layers"])
def test_sizes_in_the_metadata(spoilable, key, size):
    file = spoilable / "encoder.onnx"
    entry = field(14, field(1, key.encode()) + field(2, size.encode()))
    file.write_bytes(file.read_bytes() + entry)  # the last of two entries holds
    rehash(spoilable, "encoder.onnx")
    one_sentence(spoilable, (key, size))


@pytest.mark.parametrize(
    "text",
    ["<blk> 0\na " + "9" * 5000, "<blk> 0\na\x1b[2J 1", "<blk> 0\na\tb 1", "<blk> 0\na ²", "<blk> 0\na -1",
     "<blk> 0\n" + "\n".join(f"t{i} {i}" for i in range(1, 23)), "<blk> 0\n" + "x" * (1 << 24)],
    ids=["digits", "escape", "tab", "power", "negative", "one-short", "long"],
)  # fmt: skip
def test_tokens_of_a_stranger(spoilable, text):
    (spoilable / "tokens.txt").write_text(text)
    rehash(spoilable, "tokens.txt")
    one_sentence(spoilable, text[:20])


def test_a_file_that_is_onnx_and_no_graph_is_left_to_the_runtime(spoilable):
    (spoilable / "joiner.onnx").write_bytes(field(GRAPH, b""))
    rehash(spoilable, "joiner.onnx")
    assert "cannot be loaded by onnxruntime" in one_sentence(spoilable, "empty graph")
