"""The verb `bench`: what it hands on, and how it ends."""

import pytest

from todm.bench.kernels import run
from todm.cli import main as cli


@pytest.fixture
def asked(monkeypatch):
    """The requests that were run; they measure nothing and end with 1."""
    found = []

    def fake(request, *, show, progress):
        found.append(request)
        show("| table |")
        progress("a case")
        return 1

    monkeypatch.setattr(run, "run", fake)
    return found


def test_flags_reach_the_run_and_its_status_is_the_verbs(asked, capsys, tmp_path):
    arguments = ["--ops", "mh_ssm, rnnt_loss", "--shapes", "full", "--device", "cpu"]
    assert cli.main(["bench", "kernels", *arguments, "--out", str(tmp_path)]) == 1
    assert asked == [
        run.Request(ops=("mh_ssm", "rnnt_loss"), shapes="full", device="cpu", out=tmp_path)
    ]
    out, err = capsys.readouterr()
    assert (out, err) == ("| table |\n", "a case\n")


def test_defaults_are_the_rehearsal(asked):
    cli.main(["bench", "kernels"])
    assert asked == [run.Request()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ops", "conv"], "unknown op 'conv'"),
        (["--ops", "mh_ssm", "--shapes", "gpu"], "unknown shape 'gpu'"),
        (["--device", "cuda"], "torch sees no CUDA device"),
    ],
    ids=["op", "shape", "device"],
)
def test_errors_are_one_sentence(monkeypatch, capsys, tmp_path, arguments, words):
    monkeypatch.setattr(run.torch.cuda, "is_available", lambda: False)
    out = tmp_path / "results"
    assert cli.main(["bench", "kernels", *arguments, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_a_directory_that_cannot_be_is_an_error(capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert cli.main(["bench", "kernels", "--out", str(file)]) == 2
    assert "a file is where a directory should be" in capsys.readouterr().err
