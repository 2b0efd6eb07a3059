"""`todm evaluate BUNDLE --after-silence` on the debug run: what it measures, keeps and writes down."""

import importlib
import shutil

import pytest

pytest.importorskip("torch")
pytest.importorskip("sherpa_onnx")

from todm.device.bundle import open_bundle

stage = importlib.import_module("todm.stages.after_silence")
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def bundle(debug_run, tmp_path):
    return shutil.copytree(debug_run.bundle, tmp_path / "bundle")


def test_figures_are_kept_and_stand_in_the_card(debug_run, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "_SHORT", (0.0, 2.0))
    measure = stage.measure_after_silence
    found = measure(bundle, debug_run.corpus, out=tmp_path / "out", card=True)
    (row,) = found.values()
    assert row["commands"] == 4
    assert [(w["sound"], w["seconds"]) for w in row["waits"]] == [
        ("digital silence", 0.0), ("digital silence", 2.0),
        ("white noise, -60 dBFS", 0.0), ("white noise, -60 dBFS", 2.0),
    ]  # fmt: skip
    assert [r["pause"] for r in row["repeats"]] == [0.5, 1.0, 3.0]
    card = (open_bundle(bundle).path / "README.md").read_text()
    assert card.count("## After silence") == 1
    assert "| 2 s | 4 |" in card
    # The card is no part of what was measured, so that nothing is measured again.
    monkeypatch.setattr(stage, "_measure", None)
    assert measure(bundle, debug_run.corpus, out=tmp_path / "out", card=True) == found


def test_figures_of_other_commands_are_not_reused(debug_run, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(
        stage, "_measure", lambda *a, **k: {"waits": [], "repeats": [], "commands": 1}
    )
    measured = []
    commands = stage._commands(open_bundle(bundle), debug_run.corpus)
    for chosen in (commands[:2], commands[2:], commands[2:]):
        monkeypatch.setattr(stage, "_commands", lambda *_, chosen=chosen: chosen)
        monkeypatch.setattr(stage, "write_text", lambda *a: measured.append(a) or _write(*a))
        stage.measure_after_silence(bundle, out=tmp_path / "out")
    assert len(measured) == 2


def _write(path, text):
    path.write_text(text)


def test_commands_are_spread_over_the_split(debug_run, bundle, monkeypatch):
    class Utterance:
        def __init__(self, number):
            self.text, self.number = f"C{number}", number
            self.cut = type("Cut", (), {"duration": 3.0})

        def samples(self):
            return self.number

    evaluate = importlib.import_module("todm.asr.decode.evaluate")
    for num, wanted in ((700, 300), (599, 300), (10, 10)):
        found = [Utterance(n) for n in range(num)]
        monkeypatch.setattr(evaluate, "references", lambda *_, found=found: found)
        chosen = stage._commands(open_bundle(bundle), debug_run.corpus)
        assert len(chosen) == wanted
        assert chosen[0].text == "C0"
        assert int(chosen[-1].text[1:]) >= num - 1 - num / wanted
    monkeypatch.setattr(stage, "_MOST_SECONDS", 60.0)
    assert len(stage._commands(open_bundle(bundle), debug_run.corpus)) == 10
    found = [Utterance(n) for n in range(100)]
    monkeypatch.setattr(evaluate, "references", lambda *_: found)
    assert [c.text for c in stage._commands(open_bundle(bundle), debug_run.corpus)] == [
        f"C{5 * n}" for n in range(20)
    ]
