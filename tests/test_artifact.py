"""Artifacts: whole or refused; never half-written, foreign or pointing outside themselves."""

import json
import os

import pytest

from todm import artifact
from todm.errors import ArtifactError
from todm.files import write_text


def _write_tokens(directory):
    (directory / "tokens.txt").write_text("<blk> 0\n<sos/eos> 1\n")
    (directory / "deep").mkdir()
    (directory / "deep" / "data.bin").write_bytes(bytes(range(256)) * 8)


@pytest.fixture
def saved(tmp_path):
    """A whole artifact."""
    return artifact.save(
        tmp_path / "a", kind="subnet", config={"x": 1}, metrics={"wer": 0.5}, write=_write_tokens
    )


def _edit_manifest(path, **changes):
    file = path / artifact.MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_what_was_saved_is_loaded(saved):
    loaded = artifact.load(saved.path)
    assert loaded == saved
    assert (loaded.kind, loaded.config, loaded.metrics) == ("subnet", {"x": 1}, {"wer": 0.5})
    assert loaded.file("tokens.txt").read_text().startswith("<blk>")


def test_weights_round_trip(tmp_path):
    torch = pytest.importorskip("torch")
    weights = {"w": torch.randn(3, 4).t(), "half": torch.randn(5).bfloat16()}
    saved = artifact.save(tmp_path / "a", kind="subnet", config={}, tensors=weights)
    loaded = saved.tensors()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_the_parent_is_known_by_its_hash(saved, tmp_path):
    child = artifact.save(tmp_path / "b", kind="bundle", config={}, parent=saved.hash)
    assert artifact.load(child.path).parent == saved.hash
    assert child.hash != saved.hash


@pytest.mark.parametrize("name", ["tokens.txt", "deep/data.bin"])
def test_a_truncated_file_is_refused(saved, name):
    file = saved.path / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=name):
        artifact.load(saved.path)


def test_a_changed_byte_is_refused(saved):
    file = saved.path / "deep" / "data.bin"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged"):
        artifact.load(saved.path)


def test_a_missing_file_is_refused(saved):
    (saved.path / "tokens.txt").unlink()
    with pytest.raises(ArtifactError, match=r"tokens\.txt is missing"):
        artifact.load(saved.path)


@pytest.mark.parametrize("keep", [0, 1, 40, -2])
def test_a_truncated_manifest_is_refused(saved, keep):
    file = saved.path / artifact.MANIFEST
    file.write_text(file.read_text()[:keep])
    with pytest.raises(ArtifactError, match="damaged"):
        artifact.load(saved.path)


@pytest.mark.parametrize(
    "text", ["[]", "7", "null", '{"kind": "subnet"}', '{"kind": "subnet", "files": {}}']
)
def test_a_manifest_of_another_shape_is_refused(saved, text):
    (saved.path / artifact.MANIFEST).write_text(text)
    with pytest.raises(ArtifactError):
        artifact.load(saved.path)


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "deep/../../outside.txt"])
def test_a_file_outside_the_directory_is_refused(saved, name):
    (saved.path.parent / "outside.txt").write_text("x")
    _edit_manifest(saved.path, files={name: {"bytes": 1, "sha256": "0"}})
    with pytest.raises(ArtifactError, match="outside"):
        artifact.load(saved.path)


def test_another_kind_is_refused(saved):
    with pytest.raises(ArtifactError, match="is a subnet, and a corpus is needed"):
        artifact.load(saved.path, kind="corpus")
    assert artifact.load(saved.path, kind=("supernet", "subnet")).kind == "subnet"


def test_another_format_version_is_refused(saved):
    _edit_manifest(saved.path, format_version=999)
    with pytest.raises(ArtifactError, match="format 999"):
        artifact.load(saved.path)


def test_no_artifact_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="not an artifact"):
        artifact.load(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="not an artifact"):
        artifact.load(tmp_path)


def test_a_file_that_was_never_there_is_named(saved):
    with pytest.raises(ArtifactError, match=r"bpe\.model"):
        saved.file("bpe.model")


def test_weights_that_cannot_be_read_are_an_error(tmp_path):
    pytest.importorskip("safetensors")
    broken = artifact.save(
        tmp_path / "a",
        kind="subnet",
        config={},
        write=lambda d: (d / artifact.WEIGHTS).write_bytes(b"\xff" * 64),
    )
    with pytest.raises(ArtifactError, match="cannot be read"):
        broken.tensors()


def test_a_foreign_directory_is_not_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(ArtifactError, match="not an artifact"):
        artifact.save(tmp_path / "photos", kind="subnet", config={})
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "meow"
    with pytest.raises(ArtifactError, match="not an artifact"):  # before the work, not after it
        artifact.existing(tmp_path / "photos", kind="subnet")


def test_a_file_is_not_overwritten(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ArtifactError, match="not an artifact"):
        artifact.save(tmp_path / "a", kind="subnet", config={})
    assert (tmp_path / "a").read_text() == "mine"


def test_an_artifact_is_replaced_whole(saved):
    artifact.save(saved.path, kind="subnet", config={"x": 2})
    assert artifact.load(saved.path).config == {"x": 2}
    assert not (saved.path / "tokens.txt").exists()


def test_a_failed_write_leaves_the_old_one_and_nothing_else(saved):
    def fail(directory):
        (directory / "half").write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        artifact.save(saved.path, kind="subnet", config={"x": 2}, write=fail)
    assert artifact.load(saved.path).config == {"x": 1}
    assert os.listdir(saved.path.parent) == [saved.path.name]


def test_a_half_written_one_is_not_taken_for_whole(tmp_path):
    """What a kill in mid-write leaves: files, and no manifest."""
    half = tmp_path / "a"
    half.mkdir()
    _write_tokens(half)
    with pytest.raises(ArtifactError, match="not an artifact"):
        artifact.load(half)


def test_a_text_is_written_whole(tmp_path):
    file = tmp_path / "log.json"
    write_text(file, "one")
    write_text(file, "two")
    assert file.read_text() == "two"
    assert os.listdir(tmp_path) == ["log.json"]
