"""Utterances as lhotse CutSets."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from todm.asr.corpora.utterances import Utterance
from todm.asr.data.features import SAMPLE_RATE


def write_cuts(utterances: Iterable[Utterance], path: Path) -> None:
    """Write the cuts of a split to `path`: absolute paths, audio resampled to 16 kHz when read."""
    from lhotse import CutSet

    with CutSet.open_writer(path) as writer:
        for utterance in utterances:
            writer.write(cut_of(utterance))


def cut_of(utterance: Utterance) -> Any:  # noqa: ANN401 - a lhotse Cut
    """An utterance as a lhotse cut: a part of its recording, with one or more channels."""
    from lhotse import AudioSource, MonoCut, MultiCut, Recording, SupervisionSegment

    rate, channels = utterance.rate, list(utterance.channels)
    samples = utterance.file_samples or utterance.num_samples
    recording = Recording(
        id=utterance.id,
        sources=[
            AudioSource(
                type="file",
                channels=list(range(max(channels) + 1)),
                source=str(utterance.path),
            )
        ],
        sampling_rate=rate,
        num_samples=samples,
        duration=samples / rate,
    )
    segment = SupervisionSegment(
        id=utterance.id,
        recording_id=utterance.id,
        start=0.0,
        duration=utterance.seconds,
        channel=channels[0] if len(channels) == 1 else channels,
        text=utterance.text,
        speaker=utterance.speaker,
        alignment={"word": _words(utterance)} if utterance.word_times else None,
    )
    cut = (MonoCut if len(channels) == 1 else MultiCut)(
        id=utterance.id,
        start=utterance.start / rate,
        duration=utterance.seconds,
        channel=segment.channel,  # pyright: ignore[reportArgumentType]
        supervisions=[segment],
        recording=recording,
    )
    return cut if rate == SAMPLE_RATE else cut.resample(SAMPLE_RATE)


def _words(utterance: Utterance) -> list[Any]:
    from lhotse.supervision import AlignmentItem

    times = utterance.word_times
    spans = zip(utterance.text.split(), times[:-1], times[1:], strict=True)
    return [AlignmentItem(word, start, round(end - start, 4)) for word, start, end in spans]
