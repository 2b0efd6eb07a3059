"""Tests by voices that training does not hear: sentences of the test split, spoken by another engine."""

from collections.abc import Sequence

from todm.asr.corpora.synthesis import UNSEEN, Chapter
from todm.asr.corpora.utterances import Utterance

CUTS = "cuts_unseen_{}.jsonl.gz"
"""Manifest of an engine's utterances in a corpus artifact."""


def utterances(chapters: Sequence[Chapter]) -> dict[str, list[Utterance]]:
    """The utterances of unseen engines by engine, as they were spoken."""
    import soundfile

    found: dict[str, list[Utterance]] = {}
    for chapter in chapters:
        engine, speaker = chapter.voice.engine, chapter.voice.speaker
        if chapter.folder.parts[-3] != UNSEEN.format(engine):
            continue
        for index, text in enumerate(chapter.sentences):
            name = f"{speaker}-{chapter.number}-{index:04d}"
            path = chapter.folder / f"{name}.flac"
            head = soundfile.info(path)
            found.setdefault(engine, []).append(
                Utterance(
                    id=name,
                    split="test",
                    speaker=str(speaker),
                    path=path,
                    text=text,
                    num_samples=head.frames,
                    rate=head.samplerate,
                    file_samples=head.frames,
                )
            )
    return found
