"""A trained net hears a command after any wait, and when it is said again, in every runtime."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from todm.device.audio import SAMPLE_RATE, write_wav
from todm.device.bundle import forms_here, open_bundle
from todm.device.recognizer import StreamingRecognizer
from todm.device.segments import transcribe_blocks
from todm.device.sounds import white_noise

pytestmark = [pytest.mark.e2e, pytest.mark.runtime]
ROOT = Path(__file__).resolve().parents[2]
NOISE = white_noise(-60.0)
TWO_HOURS = 13  # commands, one every ten minutes


def timeline(commands, gaps):
    """One recording: before each command its gap in seconds, of noise that goes on under the words."""
    parts, begins, at = [], [], 0
    for command, gap in zip(commands, gaps, strict=True):
        num = round(gap * SAMPLE_RATE)
        parts += [np.zeros(num, np.float32), command.samples_S]
        begins.append((at + num) / SAMPLE_RATE)
        at += num + len(command.samples_S)
    audio = np.concatenate([*parts, np.zeros(SAMPLE_RATE, np.float32)])
    return audio + NOISE.part(0, len(audio)), begins


def blocks(audio, seconds=1.0):
    size = round(seconds * SAMPLE_RATE)
    return (audio[at : at + size] for at in range(0, len(audio), size))


def by_command(words, begins):
    """The text after each command's beginning and before the next one's, from (second, word)."""
    ends = [*begins[1:], float("inf")]
    return [
        " ".join(word for time, word in words if begin <= time < end)
        for begin, end in zip(begins, ends, strict=True)
    ]


def ours(bundle, audio, precision="fp32"):
    recognizer = StreamingRecognizer(open_bundle(bundle), precision=precision)
    segments = transcribe_blocks(recognizer, blocks(audio))
    return [(word.start, word.text) for segment in segments for word in segment.words]


def in_torch(subnet, audio, chunk=8):
    """The net itself, chunk by chunk: encoder in torch, then torch's own greedy search."""
    import torch

    from todm import artifact
    from todm.asr.decode.search import greedy_search
    from todm.asr.loading import backend_of, load_model
    from todm.asr.model.streaming import StreamingEncoder
    from todm.device.decode import endpoint_frames
    from todm.device.features import OnlineFeatures

    found = artifact.load(subnet, kind="subnet")
    backend = backend_of(found, with_data=False)
    model = load_model(found, backend)
    encoder = StreamingEncoder(model, chunk).eval()
    first, second = encoder.state_sizes
    states, features, outs = (
        [torch.zeros(1, 1, first), torch.zeros(1, 1, second)],
        OnlineFeatures(),
        [],
    )
    with torch.no_grad():
        for block in blocks(audio):
            features.accept(block)
            while features.num_ready > encoder.num_frames:
                frames = torch.from_numpy(features.take(encoder.num_frames))[None]
                out, *states = encoder(frames, *states)
                outs.append(out)

    class Projected:
        """The model after its projection, which the streaming encoder contains."""

        context_size, predict, joint = model.context_size, model.predict, model.joint

        @staticmethod
        def project_encoder(enc):
            return enc

    enc_BTJ = torch.cat(outs, 1)
    endpoint = endpoint_frames(backend.config.endpoint_seconds)
    lens_B = torch.tensor([enc_BTJ.shape[1]])
    (hypothesis,) = greedy_search(Projected, enc_BTJ, lens_B, endpoint=endpoint)
    symbols = backend.tokenizer.symbols
    return [
        (0.04 * frame, symbols[token].replace("\u2581", ""))
        for token, frame in zip(hypothesis.tokens, hypothesis.frames, strict=True)
    ]


def raw(audio):
    return (np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes()


@pytest.fixture(scope="session")
def two_hours(commands):
    """A command every ten minutes, and what is right: only those that are right at once count."""
    assert len(commands) == TWO_HOURS
    return timeline(commands, [600 - len(c.samples_S) / SAMPLE_RATE for c in commands])


def test_each_command_is_right_at_once(bundle, commands):
    for command in commands:
        audio, begins = timeline([command], [0.5])
        assert by_command(ours(bundle, audio), begins) == [command.text]


@pytest.mark.parametrize("gap", [1.0, 20.0, 60.0])
@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_commands_in_one_file_after_pauses(bundle, commands, gap, form):
    form = next(f for f in forms_here(open_bundle(bundle)) if f.startswith(form))
    audio, begins = timeline(commands, [gap] * len(commands))
    assert by_command(ours(bundle, audio, form), begins) == [c.text for c in commands]


@pytest.mark.parametrize("pause", [0.5, 1.0, 3.0])
def test_a_command_said_again_after_a_pause_is_heard_again(bundle, commands, pause):
    for command in commands:
        audio, begins = timeline([command, command], [0.5, pause])
        assert by_command(ours(bundle, audio), begins) == [command.text] * 2


@pytest.mark.slow
def test_two_hours_in_our_runner(bundle, commands, two_hours):
    audio, begins = two_hours
    form = next(f for f in forms_here(open_bundle(bundle)) if f.startswith("int8"))
    assert by_command(ours(bundle, audio, form), begins) == [c.text for c in commands]


@pytest.mark.slow
def test_two_hours_in_torch(subnet, commands, two_hours):
    audio, begins = two_hours
    assert by_command(in_torch(subnet, audio), begins) == [c.text for c in commands]


@pytest.mark.slow
def test_two_hours_in_sherpa_onnx(bundle, commands, two_hours):
    pytest.importorskip("sherpa_onnx")
    audio, begins = two_hours
    runner = ROOT / "export" / "sherpa_onnx" / "run.py"
    found = subprocess.run(
        [sys.executable, runner, bundle, "-", "--precision", "auto"],
        input=raw(audio), capture_output=True, check=True,
    )  # fmt: skip
    assert _texts(found.stdout, begins) == [c.text for c in commands]


@pytest.mark.slow
def test_two_hours_in_the_page(bundle, commands, two_hours, tmp_path):
    node, packages = shutil.which("node"), ROOT / "build" / "node_modules"
    if node is None or not (packages / "onnxruntime-web").is_dir():
        pytest.skip("needs Node.js, and npm packages: run export/web/setup.sh")
    from todm.export.web import write_page

    audio, begins = two_hours
    write_wav(tmp_path / "a.wav", audio)
    site = Path(shutil.copytree(bundle, tmp_path / "site"))
    write_page(site)
    found = subprocess.run(
        [node, site / "page" / "run.mjs", site, tmp_path / "a.wav"], capture_output=True, check=True
    )
    heard = json.loads(found.stdout)
    words = [token.replace("\u2581", "") for token in heard["tokens"]]
    pairs = list(zip(heard["timestamps"], words, strict=True))
    assert by_command(pairs, begins) == [c.text for c in commands]


def _texts(output, begins):
    """Segments as lines of start, end and text, by command."""
    rows = [line.split("\t") for line in output.decode().splitlines()]
    return by_command([(float(row[0]), row[-1]) for row in rows], begins)
