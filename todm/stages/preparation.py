"""Speech and transcripts, made here or found on disk -> corpus."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from todm.errors import ConfigError
from todm.files import Announce, Progress, no_announcement, no_progress

if TYPE_CHECKING:
    from todm.artifact import Artifact
    from todm.asr.corpora.config import DataConfig

_RULE = "asr.data.tokens.normalise="


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A corpus, and whether it was there already."""

    corpus: "Artifact"
    existed: bool


def prepare(
    out: str | Path,
    *,
    config: str = "commands",
    corpus: Literal["commands", "sentences"] | None = None,
    grammar: str | None = None,
    text: str | None = None,
    hours: float | None = None,
    voices: str | None = None,
    language: str | None = None,
    data: str | None = None,
    source: Literal["librispeech", "kaldi", "jsonl", "lhotse", "shar"] | None = None,
    split: Sequence[str] = (),
    shar: str | None = None,
    processes: int | None = None,
    settings: Sequence[str] = (),
    progress: Progress = no_progress,
    announce: Announce = no_announcement,
) -> Prepared:
    """Speak a corpus, or read one from disk.

        >>> stages.prepare(run / "corpus", config="debug", settings=small).existed
        True

    Args:
        out: directory of the corpus; spoken audio goes to OUT-audio.
        config: the recipe: debug, commands, clean100 or full960.
        corpus: what is spoken.
        grammar: file of a command list to speak.
        text: file of sentences to speak, one a line.
        hours: of training speech from `text`.
        voices: engines that speak and their shares of utterances, such as `espeak=60,kokoro=40`.
        language: that espeak-ng speaks, such as de; English by default.
        data: speech on disk.
        source: the layout of `data`; by default as found.
        split: `NAME=SPLIT` for each folder or file of `data` that is train, dev or test.
        shar: folder for tar shards of the training audio.
        processes: by default one a CPU.
        settings: changes to the recipe, such as `asr.data.num_train=500`.
        progress: called with (what, done, all).
        announce: called before anything is spoken with lines on licences and cost, and warnings.

    Raises:
        TodmError: something given cannot be used; the message says what to do.
    """
    from todm.asr.corpora.prepare import is_prepared
    from todm.asr.corpora.prepare import prepare as prepare_corpus
    from todm.recipe import named

    if processes is not None and processes < 1:
        raise ConfigError(f"--processes is {processes}: at least 1")
    for flag, value in (("split", split), ("source", source)):
        if value and data is None:
            raise ConfigError(f"--{flag} describes --data PATH: give both")
    for flag, value in (("voices", voices), ("language", language)):
        if value and data is not None:
            raise ConfigError(f"--{flag} is for what is spoken here, not for --data: leave one out")
    base = named(config).override(settings).asr.data
    changes = _source(base, corpus, {"grammar": grammar, "text": text, "data": data}, source)
    changes |= {
        name: value for name, value in (("hours", hours), ("shar", shar)) if value is not None
    }
    if split:
        changes["splits"] = _splits(split)
    changes["speech"] = _speech(base, voices, language)
    # Speech from elsewhere may be in any language; what is spoken here is English unless said otherwise.
    if (data or language) and not any(s.startswith(_RULE) for s in settings):
        changes["tokens"] = {**base.tokens.to_json(), "normalise": "auto"}
    made_with = base.from_json({**base.to_json(), **changes})
    existed = is_prepared(made_with, out)
    made = prepare_corpus(made_with, out, progress=progress, announce=announce, processes=processes)
    return Prepared(corpus=made, existed=existed)


def write_samples(
    out: str | Path,
    *,
    config: str = "commands",
    corpus: Literal["commands", "sentences"] | None = None,
    grammar: str | None = None,
    text: str | None = None,
    voices: str | None = None,
    language: str | None = None,
    settings: Sequence[str] = (),
    progress: Progress = no_progress,
) -> Path:
    """Speak one sample of each phrase by each engine, to listen to before a corpus is made.

        >>> stages.write_samples(run / "corpus", config="debug", settings=small).name
        'corpus-samples'

    Args:
        out: directory of the planned corpus; the samples go to OUT-samples.
        config: as for `prepare`, and so are the others.
        corpus: what is spoken.
        grammar: file of a command list.
        text: file of sentences.
        voices: engines that speak.
        language: that espeak-ng speaks.
        settings: changes to the recipe.
        progress: called with (what, done, all).

    Returns:
        The directory of the samples; phrases.tsv in it lists them.

    Raises:
        TodmError: something given cannot be used; the message says what to do.
    """
    from todm.asr.corpora import samples
    from todm.recipe import named

    base = named(config).override(settings).asr.data
    changes = _source(base, corpus, {"grammar": grammar, "text": text, "data": None}, None)
    changes["speech"] = _speech(base, voices, language)
    if language and not any(s.startswith(_RULE) for s in settings):
        changes["tokens"] = {**base.tokens.to_json(), "normalise": "auto"}
    place = Path(out).absolute()
    folder = place.with_name(f"{place.name}-samples")
    samples.write(base.from_json({**base.to_json(), **changes}), folder, progress)
    return folder


def _source(
    base: "DataConfig", corpus: str | None, places: dict[str, str | None], layout: str | None
) -> dict[str, Any]:
    """The settings that say where speech comes from.

    Raises:
        ConfigError: what is given excludes each other.
    """
    kinds = {"grammar": "commands", "text": "sentences", "data": layout or "auto"}
    given = {name: place for name, place in places.items() if place is not None}
    if len(given) > 1:
        raise ConfigError(f"give one of {', '.join('--' + n for n in given)}, not all of them")
    chosen = next((kinds[name] for name in given), corpus or base.source)
    if corpus and chosen != corpus:
        raise ConfigError(f"--corpus {corpus} and --{next(iter(given))} exclude each other")
    if chosen == base.source and not given:
        return {"source": chosen}
    return {"source": chosen, **places}


def _speech(base: "DataConfig", voices: str | None, language: str | None) -> dict[str, Any]:
    """The settings that say who speaks."""
    from todm.asr.corpora.voices.shares import parse

    speech = base.speech.to_json()
    if voices is not None:
        speech["voices"] = parse(voices)
    if language is not None:
        speech["language"] = language
    return speech


def _splits(items: Sequence[str]) -> dict[str, str]:
    for item in items:
        if "=" not in item:
            raise ConfigError(f"--split {item!r} has no '=': write  --split NAME=train")
    return dict(item.split("=", 1) for item in items)
