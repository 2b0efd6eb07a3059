"""Recognised utterances on disk, and against each other."""

import json

import pytest

from todm.asr.decode.utterances import (
    Decoded,
    figures_of,
    paired,
    read_utterances,
    write_utterances,
)
from todm.errors import ConfigError


def utterance(name, reference, hypothesis):
    return Decoded(id=name, reference=reference, hypothesis=hypothesis)


def test_utterances_go_to_disk_and_back(tmp_path):
    found = [utterance("a", "GO LEFT", "GO"), utterance("b", "ÉTÉ", "ÉTÉ")]
    write_utterances(tmp_path / "u.jsonl", found)
    assert read_utterances(tmp_path / "u.jsonl") == found
    lines = (tmp_path / "u.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {
        "id": "a", "reference": "GO LEFT", "hypothesis": "GO", "errors": 1, "words": 2,
    }  # fmt: skip


def test_what_is_no_evaluation_is_named(tmp_path):
    with pytest.raises(ConfigError, match="is not there"):
        read_utterances(tmp_path / "u.jsonl")
    (tmp_path / "u.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="does not hold utterances"):
        read_utterances(tmp_path / "u.jsonl")


def test_pairs_are_by_id():
    ours = [utterance("a", "GO LEFT", "GO"), utterance("b", "STOP", "STOP")]
    theirs = [utterance("b", "STOP", ""), utterance("a", "GO LEFT", "GO LEFT")]
    first, second = paired(ours, theirs)
    assert first.utterances == ((1, 2), (0, 1))
    assert second.utterances == ((0, 2), (1, 1))


@pytest.mark.parametrize(
    ("other", "words"),
    [([utterance("b", "GO", "GO")], "2 are in one"), ([utterance("a", "STOP", "")], "1 have diff")],
    ids=["ids", "references"],
)
def test_other_utterances_are_refused(other, words):
    with pytest.raises(ConfigError, match=words):
        paired([utterance("a", "GO", "GO")], other)


def test_words_in_other_speech_are_counted_beside_the_error_rate():
    commands = [Decoded(id="a", reference="ONE TWO", hypothesis="ONE")]
    others = [
        Decoded(id="b", reference="", hypothesis="TWO TWO TWO"),
        Decoded(id="c", reference="", hypothesis=""),
    ]
    found = figures_of([*commands, *others])
    assert found["error"] == 0.5
    assert found["other_speech"] == {"utterances": 2, "accepts": 1}
    assert "other_speech" not in figures_of(commands)
    ours, theirs = paired([*commands, *others], [*others, *commands])
    assert ours.words == theirs.words == 2
    assert ours.errors == 1


def test_what_a_threshold_loses_and_what_it_leaves():
    def said(name, reference, hypothesis, final):
        return Decoded(id=name, reference=reference, hypothesis=hypothesis, final=final)

    found = figures_of(
        [
            said("a", "ONE", "ONE", "ONE"),
            said("b", "ONE", "ONE", ""),
            said("c", "ONE", "TWO", ""),  # it was not right before
            said("d", "", "TWO", "TWO"),
            said("e", "", "TWO", ""),
        ]
    )
    assert found["error"] == pytest.approx(1 / 3)  # that of recognition, whatever the threshold
    assert found["other_speech"] == {"utterances": 2, "accepts": 2}
    assert found["decision"] == {"exact": 2, "lost": 0.5, "accepts": 1}
