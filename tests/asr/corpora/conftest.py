"""A directory in LibriSpeech's layout, made of tones."""

from pathlib import Path

import pytest


@pytest.fixture
def make_layout(tmp_path):
    """Writes utterances {id: text} into ROOT/SPLIT/1/2/, one second of tone each, and returns ROOT."""

    def make(split: str, texts: dict[str, str], *, rate: int = 16000, suffix: str = "flac") -> Path:
        import numpy as np
        import soundfile

        folder = tmp_path / "layout" / split / "1" / "2"
        folder.mkdir(parents=True, exist_ok=True)
        tone = 0.3 * np.sin(np.arange(rate) * 0.05) + 0.01 * np.random.default_rng(0).normal(
            size=rate
        )
        for name in texts:
            soundfile.write(folder / f"{name}.{suffix}", tone, rate)
        lines = "".join(f"{name} {text}\n" for name, text in texts.items())
        (folder / "1-2.trans.txt").write_text(lines)
        return tmp_path / "layout"

    return make
