"""The runners of export/ hold what they load against the manifest, and refuse the rest in a sentence."""

import hashlib
import importlib.util
import json
import shutil

import pytest

RUNNERS = {"onnx": "onnxruntime", "sherpa_onnx": "sherpa_onnx", "executorch": "executorch"}
WRONG = (None, True, -1, 1.5, float("nan"), "x", [], {}, 101)


@pytest.fixture(params=RUNNERS)
def checked(request, repo):
    """The runner's function that gives a file, and the kind of bundle that it reads."""
    pytest.importorskip(RUNNERS[request.param], reason=f"needs {RUNNERS[request.param]}")
    file = repo / "export" / request.param / "run.py"
    spec = importlib.util.spec_from_file_location(f"runner_{request.param}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.checked, "executorch" if request.param == "executorch" else "bundle"


@pytest.fixture
def copy(repo, checked, tmp_path):
    path = shutil.copytree(repo / "tests" / "device" / "golden", tmp_path / "bundle")
    spoil(path, lambda manifest: manifest.update(kind=checked[1]))
    return path


def spoil(path, change):
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def refused(checked, path, name="tokens.txt"):
    with pytest.raises(SystemExit) as refusal:
        checked[0](path, name)
    assert str(refusal.value).startswith(str(path))
    assert str(refusal.value).isprintable()


@pytest.mark.runtime
def test_a_whole_file(checked, copy):
    checked[0](copy, "tokens.txt")
    checked[0](copy, "encoder.onnx")


@pytest.mark.runtime
def test_every_spoilt_file(checked, copy):
    for name in ("tokens.txt", "encoder.int8.onnx", "offline/encoder.onnx"):
        data = (copy / name).read_bytes()
        for spoilt in (data[:-1], b"", data[:9] + bytes([data[9] ^ 1]) + data[10:], data + b"\0"):
            (copy / name).write_bytes(spoilt)
            refused(checked, copy, name)
        (copy / name).unlink()
        refused(checked, copy, name)


@pytest.mark.runtime
@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, "null", "\ufeff", "9" * 5000])
def test_manifests_that_are_none(checked, copy, text):
    (copy / "manifest.json").write_text(text)
    refused(checked, copy)


@pytest.mark.runtime
def test_fields_of_every_wrong_type(checked, copy):
    whole = json.loads((copy / "manifest.json").read_text())
    for wrong in WRONG:
        entry = whole["files"]["tokens.txt"]
        for change in (
            {"kind": wrong}, {"files": wrong}, {"info": wrong},
            {"files": {"tokens.txt": wrong}}, {"files": {"tokens.txt": {**entry, "bytes": wrong}}},
            {"files": {"tokens.txt": {**entry, "sha256": wrong}}},
        ):  # fmt: skip
            (copy / "manifest.json").write_text(json.dumps({**whole, **change}))
            refused(checked, copy)
        if wrong is not True and wrong != 1.5:
            changed = {**whole, "info": {"tail_seconds": wrong}}
            (copy / "manifest.json").write_text(json.dumps(changed))
            refused(checked, copy)


@pytest.mark.runtime
@pytest.mark.parametrize("checked", ["onnx", "executorch"], indirect=True)
def test_endpoints_of_every_wrong_type(checked, copy):
    for wrong in (None, -1, float("nan"), "x", [], {}, 101):
        spoil(copy, lambda manifest, wrong=wrong: manifest["info"].update(endpoint_seconds=wrong))
        refused(checked, copy)
    spoil(copy, lambda manifest: manifest["info"].update(endpoint_seconds=0.6))
    checked[0](copy, "tokens.txt")


@pytest.mark.runtime
def test_weights_in_another_file(checked, copy):
    if checked[1] == "executorch":
        pytest.skip("ONNX only")
    file = copy / "encoder.onnx"
    # A graph with a tensor with external data: the key "location".
    data = file.read_bytes() + b"\x3a\x0e\x2a\x0c\x6a\x0a\x0a\x08location"
    file.write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    spoil(copy, lambda manifest: manifest["files"].update({"encoder.onnx": entry}))
    refused(checked, copy, "encoder.onnx")
