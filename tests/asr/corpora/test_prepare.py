import json
import shutil

import pytest
from lhotse import CutSet

from todm import artifact
from todm.asr import tokens
from todm.asr.corpora import prepare as stage
from todm.asr.corpora import synthesis
from todm.asr.corpora.config import DataConfig, SpeechConfig
from todm.asr.corpora.prepare import audio_folder, is_prepared, prepare
from todm.asr.data.audio import cut_samples
from todm.asr.data.order import LEFT_OUT
from todm.asr.data.rooms import RoomConfig
from todm.asr.data.shar import Shards
from todm.asr.decode.word_ends import manifest_ends
from todm.asr.tokens import TokensConfig
from todm.cli import main as cli
from todm.errors import ArtifactError, CorpusError

SMALL = DataConfig(
    num_train=40,
    num_dev=4,
    num_test=6,
    speech=SpeechConfig(train_voices=4, dev_voices=2, test_voices=3),
    tokens=TokensConfig(vocab_size=48),
)


WORDS = [a + b for a in ("LA", "TAN", "BAN", "NAL") for b in ("BAT", "TAB", "NAB", "LAT")]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    return prepare(SMALL, tmp_path_factory.mktemp("spoken") / "corpus", processes=1)


@pytest.fixture
def copy(spoken, tmp_path):
    """A corpus that a test may change."""
    shutil.copytree(spoken.path, tmp_path / "corpus")
    shutil.copytree(audio_folder(spoken.path), tmp_path / "corpus-audio")
    return tmp_path / "corpus"


def _must_not_run(*args, **kwargs):
    raise AssertionError("nothing is to be spoken")


def _cuts(corpus, split):
    return list(CutSet.from_file(corpus.file(f"cuts_{split}.jsonl.gz")))


def test_commands_become_cuts(spoken):
    splits = spoken.info["splits"]
    assert {s: row["num"] for s, row in splits.items()} == {"train": 40, "dev": 4, "test": 6}
    assert {s: row["speakers"] for s, row in splits.items()} == {"train": 4, "dev": 2, "test": 3}
    for cut in _cuts(spoken, "dev"):
        samples = cut.load_audio()
        assert samples.shape == (1, cut.num_samples)
        assert cut.sampling_rate == 16000
        assert cut.recording.sources[0].source.startswith(str(audio_folder(spoken.path)))
    assert sum(c.duration for c in _cuts(spoken, "train")) == pytest.approx(
        splits["train"]["hours"] * 3600, abs=1
    )


def test_every_transcript_can_be_encoded(spoken):
    tokenizer = tokens.load(spoken.path)
    assert tokenizer.vocab_size == spoken.info["vocab_size"]
    for split in ("train", "dev", "test"):
        for cut in _cuts(spoken, split):
            assert tokens.UNK_ID not in tokenizer.encode(cut.supervisions[0].text)


def test_cuts_say_when_their_words_end(spoken):
    times = synthesis.word_times(audio_folder(spoken.path))
    for cut in [c for split in ("train", "dev", "test") for c in _cuts(spoken, split)]:
        ends = manifest_ends(cut)
        assert [word for word, _ in ends] == cut.supervisions[0].text.split()
        assert [end for _, end in ends] == pytest.approx(times[cut.id][1:])
        assert 0 < ends[0][1] < ends[-1][1] < cut.duration


def test_again_is_done_at_once(copy, monkeypatch):
    assert is_prepared(SMALL, copy)
    monkeypatch.setattr(stage, "_save", None)
    assert prepare(SMALL, copy).info["vocab_size"] <= 48


def test_a_damaged_corpus_is_made_again_from_its_audio(copy, monkeypatch):
    (copy / "cuts_dev.jsonl.gz").write_bytes(b"")
    monkeypatch.setattr(synthesis, "_speak_chapter", _must_not_run)
    assert not is_prepared(SMALL, copy)
    assert prepare(SMALL, copy, processes=1).info["splits"]["dev"]["num"] == 4


def test_other_tokens_use_the_same_audio(copy, monkeypatch):
    monkeypatch.setattr(synthesis, "_speak_chapter", _must_not_run)
    other = SMALL.replace(tokens=TokensConfig(vocab_size=60))
    assert prepare(other, copy, processes=1).info["vocab_size"] == 60


def test_other_speech_needs_another_place(copy):
    with pytest.raises(CorpusError, match="choose another --out"):
        prepare(SMALL.replace(seed=5), copy, processes=1)


def test_a_place_that_is_taken(tmp_path):
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="holds something else"):
        prepare(SMALL, tmp_path)


def test_sentences(tmp_path):
    path = tmp_path / "text"
    path.write_text(
        "".join(
            f"84-1-{i:04d} SAY THE {word} NUMBER {i % 7 * 'A' + 'B'}\n"
            for i, word in enumerate(WORDS)
        )
        + "1-2-3 R2D2\n"
    )
    config = SMALL.replace(source="sentences", text=str(path), num_train=14)
    corpus = prepare(config, tmp_path / "out", processes=1)
    assert {s: row["num"] for s, row in corpus.info["splits"].items()}["train"] == 14
    rejected = [json.loads(line) for line in corpus.file("rejected.jsonl").read_text().splitlines()]
    assert rejected[0]["id"] == "line 17"
    assert corpus.info["rejected"]["transcript outside the alphabet"] == 1


def test_an_unknown_letter_in_dev_is_left_out_and_counted(copy, tmp_path):
    root = audio_folder(copy)
    path = next((root / "dev").rglob("*.trans.txt"))
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([f"{first.split()[0]} QUIZZICAL JUKEBOX", *rest]) + "\n")
    config = SMALL.replace(source="librispeech", data=str(root))
    corpus = prepare(config, tmp_path / "real", processes=1)
    assert corpus.info["rejected"] == {"transcript needs <unk>": 1}
    assert corpus.info["splits"]["dev"]["num"] == 3


def test_nothing_left(copy, tmp_path):
    root = audio_folder(copy)
    for path in (root / "test").rglob("*.flac"):
        path.write_bytes(b"")
    config = SMALL.replace(source="librispeech", data=str(root))
    with pytest.raises(CorpusError, match="left in test: left out were 6 audio file empty"):
        prepare(config, tmp_path / "real", processes=1)
    assert not (tmp_path / "real").exists()


def test_another_rate_is_resampled(make_corpus_at, tmp_path):
    root = make_corpus_at(8000)
    config = SMALL.replace(source="librispeech", data=str(root))
    cut = _cuts(prepare(config, tmp_path / "out", processes=1), "train")[0]
    assert cut.sampling_rate == 16000
    assert cut.load_audio().shape == (1, 16000)


@pytest.fixture
def make_corpus_at(tmp_path):
    """A one-second utterance in each split, at a sample rate."""
    import numpy as np
    import soundfile

    def make(rate):
        for split in ("train", "dev", "test"):
            folder = tmp_path / "data" / split / "7" / "1"
            folder.mkdir(parents=True)
            soundfile.write(folder / f"{split}.wav", np.sin(np.arange(rate) * 0.1) * 0.1, rate)
            (folder / "7-1.trans.txt").write_text(f"{split} HELLO THERE\n")
        return tmp_path / "data"

    return make


def test_real_speech(shared_data, tmp_path):
    config = DataConfig(
        source="librispeech",
        data=str(shared_data / "fsdd-connected"),
        verify_audio="header",
        tokens=TokensConfig(vocab_size=30),
    )
    corpus = prepare(config, tmp_path / "fsdd", processes=1)
    assert {s: row["num"] for s, row in corpus.info["splits"].items()} == {
        "train": 397,
        "dev": 102,
        "test": 96,
    }
    assert corpus.info["rejected"] == {}
    cut = _cuts(corpus, "test")[0]
    assert cut.load_audio().shape == (1, cut.num_samples)


def test_the_verb(copy, capsys):
    arguments = ["prepare", "--out", str(copy), "--config", "debug", "--processes", "1"]
    for name, value in (
        ("num_train", 40),
        ("num_dev", 4),
        ("num_test", 6),
        ("tokens.vocab_size", 48),
    ):
        arguments += ["--set", f"asr.data.{name}={value}"]
    for split, num in (("train", 4), ("dev", 2), ("test", 3)):
        arguments += ["--set", f"asr.data.speech.{split}_voices={num}"]
    for name, value in RoomConfig().to_json().items():  # what the copied corpus was made with
        arguments += ["--set", f"asr.data.room.{name}={value}"]
    arguments += ["--set", f"asr.data.tokens.max_piece_length={TokensConfig().max_piece_length}"]
    assert cli.main(arguments) == 0
    assert "done already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "/nowhere"], "/nowhere does not exist"),
        (["--corpus", "sentences"], "needs 'text'"),
        (["--corpus", "sentences", "--grammar", "g"], "exclude each other"),
        (["--data", "a", "--text", "b"], "give one of --text, --data"),
        (["--grammar", "/nowhere/g"], "/nowhere/g cannot be read"),
        (["--hours", "2"], "'hours' is not used"),
        (["--source", "kaldi"], "--source describes --data PATH"),
        (["--data", "x", "--source", "shar", "--shar", "y"], "leave --shar out"),
        (["--data", "x", "--split", "train"], "write  --split NAME=train"),
        (["--data", "x", "--split", "a=valid"], "allowed are train, dev, test"),
    ],
)
def test_errors_of_the_verb(tmp_path, capsys, flags, message):
    assert cli.main(["prepare", "--out", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def german(tmp_path):
    """JSON lines: parts of a stereo recording, of which one has more labels than frames."""
    import numpy as np
    import soundfile

    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.flac", rng.normal(size=(16000 * 30, 2)) * 0.1, 16000)
    texts = ["Grüß Gott", "Öffne das Tor", "Licht an", "Tür zu"]
    (tmp_path / "data").mkdir()
    for split in ("train", "dev", "test"):
        rows = [
            {
                "audio": "../a.flac",
                "text": text,
                "start": 3 * i,
                "duration": 2.5,
                "id": f"{split}{i}",
            }
            for i, text in enumerate(texts)
        ]
        rows.append({"audio": "../a.flac", "text": "Licht an " * 9, "start": 9, "duration": 0.4})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "data" / f"{split}.jsonl").write_text(lines)
    return tmp_path / "data"


def test_data_in_another_layout_and_language(german, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["prepare", "--out", str(out), "--data", str(german), "--processes", "1"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "found: JSON lines" in said
    assert "fewer frames than labels" in said
    corpus = artifact.load(out)
    assert corpus.config["source"] == "jsonl"
    assert corpus.config["tokens"]["normalise"] == "none"
    splits = {split: row["num"] for split, row in corpus.info["splits"].items()}
    assert splits == {"train": 4, "dev": 5, "test": 5}
    cut = _cuts(corpus, "train")[1]
    assert cut.supervisions[0].text == "Öffne das Tor"
    wave = cut_samples(cut)
    assert wave == pytest.approx(cut.load_audio().mean(0), abs=1e-6)
    assert len(wave) == 40000
    assert cli.main(arguments) == 0
    assert "done already" in capsys.readouterr().out


def test_training_audio_goes_to_shards(german, tmp_path, monkeypatch):
    config = DataConfig(
        source="auto",
        data=str(german),
        shar=str(tmp_path / "shar"),
        shard_size=2,
        tokens=TokensConfig(vocab_size=60, normalise="auto"),
    )
    corpus = prepare(config, tmp_path / "out", processes=1)
    assert not (corpus.path / "cuts_train.jsonl.gz").exists()
    shards = Shards.open(corpus.file("shar_train.json"), (1.0,))
    assert [shard.num for shard in shards.shards] == [2, 2, 1]
    assert sorted(shards.labels_N(len))[0] == LEFT_OUT  # more labels than frames
    there = list(CutSet.from_file(corpus.file("cuts_dev.jsonl.gz")))
    assert len(there) == 5
    monkeypatch.setattr("todm.asr.corpora.shards._write_files", _must_not_run)
    other = config.replace(tokens=TokensConfig(vocab_size=50, normalise="none"))
    assert prepare(other, tmp_path / "out", processes=1).info["vocab_size"] <= 50


def test_other_speech_has_empty_transcripts_and_leaves_the_commands_as_they_are(spoken, tmp_path):
    config = SMALL.replace(negatives=0.2)
    made = prepare(config, tmp_path / "corpus", processes=1)
    splits = made.info["splits"]
    assert {s: (row["num"], row["other_speech"]) for s, row in splits.items()} == {
        "train": (50, 10),
        "dev": (5, 1),
        "test": (8, 2),
    }
    for split in ("train", "dev"):
        texts = [cut.supervisions[0].text for cut in _cuts(made, split)]
        assert sorted(filter(None, texts)) == sorted(
            cut.supervisions[0].text for cut in _cuts(spoken, split)
        )
        empty = [c for c in _cuts(made, split) if not c.supervisions[0].text]
        assert len(empty) == splits[split]["other_speech"]
        assert not any(manifest_ends(cut) for cut in empty)
    kept = (made.path / "tokens.txt").read_bytes()
    assert kept == (spoken.path / "tokens.txt").read_bytes()
    assert is_prepared(config, made.path)
    assert not is_prepared(config.replace(negatives=0.3), made.path)
