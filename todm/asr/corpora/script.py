"""What a corpus has its voices say: sentences of every split, tests of unseen engines, pronunciations."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from todm.asr import tokens
from todm.asr.corpora import commands, grammar, other_speech, sentences
from todm.asr.corpora.config import DataConfig, Split
from todm.asr.corpora.grammar import Grammar
from todm.asr.corpora.utterances import Rejected
from todm.asr.corpora.voices import catalogue, lexicon
from todm.asr.corpora.voices.engine import Lexicon


@dataclasses.dataclass(frozen=True)
class Script:
    """What is spoken: sentences of every split, and those that each unseen engine speaks, by its name.

    `lexicon` has the pronunciations given by hand, `rules` is the grammar, if there is one, and
    `other_speech` are the sentences that are no commands.
    """

    sentences: Mapping[Split, Sequence[str]]
    unseen: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    lexicon: Lexicon = dataclasses.field(default_factory=dict)
    rules: Grammar | None = None
    other_speech: frozenset[str] = frozenset()


def script_of(config: DataConfig) -> tuple[DataConfig, Script | None, list[Rejected]]:
    """The config with its text rule, what to speak (None: audio exists), and lines left out.

    Raises:
        CorpusError: the grammar or the text cannot be read or used.
    """
    if not config.is_spoken:
        return config, None, []
    rules, rejected = None, list[Rejected]()
    if config.source == "commands":
        rules = grammar.read(config.grammar) if config.grammar else commands.commands()
        config = _with_rule(config, sorted(rules.words()))
        chosen = sentences.from_grammar(rules, config)
    else:
        assert config.text is not None
        path = str(Path(config.text).absolute())
        lines = sentences.read_lines(config.text)
        config = _with_rule(config, lines)
        chosen, left_out = sentences.from_lines(lines, config)
        rejected = [Rejected(f"line {n}", path, reason, line) for n, line, reason in left_out]
    again = chosen["test"][: config.speech.num_unseen]
    heard = dict.fromkeys(catalogue.unseen(config.speech), again)
    others: dict[Split, list[str]] = {}
    if rules and config.negatives:
        others = other_speech.other_speech(rules, config, chosen)
    # Behind the commands, so that they leave the voices of these as they are.
    said: dict[Split, list[str]] = {s: [*chosen[s], *others.get(s, [])] for s in chosen}
    no_commands = frozenset[str]().union(*others.values())
    return config, Script(said, heard, _lexicon(config, rules), rules, no_commands), rejected


def _lexicon(config: DataConfig, rules: Grammar | None) -> Lexicon:
    given = config.speech.pronunciations
    said = lexicon.read(given) if given else {}
    return {**rules.pronunciations, **said} if rules else said


def _with_rule(config: DataConfig, texts: Sequence[str]) -> DataConfig:
    rule = tokens.resolve(config.tokens.normalise, texts)
    return config.replace(tokens=config.tokens.replace(normalise=rule))
