import gzip
from collections import Counter

import pytest

from todm.asr.corpora import commands, grammar, sentences
from todm.asr.corpora.config import DataConfig
from todm.asr.tokens import TokensConfig
from todm.errors import CorpusError


def test_words_of_the_built_in_grammar_are_balanced_and_most_test_sentences_unseen():
    chosen = sentences.from_grammar(commands.commands(), DataConfig())
    counts = Counter(w for s in chosen["train"] for w in s.split())
    assert len(counts) == len(commands.commands().words())
    assert min(counts.values()) >= 50
    train = set(chosen["train"])
    assert sum(s not in train for s in chosen["test"]) > 0.75 * len(chosen["test"])
    assert {split: len(s) for split, s in chosen.items()} == {
        "train": 3500,
        "dev": 300,
        "test": 700,
    }


def test_the_seed_decides():
    rules = commands.commands()
    one, again, other = (
        sentences.from_grammar(rules, DataConfig(num_train=20, num_dev=2, num_test=2, seed=seed))
        for seed in (0, 0, 1)
    )
    assert one == again != other


def test_a_tiny_grammar_repeats_itself():
    chosen = sentences.from_grammar(
        grammar.parse("on\noff"), DataConfig(num_train=9, num_dev=1, num_test=1)
    )
    assert Counter(chosen["train"]).most_common()[-1][1] >= 4


def test_a_word_outside_the_alphabet():
    rules = grammar.parse("café on")
    with pytest.raises(CorpusError, match=r"'café'.*signs outside A-Z"):
        sentences.from_grammar(rules, DataConfig())
    free = DataConfig(tokens=TokensConfig(normalise="none"))
    assert sentences.from_grammar(rules, free)["train"][0] == "café on"


@pytest.mark.parametrize("packed", [False, True])
def test_lines_with_and_without_ids(tmp_path, packed):
    text = "103-1240-0000 CHAPTER ONE\n\nplain words\n"
    path = tmp_path / "text"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert sentences.read_lines(path) == ["CHAPTER ONE", "plain words"]


def test_an_unreadable_text(tmp_path):
    (tmp_path / "bad").write_bytes(b"\x1f\x8bbroken")
    with pytest.raises(CorpusError, match="cannot be read"):
        sentences.read_lines(tmp_path / "bad")


def _config(**more):
    return DataConfig(source="sentences", text="t", **more)


def test_splits_share_no_sentence_and_all_are_listed():
    letters = "ABCDEFGHIJ"
    lines = [f"word {a}{b} again" for a in letters for b in letters]
    lines += ["word aa again", "12 words", "long " * 100]
    chosen, rejected = sentences.from_lines(lines, _config(num_train=80, num_dev=50, num_test=50))
    sets = [set(chosen[s]) for s in ("train", "dev", "test")]
    assert [len(s) for s in sets] == [80, 10, 10]
    assert len(sets[0] | sets[1] | sets[2]) == 100
    assert [(n, reason) for n, _, reason in rejected] == [
        (101, "repeated sentence"),
        (102, "transcript outside the alphabet"),
        (103, "sentence too long"),
    ]


def test_hours_are_reached_by_saying_sentences_again():
    lines = [f"{'many words ' * 3}{c}" for c in "abcdefghij"]
    chosen, _ = sentences.from_lines(lines, _config(hours=0.05))
    assert len(chosen["train"]) > len(set(chosen["train"])) == 8
    assert sum(map(sentences.estimate_seconds, chosen["train"])) == pytest.approx(150, rel=0.2)


def test_too_little_text():
    with pytest.raises(CorpusError, match="1 usable sentences: at least 3"):
        sentences.from_lines(["one", "2"], _config())
