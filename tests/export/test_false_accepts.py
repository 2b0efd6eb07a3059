"""False accepts in a card: the curve, and its plot."""

import pytest

from todm.export import false_accepts as card

ROW = {
    "minutes": 10.0, "per_hour": 6.0, "low": 0.2, "high": 33.4, "sure": 1, "common": [("ON", 1)],
}  # fmt: skip


def _row(*rates):
    curve = [{"threshold": t, "per_hour": r} for t, r in zip((0.0, 0.9, 0.95), rates, strict=True)]
    return {**ROW, "curve": curve}


RESULTS = {
    "fp32": {"silence": _row(0, 0, 0), "clicks": _row(12, 6, 0), "speech (talk)": _row(700, 60, 6)}
}


def test_the_curve_has_speech_and_the_worst_other_sound():
    table = card.curve_table(RESULTS, {0.0: 0.0, 0.9: 0.01, 0.95: None})
    assert "| threshold | commands lost | fp32, speech (talk) | fp32, worst other sound |" in table
    assert "| 0.9000 | 1.0% | 60.0 | 6.0 |" in table
    assert "| 0.9500 | unknown | 6.0 | 0.0 |" in table


@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_the_section_says_whether_there_is_a_threshold(threshold):
    text = card.section(
        RESULTS, sure=0.9, losses={0.0: 0.0, 0.9: 0.01, 0.95: 0.03}, threshold=threshold
    )
    assert ("below its threshold, 0.9," in text) == bool(threshold)
    assert ("has no threshold" in text) != bool(threshold)
    assert f"[plot]({card.PLOT})" in text


@pytest.mark.parametrize("lost", [0.02, None])
def test_a_plot(tmp_path, lost):
    pytest.importorskip("matplotlib")
    card.plot(RESULTS, {0.0: 0.0, 0.9: 0.01, 0.95: lost}, 0.9, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
