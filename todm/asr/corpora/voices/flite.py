"""flite, the program of that name: four small English voices of 2000 to 2016; one process an utterance."""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import final

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
from todm.errors import CorpusError

VOICES: dict[Split, tuple[str, ...]] = {
    "train": ("rms", "slt"),
    "dev": ("kal16",),
    "test": ("awb",),
}


@final
class Flite(Engine):
    """Speaks with what `flite -lv` lists."""

    name = family = "flite"
    licences = Licences(
        "free for any use, by Carnegie Mellon University and others; some files GPL-2.0",
        "free for any use, by Carnegie Mellon University and others",
        "as the engine (its own)",
    )
    speed = 35.0

    def check(self) -> None:
        """Raise CorpusError if the program is missing, or for another language."""
        needs_english(self.name, self.setting.language)
        _ = self._program  # raises

    def version(self) -> str:
        """As it says itself."""
        said = subprocess.run([self._program, "--version"], capture_output=True, check=False)
        words = said.stdout.decode(errors="replace").split()
        return next((w for w in words if w.startswith("flite-")), "flite").removeprefix("flite-")

    def speakers(self, split: Split, num: int) -> tuple[str, ...]:
        """Two men and a woman of units of speech, and one of diphones."""
        return VOICES[split][:num]

    def speak(self, text: str, voice: Voice, manner: Manner) -> Spoken:
        """Speak a text.

        Raises:
            CorpusError: there is no such voice, or the program fails.
        """
        import soundfile

        said = lexicon.respell(text.lower(), self._lexicon)
        stretch = f"duration_stretch={1 / manner.speed(voice.shift):.3f}"
        with tempfile.TemporaryDirectory(prefix="todm-flite-") as folder:
            wave, script = Path(folder) / "a.wav", Path(folder) / "a.txt"
            script.write_text(said, encoding="utf-8")
            command = [self._program, "-voice", voice.name, "--setf", stretch]
            done = subprocess.run(
                [*command, "-f", str(script), "-o", str(wave)], capture_output=True, check=False
            )
            if done.returncode != 0 or not wave.is_file():
                raise CorpusError(
                    f"flite does not speak as {voice.name!r}: run  flite -lv  to see its voices"
                )
            samples_S, rate = soundfile.read(wave, dtype="float32")
        return Spoken(samples_S, rate)

    @functools.cached_property
    def _program(self) -> str:
        found = shutil.which("flite")
        if found is None:
            raise CorpusError(
                "the voices flite need the program flite, which is not installed: install your"
                " system's package flite, or leave them out"
            )
        return found
