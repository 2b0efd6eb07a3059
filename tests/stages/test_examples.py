"""The examples of the stages run as they are written, on the debug run of the session."""

import doctest
import inspect
import shutil

import pytest

pytest.importorskip("torch")
pytest.importorskip("sherpa_onnx")

import todm
from tests.debug_run import TRAIN
from todm import stages
from todm.device import load

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.runtime]
FUNCTIONS = {name: getattr(stages, name) for name in stages.__all__}
FUNCTIONS |= {"load": todm.load, "Recognizer.transcribe": load.Recognizer.transcribe}
# Need a model of another library, a microphone, or minutes of their own.
WITHOUT = {
    "analyse", "bench", "bench_kernels", "compare", "count_false_accepts", "dry_run",
    "import_model", "keep_table", "listen", "measure_after_silence", "profile",
}  # fmt: skip


@pytest.fixture(scope="module")
def names(debug_run, tmp_path_factory):
    """What the examples take for granted."""
    import soundfile

    run = tmp_path_factory.mktemp("examples") / "run"
    shutil.copytree(debug_run.root, run)
    for folder, name in (("subnets", "subnet"), ("bundles", "bundle")):
        shutil.copytree(run / folder / "small", run / name)
    wav = run / "bundle" / "test_wavs" / "0.wav"
    samples, _ = soundfile.read(wav, dtype="float32")
    settings = [f"{key}={value}" for key, value in TRAIN.items()]
    return {
        "todm": todm,
        "stages": stages,
        "run": run,
        "small": settings,
        "bundle": run / "bundle",
        "wav": wav,
        "samples": samples,
        "recognizer": todm.load(run / "bundle"),
    }


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - WITHOUT))
def test_an_example_runs_as_written(names, name, monkeypatch, tmp_path):
    monkeypatch.setenv("TODM_HOME", str(tmp_path))
    found = doctest.DocTestFinder(recurse=False).find(FUNCTIONS[name], name, globs=dict(names))
    assert sum(len(test.examples) for test in found)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in found:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("name", stages.__all__)
def test_a_stage_says_what_it_takes_and_prints_nothing(name):
    function = FUNCTIONS[name]
    text = inspect.getdoc(function)
    assert [p for p in inspect.signature(function).parameters if f"{p}:" not in text] == []
    source = inspect.getsource(inspect.getmodule(function))
    assert "argparse" not in source
    assert " print(" not in source.replace(">>>", "").replace("...     print(", "")
