import pytest

from todm.asr.corpora.voices import lexicon
from todm.asr.corpora.voices.engine import Pronunciation
from todm.errors import CorpusError

SAID = {"siobhan": Pronunciation("shivawn", "ʃɪvˈɔːn"), "nguyen": Pronunciation("win")}


def test_a_file(tmp_path):
    path = tmp_path / "names"
    path.write_text("# names\nSiobhan: shivawn /ʃɪvˈɔːn/\n\nnguyen : win  # short\n")
    assert lexicon.read(path) == SAID


@pytest.mark.parametrize("line", ["nguyen", "nguyen:", ": win", "a b: win", "nguyen: /wˈɪn/"])
def test_what_is_no_pronunciation_is_named(tmp_path, line):
    path = tmp_path / "names"
    path.write_text(f"\n{line}\n")
    with pytest.raises(CorpusError, match=r"names:2: .* is not a pronunciation: write"):
        lexicon.read(path)


def test_each_engine_gets_what_it_can_read():
    text = "call siobhan and nguyen"
    assert lexicon.respell(text, SAID) == "call shivawn and win"
    assert lexicon.mark(text, SAID, "[{word}](/{ipa}/)") == "call [siobhan](/ʃɪvˈɔːn/) and win"
    parts = [(p.text, p.ipa) for p in lexicon.parts(text, SAID)]
    assert parts == [("call", ""), ("shivawn", "ʃɪvˈɔːn"), ("and win", "")]


def test_begins_of_words_are_those_of_the_text():
    begins = [(0, 0), (5, 100), (13, 200)]
    assert lexicon.begins_of("call siobhan now", "call shivawn now", begins) == (
        (0, 0), (5, 100), (13, 200),
    )  # fmt: skip
    assert lexicon.begins_of("call nguyen now", "call win now", [(0, 0), (5, 1), (9, 2)]) == (
        (0, 0), (5, 1), (12, 2),
    )  # fmt: skip
