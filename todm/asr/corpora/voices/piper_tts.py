"""Piper: VITS voices, one speaker a file; `NAME.onnx` and `NAME.onnx.json` lie in the folder of weights.

Without its noise, which no seed fixes, so that the same text is the same sound; the rate still varies.
"""

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
    needs_files,
)
from todm.errors import CorpusError, MissingExtra

if TYPE_CHECKING:
    from piper import PiperVoice

JOE = "en_US-joe-medium"


@final
class Piper(Engine):
    """Speaks as joe."""

    name = family = "piper"
    licences = Licences(
        "GPL-3.0-or-later (piper-tts)",
        "CC0 by its card (joe; fine-tuned from lessac, whose terms are not confirmed)",
        "GPL-3.0-or-later (espeak-ng)",
    )
    speed = 6.5

    def check(self) -> None:
        """Raise MissingExtra or CorpusError if package or weights are missing, or for another language."""
        needs_english(self.name, self.setting.language)
        try:
            import piper  # noqa: F401  # pyright: ignore[reportUnusedImport]
        except ImportError:
            raise MissingExtra("piper-tts", "piper", "speaking with piper") from None
        needs_files(self.name, self.setting.weights, [(f"{JOE}.onnx",), (f"{JOE}.onnx.json",)])

    def version(self) -> str:
        """Of its package and its voice."""
        return f"{metadata.version('piper-tts')}-{JOE}"

    def speakers(self, split: Split, num: int) -> tuple[str, ...]:
        """One, of train: it cannot be in two splits."""
        return (JOE,)[:num] if split == "train" else ()

    def speak(self, text: str, voice: Voice, manner: Manner) -> Spoken:
        """Speak a text.

        Raises:
            CorpusError: there is no such voice, or the text has no phonemes.
        """
        from piper.config import SynthesisConfig

        if voice.name != JOE:
            raise CorpusError(f"piper has no voice {voice.name!r} here: take {JOE!r}")
        said = lexicon.mark(text.lower(), self._lexicon, "[[{ipa}]]")
        config = SynthesisConfig(
            length_scale=1 / manner.speed(voice.shift), noise_scale=0.0, noise_w_scale=0.0
        )
        parts = [c.audio_float_array for c in self._model.synthesize(said, config)]
        samples_S = np.concatenate(parts) if parts else np.zeros(0)
        return Spoken(samples_S.astype(np.float32), self._model.config.sample_rate)

    @functools.cached_property
    def _model(self) -> "PiperVoice":
        import json

        import onnxruntime
        from piper import PiperVoice
        from piper.config import PiperConfig

        self.check()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = self.setting.weights / f"{JOE}.onnx"
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        table = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
        return PiperVoice(session=session, config=PiperConfig.from_dict(table))
