import dataclasses
import json

import pytest
import torch

from benchmarks.studies import compress_asr as study
from todm import artifact
from todm.asr.decode.utterances import Decoded
from todm.compress.config import CompressConfig
from todm.errors import ConfigError

WORDS = "A B C D E F G H I J"


class _Speech:
    """Recognises ten words in each of `num` utterances, or nine in `wrong` of them."""

    def __init__(self, wrong, num=200):
        self.wrong, self.num = wrong, num

    def recognise(self, model, *, subnet, split):
        texts = [WORDS[2:] if i < self.wrong else WORDS for i in range(self.num)]
        return [
            Decoded(id=f"u{i:03d}", reference=WORDS, hypothesis=text)
            for i, text in enumerate(texts)
        ]


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A subnet, a study, and what was compressed; int8 has 21 errors instead of 20, 2:4 has 40."""
    calls = []

    def adapter_of(found, corpus):
        del corpus
        speech = _Speech(20)
        model = torch.nn.Linear(4, 4)
        return type("ModelAdapter", (), {"speech": speech, "model": model, "found": found})()

    def compress(adapter, config, *, checkpoints):
        calls.append((config.passes, checkpoints))
        adapter.speech = _Speech({"int8": 21, "prune": 40}[config.passes[0]])

    monkeypatch.setattr(study, "adapter_of", adapter_of)
    monkeypatch.setattr(study, "compress", compress)
    monkeypatch.setattr(study, "RESAMPLES", 200)
    found = artifact.save(tmp_path / "small", kind="subnet", config={})
    corpus = artifact.save(tmp_path / "corpus", kind="corpus", config={}).path
    return found, study.Study(corpus, tmp_path / "out", "test"), calls


def test_all_ways_are_settings_of_the_passes():
    for name, settings in study.WAYS.items():
        config = CompressConfig().override(list(settings))
        assert bool(config.passes) == (name != "fp32")
        quantised = {p for p in ("int8", "int4", "awq") if p in config.passes}
        assert bool(quantised) == ("int" in name)
        trained = any(
            getattr(config, p).tune.updates for p in config.passes if p in ("prune", "int8")
        )
        assert trained == any(word in name for word in ("tuned", "SR-STE", "QAT")), name
        if "int4" in name or "int3" in name:
            pass_ = config.awq if "awq" in config.passes else config.int4
            assert (pass_.group, pass_.bits) == (64, 4 if "int4" in name else 3)


def test_what_was_measured_is_not_measured_again(nets):
    found, where, calls = nets
    for way in ("fp32", "int8 dynamic", "int8 dynamic"):
        where.row(found, way, study.WAYS[way])
    assert len(calls) == 1
    where.row(found, "int8 dynamic", (*study.WAYS["int8 dynamic"], "int8.percentile=99"))
    assert len(calls) == 2
    other = dataclasses.replace(where, split="dev")
    other.row(found, "int8 dynamic", study.WAYS["int8 dynamic"])
    assert len(calls) == 3


def test_trainings_of_the_same_settings_share_a_folder(nets):
    found, where, calls = nets
    for way in ("2:4 tuned", "2:4 tuned + int8", "2:4 tuned + int8 QAT", "2:4 SR-STE"):
        if way == "2:4 tuned + int8 QAT":
            (calls[0][1]).mkdir(parents=True)
            (calls[0][1] / "prune.pt").write_text("trained")
        where.row(found, way, study.WAYS[way])
    tuned, with_int8, with_qat, learnt = (folder for _, folder in calls)
    assert tuned == with_int8
    assert len({tuned, with_qat, learnt}) == 3
    assert (with_qat / "prune.pt").read_text() == "trained"


def test_figures_are_those_of_the_utterances(nets):
    found, where, _ = nets
    for way in ("2:4 tuned", "fp32", "int8 dynamic"):
        where.row(found, way, study.WAYS[way])
    dense, int8, sparse = where.results(found)
    assert [o.row.way for o in (dense, int8, sparse)] == ["fp32", "int8 dynamic", "2:4 tuned"]
    assert dense.change is None
    assert (dense.wer.words, dense.wer.errors, dense.wer.rate) == (2000, 20, 0.01)
    assert int8.change.relative == pytest.approx(0.05)
    assert sparse.change.relative == pytest.approx(1.0)
    assert sparse.change.low > 0
    # One more wrong utterance may be chance and counts as no loss.
    assert int8.verdict == "met: holds zero"
    assert sparse.verdict == ""
    worse = dataclasses.replace(sparse, row=dataclasses.replace(sparse.row, way="int8 dynamic"))
    assert worse.verdict == "missed"
    text = "\n".join(study.table([dense, int8, sparse]))
    assert "| int8 dynamic | 1.05% (21) |" in text
    assert "+1%: met: holds zero" in text
    kept = int8.to_json()
    assert json.loads(json.dumps(kept)) == kept
    assert "utterances" not in kept


def test_without_float32_there_is_nothing_to_compare_with(nets):
    found, where, _ = nets
    where.row(found, "int8 dynamic", study.WAYS["int8 dynamic"])
    with pytest.raises(ConfigError, match="not measured in float32"):
        where.results(found)


def test_the_program_writes_table_figures_and_picture(nets, monkeypatch, capsys):
    found, where, _ = nets
    common = ["x", str(found.path), "--corpus", str(where.corpus), "--out", str(where.out)]
    tried = ["--try", "int8 dynamic", "--set", "int8.range=mse"]
    for more in (["--ways", "fp32", "2:4 wanda"], tried):
        monkeypatch.setattr("sys.argv", [*common, *more])
        study.main()
    assert "| int8 dynamic [int8.range=mse] |" in capsys.readouterr().out
    rows = json.loads((where.out / "compress-asr.json").read_text())
    assert [r["way"] for r in rows] == ["fp32", "int8 dynamic [int8.range=mse]", "2:4 wanda"]
    assert (where.out / "compress-asr.png").stat().st_size > 5000
    for wrong in (["--ways", "int9"], tried[:2], tried[2:]):
        monkeypatch.setattr("sys.argv", [*common, *wrong])
        with pytest.raises(ConfigError, match=r"unknown way|go together"):
            study.main()
