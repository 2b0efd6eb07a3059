"""`todm compress` on the toy: what it writes, says and refuses."""

import json

import pytest
import torch

from todm import artifact
from todm.cli import main as cli
from todm.compress import packed, storage
from todm.stages import adapters


@pytest.fixture
def run(toy, tmp_path, monkeypatch, capsys):
    """Runs the verb on an artifact of the toy; returns status, output and errors."""
    source = artifact.save(
        tmp_path / "dense", kind="model", config={"backend": "toy"}, tensors=toy.model.state_dict()
    )
    loads = []

    def load(found, *, corpus=None):
        loads.append(found)
        fresh = type(toy)()
        storage.load_weights(fresh.model, found)
        return fresh

    monkeypatch.setattr(adapters, "adapter_of", load)

    def call(*arguments, source=source.path, out=tmp_path / "out"):
        few = ["--set", "num_calibration=8"]
        status = cli.main(["compress", *map(str, (source, "--out", out, *few, *arguments))])
        return status, *capsys.readouterr()

    call.loads, call.out, call.source = loads, tmp_path / "out", source
    return call


def test_a_model_is_compressed_and_told_of(run):
    status, out, _ = run("--passes", "prune,int8", "--evaluate")
    assert status == 0
    for words in (
        "pass prune",
        "pass int8",
        "| blocks.0.up | linear 40x24 |",
        "| head | linear 5x24 | not done: the head |",
        "size ratio",
        "ops ratio",
        "error rate",
        f"compressed: {run.out}",
    ):
        assert words in out, words
    found = artifact.load(run.out, kind="compressed")
    assert found.parent == run.source.hash
    assert found.metrics["before"]["metric"] == "error rate"
    assert (run.out / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "| blocks.1.down |" in (run.out / "report.md").read_text()
    assert len(storage.read(found).layers) == 4


def test_the_same_again_is_not_done_again(run):
    run("--passes", "int8")
    before, again = len(run.loads), run("--passes", "int8")
    assert again[1].startswith(f"done already: {run.out}\npass int8")
    assert len(run.loads) == before
    run("--passes", "int8", "--set", "int8.range=mse")
    assert len(run.loads) == before + 1


def test_a_calibration_file_that_changed_is_another_question(run, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("a")
    run("--passes", "int8", "--calibration", file)
    assert "done already" in run("--passes", "int8", "--calibration", file)[1]
    file.write_text("b")
    assert "done already" not in run("--passes", "int8", "--calibration", file)[1]


def test_settings_include_and_exclude_reach_the_passes(run):
    flags = ["--include", "head", "--exclude", "*.up", "*.1.*", "--set", "int8.activations=static"]
    run("--passes", "int8", *flags)
    layers = storage.read(artifact.load(run.out)).layers
    assert set(layers) == {"head", "blocks.0.down"}
    assert "act_scale" in layers["head"]["tensors"]


def test_sparse24_is_another_word_for_prune(run):
    flags = ("--set", "sparse24.method=magnitude")
    assert run("--passes", "sparse24,int8", *flags)[0] == 0
    done = storage.read(artifact.load(run.out))
    assert done.words == "prune,int8"
    assert done.settings["prune"]["method"] == "magnitude"
    again = run("--passes", "prune, int8", "--set", "prune.method=magnitude")
    assert again[1].startswith(f"done already: {run.out}\npass prune")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--passes", "int9"],
            "unknown pass 'int9'; choose from prune (alias sparse24), int8, int4, awq (did you mean int8?)",
        ),
        (["--passes", "intt8"], "(did you mean int8?)"),
        (["--passes", "sparse42"], "(did you mean sparse24?)"),
        (["--passes", "sparse24,prune"], "each at most once"),
        (["--passes", "int8,prune"], "comes last"),
        (["--passes", "int8", "--set", "sparse24.metod=wanda"], "did you mean 'method'"),
        (["--passes", ""], "unknown pass ''; choose from prune"),
        (["--passes", "int8", "--set", "int8.rang=mse"], "did you mean 'range'"),
        (["--passes", "int8", "--calibration", "/gone"], "--calibration /gone is not there"),
        (["--passes", "int8", "--include", "blocks.7.up"], "fits no layer"),
        (["--passes", "int8", "--include", "front"], "front"),
        (["--passes", "int8", "--limit", "-1"], "--limit is -1"),
        (["--passes", "int8", "--analyse", "--tolerance", "nan"], "--tolerance is nan"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence_before_anything_is_written(run, flags, words):
    status, _, err = run(*flags)
    assert status == 2
    (sentence,) = [line for line in err.splitlines() if line.startswith("todm: ")]
    assert words in sentence
    assert not run.out.exists()


def test_a_compressed_model_is_refused_before_it_is_loaded(run):
    run("--passes", "int8")
    loads = len(run.loads)
    status, _, err = run("--passes", "awq", source=run.out, out=run.out.with_name("twice"))
    assert status == 2
    assert "compressed already (int8)" in err
    assert len(run.loads) == loads


def test_a_bundle_is_refused(run, tmp_path):
    other = artifact.save(tmp_path / "bundle", kind="bundle", config={})
    status, _, err = run("--passes", "int8", source=other.path)
    assert status == 2
    assert "is a bundle, and a" in err


def test_an_interrupt_leaves_nothing_and_the_next_call_finishes(run, monkeypatch):
    from todm.compress import driver

    whole = driver._ONE_SHOT["int8"]

    def interrupted(block, config):
        raise KeyboardInterrupt

    monkeypatch.setitem(driver._ONE_SHOT, "int8", interrupted)
    assert run("--passes", "int8")[0] == 130
    assert not run.out.exists()
    monkeypatch.setitem(driver._ONE_SHOT, "int8", whole)
    assert run("--passes", "int8")[0] == 0


@pytest.mark.parametrize("optimizer", ["adamw", "scaled_adam"])
def test_a_pass_that_trains_keeps_its_checkpoint_until_it_is_done(run, optimizer, monkeypatch):
    from todm.compress import driver

    flags = ["--passes", "prune,int8", "--set", "prune.method=magnitude"]
    flags += ["--set", "prune.tune.updates=3", "--set", f"prune.tune.optimizer={optimizer}"]
    whole = driver._ONE_SHOT["int8"]

    def interrupted(block, config):
        raise KeyboardInterrupt

    monkeypatch.setitem(driver._ONE_SHOT, "int8", interrupted)
    assert run(*flags)[0] == 130
    scratch = run.out.with_name(f".{run.out.name}.training")
    assert any(scratch.iterdir())
    monkeypatch.setitem(driver._ONE_SHOT, "int8", whole)
    assert run(*flags)[0] == 0
    assert not scratch.exists()
    sparse, _ = storage.read(artifact.load(run.out)).reports
    assert sparse.curves
    for layer in storage.read(artifact.load(run.out)).layers.values():
        assert layer["sparse24"]


def test_analysis_prints_writes_and_goes_on(run):
    flags = ["--passes", "int4", "--set", "int4.bits=3", "--set", "int4.group=32", "--analyse"]
    status, out, _ = run(*flags, "--tolerance", "0")
    assert status == 0
    assert "| blocks.*.up | 2 |" in out
    found = json.loads((run.out / "sensitivity.json").read_text())
    assert len(found["increases"]) == 6
    assert set(found["exclude"]) == {
        n for n, c in found["increases"].items() if c > 0 and "*" not in n
    }
    assert f"--exclude {' '.join(found['exclude'])}" in out
    assert (run.out / "sensitivity.png").is_file()
    # What is known is not measured again.
    found["values"]["blocks.0.up"] = 10 * found["dense"]
    (run.out / "sensitivity.json").write_text(json.dumps(found))
    assert "| blocks.0.up | 1 | +900.000% |" in run(*flags, "--tolerance", "0")[1]


def test_analysis_by_the_error_has_a_place_of_its_own(run):
    run("--passes", "int8")
    status, _, err = run("--passes", "int8", "--analyse")
    assert status == 2
    assert "a place of its own" in err
    out = run.out.with_name("analysis")
    assert run("--passes", "int8", "--analyse", "--evaluate", out=out)[0] == 0
    assert torch.isfinite(torch.tensor(json.loads((out / "sensitivity.json").read_text())["dense"]))


def test_packed_layers_run_after_the_round_trip(run):
    run("--passes", "prune,awq", "--set", "awq.group=32")
    adapter = adapters.adapter_of(artifact.load(run.out))
    assert len(packed.layers_of(adapter.model)) == 4
    assert adapter.evaluate(adapter.model, split="test")["error"] <= 1
