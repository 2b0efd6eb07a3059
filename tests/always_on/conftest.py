"""A small trained net, exported anew, and commands that it knows, spoken when the tests run.

`subnet/` is the smallest net of `recipes/librispeech/run.sh` (its README says how it was made). The
commands are in voices that no training heard, and are right with no wait wherever their chunks begin.
"""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("espeakng_loader")

from todm import stages
from todm.asr.corpora.config import SpeechConfig
from todm.asr.corpora.voices import catalogue, shares
from todm.asr.corpora.voices.engine import Manner
from todm.device.after_silence import Command
from todm.device.audio import resample, write_wav

SUBNET = Path(__file__).with_name("subnet")
SENTENCES = (
    "kitchen light on", "open garage door", "stop music", "play jazz in bedroom",
    "make bedroom warmer", "garage light green", "call mother tomorrow", "garden fan red",
    "close office door", "bathroom radio off", "weather sunday morning", "close bedroom window",
    "alarm today evening six",
)  # fmt: skip


@pytest.fixture(scope="session")
def subnet():
    """The trained net; not to be changed."""
    return SUBNET


@pytest.fixture(scope="session")
def commands():
    """Thirteen commands at 16 kHz, each by another voice."""
    engine = catalogue.engine("espeak", catalogue.setting(SpeechConfig()))
    manner = Manner(rate=165, pitch=50, pitch_range=50)
    who = shares.voices(engine, 0, "test", len(SENTENCES))
    spoken = []
    for sentence, voice in zip(SENTENCES, who, strict=True):
        said = engine.speak(sentence, voice, manner)
        samples_S = resample(said.samples_S, said.rate)
        spoken.append(
            Command(samples_S=0.5 * samples_S / np.abs(samples_S).max(), text=sentence.upper())
        )
    return spoken


@pytest.fixture(scope="session")
def bundle(subnet, commands, tmp_path_factory):
    """The net as a device has it, exported by today's code."""
    folder = tmp_path_factory.mktemp("always_on")
    write_wav(folder / "sample.wav", commands[0].samples_S)
    stages.export(subnet, out=folder / "bundle", target="onnx", sample=folder / "sample.wav")
    return folder / "bundle"
