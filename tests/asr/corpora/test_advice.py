import pytest

from todm.asr.corpora import advice, commands, grammar

pytest.importorskip("espeakng_loader")

from todm.asr.corpora.config import SpeechConfig
from todm.asr.corpora.voices import catalogue


def say(text, language="en"):
    rules = grammar.parse(text)
    setting = catalogue.setting(SpeechConfig(language=language), rules.pronunciations)
    return advice.advice(rules, catalogue.engine("espeak", setting).phonemes)


@pytest.mark.parametrize(
    ("text", "one", "other"),
    [
        ("go (fifteen|fifty|six)", "fifteen", "fifty"),
        ("n = (thirteen|thirty|two)\ngo <n>", "thirteen", "thirty"),
        ("stop (pear|pair)", "pair", "pear"),
        ("open the door\nopen the drawer\nstop", "open the door", "open the drawer"),
    ],
)
def test_phrases_that_sound_alike(text, one, other):
    [line] = say(text)
    assert line.startswith(f"warning: '{one}' and '{other}' sound alike (")


@pytest.mark.parametrize(
    "text", ["turn (on|off)", "turn (left|right)", "[turn] lights on", "volume (up|down) [please]"]
)
def test_phrases_that_do_not(text):
    assert say(text) == []


def test_the_built_in_grammar_needs_no_advice():
    assert (
        advice.advice(
            commands.commands(),
            catalogue.engine("espeak", catalogue.setting(SpeechConfig())).phonemes,
        )
        == []
    )


def test_a_word_that_is_spelt_out_until_it_is_told():
    [line] = say("open xkcd")
    assert "'xkcd' is spelt out letter by letter: give its pronunciation" in line
    assert say("open xkcd\nxkcd: eks kay") == []


def test_a_word_without_sound():
    said = {"x": "", "y": "waɪ"}
    assert list(advice.unsayable(["x", "y"], said)) == [("x", "not spoken at all")]
