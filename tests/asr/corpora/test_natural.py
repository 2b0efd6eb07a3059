"""Corpora in which engines share the sentences; flite and hibari where they are installed."""

import shutil

import pytest
from lhotse import CutSet

from todm.asr.corpora import prepare as stage
from todm.asr.corpora import samples, unseen
from todm.asr.corpora.config import DataConfig, SpeechConfig
from todm.asr.corpora.prepare import audio_folder, prepare
from todm.asr.corpora.voices import catalogue
from todm.asr.tokens import TokensConfig
from todm.errors import CorpusError, MissingExtra

GRAMMAR = "licht (küche|büro) (an|aus)\nheizung (wärmer|kälter)\nruf (müller|möller) an\n"
SMALL = DataConfig(
    num_train=40,
    num_dev=4,
    num_test=6,
    speech=SpeechConfig(train_voices=4, dev_voices=2, test_voices=3, num_unseen=5),
    tokens=TokensConfig(vocab_size=48),
)


@pytest.fixture
def natural():
    """The name of a natural engine that is fast; skips where none is installed."""
    for name in ("hibari", "flite"):
        try:
            catalogue.engine(name, catalogue.setting(SpeechConfig())).check()
        except (CorpusError, MissingExtra):
            continue
        return name
    pytest.skip("neither hibari-tts nor flite is installed")


def test_engines_share_sentences_and_the_cache_outlives_the_corpus(tmp_path, natural):
    said = []
    voices = {"espeak": 50, natural: 50}
    config = SMALL.replace(speech=SMALL.speech.replace(voices=voices, unseen=()))
    corpus = prepare(config, tmp_path / "corpus", processes=1, announce=said.append)
    assert f"voices: {natural} speaks" in said[1]
    assert "licences: engine" in said[0]
    engines = {
        cut.supervisions[0].speaker[:2]
        for cut in CutSet.from_file(corpus.file("cuts_train.jsonl.gz"))
    }
    assert len(engines) == 2
    assert corpus.info["splits"]["train"]["num"] == 40
    assert {s["name"] for s in corpus.info["provenance"]} == set(voices)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "dry-speech").rglob("*.flac")}
    assert len(kept) >= 20
    before = {p.name: p.read_bytes() for p in audio_folder(corpus.path).rglob("*.flac")}
    shutil.rmtree(audio_folder(corpus.path))
    prepare(config, tmp_path / "corpus", processes=1)
    assert {p.name: p.read_bytes() for p in audio_folder(corpus.path).rglob("*.flac")} == before
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "dry-speech").rglob("*.flac")} == kept


def test_an_engine_that_training_does_not_hear_speaks_a_test(tmp_path, natural):
    config = SMALL.replace(speech=SMALL.speech.replace(unseen=(natural,)))
    corpus = prepare(config, tmp_path / "corpus", processes=1)
    cuts = list(CutSet.from_file(corpus.file(unseen.CUTS.format(natural))))
    test = list(CutSet.from_file(corpus.file("cuts_test.jsonl.gz")))
    assert len(cuts) == corpus.info["unseen"][natural]["num"] == 5
    assert {c.supervisions[0].text for c in cuts} <= {c.supervisions[0].text for c in test}
    assert all(c.load_audio().shape == (1, c.num_samples) for c in cuts)
    details = {s["name"]: s["detail"] for s in corpus.info["provenance"]}
    assert details == {"espeak": "100%", natural: "a test of its own"}


def test_another_engine_that_gets_installed_leaves_a_corpus_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "unseen", lambda speech: ())
    corpus = prepare(SMALL, tmp_path / "corpus", processes=1)
    assert corpus.info["unseen"] == {}
    monkeypatch.undo()
    monkeypatch.setattr(stage, "_save", None)
    assert prepare(SMALL, tmp_path / "corpus").hash == corpus.hash


def test_a_corpus_of_the_first_version_stays_valid():
    """Settings that are newer, at their defaults, are no other corpus."""
    assert stage._fingerprint(DataConfig()) == stage._fingerprint(
        DataConfig(speech=SpeechConfig(cache="/a", weights="/b"))
    )
    assert set(DataConfig().identity()["speech"]) == {
        "train_voices", "dev_voices", "test_voices", "rate", "pitch", "pitch_range", "silence",
        "level_db",
    }  # fmt: skip


def test_a_grammar_in_another_language(tmp_path):
    (tmp_path / "g").write_text(GRAMMAR)
    config = SMALL.replace(
        grammar=str(tmp_path / "g"),
        speech=SMALL.speech.replace(language="de", unseen=()),
        tokens=TokensConfig(vocab_size=48, normalise="auto"),
    )
    said = []
    corpus = prepare(config, tmp_path / "corpus", processes=1, announce=said.append)
    assert "'möller' and 'müller' sound alike" in said[1]
    names = (audio_folder(corpus.path) / "SPEAKERS.TXT").read_text()
    assert "espeak-ng de+m1" in names
    assert "en-us" not in names
    texts = {c.supervisions[0].text for c in CutSet.from_file(corpus.file("cuts_train.jsonl.gz"))}
    assert any("küche" in text.lower() for text in texts)


def test_what_cannot_be_spoken_is_said_before_anything_else(tmp_path):
    said = []
    config = SMALL.replace(speech=SMALL.speech.replace(voices={"kokoro": 1}, weights=str(tmp_path)))
    with pytest.raises((CorpusError, MissingExtra), match="kokoro"):
        prepare(config, tmp_path / "corpus", processes=1, announce=said.append)
    assert said == []
    assert not (tmp_path / "corpus").exists()
    assert not (tmp_path / "corpus-audio").exists()


def test_samples_of_every_phrase(tmp_path):
    (tmp_path / "g").write_text(GRAMMAR)
    speech = SMALL.speech.replace(language="de", unseen=())
    tokens = TokensConfig(normalise="auto")
    config = SMALL.replace(grammar=str(tmp_path / "g"), speech=speech, tokens=tokens)
    assert samples.write(config, tmp_path / "s") >= 3
    rows = [line.split("\t") for line in (tmp_path / "s" / samples.INDEX).read_text().splitlines()]
    said = {word for row in rows[1:] for word in row[3].split()}
    words = {"licht", "küche", "büro", "heizung", "wärmer", "kälter", "ruf", "müller", "möller"}
    assert said == words | {"an", "aus"}
    assert all((tmp_path / "s" / row[0]).stat().st_size > 1000 and row[4] for row in rows[1:])
    assert samples.write(config, tmp_path / "s") == len(rows) - 1
    (tmp_path / "mine").mkdir()
    with pytest.raises(CorpusError, match="holds something else"):
        samples.write(config, tmp_path / "mine")
