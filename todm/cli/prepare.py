"""`todm prepare --config NAME --out DIR`: speak a corpus, or read one from disk."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todm.cli.progress import progress_report

if TYPE_CHECKING:
    from todm.artifact import Artifact
    from todm.asr.corpora.config import DataConfig

_RULE = "asr.data.tokens.normalise="
_EPILOG = """
A grammar is a text file with a phrase or pattern a line:

  # a comment
  room = (kitchen|bedroom|living room)
  turn (on|off) the [<room>] lights

(a|b) is a choice, [a] may be left out, <name> is replaced by the line `name = ..`. Numbers are written in
words. Every pattern is drawn equally often, and rare words more often.

--data takes speech in five layouts, and says which it found:

  librispeech  SPLIT/SPEAKER/CHAPTER/ID.flac (or wav, opus, ..) with SPEAKER-CHAPTER.trans.txt, a line
               `ID TEXT` for each utterance
  kaldi        SPLIT/{wav.scp,text}, and utt2spk and segments if there are; commands in wav.scp are refused
  jsonl        SPLIT.jsonl, a line {"audio": "a.flac", "text": "..."} for each utterance, and if need be
               "start", "duration", "speaker", "channel", "id"; or one file whose lines have a "split"
  lhotse       cuts, or recordings and supervisions, as jsonl or jsonl.gz, by name or folder of a split
  shar         SPLIT/cuts.N.jsonl.gz and recording.N.tar

Folders and files whose names say train, dev (valid) or test (eval) are the splits. Files may be gzipped,
audio of any rate and number of channels, and text in any language.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("--config", default="commands", help="debug, commands, clean100 or full960")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="directory of the corpus; spoken audio goes to OUT-audio",
    )
    parser.add_argument("--corpus", choices=("commands", "sentences"), help="what is spoken")
    parser.add_argument("--grammar", metavar="FILE", help="speak this command list, see below")
    parser.add_argument(
        "--text", metavar="FILE", help="speak these sentences, one a line, plain or gzip"
    )
    parser.add_argument("--hours", type=float, help="hours of training speech from --text")
    parser.add_argument("--data", metavar="PATH", help="speech on disk, see below")
    parser.add_argument(
        "--source",
        choices=("librispeech", "kaldi", "jsonl", "lhotse", "shar"),
        help="the layout of --data; default: as found",
    )
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME=SPLIT",
        help="a folder or file of --data that is train, dev or test; may be repeated",
    )
    parser.add_argument(
        "--shar",
        metavar="DIR",
        help="write training audio to tar shards here, for corpora of thousands of hours",
    )
    parser.add_argument("--processes", type=int, help="processes; default: one a CPU")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=C",
        help="change a setting, such as asr.data.num_train=500",
    )


def run(args: argparse.Namespace) -> int:
    """Make the corpus, or say that it is there; print what it holds."""
    from todm.asr.corpora.prepare import is_prepared, prepare
    from todm.recipe import named

    config = data_config(named(args.config).override(args.set).asr.data, args)
    there = is_prepared(config, args.out)
    with progress_report() as report:
        corpus = prepare(config, args.out, progress=report, processes=args.processes)
    if there:
        print(f"done already: {corpus.path}")
    _show(corpus)
    return 0


def data_config(base: "DataConfig", args: argparse.Namespace) -> "DataConfig":
    """`base` with what the flags say.

    Raises:
        ConfigError: flags that contradict each other or lack something.
    """
    from todm.errors import ConfigError

    _check(args)
    given = {name: getattr(args, name) for name in ("grammar", "text", "data")}
    given = {name: value for name, value in given.items() if value is not None}
    source = {"grammar": "commands", "text": "sentences", "data": args.source or "auto"}
    if len(given) > 1:
        raise ConfigError(f"give one of {', '.join('--' + n for n in given)}, not all of them")
    chosen = next((source[name] for name in given), args.corpus or base.source)
    if args.corpus and chosen != args.corpus:
        raise ConfigError(f"--corpus {args.corpus} and --{next(iter(given))} exclude each other")
    changes: dict[str, Any] = {"source": chosen, **given}
    if chosen != base.source or given:
        changes |= {name: given.get(name) for name in source}
    for flag in ("hours", "shar"):
        if getattr(args, flag) is not None:
            changes[flag] = getattr(args, flag)
    if args.split:
        changes["splits"] = _splits(args.split)
    # Speech from anywhere may be in any language; what is spoken here is English.
    if args.data and not any(s.startswith(_RULE) for s in args.set):
        changes["tokens"] = {**base.tokens.to_json(), "normalise": "auto"}
    return base.from_json({**base.to_json(), **changes})


def _check(args: argparse.Namespace) -> None:
    from todm.errors import ConfigError

    for flag in ("split", "source"):
        if getattr(args, flag) and args.data is None:
            raise ConfigError(f"--{flag} speaks of --data PATH: give both")
    if args.processes is not None and args.processes < 1:
        raise ConfigError(f"--processes is {args.processes}: at least 1")


def _splits(items: list[str]) -> dict[str, str]:
    from todm.errors import ConfigError

    for item in items:
        if "=" not in item:
            raise ConfigError(f"--split {item!r} has no '=': write  --split NAME=train")
    return dict(item.split("=", 1) for item in items)


def _show(corpus: "Artifact") -> None:
    from rich.console import Console
    from rich.table import Table

    from todm.asr.corpora.sources import NAMES

    console = Console()
    data = corpus.config
    if data["data"]:
        name = NAMES[data["source"]]
        console.print(f"found: {name} in {data['data']}", soft_wrap=True, highlight=False)
    table = Table("split", "utterances", "hours", "speakers", "words", "sentences not in train")
    for split, row in corpus.info["splits"].items():
        unseen = "-" if split == "train" else f"{row['unseen_sentences']:.1%}"
        hours = f"{row['hours']:.2f}"
        table.add_row(
            split, str(row["num"]), hours, str(row["speakers"]), str(row["words"]), unseen
        )
    console.print(table)
    rejected = corpus.info["rejected"]
    if rejected:
        left_out = Table("left out because", "number")
        for reason, num in rejected.items():
            left_out.add_row(reason, str(num))
        console.print(left_out)
        console.print(f"listed in {corpus.file('rejected.jsonl')}", soft_wrap=True)
    tokens = (
        f"vocabulary: {corpus.info['vocab_size']} tokens, text rule {data['tokens']['normalise']!r}"
    )
    console.print(tokens, highlight=False)
    console.print(f"corpus: {corpus.path}", soft_wrap=True, highlight=False)
