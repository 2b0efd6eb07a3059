"""hibari: one natural voice in a wheel of 14 MB, fast; distilled from a voice of Kokoro's."""

import functools
from importlib import metadata
from typing import TYPE_CHECKING, final

import numpy as np

from todm.asr.corpora.config import Split
from todm.asr.corpora.voices import lexicon
from todm.asr.corpora.voices.engine import (
    Engine,
    Licences,
    Manner,
    Spoken,
    Voice,
    needs_english,
)
from todm.errors import CorpusError, MissingExtra

if TYPE_CHECKING:
    from hibari import Hibari as Model

HEART = "heart"
"""The voice in the wheel; its other voices would be downloaded."""


@final
class Hibari(Engine):
    """Speaks as Kokoro's af_heart does."""

    name, family = "hibari", "kokoro"
    licences = Licences(
        "Apache-2.0", "Apache-2.0 (distilled from Kokoro-82M, Apache-2.0)", "Apache-2.0 (its own)"
    )
    speed = 50.0

    def check(self) -> None:
        """Raise MissingExtra if it is not installed, CorpusError for another language."""
        needs_english(self.name, self.setting.language)
        try:
            import hibari  # noqa: F401  # pyright: ignore[reportUnusedImport]
        except ImportError:
            raise MissingExtra("hibari-tts", "train", "speaking with hibari") from None

    def version(self) -> str:
        """Of its package, which holds the weights."""
        return metadata.version("hibari-tts")

    def speakers(self, split: Split, num: int) -> tuple[str, ...]:
        """One, of train: it cannot be in two splits."""
        return (HEART,)[:num] if split == "train" else ()

    def speak(self, text: str, voice: Voice, manner: Manner) -> Spoken:
        """Speak a text.

        Raises:
            CorpusError: there is no such voice.
        """
        if voice.name != HEART:
            raise CorpusError(f"hibari has no voice {voice.name!r} here: take {HEART!r}")
        said = lexicon.mark(text.lower(), self._lexicon, "[{word}](/{ipa}/)")
        samples_S = self._model(said, speed=manner.speed(voice.shift), seed=0)
        return Spoken(np.clip(samples_S, -1, 1).astype(np.float32), self._model.sample_rate)

    @functools.cached_property
    def _model(self) -> "Model":
        from hibari import Hibari as Model

        self.check()
        return Model(HEART, threads=1)
