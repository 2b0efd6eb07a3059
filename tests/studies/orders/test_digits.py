"""Strings of digits by whom they are said."""

import json

import pytest

from benchmarks.studies.orders import digits
from benchmarks.studies.orders.digits import ADULTS, ALL, CHILDREN, FREE
from todm.errors import CorpusError

UTTERANCES = {
    "fsdd-connected/test/9/1": ["9-1-0001 ONE TWO"],
    "fsdd-connected/train/8/1": ["8-1-0001 SIX"],
    "speechocean762/train/1/1": ["1-1-0001 THREE FOUR FIVE", "1-1-0002 THREE CATS"],
    "speechocean762/test/2/1": ["2-1-0001 NINE"],
}


@pytest.fixture
def corpora(tmp_path, monkeypatch):
    for place, lines in UTTERANCES.items():
        folder = tmp_path / place
        folder.mkdir(parents=True)
        chapter = "-".join(lines[0].split("-")[:2])
        (folder / f"{chapter}.trans.txt").write_text("\n".join(lines) + "\n")
    ages = "speaker\tsplit\tage\tsex\n1\ttrain\t30\tf\n2\ttest\t7\tm\n"
    (tmp_path / "speechocean762/speakers.tsv").write_text(ages)
    monkeypatch.setenv("TODM_SHARED_DATA", str(tmp_path))
    monkeypatch.setattr(digits, "read_audio", lambda file: file.stem)
    return tmp_path


def test_strings_are_digits_alone_and_go_by_corpus_and_age(corpora):
    found = {s.samples_S: (s.text, s.group) for s in digits.strings()}
    assert found == {
        "9-1-0001": ("ONE TWO", FREE),
        "1-1-0001": ("THREE FOUR FIVE", ADULTS),
        "2-1-0001": ("NINE", CHILDREN),
    }


def test_word_errors_are_those_of_each_group(corpora, monkeypatch, golden, tmp_path):
    said = {"9-1-0001": "ONE TWO", "1-1-0001": "THREE FIVE", "2-1-0001": "NINE NINE"}
    monkeypatch.setattr(digits.BundleEngine, "recognise", lambda self, name: said[name])
    found = digits.measure(golden)
    errors = {group: (f["error"], f["words"]) for group, f in found["wer"].items()}
    assert errors == {FREE: (0, 2), ALL: (0.5, 4), ADULTS: (1 / 3, 3), CHILDREN: (1, 1)}
    digits.save(tmp_path / "rows/row.json", found)
    assert json.loads((tmp_path / "rows/row.json").read_text())["texts"] == found["texts"]


def test_a_corpus_without_transcripts_is_a_sentence(corpora):
    for file in (corpora / "fsdd-connected/test").rglob("*.txt"):
        file.unlink()
    with pytest.raises(CorpusError, match="holds no transcripts"):
        list(digits.strings())
