"""Every way in which a bundle can be wrong has its own sentence, and none kills the process."""

import hashlib
import json

import pytest

from todm.device.bundle import (
    Bundle,
    best_int8,
    forms_here,
    open_bundle,
    overflows,
    read_tokens,
)
from todm.device.contract import validate
from todm.errors import BundleError


def edit(bundle, name, old, new):
    """Change bytes of a file and put its new hash into the manifest, as a careless repair would."""
    file = bundle / name
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new))
    rehash(bundle, name)


def rehash(bundle, name):
    manifest = json.loads((bundle / "manifest.json").read_text())
    data = (bundle / name).read_bytes()
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_whole_bundle(golden):
    bundle = open_bundle(golden)
    spec = validate(bundle)
    assert bundle.precisions() == ("fp32", "int8", "int8.rr")
    assert bundle.has_offline()
    assert bundle.tail_seconds == 0.68
    assert (spec.chunk_frames, spec.shift_frames) == (32, 32)
    assert (spec.state0_shape, spec.state1_shape) == ((1, 12), (1, 80))
    assert (spec.vocab_size, spec.context_size, spec.joiner_dim) == (24, 2, 16)


def test_missing_file(spoilable):
    (spoilable / "joiner.onnx").unlink()
    with pytest.raises(BundleError, match=r"incomplete: joiner\.onnx is missing"):
        open_bundle(spoilable)


def test_truncated_file(spoilable):
    file = spoilable / "encoder.onnx"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(BundleError, match=r"damaged: encoder\.onnx does not match"):
        open_bundle(spoilable)


def test_one_changed_byte(spoilable):
    file = spoilable / "encoder.int8.onnx"
    data = bytearray(file.read_bytes())
    data[3000] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"damaged: encoder\.int8\.onnx"):
        open_bundle(spoilable)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"kind": "bundle", "files": 3, "format_version": 1}',
        '{"kind": "bundle", "files": {}}',
    ],
)
def test_damaged_manifest(spoilable, text):
    (spoilable / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(spoilable)


def test_other_artifact(spoilable):
    manifest = json.loads((spoilable / "manifest.json").read_text())
    (spoilable / "manifest.json").write_text(json.dumps({**manifest, "kind": "corpus"}))
    with pytest.raises(BundleError, match="is a corpus, and a bundle is needed"):
        open_bundle(spoilable)


def test_foreign_directory(tmp_path):
    (tmp_path / "encoder.onnx").write_bytes(b"something")
    with pytest.raises(BundleError, match="is not a todm bundle"):
        open_bundle(tmp_path)


def test_no_directory(tmp_path):
    with pytest.raises(BundleError, match="is not a directory"):
        open_bundle(tmp_path / "nowhere")


def test_manifest_that_names_a_file_outside(spoilable):
    manifest = json.loads((spoilable / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"bytes": 1, "sha256": 64 * "0"}
    (spoilable / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="outside itself"):
        open_bundle(spoilable)


def test_link_to_a_file_outside(spoilable, golden):
    (spoilable / "bpe.model").unlink()
    (spoilable / "bpe.model").symlink_to(golden / "bpe.model")
    with pytest.raises(BundleError, match="outside itself"):
        open_bundle(spoilable)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("encoder.onnx", b"\x12\x04lstm", b"\x12\x04rnn_", "model_type 'rnn_', and 'lstm' is needed"),
        ("encoder.onnx", b"model_type", b"modex_type", "no model_type"),
        ("encoder.onnx", b"\n\x01T\x12\x0232", b"\n\x01T\x12\x02-1", "T = '-1', and a whole number"),
        ("encoder.onnx", b"\n\x01T\x12\x0232", b"\n\x01T\x12\x0216", "advances 32 frames"),
        ("encoder.onnx", b"\n\x01T\x12\x0232", b"\n\x01T\x12\x0240", "does not accept inputs"),
        ("encoder.onnx", b"d_model\x12\x0212", b"d_model\x12\x0213", "does not accept inputs"),
        ("encoder.onnx", b"rnn_hidden_size", b"rnn_hidden_sizo", "rnn_hidden_size = None"),
        ("decoder.onnx", b"vocab_size\x12\x0224", b"vocab_size\x12\x0225", "24 tokens, and .* is 25"),
        ("decoder.onnx", b"context_size\x12\x012", b"context_size\x12\x013", "the decoder does not accept"),
        ("offline/encoder.onnx", b"zipformer2", b"zipformer3", "model_type 'zipformer3'"),
    ],
)  # fmt: skip
def test_wrong_metadata(spoilable, name, old, new, message):
    edit(spoilable, name, old, new)
    with pytest.raises(BundleError, match=message):
        validate(open_bundle(spoilable))


def test_graph_that_is_no_graph(spoilable):
    (spoilable / "joiner.onnx").write_bytes(b"not a graph")
    rehash(spoilable, "joiner.onnx")
    with pytest.raises(BundleError, match=r"joiner\.onnx cannot be read as an ONNX file"):
        validate(open_bundle(spoilable))


def test_graphs_in_each_others_place(spoilable):
    joiner, decoder = spoilable / "joiner.onnx", spoilable / "decoder.onnx"
    joiner.write_bytes(decoder.read_bytes())
    rehash(spoilable, "joiner.onnx")
    with pytest.raises(BundleError, match="the joiner has 1 inputs, and 2 are expected"):
        validate(open_bundle(spoilable))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<blk> 0\na 1\na", "line 3"),
        ("<blk> 0\na 1\nb 1\n", "line 3"),
        ("<blk> 0\na 2\n", "without a gap"),
        ("a 0\n<blk> 1\n", "0 must be <blk>"),
        ("", "0 must be <blk>"),
    ],
    ids=["no-id", "doubled-id", "gap", "blank-not-first", "empty"],
)
def test_bad_tokens(tmp_path, text, message):
    (tmp_path / "tokens.txt").write_text(text)
    with pytest.raises(BundleError, match=message):
        read_tokens(tmp_path / "tokens.txt")


def test_tokens_that_are_not_text(tmp_path):
    (tmp_path / "tokens.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="not UTF-8"):
        read_tokens(tmp_path / "tokens.txt")


def test_lone_id_is_a_space(tmp_path):
    (tmp_path / "tokens.txt").write_text("<blk> 0\n 1\n")
    assert read_tokens(tmp_path / "tokens.txt") == ("<blk>", " ")


@pytest.mark.parametrize(
    ("machine", "vnni", "wanted"),
    [
        ("aarch64", False, "int8"),
        ("x86_64", True, "int8"),
        ("x86_64", False, "int8.rr"),
        ("AMD64", False, "int8.rr"),
    ],
)
def test_int8_form_follows_the_processor(golden, monkeypatch, machine, vnni, wanted):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("todm.device.bundle.has_vnni", lambda: vnni)
    assert best_int8(Bundle(path=golden)) == wanted


def test_int8_form_where_there_is_only_one(golden, spoilable, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("todm.device.bundle.has_vnni", lambda: False)
    (spoilable / "encoder.int8.rr.onnx").unlink()
    assert best_int8(Bundle(path=spoilable)) == "int8"


@pytest.mark.parametrize(("vnni", "wanted"), [(True, "int8"), (False, "int8.rr")])
def test_forms_for_this_processor(golden, spoilable, monkeypatch, vnni, wanted):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("todm.device.bundle.has_vnni", lambda: vnni)
    (spoilable / "encoder.int4.onnx").write_bytes((golden / "encoder.onnx").read_bytes())
    assert forms_here(Bundle(path=spoilable)) == ("fp32", wanted, "int4")


@pytest.mark.parametrize("vnni", [True, False])
def test_only_full_range_weights_overflow(monkeypatch, vnni):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("todm.device.bundle.has_vnni", lambda: vnni)
    found = [p for p in ("fp32", "int8", "int8.rr", "int8.block", "int4") if overflows(p)]
    assert found == ([] if vnni else ["int8"])
