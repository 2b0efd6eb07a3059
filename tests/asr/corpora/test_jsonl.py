import gzip
import json

import pytest

from todm.errors import CorpusError


@pytest.fixture
def corpus(tmp_path, tone):
    """A file for each split, an utterance in each; audio is named from beside the file."""
    for split in ("train", "dev", "test"):
        tone(f"{split}.wav", 4.0)
        row = {"audio": f"{split}.wav", "text": "Grüß Gott", "id": split}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


def add(corpus, *rows):
    with (corpus / "train.jsonl").open("ab") as file:
        file.writelines(
            row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows
        )


def test_text_keeps_its_language_and_case(corpus, read):
    usable, rejected = read(corpus)
    assert rejected == {}
    assert [u.text for u in usable.values()] == ["Grüß Gott"] * 3


def test_parts_speakers_channels_and_names(corpus, read, tone):
    tone("two.wav", 4.0, channels=2)
    add(
        corpus,
        {"audio": "two.wav", "text": "a", "start": 1, "duration": 2.5, "speaker": "anna"},
        {"audio": str(corpus / "two.wav"), "text": "b", "channel": 1, "id": "b"},
        {"audio_filepath": "two.wav", "text": "c", "offset": 0.5, "id": "c"},
    )
    usable, rejected = read(corpus)
    assert rejected == {}
    first = usable["train-2"]
    assert (first.start, first.num_samples, first.speaker) == (16000, 40000, "anna")
    assert first.channels == (0, 1)
    assert usable["b"].channels == (1,)
    assert usable["c"].num_samples == 56000


def test_one_file_whose_lines_name_their_split(corpus, read):
    rows = [
        {"audio": f"{split}.wav", "text": "a", "split": name, "id": split}
        for split, name in {"train": "train", "dev": "validation", "test": "eval"}.items()
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (corpus / "all.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    usable, _ = read(corpus / "all.jsonl.gz")
    assert {u.id: u.split for u in usable.values()} == {s: s for s in ("train", "dev", "test")}
    lonely = corpus / "some.jsonl"
    lonely.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(CorpusError, match="nothing for dev, test"):
        read(lonely)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"audio": "gone.wav", "text": "x"}, "audio missing"),
        ({"audio": "a\0b.wav", "text": "x"}, "audio missing"),
        ({"audio": "", "text": "x"}, "audio missing"),
        ({"audio": "http://host/a.wav", "text": "x"}, "audio missing"),
        ({"audio": "cat train.wav |", "text": "x"}, "audio missing"),
        ({"audio": 7, "text": "x"}, "audio or text is not given"),
        ({"audio": "x" * 5000, "text": "x"}, "audio missing"),
        ({"audio": "train.wav", "text": "x", "id": "\udcff"}, "name is not UTF-8"),
        ({"audio": "train.wav"}, "audio or text is not given"),
        ({"audio": "train.wav", "text": " \ufeff "}, "empty transcript"),
        ({"audio": "train.wav", "text": "a\x00b"}, "transcript outside the alphabet"),
        ({"audio": "train.wav", "text": "x", "start": -1}, "segment unreadable"),
        ({"audio": "train.wav", "text": "x", "start": "1"}, "segment unreadable"),
        ({"audio": "train.wav", "text": "x", "duration": True}, "segment unreadable"),
        ({"audio": "train.wav", "text": "x", "start": 3, "duration": 2}, "segment outside the recording"),
        ({"audio": "train.wav", "text": "x", "start": 9}, "segment outside the recording"),
        ({"audio": "train.wav", "text": "x", "channel": 1}, "channel missing"),
        ({"audio": "train.wav", "text": "x", "channel": -1}, "channel missing"),
        ({"audio": "train.wav", "text": "x", "id": "train"}, "id occurs twice"),
        (b'{"audio": "train.wav", "te\n', "line is not a JSON table"),
        (b"[" * 5000 + b"\n", "line is not a JSON table"),
        (b'{"audio": "\xff"}\n', "line is not UTF-8"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_listed_with_its_reason(corpus, read, row, reason):
    add(corpus, row)
    usable, rejected = read(corpus)
    assert list(rejected.values()) == [reason]
    assert len(usable) == 3


def test_byte_order_marks_line_ends_and_empty_lines(corpus, read):
    rows = (corpus / "train.jsonl").read_bytes()
    (corpus / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + rows.replace(b"\n", b"\r\n\r\n"))
    usable, rejected = read(corpus)
    assert len(usable) == 3
    assert rejected == {}


def test_files_by_mapping(corpus, read):
    (corpus / "train.jsonl").rename(corpus / "mine.jsonl")
    splits = {"mine.jsonl": "train", "dev.jsonl": "dev", "test.jsonl": "test"}
    assert read(corpus, splits=splits)[0]["train"].split == "train"
    with pytest.raises(CorpusError, match="nothing of that name"):
        read(corpus, splits={"yours.jsonl": "train"})


def test_a_damaged_gzip_file(corpus, read):
    (corpus / "dev.jsonl").write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(CorpusError, match=r"dev\.jsonl cannot be read"):
        read(corpus)


def test_a_damaged_gzip_is_named(corpus, read):
    packed = bytearray(gzip.compress(b"".join(b"%d\n" % i for i in range(5000))))
    packed[40:60] = b"x" * 20
    (corpus / "train.jsonl.gz").write_bytes(packed)
    with pytest.raises(CorpusError, match=r"train\.jsonl\.gz cannot be read: Error -3"):
        read(corpus, source="jsonl")


def test_speech_that_is_no_command_has_an_empty_text(corpus, read):
    add(corpus, {"audio": "train.wav", "text": "", "id": "other"})
    add(corpus, {"audio": "train.wav", "text": "\ufeff", "id": "marks"})
    usable, rejected = read(corpus, keep_empty=True)
    assert usable["other"].text == ""
    assert rejected == {"marks": "empty transcript"}
