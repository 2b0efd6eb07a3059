"""Utterances as lhotse CutSets."""

from collections.abc import Iterable
from pathlib import Path

from todm.asr.corpora.librispeech import Utterance

SAMPLE_RATE = 16_000


def write_cuts(utterances: Iterable[Utterance], path: Path) -> None:
    """Write `cuts_SPLIT.jsonl.gz`: one cut an utterance, absolute paths, resampled to 16 kHz on reading.

    Args:
        utterances: of one split.
        path: the file to write.
    """
    from lhotse import CutSet

    with CutSet.open_writer(path) as writer:
        for utterance in utterances:
            writer.write(_cut(utterance))


def _cut(utterance: Utterance) -> object:
    from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

    recording = Recording(
        id=utterance.id,
        sources=[AudioSource(type="file", channels=[0], source=str(utterance.path))],
        sampling_rate=utterance.rate,
        num_samples=utterance.num_samples,
        duration=utterance.seconds,
    )
    segment = SupervisionSegment(
        id=utterance.id,
        recording_id=utterance.id,
        start=0.0,
        duration=utterance.seconds,
        text=utterance.text,
        language="English",
        speaker=utterance.speaker,
    )
    cut = MonoCut(
        id=utterance.id,
        start=0.0,
        duration=utterance.seconds,
        channel=0,
        supervisions=[segment],
        recording=recording,
    )
    return cut if utterance.rate == SAMPLE_RATE else cut.resample(SAMPLE_RATE)
