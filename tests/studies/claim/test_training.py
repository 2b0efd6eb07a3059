"""The command `train`: what it refuses, what it skips, and one training for real."""

import json
import signal
import sys
import time

import pytest

from benchmarks.studies import processes
from benchmarks.studies.claim import __main__ as claim
from benchmarks.studies.claim import rows, training
from benchmarks.studies.claim.plan import plan
from todm import artifact
from todm.cli import main as cli

SMALL = [
    "train.num_updates=3",
    "asr.loader.speeds=[1.0]",
    "asr.model.joiner_dim=32",
    "asr.model.encoder.d_model=32",
    "asr.model.encoder.state=4",
]


@pytest.fixture
def corpus(tmp_path):
    """An artifact that is no more than its name."""
    info = {"fingerprint": "f0"}
    return artifact.save(tmp_path / "corpus", kind="corpus", config={}, info=info)


@pytest.fixture
def run(tmp_path, corpus):
    """`train short` with given arguments; a test that gets as far as features has failed."""
    folders = ["--out", str(tmp_path / "out"), "--rows", str(tmp_path / "rows")]
    return lambda *given: claim.main(["train", "short", str(corpus.path), *folders, *given])


@pytest.fixture
def no_features(monkeypatch):
    monkeypatch.setattr(training, "compute_features", lambda run, corpus: None)


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
        (["--seeds", "1", "1"], "a seed is given twice"),
        (["--runs", "alone-xl"], "part 'short' has no run 'alone-xl'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_sentence_before_anything_is_trained(
    tmp_path, run, capsys, arguments, words
):
    assert run(*arguments) == 2
    assert words in _error_line(capsys)
    assert not (tmp_path / "out").exists()


def test_an_unknown_part_is_an_error(tmp_path, capsys):
    assert claim.main(["train", "shrt", "corpus", "--out", str(tmp_path)]) == 2
    assert "unknown part 'shrt': choose one of short" in _error_line(capsys)
    assert claim.main(["table", "shrt", "--rows", str(tmp_path)]) == 2
    assert "unknown part 'shrt'" in _error_line(capsys)


def test_a_missing_corpus_is_an_error_that_says_how_to_make_it(tmp_path, capsys):
    arguments = ["train", "short", str(tmp_path / "corpus"), "--out", str(tmp_path / "out")]
    assert claim.main(arguments) == 2
    message = _error_line(capsys)
    assert "corpus is not an artifact" in message
    assert "todm prepare --config commands --set asr.data.num_test=2000" in message


def test_a_trial_must_not_write_among_the_rows_of_the_study(tmp_path, corpus, capsys):
    arguments = ["train", "short", str(corpus.path), "--out", str(tmp_path / "out")]
    assert claim.main([*arguments, "--set", "train.num_updates=3"]) == 2
    assert "--set makes rows of other settings: name another folder" in _error_line(capsys)


def test_what_has_a_row_is_not_trained(tmp_path, run, row_maker, capsys):
    row_maker.write(tmp_path / "rows", plan("short"))
    assert run() == 0
    assert capsys.readouterr().out == "15 of 15 have a row\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fingerprint": "f1"}, "the row short/supernet-1 is of another corpus"),
        ({"config": {"train": {"num_updates": 7}}}, "has train.num_updates 7, not 4000"),
    ],
    ids=str,
)
def test_rows_of_another_corpus_or_of_other_settings_are_refused(
    tmp_path, run, row_maker, capsys, changes, words
):
    row_maker.write(tmp_path / "rows", plan("short", seeds=[1], names=["supernet"]), **changes)
    assert run("--seeds", "2") == 2
    assert words in _error_line(capsys)


def test_ablations_are_refused_beside_a_base_of_another_corpus(tmp_path, corpus, row_maker, capsys):
    row_maker.write(tmp_path / "rows", plan("short", names=["supernet"]), fingerprint="f1")
    folders = ["--out", str(tmp_path / "out"), "--rows", str(tmp_path / "rows")]
    assert claim.main(["train", "ablations", str(corpus.path), *folders]) == 2
    assert "the row short/supernet-1 is of another corpus" in _error_line(capsys)


def _begin(tmp_path, **changes):
    (begun,) = plan("short", seeds=[1], names=["supernet"])
    place = tmp_path / "out" / begun.stem
    record = {"settings": list(begun.settings), "fingerprint": "f0", "attempts": []} | changes
    place.mkdir(parents=True)
    (place / "attempts.json").write_text(json.dumps(record))
    return place


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": ["train.num_updates=7"]}, "other settings (train.num_updates=7)"),
        ({"fingerprint": "f1"}, "holds a training on another corpus"),
    ],
    ids=str,
)
def test_trainings_of_other_settings_or_another_corpus_are_not_continued(
    tmp_path, run, capsys, changes, words
):
    place = _begin(tmp_path, **changes)
    assert run("--seeds", "1") == 2
    message = _error_line(capsys)
    assert f"{place} holds a training" in message
    assert words in message


def test_a_net_of_a_recipe_that_has_changed_since_is_refused(tmp_path, run, capsys):
    config = {"train": {"student_weight": 0.9}}
    artifact.save(_begin(tmp_path) / "supernet", kind="supernet", config=config)
    assert run("--seeds", "1") == 2
    assert "was trained when train.student_weight was 0.9: choose another --out" in _error_line(
        capsys
    )


def test_a_net_that_the_study_has_not_trained_is_refused(tmp_path, run, capsys):
    place = _begin(tmp_path)
    (place / "attempts.json").unlink()
    artifact.save(place / "supernet", kind="supernet", config={})
    assert run("--seeds", "1") == 2
    assert "holds a net that this study has not trained" in _error_line(capsys)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a script in the place of trainings."""

    def put(code):
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable}\n{code}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return put


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)"])
def test_a_training_that_fails_is_an_error_and_its_time_counts(
    tmp_path, run, capsys, program, no_features, code
):
    program(f"sum(range(1_000_000))\n{code}")
    status = 3 if "3" in code else -9
    for attempts in (1, 2):
        assert run("--seeds", "4", "--runs", "supernet") == 2
        message = _error_line(capsys)
        assert f"the training of supernet seed 4 ended with status {status}: see " in message
        place = tmp_path / "out/short/supernet-4"
        assert str(place / "train.log") in message
        found = json.loads((place / "attempts.json").read_text())["attempts"]
        assert len(found) == attempts
        assert all(attempt["cpu_seconds"] > 0 for attempt in found)
        assert {attempt["status"] for attempt in found} == {status}
    assert not (tmp_path / "rows").exists()


def test_a_folder_is_trained_by_one_process_at_a_time(tmp_path, run, capsys, program, no_features):
    program("import time; time.sleep(60)")
    place = tmp_path / "out/short/supernet-1"
    place.mkdir(parents=True)
    with processes.locked(place):
        assert run("--seeds", "1", "--runs", "supernet") == 2
    assert f"another process is training {place}: wait" in _error_line(capsys)


def test_sigterm_ends_the_trainings_and_keeps_their_time(
    tmp_path, run, capsys, program, no_features
):
    program(
        "import os, signal, time\n"
        "while time.process_time() < 0.2: pass\n"
        "try: os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)\n"
        "except KeyboardInterrupt: raise SystemExit(130)"
    )
    before = signal.getsignal(signal.SIGTERM)
    assert run("--seeds", "1") == 130
    assert "interrupted; the same command continues" in _error_line(capsys)
    assert signal.getsignal(signal.SIGTERM) == before
    (record,) = (tmp_path / "out").rglob("attempts.json")
    (attempt,) = json.loads(record.read_text())["attempts"]
    assert attempt["status"] == 130
    assert attempt["cpu_seconds"] > 0.2


@pytest.mark.slow
def test_a_training_leaves_a_row_and_a_second_call_nothing_to_do(tmp_path, capsys):
    data = ["num_train=24", "num_dev=4", "num_test=4", "speech.train_voices=3"]
    data += ["speech.dev_voices=1", "speech.test_voices=2", "tokens.vocab_size=40"]
    given = [word for item in data for word in ("--set", f"asr.data.{item}")]
    corpus, folder = tmp_path / "corpus", tmp_path / "rows"
    assert cli.main(["prepare", "--config", "commands", "--out", str(corpus), *given]) == 0
    command = ["train", "short", str(corpus), "--out", str(tmp_path / "out"), "--rows", str(folder)]
    command += ["--seeds", "1", "--runs", "supernet", "alone-l"]
    command += [word for item in SMALL for word in ("--set", item)]
    assert claim.main(command) == 0
    assert capsys.readouterr().out.endswith(
        "0 of 2 have a row\ndone: supernet seed 1\ndone: alone-l seed 1\n"
    )
    found = rows.load(folder, "short")
    supernet, alone = found["supernet", 1], found["alone-l", 1]
    rows.check_comparable(found.values())
    assert list(supernet.errors) == ["xs", "s", "m", "l"]
    assert supernet.parameters["l"] == alone.parameters["l"] > supernet.parameters["xs"]
    assert alone.command.startswith(
        "todm train corpus --config commands --out short/alone-l-1 --set "
    )
    assert len(alone.words) == 4
    assert alone.words == supernet.words
    assert (alone.updates, len(alone.attempts)) == (3, 1)
    assert 0 < alone.cpu_seconds < time.process_time() + 600
    written = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json")}
    assert claim.main(command) == 0
    assert "2 of 2 have a row" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json")} == written
    assert claim.main(["table", "short", "--rows", str(folder)]) == 0
    assert (folder / "claim.md").is_file()
