"""A run on a corpus and a net as small as can be, by the verbs themselves."""

import contextlib
import io
import json

from todm.cli import main as cli

DATA = {
    "asr.data.num_train": 24,
    "asr.data.num_dev": 4,
    "asr.data.num_test": 4,
    "asr.data.speech.train_voices": 3,
    "asr.data.speech.dev_voices": 1,
    "asr.data.speech.test_voices": 2,
    "asr.data.tokens.vocab_size": 40,
}
TRAIN = {
    **DATA,
    "asr.loader.batch_size": 8,
    "asr.model.joiner_dim": 32,
    "asr.model.encoder.d_model": 32,
    "asr.model.encoder.state": 4,
    "asr.space.widths.ffn": [16, 32],
    "asr.space.widths.pairs": [1, 2],
    "train.num_updates": 6,
    "train.checkpoint_minutes": 0.0,
    "train.num_threads": 1,
    "train.num_processes": 1,
}


def _set(settings):
    return [
        word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")
    ]


class Run:
    """A directory of a run, and the commands that fill it; each returns its status and what it said."""

    def __init__(self, root):
        self.root = root
        self.corpus, self.supernet = root / "corpus", root / "supernet"
        self.subnet, self.bundle = root / "subnets" / "small", root / "bundles" / "small"
        self.evaluation = root / "evaluation" / "small"

    def files(self):
        """When every file was written; locks say who holds them, not what was made."""
        found = (p for p in self.root.rglob("*") if p.is_file() and p.suffix != ".lock")
        return {p: p.stat().st_mtime_ns for p in found}

    def todm(self, *arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = cli.main([str(a) for a in arguments])
            except SystemExit as stop:  # argparse refuses
                status = stop.code
        return status, out.getvalue(), err.getvalue()

    def prepare(self):
        place = ["--out", self.corpus, "--processes", 1]
        return self.todm("prepare", "--config", "debug", *place, *_set(DATA))

    def train(self, out=None, **changes):
        settings = {**TRAIN, **{k.replace("__", "."): v for k, v in changes.items()}}
        place = ["--out", out or self.root]
        return self.todm("train", self.corpus, "--config", "debug", *place, *_set(settings))

    def extract(self, budget="params=45k"):
        place = ["--out", self.subnet, "--candidates", 2, "--limit", 2]
        return self.todm("extract-subnet", self.supernet, "--budget", budget, *place)

    def export(self):
        return self.todm("export", self.subnet, "--target", "sherpa-onnx", "--out", self.bundle)

    def evaluate(self):
        return self.todm("evaluate", self.bundle, self.corpus, "--out", self.evaluation)

    def report(self):
        return self.todm("report", self.root)
