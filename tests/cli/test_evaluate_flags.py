"""Flags of one measurement beside another are refused, before anything is opened."""

import pytest

from todm.cli import main as cli


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--full"], "--full is for --after-silence"),
        (["--card"], "--card is for --reject and --after-silence"),
        (
            ["--after-silence", "--other-speech", "x"],
            "--other-speech is for --after-silence --full",
        ),
        (["--after-silence", "--reject"], "--reject and --after-silence are two measurements"),
        (["--after-silence", "--split", "dev"], "--split is not for --after-silence"),
        (["--after-silence", "--chunks", "8"], "--chunks is not for --after-silence"),
        (["--reject", "--latency"], "--latency is not for --reject"),
        (["--after-silence", "--compare", "b"], "--compare is not for --after-silence"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_of_another_measurement_are_refused(flags, words, capsys):
    assert cli.main(["evaluate", "nowhere", *flags]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
