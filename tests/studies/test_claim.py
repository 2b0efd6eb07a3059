"""The claim's arithmetic and its errors; nothing is trained here."""

import json
import sys

import numpy as np
import pytest

from benchmarks.studies import claim
from todm import artifact
from todm.asr.decode.wer import score

WORDS = list("ABCDEFG")


@pytest.fixture
def corpus(tmp_path):
    return artifact.save(tmp_path / "corpus", kind="corpus", config={}).path


def _rows(seed, rate, num=40):
    """A decoding of `num` utterances of 1 to 7 words, each word wrong with this probability."""
    rng, lengths = np.random.default_rng(seed), np.random.default_rng(0)
    rows = []
    for index in range(num):
        words = WORDS[: lengths.integers(1, 8)]
        heard = ["X" if rng.random() < rate else w for w in words]
        rows.append((str(index), " ".join(words), " ".join(heard)))
    return rows


@pytest.fixture
def out(tmp_path):
    """All runs of two seeds and one ablation, decoded; the supernet is better than a net alone."""
    for run in claim.plan([1, 2], ["AdamW"], []):
        folder = run.folder(tmp_path / "out")
        folder.mkdir(parents=True)
        sizes = claim.SIZES if run.supernet else [run.name.removeprefix("alone-")]
        rate = {"supernet": 0.2, "AdamW": 0.6}.get(run.name, 0.3)
        rows = {
            size: _rows(100 * run.seed + 10 * len(run.name) + at, rate)
            for at, size in enumerate(sizes)
        }
        (folder / "test.json").write_text(json.dumps(rows))
        cost = {"cpu_seconds": 60.0 * len(sizes), "done": True, "settings": list(run.settings)}
        (folder / "cost.json").write_text(json.dumps(cost))
    return tmp_path / "out"


def _errors(out, name, size):
    """Errors of every utterance by the definition, the mean over both seeds."""
    found = []
    for seed in (1, 2):
        rows = json.loads((out / f"{name}-{seed}" / "test.json").read_text())[size]
        found.append(
            [sum(a != b for a, b in zip(r.split(), h.split(), strict=True)) for _, r, h in rows]
        )
    return np.mean(found, axis=0)


def test_a_difference_is_the_paired_bootstrap_of_mean_errors(out):
    results = claim.Results(claim.plan([1, 2], [], []), out)
    found = results.relative(("supernet", "xs"), ("alone-xs", "xs"))
    ours, theirs = _errors(out, "supernet", "xs"), _errors(out, "alone-xs", "xs")
    draws = np.random.default_rng(1).integers(0, len(ours), (4000, len(ours)))
    samples = (ours[draws].sum(1) - theirs[draws].sum(1)) / theirs[draws].sum(1)
    assert found.relative == pytest.approx((ours.sum() - theirs.sum()) / theirs.sum())
    assert found.low == pytest.approx(np.quantile(samples, 0.025), abs=0.02)
    assert found.high == pytest.approx(np.quantile(samples, 0.975), abs=0.02)
    assert found.low < found.relative < found.high


def test_seeds_are_summed_utterance_by_utterance(out):
    results = claim.Results(claim.plan([1, 2], [], []), out)
    one, two = results.wers("supernet", "m")
    both = results.summed("supernet", "m")
    assert one.utterances != two.utterances
    assert (both.errors, both.words) == (one.errors + two.errors, 2 * one.words)
    assert both.utterances == tuple(
        (a + b, n + m) for (a, n), (b, m) in zip(one.utterances, two.utterances, strict=True)
    )
    assert both.rate == pytest.approx((one.rate + two.rate) / 2)


def test_the_table_has_a_row_for_each_size_and_ablation(out, corpus, capsys):
    arguments = [str(corpus), "--out", str(out), "--ablations", "AdamW"]
    assert claim.main(arguments) == 0
    lines = (out / "claim.md").read_text().splitlines()
    assert capsys.readouterr().out.splitlines() == lines
    words = score(*zip(*((r, r) for _, r, _ in _rows(1, 0)), strict=True)).words
    assert lines[0] == f"40 test utterances, {words} words; seeds [1, 2]."
    starts = [line.split(" | ")[0] for line in lines if line.startswith("| ")]
    assert starts[2:6] == ["| xs", "| s", "| m", "| l"]
    assert starts[-2:] == ["| all three", "| AdamW"]
    assert "the supernet costs 4.00 times the largest alone." in lines
    mine, theirs = (_errors(out, name, "s").sum() / words for name in ("supernet", "alone-s"))
    assert f"| {mine / theirs - 1:+.1%} |" in next(line for line in lines if "| s |" in line)


def _error_line(capsys):
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--jobs", "0"], "--jobs is 0: at least 1 is needed"),
        (["--set", "train.num_update=3"], "did you mean 'num_updates'"),
        (["--set", "train.seed"], "has no '='"),
        (["--set", "asr.space.depths=[4,5]"], "depth 3 is not in the space"),
        (["--seeds", "1", "1"], "supernet with seed 1 is given twice"),
        (["--ablations", "KL", "KL"], "KL with seed 1 is given twice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_sentence_before_anything_is_trained(
    tmp_path, corpus, capsys, arguments, words
):
    assert claim.main([str(corpus), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert words in _error_line(capsys)
    assert not (tmp_path / "out").exists()


def test_a_missing_corpus_is_an_error(tmp_path, capsys):
    assert claim.main([str(tmp_path / "corpus"), "--out", str(tmp_path / "out")]) == 2
    assert "corpus is not an artifact" in _error_line(capsys)


def test_what_was_trained_with_other_settings_is_not_taken(out, corpus, capsys):
    changed = ["--set", "train.num_updates=7"]
    assert claim.main([str(corpus), "--out", str(out), *changed]) == 2
    assert "holds supernet with seed 1 of other settings (train.seed=1)" in _error_line(capsys)


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)"])
def test_a_training_that_fails_is_an_error_and_its_time_counts(
    tmp_path, corpus, capsys, monkeypatch, code
):
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nsum(range(1_000_000))\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    out, arguments = tmp_path / "out", ["--seeds", "4", "--jobs", "1"]
    assert claim.main([str(corpus), "--out", str(out), *arguments]) == 2
    status = 3 if "3" in code else -9
    message = _error_line(capsys)
    assert f"the training of supernet with seed 4 ended with status {status}: see " in message
    assert str(out / "supernet-4" / "train.log") in message
    cost = json.loads((out / "supernet-4" / "cost.json").read_text())
    assert not cost["done"]
    assert cost["cpu_seconds"] > 0
