"""`todm prepare --config NAME --out DIR`: speak a corpus, or read one from disk."""

import argparse
import sys
from typing import TYPE_CHECKING

from todm import stages
from todm.cli.arguments import Flags, given
from todm.cli.progress import progress_report
from todm.errors import ConfigError

if TYPE_CHECKING:
    from todm.artifact import Artifact

_EPILOG = """
A grammar is a text file with a phrase or pattern a line:

  # a comment
  room = (kitchen|bedroom|living room)
  turn (on|off) the [<room>] lights

  nguyen: win /wˈɪn/

(a|b) is a choice, [a] may be left out, <name> is replaced by the line `name = ..`. Numbers are written in
words. Every pattern is drawn equally often, and rare words more often. A line with a colon says how a word
sounds, spelt for all voices and perhaps in IPA for those that read it.

Voices are espeak, kokoro, hibari, piper and flite, as far as they are installed; no voice is in two splits.
An engine that training does not hear speaks a test of its own, if it is fast.

--data reads speech in five layouts, and says which one it found:

  librispeech  SPLIT/SPEAKER/CHAPTER/ID.flac (or wav, opus, ..) with SPEAKER-CHAPTER.trans.txt, a line
               `ID TEXT` for each utterance
  kaldi        SPLIT/{wav.scp,text}, and utt2spk and segments if present; commands in wav.scp are refused
  jsonl        SPLIT.jsonl, a line {"audio": "a.flac", "text": "..."} for each utterance, optionally with
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
    flag = Flags(parser, stages.prepare)
    flag("--config", "debug, commands, clean100 or full960 (default %(default)s)")
    flag("--out", "directory of the corpus; spoken audio goes to OUT-audio")
    flag("--corpus", "what is spoken")
    flag("--grammar", "speak this command list, see below", metavar="FILE")
    flag("--text", "speak these sentences, one a line, plain or gzip", metavar="FILE")
    flag("--hours", "hours of training speech from --text")
    flag("--voices", "who speaks, by shares of utterances: espeak=60,kokoro=40", metavar="SHARES")
    flag("--language", "of the commands or sentences, as espeak-ng has it (default: en)")
    flag("--data", "speech on disk, see below", metavar="PATH")
    flag("--source", "the layout of --data (default: as found)")
    flag(
        "--split",
        "a folder or file of --data that is train, dev or test; may be repeated",
        metavar="NAME=SPLIT",
    )
    flag(
        "--shar",
        "write training audio to tar shards here, for corpora of thousands of hours",
        metavar="DIR",
    )
    flag("--processes", "processes (default: one a CPU)")
    flag(
        "--set",
        "change a setting, such as asr.data.num_train=500",
        dest="settings",
        metavar="A.B=C",
    )

    parser.add_argument(
        "--listen",
        action="store_true",
        dest="hear",
        help="only write a sample of each phrase by each engine, to OUT-samples",
    )


def run(args: argparse.Namespace) -> int:
    """Make the corpus, or say that it is there; print what it holds. Or write samples."""
    with progress_report() as progress:
        if args.hear:
            if args.data:
                raise ConfigError("--listen is for what is spoken here: leave --data out")
            folder = stages.write_samples(**given(args, stages.write_samples), progress=progress)
            print(f"samples: {folder}, listed in {folder / 'phrases.tsv'}")
            return 0
        made = stages.prepare(**given(args, stages.prepare), progress=progress, announce=_say)
    if made.existed:
        print(f"done already: {made.corpus.path}")
    _show(made.corpus)
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
    for name, row in corpus.info.get("unseen", {}).items():
        console.print(f"a test by {name}, which training does not hear: {row['num']} utterances")
    if others := {
        s: n for s, row in corpus.info["splits"].items() if (n := row.get("other_speech"))
    }:
        counts = ", ".join(f"{num} in {split}" for split, num in others.items())
        console.print(f"speech that is no command: {counts} of these utterances", highlight=False)
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
