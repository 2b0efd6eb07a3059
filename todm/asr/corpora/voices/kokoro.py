"""Kokoro-82M through `kokoro-onnx`: 54 natural voices, and means of two; slow.

Twenty-eight voices are English. Those of other languages speak English phonemes too, with an accent. The
mean of two style vectors is one more speaker. No voice is in two splits, neither alone nor in a mean;
af_heart is in train, as hibari is, which learnt from it.
"""

import functools
import itertools
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
    from kokoro_onnx import Kokoro as Model

MODELS = ("kokoro-v1.0.int8.onnx", "kokoro-v1.0.onnx")
STYLES = "voices-v1.0.bin"
ENGLISH: dict[Split, tuple[str, ...]] = {
    "train": (
        "af_alloy", "am_adam", "bf_emma", "am_puck", "af_bella", "bm_george", "af_jessica",
        "am_eric", "af_kore", "bm_lewis", "af_nicole", "am_fenrir", "bf_isabella", "af_nova",
        "am_onyx", "af_sarah", "bm_daniel", "am_michael", "af_sky", "af_heart",
    ),
    "dev": ("af_river", "am_liam", "bf_alice"),
    "test": ("af_aoede", "am_echo", "bm_fable", "bf_lily", "am_santa"),
}  # fmt: skip
FOREIGN: dict[Split, tuple[str, ...]] = {
    "train": (
        "hf_alpha", "hm_omega", "jf_alpha", "jm_kumo", "zf_xiaoyi", "zm_yunyang", "ef_dora",
        "em_alex", "ff_siwis", "if_sara", "pf_dora", "pm_alex", "jf_gongitsune", "zm_yunjian",
        "jf_nezumi", "hf_beta", "zf_xiaoxiao", "zm_yunxi", "jf_tebukuro",
    ),
    "dev": ("im_nicola", "zf_xiaobei"),
    "test": ("hm_psi", "zm_yunxia", "zf_xiaoni", "pm_santa", "em_santa"),
}  # fmt: skip
_KINDS = ("english", "mean", "english", "foreign", "english", "mean")
"""In this order speakers are taken: half English, a third means, a sixth foreign."""
_BRITISH = "b"


@final
class Kokoro(Engine):
    """Speaks through onnxruntime, on one thread of each process."""

    name = family = "kokoro"
    licences = Licences(
        "MIT (kokoro-onnx)", "Apache-2.0 (Kokoro-82M)", "GPL-3.0 (phonemizer, espeak-ng)"
    )
    speed = 0.8

    def check(self) -> None:
        """Raise MissingExtra or CorpusError if package or weights are missing, or for another language."""
        needs_english(self.name, self.setting.language)
        try:
            import kokoro_onnx  # noqa: F401  # pyright: ignore[reportUnusedImport]
        except ImportError:
            raise MissingExtra("kokoro-onnx", "kokoro", "speaking with kokoro") from None
        needs_files(self.name, self.setting.weights, [MODELS, (STYLES,)])

    def version(self) -> str:
        """Of its package, and which of its models."""
        return f"{metadata.version('kokoro-onnx')}-{self._file(MODELS).removesuffix('.onnx')}"

    def speakers(self, split: Split, num: int) -> tuple[str, ...]:
        """Half single English voices, a third means of two, a sixth other languages' voices."""
        english, foreign = iter(ENGLISH[split]), iter(FOREIGN[split])
        pairs = (f"{a}+{b}" for a, b in _pairs(ENGLISH[split]))
        kinds = {"english": english, "mean": pairs, "foreign": foreign}
        found: list[str] = []
        for kind in itertools.cycle(_KINDS):
            if len(found) >= num or not kinds:
                return tuple(found)
            speaker = next(kinds[kind], None) if kind in kinds else None
            if speaker is None:
                kinds.pop(kind, None)
            else:
                found.append(speaker)
        raise AssertionError("cycle ends")

    def speak(self, text: str, voice: Voice, manner: Manner) -> Spoken:
        """Speak a text.

        Raises:
            CorpusError: there is no such voice, or the text has no phonemes.
        """
        accent = "en-gb" if voice.name.startswith(_BRITISH) else "en-us"
        samples_S, rate = self._model.create(
            self._phonemes(text, accent),
            self._style(voice.name),
            speed=manner.speed(voice.shift),
            is_phonemes=True,
        )
        return Spoken(np.clip(samples_S, -1, 1).astype(np.float32), rate)

    def _phonemes(self, text: str, accent: str) -> str:
        said: list[str] = []
        for part in lexicon.parts(text.lower(), self._lexicon):
            known = part.ipa or self._model.tokenizer.phonemize(part.text, accent)
            said.append(known)
        joined = " ".join(filter(None, said))
        if not joined:
            raise CorpusError(f"kokoro says nothing for {text!r}: leave the sentence out")
        return joined

    def _style(self, name: str) -> np.ndarray:
        """The style vectors of a voice, or the mean of those of two."""
        parts = name.split("+")
        for part in parts:
            if part not in self._model.voices:
                raise CorpusError(
                    f"{STYLES} has no voice {part!r}: replace the file by its release's"
                )
        return np.mean([self._model.voices[part] for part in parts], axis=0)

    @functools.cached_property
    def _model(self) -> "Model":
        import onnxruntime
        from kokoro_onnx import Kokoro as Model

        self.check()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = self.setting.weights / self._file(MODELS)
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        return Model.from_session(session, str(self.setting.weights / STYLES))

    def _file(self, names: tuple[str, ...]) -> str:
        return next((n for n in names if (self.setting.weights / n).is_file()), names[0])


def _pairs(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """All pairs, so that the first ones share few voices."""
    num = len(names)
    steps = [step for step in range(1, num) if step <= num - step]
    pairs = [(names[i], names[(i + step) % num]) for step in reversed(steps) for i in range(num)]
    seen: set[frozenset[str]] = set()
    return [p for p in pairs if not (frozenset(p) in seen or seen.add(frozenset(p)))]
