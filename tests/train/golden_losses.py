"""Losses of a short training of the `debug` recipe, to be compared with those of an earlier version.

    python tests/train/golden_losses.py    # writes golden_losses.json beside this file

Do that only for a change that is meant to change numbers, and name the difference in its message.
"""

import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile
import torch
from lhotse import CutSet, Recording, SupervisionSegment

from todm import artifact
from todm.asr import tokens
from todm.asr.backend import AsrBackend
from todm.recipe import named
from todm.train import loop
from todm.train.launch import launch
from todm.train.monitor import METRICS, read_metrics

GOLDEN = Path(__file__).with_name("golden_losses.json")
FIGURES = ("loss", "rnnt", "ctc", "divergence", "loss smallest", "grad_norm", "clip")
WORDS = ("ON", "OFF", "UP", "DOWN")


def make_corpus(root):
    """A corpus artifact of modulated noise: 48 and 4 utterances of 0.5 to 2 s."""
    draws, cuts = np.random.default_rng(7), {}
    for split, num in {"train": 48, "dev": 4}.items():
        cuts[split] = []
        for name in (f"{split}-{i:02d}" for i in range(num)):
            size = int(draws.uniform(0.5, 2.0) * 16000)
            envelope = 0.02 + 0.3 * np.sin(np.arange(size) / 1500) ** 2
            samples = (envelope * draws.standard_normal(size) * 8000).round().astype(np.int16)
            soundfile.write(root / f"{name}.wav", samples, 16000)
            cut = Recording.from_file(root / f"{name}.wav", recording_id=name).to_cut()
            words = " ".join(draws.choice(WORDS, 2))
            where = {"id": name, "recording_id": name, "start": 0.0, "duration": cut.duration}
            cut.supervisions = [SupervisionSegment(text=words, speaker="one", **where)]
            cut.id = name
            cuts[split].append(cut)

    def write(folder):
        for split, rows in cuts.items():
            CutSet.from_cuts(rows).to_file(folder / f"cuts_{split}.jsonl.gz")
        tokens.train([" ".join(WORDS)], tokens.TokensConfig(vocab_size=16), folder)

    return artifact.save(root / "corpus", kind="corpus", config={}, write=write).path


def train(corpus, out):
    """Twelve updates: a sandwich in the flat start, then with distillation."""
    recipe = named("debug")
    recipe = recipe.replace(
        train=recipe.train.replace(num_updates=12, log_every=1, eval_every=2.0, num_threads=1)
    )
    backend = AsrBackend(recipe.asr, corpus, corpus=corpus)
    with mock.patch.object(loop, "plot_curves"):  # a picture takes longer than this training
        loop.train(backend, recipe.train, out, recipe=recipe.to_json(), parent="golden")


def losses(root):
    """Figures of every update, by the number of processes."""
    corpus, (one, two) = make_corpus(root), (root / "one", root / "two")
    train(corpus, one)
    assert launch([sys.executable, __file__, str(corpus), str(two)], 2, log_dir=two) == 0
    return {"1": _figures(one), "2": _figures(two)}


def _figures(out):
    rows = (r for r in read_metrics(out / METRICS) if r["kind"] == "train")
    return [{name: r[name] for name in FIGURES if name in r} for r in rows]


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        train(*map(Path, sys.argv[1:]))
    else:
        with tempfile.TemporaryDirectory() as place:
            GOLDEN.write_text(json.dumps(losses(Path(place)), indent=1) + "\n")
