import numpy as np
import pytest

from todm.asr.corpora import commands, sentences
from todm.asr.corpora.config import DataConfig
from todm.asr.corpora.near_misses import beginning, normalised
from todm.asr.corpora.other_speech import built_in, common_words, other_speech
from todm.errors import ConfigError, CorpusError

CONFIG = DataConfig(negatives=0.2, num_train=400, num_dev=40, num_test=40)


@pytest.fixture(scope="module")
def spoken():
    return sentences.from_grammar(commands.commands(), CONFIG)


def test_the_share_of_every_split_is_no_command(spoken):
    found = other_speech(commands.commands(), CONFIG, spoken)
    assert {split: len(lines) for split, lines in found.items()} == {
        "train": 100,
        "dev": 10,
        "test": 10,
    }
    rules = normalised(commands.commands(), "upper")
    everything = [line for lines in found.values() for line in lines]
    assert not any(beginning(rules, line.split())[1] for line in everything)
    assert len(set(everything)) > 100
    assert not {*found["dev"], *found["test"]} & {*found["train"]}
    assert found == other_speech(commands.commands(), CONFIG, spoken)


def test_near_misses_are_among_them(spoken):
    found = other_speech(commands.commands(), CONFIG, spoken)["train"]
    known = {word.upper() for word in commands.commands().words()}
    share = sum(set(line.split()) <= known for line in found) / len(found)
    assert 0.1 < share < 0.5


def test_the_users_text_is_split_and_commands_in_it_are_left_out(spoken, tmp_path):
    lines = [f"sentence {'very ' * n}long" for n in range(30)]
    path = tmp_path / "mine.txt"
    path.write_text("\n".join([*lines, "stop music", "12 digits"]) + "\n")
    config = CONFIG.replace(negative_text=str(path))
    found = other_speech(commands.commands(), config, spoken)
    mine = {split: {x for x in v if x.startswith("SENTENCE")} for split, v in found.items()}
    assert all(mine.values())
    assert not mine["train"] & mine["dev"]
    assert not mine["dev"] & mine["test"]
    assert "STOP MUSIC" not in {line for v in found.values() for line in v}
    assert not any("DIGITS" in line for v in found.values() for line in v)


def test_too_little_text_is_an_error(spoken, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("stop music\nhello there\n")
    with pytest.raises(CorpusError, match="1 usable sentences"):
        other_speech(commands.commands(), CONFIG.replace(negative_text=str(path)), spoken)


def test_the_built_in_sentences_are_varied():
    stream = built_in(np.random.default_rng(0))
    lines = [next(stream) for _ in range(500)]
    assert len(set(lines)) > 450
    assert len(common_words()) > 300
    assert not any("{" in line or "|" in line for line in lines)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negatives": 1.0}, "negatives is 1.0"),
        ({"negatives": 0.1, "source": "jsonl", "data": "x"}, "keep_empty=true"),
        ({"negative_text": "x"}, "set negatives"),
        ({"keep_empty": True}, "for speech on disk"),
    ],
)
def test_settings_that_exclude_each_other(settings, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**settings)
