"""Small corpora in the layouts that are read, made of tones."""

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


@pytest.fixture
def tone(tmp_path):
    """Writes a tone of some seconds, channel k at height k + 1, and returns its path."""

    def make(name: str, seconds: float = 1.0, *, rate: int = 16000, channels: int = 1) -> Path:
        import numpy as np
        import soundfile

        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(round(seconds * rate)) / rate
        rows = [0.2 * np.sin(2 * np.pi * 300 * (k + 1) * time) for k in range(channels)]
        soundfile.write(path, np.stack(rows, 1), rate)
        return path

    return make


@pytest.fixture
def read(tmp_path):
    """Reads a directory: usable utterances by id, and reasons of the others by id."""

    def make(root: Path, **settings):
        from todm.asr.corpora import sources
        from todm.asr.corpora.config import DataConfig
        from todm.asr.data.workers import Workers
        from todm.asr.tokens import TokensConfig

        base = DataConfig(source="auto", data=str(root), tokens=TokensConfig(normalise="auto"))
        config = base.replace(**settings)
        found = sources.read(config, root, unpack=tmp_path / "unpacked", workers=Workers(1))
        usable = {u.id: u for u in found.utterances}
        return usable, {r.id: r.reason for r in found.rejected}

    return make
