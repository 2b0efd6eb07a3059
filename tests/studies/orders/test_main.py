"""The command line: rows, the table, and sentences for what is wrong."""

import json

import pytest

from benchmarks.studies.orders import __main__ as program


def test_a_bundle_gets_a_row_and_the_table_shows_it(golden, spoken, tmp_path, capsys):
    rows = tmp_path / "rows"
    words = ["evaluate", str(golden), "--parts", "conditions", "--recordings", str(spoken)]
    assert program.main([*words, "--noises", "--rows", str(rows), "--name", "net"]) == 0
    row = json.loads((rows / spoken.name / "net.json").read_text())
    assert list(row["conditions"]) == ["clean"]
    assert "clean: 1 of 1" in capsys.readouterr().out
    assert program.main(["table", "--rows", str(rows)]) == 0
    assert "| net | exact |" in capsys.readouterr().out
    assert "Picovoice Rhino" in (rows / "orders.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "nowhere"], "nowhere is not a directory"),
        (["digits", "nowhere"], "nowhere is not a directory"),
        (["data", "out", "--natural", "x", "--no-natural"], "exclude each other"),
        (["data", "out", "--natural", "nowhere"], "nowhere has no meta.tsv"),
        (["train", "salt", "--out", "out"], "unknown row 'salt'"),
    ],
)
def test_what_is_wrong_is_a_sentence(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert program.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_says_how_to_go_on(monkeypatch, golden, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(program.digits, "measure", interrupted)
    assert program.main(["digits", str(golden)]) == 130
    assert "the same command continues" in capsys.readouterr().err
