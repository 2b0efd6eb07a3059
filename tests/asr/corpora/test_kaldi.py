import pytest

from todm.errors import CorpusError


@pytest.fixture
def corpus(tmp_path, tone):
    """One recording of 4 s for each split; two segments of the training one."""
    for split in ("train", "dev", "test"):
        tone(f"audio/{split}.wav", 4.0)
        folder = tmp_path / split
        folder.mkdir()
        (folder / "wav.scp").write_text(f"rec-{split} audio/{split}.wav\n")
        (folder / "text").write_text(f"rec-{split} HELLO {split.upper()}\n")
        (folder / "utt2spk").write_text(f"rec-{split} anna\n")
    (tmp_path / "train" / "segments").write_text("a rec-train 0.5 1.5\nb rec-train 2 -1\n")
    (tmp_path / "train" / "text").write_text("a ONE\nb TWO\n")
    (tmp_path / "train" / "utt2spk").write_text("a anna\nb ben\n")
    return tmp_path


def write(corpus, name, data):
    (corpus / "train" / name).write_bytes(data)


def test_segments_speakers_and_whole_files(corpus, read):
    usable, rejected = read(corpus)
    assert rejected == {}
    spans = {i: (u.start, u.num_samples, u.speaker) for i, u in usable.items()}
    assert spans["a"] == (8000, 16000, "anna")
    assert spans["b"] == (32000, 32000, "ben")
    assert spans["rec-dev"] == (0, 64000, "anna")
    assert usable["rec-test"].text == "HELLO TEST"


def test_without_segments_an_utterance_is_a_file(corpus, read):
    (corpus / "train" / "segments").unlink()
    write(corpus, "text", b"rec-train ONE TWO\n")
    usable, _ = read(corpus)
    assert usable["rec-train"].num_samples == 64000


@pytest.mark.parametrize("command", ["sox a.sph -t wav - |", "|cat a.wav", "touch pwned; |"])
def test_a_command_is_refused_and_not_run(corpus, read, monkeypatch, command):
    monkeypatch.chdir(corpus)
    write(corpus, "wav.scp", f"rec-train {command}\n".encode())
    with pytest.raises(CorpusError, match="commands in data are never run"):
        read(corpus)
    assert not (corpus / "pwned").exists()


def test_paths_absolute_and_from_the_data_directory(corpus, read):
    write(corpus, "wav.scp", f"rec-train {corpus / 'audio' / 'train.wav'}\n".encode())
    (corpus / "dev" / "wav.scp").write_text("rec-dev ../audio/dev.wav\n")
    usable, rejected = read(corpus)
    assert len(usable) == 4
    assert rejected == {}


@pytest.mark.parametrize(
    ("name", "data", "reasons"),
    [
        (
            "segments",
            b"a rec-train 0.5 9\nb rec-train 2 3\n",
            {"a": "segment outside the recording"},
        ),
        ("segments", b"a rec-train x 9\nb rec-train 2 3\n", {"a": "segment unreadable"}),
        ("segments", b"a rec-train 3 2\nb rec-train 2 3\n", {"a": "segment unreadable"}),
        ("segments", b"a rec-train nan 2\nb rec-train 2 3\n", {"a": "segment unreadable"}),
        ("segments", b"a gone 0 1\nb rec-train 2 3\n", {"a": "audio missing"}),
        ("segments", b"b rec-train 2 3\n", {"a": "no segment"}),
        ("text", b"a ONE\na TWO\nb TWO\n", {"a": "id occurs twice"}),
        ("text", b"a ON\0E\nb TWO\n", {"a": "transcript outside the alphabet"}),
        ("text", b"a\nb TWO\n", {"a": "empty transcript"}),
        ("text", b"\xef\xbb\xbfa ONE\r\nb TWO\r\n", {}),
        ("text", b"a \xff\xfe\nb TWO\n", {"text:1": "line is not UTF-8", "a": "no transcript"}),
        ("text", b"b TWO\n", {"a": "no transcript"}),
    ],
)
def test_what_cannot_be_used_is_listed_with_its_reason(corpus, read, name, data, reasons):
    write(corpus, name, data)
    usable, rejected = read(corpus)
    assert rejected == reasons
    assert usable["b"].text == "TWO"


def test_a_missing_file(corpus, read):
    (corpus / "audio" / "train.wav").unlink()
    assert read(corpus)[1] == {"a": "audio missing", "b": "audio missing"}
    (corpus / "dev" / "text").unlink()
    with pytest.raises(CorpusError, match=r"has a wav\.scp and no text"):
        read(corpus)


def test_a_split_that_is_not_there(corpus, read):
    (corpus / "dev" / "wav.scp").unlink()
    with pytest.raises(CorpusError, match="nothing for dev"):
        read(corpus)
