import pytest

from todm.asr.corpora.config import ENGINES, SPLITS, SpeechConfig
from todm.asr.corpora.voices import catalogue, shares
from todm.errors import ConfigError

SETTING = catalogue.setting(SpeechConfig())


def test_shares_of_the_command_line():
    assert shares.parse("espeak=60, kokoro=40") == {"espeak": 60, "kokoro": 40}
    assert shares.parse("kokoro") == {"kokoro": 100}
    assert shares.parse("espeak,flite") == {"espeak": 100, "flite": 100}


@pytest.mark.parametrize(
    "text", ["", ",", "espeak=", "espeak=a", "espeak=1.5", "espeak=1,espeak=2"]
)
def test_what_is_no_share_is_refused(text):
    with pytest.raises(ConfigError, match=r"--voices is .*espeak=60,kokoro=40"):
        shares.parse(text)


@pytest.mark.parametrize("voices", [{"espeek": 100}, {}, {"espeak": 0}])
def test_unknown_engines_and_empty_shares_are_refused(voices):
    with pytest.raises(ConfigError, match=r"choose from espeak, kokoro|shares above 0"):
        SpeechConfig(voices=voices)


def test_sentences_are_dealt_by_share_and_more_sentences_change_nothing_of_the_first():
    dealt = shares.deal(100, {"espeak": 60, "kokoro": 30, "flite": 10})
    assert {name: len(part) for name, part in dealt.items()} == {
        "espeak": 60,
        "kokoro": 30,
        "flite": 10,
    }
    assert sorted(i for part in dealt.values() for i in part) == list(range(100))
    more = shares.deal(200, {"espeak": 60, "kokoro": 30, "flite": 10})
    assert all(more[name][: len(part)] == part for name, part in dealt.items())
    assert max(dealt["kokoro"][i + 1] - dealt["kokoro"][i] for i in range(29)) <= 6


@pytest.mark.parametrize("name", ENGINES)
def test_no_speaker_is_in_two_splits(name):
    engine, heard = catalogue.engine(name, SETTING), list[set]()
    for split in SPLITS:
        who = shares.voices(engine, ENGINES.index(name), split, 90)
        assert len({v.speaker for v in who}) == len(set(who)) <= 90
        parts = {part for v in who for part in v.name.split("+")}
        heard.append(parts - {"en-us"} if name != "espeak" else {v.name for v in who})
    assert not heard[0] & heard[1]
    assert not heard[0] & heard[2]
    assert not heard[1] & heard[2]


def test_speaker_ids_of_all_engines_differ():
    ids = [
        voice.speaker
        for number, name in enumerate(ENGINES)
        for split in SPLITS
        for voice in shares.voices(catalogue.engine(name, SETTING), number, split, 300)
    ]
    ids += [
        voice.speaker
        for number, name in enumerate(ENGINES)
        for voice in shares.unseen_voices(catalogue.engine(name, SETTING), number, 24)
    ]
    assert len(ids) == len(set(ids))


def test_few_voices_become_more_by_shifts_and_formant_voices_do_not():
    one = shares.voices(catalogue.engine("hibari", SETTING), 2, "train", 90)
    assert [v.shift for v in one] == [1.0, 1.08, 0.93, 1.15, 0.87]
    assert {v.name for v in one} == {"heart"}
    formant = shares.voices(catalogue.engine("espeak", SETTING), 0, "dev", 90)
    assert len(formant) == 40
    assert {v.shift for v in formant} == {1.0}


def test_kokoros_speakers_are_single_mixed_and_foreign():
    names = catalogue.engine("kokoro", SETTING).speakers("train", 30)
    mixed = [n for n in names if "+" in n]
    foreign = [n for n in names if n[0] not in "ab"]
    assert (len(names), len(mixed), len(foreign)) == (30, 10, 5)
    assert len(catalogue.engine("kokoro", SETTING).speakers("dev", 90)) == 8
