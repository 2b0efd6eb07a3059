"""From speech to a transcript by the verbs themselves, on a corpus and a net as small as can be."""

import json
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sherpa_onnx")

from todm import artifact
from todm.train import step as loop

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.runtime]


@pytest.fixture(scope="module")
def run(debug_run):
    """The run of the session, of which every stage was done once."""
    return debug_run


def test_every_stage_leaves_its_artifact_and_its_parents_mark(run):
    corpus = artifact.load(run.corpus, kind="corpus")
    supernet = artifact.load(run.supernet, kind="supernet")
    subnet = artifact.load(run.subnet, kind="subnet")
    bundle = artifact.load(run.bundle, kind="bundle")
    assert supernet.parent == corpus.hash
    assert subnet.parent == supernet.hash
    assert bundle.parent == subnet.hash
    assert bundle.info["endpoint_seconds"] == supernet.config["asr"]["endpoint_seconds"] == 0.6
    assert subnet.info["costs"]["params"] <= 45_000
    assert subnet.metrics["difference"] <= 1e-5
    assert (run.root / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {"encoder.onnx", "encoder.int8.onnx", "tokens.txt", "bpe.model", "bpe.vocab"} <= {
        p.name for p in run.bundle.iterdir()
    }


@pytest.mark.parametrize("stage", ["prepare", "train", "extract", "export", "evaluate"])
def test_a_stage_run_again_says_that_it_is_done(run, stage):
    files = run.files()
    status, out, _ = getattr(run, stage)()
    assert status == 0
    assert "done already" in out
    assert run.files() == files


def test_the_report_has_a_row_for_each_precision(run):
    status, out, _ = run.report()
    assert status == 0
    assert f"bundle: {run.bundle}" in out
    table, *unseen = (run.root / "report.md").read_text().strip().split("\n\n")
    cells = [[c.strip() for c in row.strip("|").split("|")] for row in table.splitlines()[2:]]
    assert [(c[0], c[1]) for c in cells] == [("small", "fp32"), ("small", "int8")]
    assert float(cells[1][3]) < float(cells[0][3])  # megabytes
    assert (run.root / "report.png").read_bytes().startswith(b"\x89PNG")
    engines = dict(
        re.fullmatch(r".* never heard \((\w+)\): (.*)", line).groups() for line in unseen
    )
    evaluated = json.loads((run.evaluation / "figures.json").read_text())["results"]["int8"][
        "unseen"
    ]
    assert engines.keys() == evaluated.keys() >= {"hibari"}
    for engine, found in evaluated.items():
        assert f"small int8 {found['error']:.1%}" in engines[engine]


def test_evaluation_counts_every_word_and_shows_alignments(run):
    found = json.loads((run.evaluation / "figures.json").read_text())["results"]
    assert set(found) == {"fp32", "int8"}
    for figures in found.values():
        assert figures["utterances"] == 4
        assert figures["low"] <= figures["error"] <= figures["high"]
        assert figures["timing"]["rtf"] > 0
    assert (run.evaluation / "alignments-fp32.txt").read_text().strip()


@pytest.mark.parametrize("mode", ["--streaming", "--offline"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_bundles_own_recording_is_transcribed_as_expected(run, mode, precision):
    wav = run.bundle / "test_wavs" / "0.wav"
    expected = json.loads((run.bundle / "test_wavs" / "expected.json").read_text())
    flags = [mode, "--format", "json", *(["--int8"] if precision == "int8" else [])]
    status, out, _ = run.todm("transcribe", run.bundle, wav, *flags)
    assert status == 0
    from todm.device.bundle import best_int8, open_bundle

    form = best_int8(open_bundle(run.bundle)) if precision == "int8" else precision
    tokens = [t for s in json.loads(out)["segments"] for t in s["tokens"]]
    assert tokens == expected[form][mode.removeprefix("--")]["tokens"]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_supernet_and_a_subnet_are_evaluated_in_torch(run, split):
    for net in (run.supernet, run.subnet):
        status, out, err = run.todm("evaluate", net, "--split", split, "--limit", 2)
        assert status == 0, err
        assert out.startswith("torch  WER")


def test_training_goes_on_exactly_where_it_was_killed(run, tmp_path, monkeypatch):
    """On speech, with augmentation and dropout, in the middle of the sandwich."""
    step, calls = loop.sandwich_step, []

    def crash(*args, **kwargs):
        calls.append(kwargs["progress"])
        if len(calls) == 5:
            raise InterruptedError
        return step(*args, **kwargs)

    monkeypatch.setattr(loop, "sandwich_step", crash)
    with pytest.raises(InterruptedError):
        run.train(tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "supernet").exists()
    status, _, err = run.train(tmp_path)
    assert status == 0, err
    want, got = (artifact.load(p / "supernet").tensors() for p in (run.root, tmp_path))
    assert all(want[name].equal(got[name]) for name in want)


def test_an_impossible_budget_names_the_smallest_subnet(run):
    status, _, err = run.extract("params=1k")
    assert status == 2
    assert (
        "no subnet keeps the budget params=1k: the nearest (blocks 2, ffn 16, pairs 1, fp32) has"
        in err
    )
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "train.num_update=5"], "'train.num_update': did you mean 'num_updates'?"),
        (["--set", "asr.modle.joiner_dim=5"], "'asr.modle': did you mean 'model'?"),
        (["--set", "train.num_updates=many"], "train.num_updates is 'many': a value of type int"),
        (["--set", "train.num_updates"], "has no '='"),
        (["--config", "huge"], "unknown config 'huge': choose one of debug"),
    ],
    ids=["key", "table", "type", "no value", "config"],
)
def test_settings_that_do_not_exist_are_named(run, tmp_path, arguments, words):
    status, _, err = run.todm("train", run.corpus, "--out", tmp_path, *arguments)
    assert status == 2
    assert words in err
    assert err.count("\n") == 1


def test_a_run_of_other_settings_is_not_touched(run):
    status, _, err = run.train(train__num_updates=7)
    assert status == 2
    assert "choose another --out or remove it" in err


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("what", "file", "verb"),
    [
        ("corpus", "cuts_train.jsonl.gz", ["train", "{}", "--out", "{}-run"]),
        (
            "supernet",
            "model.safetensors",
            ["extract-subnet", "{}", "--budget", "1M", "--out", "{}-x"],
        ),
        ("subnet", "model.safetensors", ["export", "{}", "--out", "{}-x"]),
        ("subnet", "manifest.json", ["evaluate", "{}"]),
        ("bundle", "encoder.onnx", ["transcribe", "{}", "nowhere.wav"]),
    ],
    ids=["corpus", "supernet", "subnet", "manifest", "bundle"],
)
def test_a_truncated_artifact_is_refused(run, tmp_path, what, file, verb):
    copy = tmp_path / what
    shutil.copytree(getattr(run, what), copy)
    _cut(copy / file)
    status, _, err = run.todm(*(word.replace("{}", str(copy)) for word in verb))
    assert status == 2
    assert "damaged" in err
    assert "again" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("verb", "needed"),
    [
        (["train", "{bundle}", "--out", "{root}/x"], "a bundle, and a corpus is needed"),
        (
            ["export", "{supernet}", "--out", "{root}/x"],
            "a supernet, and a subnet or compressed or model is needed",
        ),
        (
            ["evaluate", "{corpus}"],
            "a corpus, and a supernet or subnet or compressed or bundle is needed",
        ),
        (["transcribe", "{subnet}", "a.wav"], "is a subnet"),
        (["evaluate", "{root}"], "is not an artifact"),
    ],
    ids=["train", "export", "evaluate", "transcribe", "no artifact"],
)
def test_an_artifact_of_another_kind_is_refused(run, verb, needed):
    names = {k: v for k, v in vars(run).items() if isinstance(v, Path)}
    status, _, err = run.todm(*(word.format(**names) for word in verb))
    assert status == 2
    assert needed in err


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("evaluate {subnet} --chunks ,", "--chunks is ','"),
        ("export {subnet} --out {root}/x --precisions ,", "--precisions is ','"),
        ("export {subnet} --out {root}/x --target tflite", "--target: invalid choice"),
        ("prepare --out {root}/x --data {root} --source mp3", "--source: invalid choice"),
        ("bench kernels --device tpu", "--device: invalid choice"),
        ("bench {bundle} --peer {bundle}", "a bundle, and a subnet is needed"),
        ("evaluate {bundle} --card", "--card is for --reject"),
        ("profile {supernet} --name pi", "--name is for --import"),
        ("search {supernet} --budget 0.5M --limit -1", "--limit is -1"),
        ("search {supernet} --budget 0.5M --out {subnet}", "a subnet, and a front is needed"),
        ("compress {subnet} --passes int8 --out {root}", "exists and is not an artifact"),
    ],
    ids=lambda text: text.split(" --")[-1][:20],
)
def test_a_wrong_call_is_refused_before_any_work(run, call, message):
    names = {k: v for k, v in vars(run).items() if isinstance(v, Path)}
    before = run.files()
    status, out, err = run.todm(*call.format(**names).split())
    assert (status, out) == (2, "")
    assert message in err
    assert run.files() == before


def test_what_cannot_be_used_is_listed_and_left_out(run, tmp_path):
    """A corpus in LibriSpeech's layout with a flac that is damaged and a transcript that is empty."""
    data = tmp_path / "speech"
    shutil.copytree(run.root / "corpus-audio", data)
    first, second, *_ = sorted((data / "train").rglob("*.flac"))
    _damage(first)
    trans = next(second.parent.glob("*.trans.txt"))
    lines = trans.read_text().splitlines()
    trans.write_text("".join(f"{x.split()[0] if second.stem in x else x}\n" for x in lines))
    out = tmp_path / "corpus"
    flags = ["--config", "debug", "--data", data, "--out", out, "--processes", 1]
    status, told, err = run.todm("prepare", *flags, "--set", "asr.data.tokens.vocab_size=40")
    assert status == 0, err
    assert "left out because" in told
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert {r["id"]: r["reason"] for r in rejected if "/train/" in r["path"]} == {
        first.stem: "audio corrupt",
        second.stem: "empty transcript",
    }
    assert artifact.load(out, kind="corpus").info["splits"]["train"]["num"] == 22


def _damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    path.write_bytes(data)
