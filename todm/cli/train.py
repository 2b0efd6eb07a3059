"""`todm train CORPUS --config NAME --out RUN`: train a supernet, or continue training it."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from todm.cli.progress import progress_report

if TYPE_CHECKING:
    from todm.artifact import Artifact
    from todm.asr.backend import AsrBackend
    from todm.recipe import Recipe
    from todm.train.config import TrainConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("corpus", type=Path, help="directory that  todm prepare  wrote")
    parser.add_argument("--config", default="commands", help="debug, commands, clean100 or full960")
    parser.add_argument("--out", type=Path, required=True, help="directory of the run")
    parser.add_argument(
        "--init",
        type=Path,
        metavar="ARTIFACT",
        help="begin with the weights of an earlier supernet or subnet, perhaps of another vocabulary",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, try the worst batch, say time, memory and disk; write nothing to --out",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=C",
        help="change a setting, such as train.num_updates=500",
    )


def run(args: argparse.Namespace) -> int:
    """Train, or say that it is done."""
    import torch

    from todm import artifact
    from todm.asr.backend import AsrBackend
    from todm.asr.corpora.config import DataConfig
    from todm.recipe import named
    from todm.train.launch import LOST
    from todm.train.parallel import LostProcess

    recipe = named(args.config).override(args.set)
    corpus = artifact.load(args.corpus, kind="corpus")
    # What the corpus was really made with.
    data = DataConfig.from_json(corpus.config, where="asr.data.")
    recipe = recipe.replace(asr=recipe.asr.replace(data=data))
    if not args.dry_run and (done := _done(args, recipe, corpus)):
        if _lead():
            _complete(args)
            print(f"done already: {done.path}")
        return 0
    if not args.dry_run:
        args.out.mkdir(parents=True, exist_ok=True)  # fails now, not after hours of features
    with progress_report() as report:
        backend = AsrBackend(recipe.asr, corpus.path, corpus=corpus.path, report=report)
        if _alone() and not args.dry_run:  # else the first process goes first, in `train`
            backend.prepare()
    if _alone() and recipe.train.num_processes > 1 and not torch.cuda.is_available():
        return _launch(args, recipe.train)
    if _lead():
        _advise(args, recipe)
    try:
        return (_rehearse if args.dry_run else _train)(args, recipe, corpus, backend)
    except LostProcess as error:
        print(f"todm: {error}", file=sys.stderr)
        return LOST


def _alone() -> bool:
    """Whether nobody has started this as one process of several."""
    return "WORLD_SIZE" not in os.environ


def _lead() -> bool:
    """Whether this process speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def _advise(args: argparse.Namespace, recipe: "Recipe") -> None:
    """Before the first update from an earlier net."""
    from todm.train.loop import CHECKPOINTS

    until = recipe.asr.objective.align_until
    if args.init is not None and until and not (args.out / CHECKPOINTS).exists():
        print(
            f"todm: asr.objective.align_until is {until:g}: this flat start unlearns the alignment that "
            "--init brings; consider  --set asr.objective.align_until=0",
            file=sys.stderr,
        )


def _complete(args: argparse.Namespace) -> None:
    """Make what a finished run has lost of its curves and summary."""
    from todm.recipe import named
    from todm.train.monitor import CURVES, METRICS, plot_curves
    from todm.train.summary import SUMMARY, write_summary

    if not (args.out / CURVES).exists():
        plot_curves(args.out / METRICS, args.out / CURVES)
    if not (args.out / SUMMARY).exists():
        write_summary(args.out, standard=_plain(named(args.config)))


def _done(args: argparse.Namespace, recipe: "Recipe", corpus: "Artifact") -> "Artifact | None":
    """The supernet, if this very training is finished."""
    from todm import artifact
    from todm.errors import ConfigError
    from todm.train.loop import INIT_KINDS, SUPERNET

    if not (args.out / SUPERNET / artifact.MANIFEST).is_file():
        return None
    done = artifact.load(args.out / SUPERNET, kind="supernet")
    init = done.info.get("init")
    if args.init is None:
        begun = None
    elif init and not (args.init / artifact.MANIFEST).is_file():
        begun = init
    else:
        begun = artifact.load(args.init, kind=INIT_KINDS).hash
    if (done.config, done.parent, init) != (_plain(recipe), corpus.hash, begun):
        raise ConfigError(
            f"{args.out} holds a supernet of another corpus, other settings or another --init: "
            "choose another --out or remove it"
        )
    return done


def _launch(args: argparse.Namespace, config: "TrainConfig") -> int:
    """On a CPU, start the data-parallel processes and watch them."""
    from todm.train.launch import launch

    verb = ["train", str(args.corpus), "--config", args.config, "--out", str(args.out)]
    verb += [word for item in args.set for word in ("--set", item)]
    verb += ["--init", str(args.init)] if args.init else []
    command = [sys.executable, "-m", "todm.cli.main", *verb]
    if not args.dry_run:
        restarts = config.max_restarts
        return launch(command, config.num_processes, log_dir=args.out, max_restarts=restarts)
    with tempfile.TemporaryDirectory() as place:
        return launch([*command, "--dry-run"], config.num_processes, log_dir=Path(place))


def _train(
    args: argparse.Namespace, recipe: "Recipe", corpus: "Artifact", backend: "AsrBackend"
) -> int:
    from todm.recipe import named
    from todm.train.loop import train

    done = train(
        backend,
        recipe.train,
        args.out,
        recipe=_plain(recipe),
        parent=corpus.hash,
        info={"corpus": str(corpus.path.absolute())},
        init=args.init,
        standard=_plain(named(args.config)),
    )
    if _lead():
        _tell(args, done)
    return 0


def _tell(args: argparse.Namespace, done: "Artifact") -> None:
    """The results."""
    for name, row in done.metrics["dev"].items():
        print(f"{name}: dev WER {row['error']:.2%} [{row['low']:.2%}, {row['high']:.2%}]")
    rate = done.metrics.get("audio_hours_per_hour")
    if rate is not None:
        each = done.metrics["audio_hours_per_hour_per_process"]
        print(f"throughput: {rate:.4g} h of audio an hour, {each:.4g} a process")
    print(
        f"supernet: {done.path}\ncurves: {args.out / 'curves.png'}\nsummary: {args.out / 'summary.md'}"
    )


def _rehearse(
    args: argparse.Namespace, recipe: "Recipe", _corpus: "Artifact", backend: "AsrBackend"
) -> int:
    from todm.train.dry_run import dry_run

    found = dry_run(backend, recipe.train, args.out, init=args.init)
    if _lead():
        print("\n".join(found.lines()))
    return 0


def _plain(recipe: "Recipe") -> dict[str, object]:
    """As it stands in manifests: JSON types only, lists for tuples."""
    return json.loads(json.dumps(recipe.to_json()))
