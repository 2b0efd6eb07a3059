"""Speech that is no command, for the same voices to say: built-in sentences, the user's, and near misses.

An utterance of it has an empty transcript. The built-in sentences are drawn from templates over common
words, so that they are about as varied as a conversation of short sentences.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from todm.asr.corpora import sentences
from todm.asr.corpora.config import SPLITS, DataConfig, Split
from todm.asr.corpora.grammar import Grammar
from todm.asr.corpora.near_misses import beginning, near_misses, normalised
from todm.asr.tokens import Rule, normalise
from todm.errors import CorpusError

_NEAR = 1 / 3  # share of near misses
_REPEATS = 50  # tries for a sentence that was not said before
_LISTS = {
    "who": (
        "i you we they people children my|sister my|brother her|father his|mother the|teacher "
        "our|neighbours the|doctors some|friends two|strangers the|players those|students "
        "many|workers the|others"
    ),
    "one": (
        "he she nobody everybody somebody my|aunt the|boy that|woman the|farmer a|stranger "
        "the|captain her|cousin the|judge an|old|man the|driver our|guest the|queen a|soldier "
        "the|baker"
    ),
    "noun": (
        "house river letter story road table garden party picture question bottle mountain "
        "horse ship book train village field forest bridge church market dinner paper island "
        "winter summer kitchen window answer office school engine basket blanket castle coat "
        "corner dream feather fire flower ghost glass hammer heart hotel journey knife ladder "
        "lesson machine mirror moment museum needle newspaper ocean palace pencil piano "
        "pocket prison promise rabbit ring roof salad secret shadow shirt shoulder song spoon "
        "station stone storm stranger street sugar sweater ticket tower tree uncle valley "
        "voice wagon wallet water wedding wheel wine wolf yard"
    ),
    "adj": (
        "small old quiet strange heavy yellow happy cold bright dark broken empty famous "
        "gentle hungry large lazy lonely narrow perfect proud rough sharp simple soft sudden "
        "tall thick tired warm wild young careful cheap clean deep dry early easy fair "
        "foreign free fresh golden hard hidden late loud"
    ),
    "verbs": (
        "found left bought carried watched remembered painted described followed sold wanted "
        "missed borrowed burned cleaned closed counted crossed enjoyed expected finished "
        "forgot guarded hated helped imagined kept liked lost mentioned moved noticed opened "
        "planted preferred reached repaired saved saw shared stole touched visited washed "
        "wrote"
    ),
    "went": (
        "walked ran laughed waited slept arrived spoke cried smiled sat worked travelled "
        "danced stood argued listened sang stayed fell returned"
    ),
    "where": (
        "near|the|door by|the|sea in|the|rain behind|the|house across|the|street under|a|tree "
        "at|home on|the|hill outside in|town along|the|river over|there beside|the|fire "
        "in|the|north"
    ),
    "when": (
        "yesterday last|week before|breakfast after|the|war every|morning in|the|evening "
        "at|noon long|ago this|year on|sunday at|night two|days|later in|spring for|hours "
        "again once|more"
    ),
    "how": (
        "slowly quickly without|a|word with|great|care almost|always rather|badly together "
        "alone in|silence by|accident on|purpose very|well"
    ),
    "link": "because although while before after until since and|then but so",
    "num": "two three five seven ten twelve twenty a|hundred several few",
}
_TEMPLATES = """
{one} {went} {where}
{who} {verbs} the {noun} {when}
the {adj} {noun} was {adj} and {adj}
{one} {verbs} a {adj} {noun} {where}
{who} {went} {how} {link} {one} {verbs} the {noun}
there were {num} people {where} {when}
i think the {noun} is too {adj} for us
do you know what happened to the {noun}
have you ever seen such a {adj} {noun}
why did {one} never talk about the {noun}
what {who} {verbs} was not the {noun}
it was {adj} {when} {link} {who} {went} {how}
{one} said that the {noun} {where} was {adj}
tell me more about the {adj} {noun}
could you ask {one} about the {noun}
we should have {verbs} the {noun} {when}
{who} {verbs} {num} of them {when}
well maybe {one} just {went} {where}
no that is not what i meant at all
yes i saw the {noun} {when} too
as far as i know {one} {verbs} it {how}
the {noun} and the {noun} {went} {how}
neither the {noun} nor the {noun} was {adj}
{when} {one} {verbs} the {noun} of {num} {adj} men
if the {noun} had been {adj} {who} would have {went}
{one} {verbs} {one} {when}
how {adj} the {noun} looked {where}
{one} had a {noun} in one hand and a {noun} in the other
nobody believed the {adj} {noun} {link} it was {adj}
all the {noun} in the world is not {adj} enough
"""
_SLOT = re.compile(r"{(\w+)}")


def other_speech(
    grammar: Grammar, config: DataConfig, commands: dict[Split, list[str]]
) -> dict[Split, list[str]]:
    """Sentences outside of the grammar for every split, so many that they are `config.negatives` of it.

    Args:
        grammar: of the commands.
        config: share, text of the user's, seed, and text rule.
        commands: those of every split.

    Raises:
        CorpusError: the user's text cannot be read or is too short, or near misses do not exist.
    """
    rule, share = config.tokens.normalise, config.negatives
    grammar = normalised(grammar, rule)
    words = sorted({normalise(word, rule) for word in common_words()})
    taken = set(itertools.chain(*commands.values()))
    lines = _users(grammar, config)
    chosen: dict[Split, list[str]] = {}
    for index, split in enumerate(SPLITS):
        rng = np.random.default_rng([config.seed, 6, index])
        plain = built_in(rng) if lines is None else itertools.cycle(lines[split])
        near = near_misses(grammar, words, rng)
        num = max(1, round(len(commands[split]) * share / (1 - share)))
        chosen[split] = []
        for _ in range(num):
            source = near if rng.random() < _NEAR else plain
            chosen[split].append(_new(source, grammar, taken, rule))
    return chosen


def built_in(rng: np.random.Generator) -> Iterator[str]:
    """Endless sentences from the templates."""
    lists = {name: [w.replace("|", " ") for w in text.split()] for name, text in _LISTS.items()}
    templates = _TEMPLATES.strip().splitlines()

    def word(slot: re.Match[str]) -> str:
        choices = lists[slot[1]]
        return choices[int(rng.integers(len(choices)))]

    while True:
        yield _SLOT.sub(word, templates[int(rng.integers(len(templates)))])


def common_words() -> list[str]:
    """The words of the built-in sentences."""
    return sorted({word for text in _LISTS.values() for word in re.split(r"[ |]+", text)})


def _new(source: Iterator[str], grammar: Grammar, taken: set[str], rule: Rule) -> str:
    """The next sentence that is no command, if possible one that no split has; it becomes taken."""
    tries = 0
    while True:
        text, tries = normalise(next(source), rule), tries + 1
        if not beginning(grammar, text.split())[1] and (text not in taken or tries > _REPEATS):
            taken.add(text)
            return text


def _users(grammar: Grammar, config: DataConfig) -> dict[Split, list[str]] | None:
    """The lines of the user's text that are no commands, a tenth for dev and test each; None without one."""
    if config.negative_text is None:
        return None
    usable: dict[str, None] = {}
    for line in sentences.read_lines(Path(config.negative_text)):
        try:
            text = normalise(line, config.tokens.normalise)
        except ValueError:
            continue
        if text and not beginning(grammar, text.split())[1]:
            usable[text] = None
    if len(usable) < len(SPLITS):
        raise CorpusError(
            f"{config.negative_text} has {len(usable)} usable sentences outside of the grammar: at least 3 "
            "are needed, one for each split, in letters alone"
        )
    rng = np.random.default_rng([config.seed, 7])
    mixed = [list(usable)[i] for i in rng.permutation(len(usable))]
    tenth = max(1, len(mixed) // 10)
    return {"train": mixed[2 * tenth :], "dev": mixed[:tenth], "test": mixed[tenth : 2 * tenth]}
