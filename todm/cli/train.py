"""`todm train CORPUS --config NAME --out RUN`: train a supernet, or continue training it."""

import argparse
import json
import os
from pathlib import Path

from todm.cli.progress import progress_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("corpus", type=Path, help="directory that  todm prepare  wrote")
    parser.add_argument("--config", default="commands", help="debug, commands, clean100 or full960")
    parser.add_argument("--out", type=Path, required=True, help="directory of the run")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=C",
        help="change a setting, such as train.num_updates=500",
    )


def run(args: argparse.Namespace) -> int:
    """Train, or say that it is done."""
    from todm import artifact
    from todm.asr.backend import AsrBackend
    from todm.asr.corpora.config import DataConfig
    from todm.errors import ConfigError
    from todm.recipe import named
    from todm.train.loop import SUPERNET, train
    from todm.train.parallel import helpers

    recipe = named(args.config).override(args.set)
    corpus = artifact.load(args.corpus, kind="corpus")
    data = DataConfig.from_json(corpus.config, where="asr.data.")
    recipe = recipe.replace(
        asr=recipe.asr.replace(data=data)
    )  # what the corpus was really made with
    config = json.loads(json.dumps(recipe.to_json()))
    if (args.out / SUPERNET / artifact.MANIFEST).is_file():
        done = artifact.load(args.out / SUPERNET, kind="supernet")
        if done.config != config or done.parent != corpus.hash:
            raise ConfigError(
                f"{args.out} holds a supernet of another corpus or other settings: "
                "choose another --out or remove it"
            )
        print(f"done already: {done.path}")
        return 0
    with progress_report() as report:
        backend = AsrBackend(recipe.asr, corpus.path, corpus=corpus.path, report=report)
        if (
            "WORLD_SIZE" not in os.environ
        ):  # with several processes the first goes first, in `train`
            backend.prepare()
    info = {"corpus": str(corpus.path.absolute())}
    verb = ["train", str(args.corpus), "--config", args.config, "--out", str(args.out)]
    verb += [word for item in args.set for word in ("--set", item)]
    with helpers(recipe.train.num_processes, verb, args.out):
        done = train(backend, recipe.train, args.out, recipe=config, parent=corpus.hash, info=info)
    for name, row in done.metrics["dev"].items():
        print(f"{name}: dev WER {row['error']:.2%} [{row['low']:.2%}, {row['high']:.2%}]")
    print(f"supernet: {done.path}\ncurves: {args.out / 'curves.png'}")
    return 0
