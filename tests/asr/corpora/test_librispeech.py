from pathlib import Path

import numpy as np
import pytest
import soundfile

from todm.asr.corpora import librispeech, sources
from todm.asr.corpora.config import DataConfig
from todm.asr.data.workers import Workers
from todm.errors import CorpusError


def _config(root, **more):
    return DataConfig(source="librispeech", data=str(root), **more)


def _read(root, **more):
    found = sources.read(_config(root, **more), root, workers=Workers(1))
    return found.utterances, found.rejected


@pytest.fixture
def layout(make_layout):
    """Three splits, two good utterances each."""
    for split in ("train-clean-100", "train-other-500", "dev-clean", "test-other"):
        mark = split.replace("-", "")
        root = make_layout(split, {f"{mark}-{i}": "HELLO WORLD" for i in range(2)})
    return root


def _damage(root, name, what):
    folder = root / "train-clean-100" / "1" / "2"
    path, trans = folder / f"{name}.flac", folder / "1-2.trans.txt"
    write = lambda samples: soundfile.write(path, samples, 16000)  # noqa: E731
    text = "HELLO"
    if what == "missing":
        pass
    elif what == "empty file":
        path.write_bytes(b"")
    elif what == "garbage":
        path.write_bytes(b"this is no audio" * 100)
    elif what in ("truncated", "flipped"):
        write(np.random.default_rng(0).normal(size=48000) * 0.1)
        data = bytearray(path.read_bytes())
        if what == "flipped":
            data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
        path.write_bytes(data[: len(data) // 2] if what == "truncated" else data)
    elif what in ("no samples", "short", "long"):
        write(np.ones({"no samples": 0, "short": 160, "long": 16000 * 21}[what]) * 0.1)
    elif what == "silent":
        write(np.zeros(16000))
    else:
        write(np.ones(16000) * 0.1)
        text = {"no text": "", "foreign": "HELLO 2 WORLDS", "unlisted": None}[what]
    if text is not None:
        trans.write_text(f"{trans.read_text()}{name} {text}\n")


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("missing", "audio missing"),
        ("empty file", "audio file empty"),
        ("no samples", "audio file empty"),
        ("garbage", "audio unreadable"),
        ("truncated", "audio corrupt|audio truncated"),
        ("flipped", "audio corrupt|audio truncated"),
        ("short", "audio too short"),
        ("long", "audio too long"),
        ("silent", "audio silent"),
        ("no text", "empty transcript"),
        ("foreign", "transcript outside the alphabet"),
        ("unlisted", "no transcript"),
    ],
)
def test_what_cannot_be_used_is_listed_with_its_reason(layout, what, reason):
    _damage(layout, "bad-1", what)
    usable, rejected = _read(layout)
    assert len(usable) == 8
    assert [r.id for r in rejected] == ["bad-1"]
    assert rejected[0].reason in reason.split("|")
    assert rejected[0].path.startswith(str(layout))


def test_a_damaged_flac_passes_by_its_header_alone(layout):
    _damage(layout, "bad-1", "flipped")
    assert len(_read(layout, verify_audio="header")[0]) == 9


def test_an_unreadable_transcript_file(layout):
    path = layout / "dev-clean" / "1" / "2" / "1-2.trans.txt"
    path.write_bytes(b"devclean-0 HELLO\r\n\xff\xfe\x00x\n")
    _, rejected = _read(layout)
    assert sorted(r.reason for r in rejected) == ["line is not UTF-8", "no transcript"]


def test_an_id_that_occurs_twice(make_layout):
    make_layout("train", {"a": "X"})
    make_layout("dev", {"a": "Y"})
    usable, rejected = _read(make_layout("test", {"b": "Z"}))
    assert [(u.split, u.id) for u in usable] == [("train", "a"), ("test", "b")] or [
        (u.split, u.id) for u in usable
    ] == [("dev", "a"), ("test", "b")]
    assert [r.reason for r in rejected] == ["id occurs twice"]


@pytest.mark.parametrize("suffix", ["flac", "wav", "ogg"])
def test_formats_and_rates(make_layout, suffix):
    for split in ("train", "dev", "test"):
        root = make_layout(split, {f"{split}-1": "hello"}, rate=8000, suffix=suffix)
    usable, rejected = _read(root)
    assert not rejected
    assert {(u.rate, u.text, u.speaker) for u in usable} == {(8000, "HELLO", "1")}
    assert usable[0].seconds == pytest.approx(1.0, abs=0.01)


def test_folders_by_name(layout):
    found = [(s, f.name) for s, f in librispeech.split_folders(layout, {})]
    assert found == [
        ("dev", "dev-clean"), ("test", "test-other"),
        ("train", "train-clean-100"), ("train", "train-other-500"),
    ]  # fmt: skip


def test_folders_by_mapping(layout):
    (layout / "mine").mkdir()
    mapping = {"mine": "train", "dev-clean": "dev", "test-other": "test"}
    assert [(s, f.name) for s, f in librispeech.split_folders(layout, mapping)] == [
        ("dev", "dev-clean"), ("train", "mine"), ("test", "test-other"),
    ]  # fmt: skip
    with pytest.raises(CorpusError, match="names 'yours'"):
        librispeech.split_folders(layout, {"yours": "train"})


def test_no_folder_for_a_split(make_layout):
    with pytest.raises(CorpusError, match="nothing for dev, test"):
        librispeech.split_folders(make_layout("train", {"a": "X"}), {})
    with pytest.raises(CorpusError, match="not a directory"):
        librispeech.split_folders(Path("/nowhere"), {})
