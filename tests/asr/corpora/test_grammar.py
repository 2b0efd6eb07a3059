import numpy as np
import pytest

from todm.asr.corpora import commands, grammar
from todm.errors import CorpusError


def _all(text, num=300):
    rng = np.random.default_rng(0)
    parsed = grammar.parse(text)
    return {parsed.sample(rng) for _ in range(num)}


def test_choice_option_and_name():
    text = """
    room = (kitchen|living room)  # where
    turn (on|off) [the <room>] lights
    """
    assert _all(text) == {
        f"turn {state} {place}lights"
        for state in ("on", "off")
        for place in ("", "the kitchen ", "the living room ")
    }


def test_nesting():
    parsed = grammar.parse("a (b|c [d (e|f)])\ng")
    assert _all("a (b|c [d (e|f)])\ng") == {"a b", "a c", "a c d e", "a c d f", "g"}
    assert parsed.words() == set("abcdefg")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lights on\nturn (on|off", r"g.txt:2: a \( is not closed"),
        ("turn [on", r"g.txt:1: a \[ is not closed"),
        ("turn on)", r"g.txt:1: '\)' closes nothing"),
        ("turn (on|) it", "g.txt:1: an alternative is empty"),
        ("turn () it", "g.txt:1: an alternative is empty"),
        ("room = (a|b)\ngo <rom>", "g.txt:2: <rom> is not defined: did you mean <room>"),
        ("go <where>", "g.txt:1: <where> is not defined: add a line  where ="),
        ("go <where", "g.txt:1: a name is written <name>"),
        ("a = <b>\nb = <a>\ngo <a>", r"g.txt:1: 'a' contains itself \(a -> b -> a\)"),
        ("a = x\na = y\ngo <a>", "g.txt:2: 'a' is defined a second time"),
        ("wait 20 minutes", "g.txt:1: '20' is not a word"),
        ("fine\n[maybe] [nothing]", "g.txt:2: everything is optional"),
        ("# only a comment\n\na = b", "g.txt has no pattern"),
    ],
)
def test_an_error_names_file_and_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "g.txt").write_text(text)
    with pytest.raises(CorpusError, match=message):
        grammar.read("g.txt")


def test_a_file_that_is_not_there():
    with pytest.raises(CorpusError, match="cannot be read: No such file"):
        grammar.read("/nowhere/g.txt")


def test_built_in_grammar_is_rich_enough():
    parsed = commands.commands()
    assert 60 <= len(parsed.words()) <= 120
    lens = [len(s.split()) for s in (parsed.sample(np.random.default_rng(i)) for i in range(500))]
    assert min(lens) >= 2
    assert max(lens) <= 9
    assert 3.5 < np.mean(lens) < 7


def test_a_line_with_a_colon_says_how_a_word_is_pronounced():
    found = grammar.parse("call (nguyen|bob)\nNguyen: win /wˈɪn/\n")
    assert found.pronunciations["nguyen"].respelling == "win"
    assert found.pronunciations["nguyen"].ipa == "wˈɪn"
    assert len(found.patterns) == 1
    with pytest.raises(CorpusError, match="how 'anna' is pronounced, and no pattern has that word"):
        grammar.parse("call bob\nanna: ah na")


def test_phrases_between_which_one_chooses():
    found = grammar.parse("n = (one|two)\nlights on\nstop [now] (<n>|all (a|b))")
    assert list(found.choices()) == [["lights on"], ["now"], [], ["a", "b"], ["one", "two"]]
