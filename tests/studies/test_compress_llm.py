"""The study of language models, on a model of a few thousand weights."""

import gzip
import json

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks.studies import compress_llm as study
from benchmarks.studies.small_llama import SPLITS, SmallLlama, read_chapters
from todm.compress.config import Int4Config
from todm.errors import ConfigError, CorpusError
from todm.llm.adapter import LlmAdapter

TINY = SmallLlama(vocab=60, width=128, ffn=128, layers=1, heads=2, context=16, batch=2, updates=3)
WORDS = ["THE", "CAT", "SAT", "ON", "A", "MAT", "IT'S", "OLD"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    place = tmp_path_factory.mktemp("transcripts")
    draws = torch.Generator().manual_seed(0)
    for name in SPLITS.values():
        lines = []
        for chapter in range(6):
            for line in range(9):
                chosen = torch.randint(len(WORDS), (12,), generator=draws).tolist()
                lines.append(f"7-{chapter}-{line:04} {' '.join(WORDS[i] for i in chosen)}\n")
        with gzip.open(place / f"{name}.trans.txt.gz", "wt") as file:
            file.writelines(lines)
    return place


@pytest.fixture(scope="module")
def model(text, tmp_path_factory):
    return study.prepare(text, tmp_path_factory.mktemp("study"), TINY, lambda line: None)


def test_lines_of_a_chapter_make_a_text(text, tmp_path):
    chapters = read_chapters(text, "test")
    assert len(chapters) == 6
    assert len(chapters[0].split()) == 108
    with pytest.raises(CorpusError, match="directory of LibriSpeech's transcripts"):
        read_chapters(tmp_path, "test")


def test_the_study_goes_on_where_it_was(text, tmp_path, monkeypatch):
    four = {"windows": 4}
    main = (study.Case(bits=3), study.Case(bits=3, method=study.BEST, **four))
    monkeypatch.setattr(study, "MAIN", main)
    monkeypatch.setattr(study, "KEPT", (study.Case(bits=3, kept="weight", **four),))
    monkeypatch.setattr(
        study, "CALIBRATION", (study.Case(bits=3, method=study.BEST, other=True, **four),)
    )
    monkeypatch.setattr(study, "ATTEMPTS", ())
    assert study.run(text, tmp_path, texts=3, settings=TINY) == 0
    words = (tmp_path / "study.md").read_text()
    assert "on 3 chapters of test-clean" in words
    assert "int3 g128, AWQ + clip better than round to nearest:" in words
    rows = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert len(rows) == 5
    assert rows[0]["against_float"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert (tmp_path / "study.png").stat().st_size > 1000
    monkeypatch.setattr(study, "_compress", None)  # nothing is compressed again
    study.run(text, tmp_path, texts=3, settings=TINY)
    assert (tmp_path / "study.md").read_text() == words
    with pytest.raises(ConfigError, match="choose another --out"):
        study.run(text, tmp_path, texts=2, settings=TINY)


@pytest.mark.parametrize("how", study.CHANNELS)
def test_one_per_cent_of_channels_is_kept(model, how):
    adapter = LlmAdapter.load(model)
    layer = adapter.model.model.layers[0].mlp.down_proj
    with torch.no_grad():
        layer.weight[:, 5] *= 30
    before = layer.weight.detach().clone()
    study.keep_channels(adapter, study.Case(bits=3, kept=how, windows=4))
    kept = (layer.weight == before.half().float()).all(0).nonzero().flatten().tolist()
    assert len(kept) == 1
    assert (kept == [5]) == (how == "weight")
    plain = study.Case(bits=3)
    assert plain.config().int4 == Int4Config(bits=3)


def test_every_case_has_a_name_and_settings_of_its_own():
    cases = study.all_cases()
    assert len({case.name for case in cases}) == len(cases)
    for case in study.MAIN:
        own = getattr(case.config(), case.config().passes[0])
        assert (own.bits, own.group) == (case.bits, case.group)
