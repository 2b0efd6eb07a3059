import json

import pytest

from todm.asr.corpora import sources
from todm.asr.corpora.config import DataConfig
from todm.errors import CorpusError


@pytest.mark.parametrize(
    ("files", "layout"),
    [
        ({"train/wav.scp": "a b"}, "kaldi"),
        ({"train/1/2/1-2.trans.txt": "a B"}, "librispeech"),
        ({"train.jsonl": json.dumps({"audio": "a", "text": "b"})}, "jsonl"),
        ({"a.json": json.dumps({"audio_filepath": "a", "text": "b"})}, "jsonl"),
        ({"cuts_train.jsonl": json.dumps({"start": 0, "supervisions": []})}, "lhotse"),
        ({"train/recordings.jsonl": json.dumps({"sources": [], "sampling_rate": 8000})}, "lhotse"),
        ({"train/cuts.000000.jsonl.gz": "", "train/recording.000000.tar": ""}, "shar"),
    ],
)
def test_the_layout_is_found(tmp_path, files, layout):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert sources.detect(tmp_path) == layout


@pytest.mark.parametrize("name", ["nowhere", "empty", "notes.txt"])
def test_what_is_in_no_layout(tmp_path, name):
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(
        CorpusError, match=r"not a file of JSON lines|is not a directory|in no known layout"
    ):
        sources.detect(tmp_path / name)


def test_a_layout_may_be_forced(tmp_path):
    config = DataConfig(source="kaldi", data=str(tmp_path))
    (tmp_path / "train.jsonl").write_text(json.dumps({"audio": "a", "text": "b"}))
    assert sources.source_of(config, tmp_path) == "kaldi"
    with pytest.raises(CorpusError, match="nothing for train, dev, test"):
        sources.read(config, tmp_path)


def test_the_fingerprint_follows_the_files(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    before = sources.fingerprint(tmp_path)
    assert sources.fingerprint(tmp_path) == before
    (tmp_path / "b.txt").write_text("")
    assert sources.fingerprint(tmp_path) != before
