"""Live audio: pipes, PortAudio's package, and how listening ends."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
import types
import wave

import numpy as np
import pytest
import soundfile

from todm.device import capture
from todm.device.audio import read_audio, resample
from todm.device.bundle import open_bundle
from todm.device.capture import Capture, Pipe, decode_pcm, open_microphone
from todm.device.recognizer import StreamingRecognizer
from todm.device.segments import transcribe_blocks
from todm.errors import CorpusError, MissingExtra

TODM = [sys.executable, "-c", "import sys; from todm.cli.main import main; sys.exit(main())"]


@pytest.fixture
def wav(golden):
    return golden / "test_wavs" / "0.wav"


@pytest.fixture
def pcm(wav):
    return soundfile.read(wav, dtype="int16")[0].tobytes()


def pieces(data, size):
    return (data[i : i + size] for i in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 3, 5, 4001])
def test_raw_samples_however_they_are_cut(size):
    samples = np.random.default_rng(0).integers(-32768, 32768, 999).astype("<i2")
    found = np.concatenate(list(decode_pcm(pieces(samples.tobytes() + b"\x7f", size), "x")))
    assert np.array_equal(found, (samples / 32768).astype(np.float32))


def wave_bytes(samples, rate, channels):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (16_000, 3), (44_100, 2), (8_000, 1)])
@pytest.mark.parametrize("size", [7, 1000])
def test_a_wav_header_is_obeyed(rate, channels, size):
    samples = np.random.default_rng(1).integers(-9000, 9000, (4000, channels)).astype("<i2")
    data = wave_bytes(samples, rate, channels)
    extra = b"LIST" + (4).to_bytes(4, "little") + b"abcd"  # a chunk that says nothing of the sound
    data = data[:36] + extra + data[36:]
    found = np.concatenate(list(decode_pcm(pieces(data, size), "x")))
    wanted = resample((samples.mean(axis=1) / 32768).astype(np.float32), rate)
    assert np.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    "data",
    [
        wave_bytes(np.zeros(9, "<i2"), 16_000, 1).replace(b"\x10\0data", b"\x08\0data"),
        wave_bytes(np.zeros(9, "<i2"), 16_000, 1)[:30],
        wave_bytes(np.zeros(9, "<i2"), 16_000, 1).replace(b"fmt ", b"tmf "),
        b"RIFF",
    ],
    ids=["8 bits", "cut", "no format", "RIFF alone"],
)
def test_wav_headers_of_other_sound(data):
    with pytest.raises(CorpusError, match="record 16-bit PCM"):
        list(decode_pcm(pieces(data, 10), "standard input"))


def test_a_pipe_gives_what_the_file_gives(golden, wav, pcm):
    recognizer = StreamingRecognizer(open_bundle(golden))
    heard = Capture(Pipe(io.BytesIO(pcm), "pipe"))
    found = list(transcribe_blocks(recognizer, heard))
    assert found == list(transcribe_blocks(recognizer, [read_audio(wav)]))
    assert (heard.seconds, heard.lost) == (pytest.approx(3.68), 0)


def test_partial_text_grows_and_ends_as_the_segment(golden, pcm):
    recognizer, partial = StreamingRecognizer(open_bundle(golden)), []
    found = []
    for segment in transcribe_blocks(
        recognizer, Capture(Pipe(io.BytesIO(pcm), "pipe")), partial=partial.append
    ):
        found.append((segment.text, len(partial)))
    text, num = found[0]
    assert num > 1
    assert all(text.startswith(part) for part in partial[:num])


class Fake:
    """A source that gives blocks until it is closed."""

    name = "fake"

    def __init__(self, blocks=None):
        self.blocks, self.closed = blocks, threading.Event()

    def start(self, put):
        threading.Thread(target=self._run, args=(put,), daemon=True).start()

    def _run(self, put):
        while not self.closed.is_set():
            if self.blocks == []:
                put(None)
                return
            put(self.blocks.pop(0) if self.blocks else np.zeros(1600, np.float32))
            time.sleep(0.001)

    def close(self):
        self.closed.set()


def test_stopping_ends_the_sound_and_closes_the_source():
    source = Fake()
    heard, blocks = Capture(source), 0
    for block in heard:
        assert len(block) == 1600
        blocks += 1
        if blocks == 5:
            heard.stop()
    assert blocks == 5
    assert source.closed.is_set()


def test_an_error_of_the_source_comes_after_its_blocks():
    source = Fake([np.zeros(8, np.float32), CorpusError("unplugged")])
    heard = iter(Capture(source))
    assert len(next(heard)) == 8
    with pytest.raises(CorpusError, match="unplugged"):
        next(heard)
    assert source.closed.is_set()


def test_a_source_without_a_sample():
    with pytest.raises(CorpusError, match="gave no sound"):
        list(Capture(Fake([])))


def test_what_finds_no_room_is_counted(monkeypatch):
    monkeypatch.setattr(capture, "_MOST_BLOCKS", 2)

    class Fast(Fake):
        def start(self, put):
            assert [put(np.zeros(4, np.float32)) for _ in range(3)] == [True, True, False]

    heard = Capture(Fast())
    next(iter(heard))
    assert heard.lost == 1


class PortAudioError(Exception):
    pass


@pytest.fixture
def portaudio(monkeypatch):
    """A package `sounddevice` with one stereo microphone at 48 kHz."""
    module = types.ModuleType("sounddevice")
    devices = [
        {"name": "Loudspeaker", "max_input_channels": 0, "default_samplerate": 48_000.0},
        {"name": "Desk mic", "max_input_channels": 4, "default_samplerate": 48_000.0},
    ]

    class InputStream:
        refuse = False

        def __init__(self, *, samplerate, blocksize, device, channels, dtype, callback):
            if self.refuse:
                raise PortAudioError("Device unavailable")
            assert (samplerate, blocksize, channels, dtype) == (48_000, 4800, 2, "float32")
            self.callback, self.closed = callback, False
            module.opened = self

        def start(self):
            time_s = np.arange(48_000) / 48_000
            tone = np.sin(2 * np.pi * 440 * time_s).astype(np.float32)
            for part in np.split(np.stack([tone, 0 * tone], 1), 10):
                self.callback(part, len(part), None, None)

        def close(self):
            self.closed = True

    def query_devices(device=None, kind=None):
        if kind is None:
            return devices
        if device not in (None, 1, "Desk mic"):
            raise ValueError(f"No input device matching {device!r}")
        return devices[1]

    module.InputStream, module.PortAudioError, module.query_devices = (
        InputStream,
        PortAudioError,
        query_devices,
    )
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


@pytest.mark.parametrize("device", [None, "1", "Desk mic"])
def test_a_microphone_at_its_own_rate(portaudio, device):
    source = open_microphone(device)
    heard, blocks = Capture(source), []
    for block in heard:
        blocks.append(block)
        if len(blocks) == 10:
            heard.stop()
    found = np.concatenate(blocks)
    wanted = np.sin(2 * np.pi * 440 * np.arange(len(found)) / 16_000) / 2
    assert source.name == "Desk mic"
    assert 15_900 < len(found) <= 16_000
    assert np.abs(found - wanted)[100:].max() < 1e-3
    assert portaudio.opened.closed


def test_no_such_microphone(portaudio):
    with pytest.raises(CorpusError, match="no microphone 'Roof': give --device one of 'Desk mic'"):
        open_microphone("Roof")


def test_no_microphone_at_all(portaudio):
    portaudio.query_devices = lambda device=None, kind=None: [] if kind is None else int("none")
    with pytest.raises(CorpusError, match="has no microphone"):
        open_microphone()


def test_a_microphone_that_is_taken(portaudio):
    portaudio.InputStream.refuse = True
    with pytest.raises(CorpusError, match=r"'Desk mic' cannot be opened \(Device unavailable\)"):
        list(Capture(open_microphone()))


def test_nothing_that_records(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingExtra, match=r"pip install 'todm\[mic\]'"):
        open_microphone()


def test_the_package_without_its_library(monkeypatch):
    def missing(name):
        raise OSError("PortAudio library not found")

    monkeypatch.setattr(capture.importlib, "import_module", missing)
    with pytest.raises(CorpusError, match="finds no PortAudio"):
        open_microphone()


@pytest.fixture
def microphone(monkeypatch, tmp_path, pcm):
    """A package `sounddevice` for other processes: the bundle's sample, then silence without end."""
    (tmp_path / "sound").write_bytes(pcm)
    (tmp_path / "sounddevice.py").write_text(
        "import threading, time\n"
        "import numpy as np\n"
        "class PortAudioError(Exception): pass\n"
        "def query_devices(device=None, kind=None):\n"
        "    return {'name': 'Desk mic', 'max_input_channels': 1, 'default_samplerate': 16000.0}\n"
        "class InputStream:\n"
        "    def __init__(self, *, callback, **_): self.callback, self.open = callback, True\n"
        "    def start(self): threading.Thread(target=self.run, daemon=True).start()\n"
        "    def close(self): self.open = False\n"
        "    def run(self):\n"
        f"        sound = np.fromfile({str(tmp_path / 'sound')!r}, '<i2').astype('f4')[:, None] / 32768\n"
        "        self.callback(sound, len(sound), None, None)\n"
        "        while self.open:\n"
        "            self.callback(np.zeros((1600, 1), 'f4'), 1600, None, None); time.sleep(0.02)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)


def listen(repo, arguments, **options):
    return subprocess.Popen(
        [*TODM, "transcribe", *map(str, arguments)], cwd=repo, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "COLUMNS": "60"}, **options,
    )  # fmt: skip


def close(process):
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def texts(golden, wav):
    recognizer = StreamingRecognizer(open_bundle(golden))
    return [s.text for s in transcribe_blocks(recognizer, [read_audio(wav)])]


def test_listening_to_a_pipe(repo, golden, wav, pcm):
    done = subprocess.run(
        [*TODM, "transcribe", str(golden), "-"],
        cwd=repo,
        input=pcm,
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    assert done.stdout.decode().splitlines() == texts(golden, wav)


def test_control_c_ends_with_what_was_said(repo, golden, wav, microphone):
    process = listen(repo, [golden, "--mic", "--format", "json"], stderr=subprocess.PIPE)
    begin = process.stdout.read(200)  # the first segment is out while the microphone is still open
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    found = json.loads(begin + process.stdout.read())
    assert (process.stderr.read(), process.wait()) == ("", 0)
    close(process)
    assert found["audio"] == "Desk mic"
    # Its random weights go on in the silence.
    assert found["segments"][0]["text"][:30] == texts(golden, wav)[0][:30]


def test_partial_text_on_a_terminal(repo, golden, wav, microphone):
    ours, theirs = pty.openpty()
    process = listen(repo, [golden, "--mic"], stderr=theirs)
    os.close(theirs)
    shown, text = "", texts(golden, wav)[0]
    while text[:10] not in shown:
        assert select.select([ours], [], [], 60)[0], shown
        shown += os.read(ours, 1000).decode(errors="ignore")
    process.stdout.read(len(text))
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait() == 0
    os.close(ours)
    close(process)
    assert "listening to Desk mic; Ctrl-C ends" in shown
    assert "\r\x1b[K" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mic", "a.wav"], "name recordings, or - alone"),
        (["a.wav", "--mic"], "name recordings, or - alone"),
        (["-", "a.wav"], "name recordings, or - alone"),
        (["a.wav", "--device", "x"], "give --mic too"),
        (["--mic", "--out", "x"], "leave out --out and --offline"),
        (["-", "--offline"], "leave out --out and --offline"),
    ],
)
def test_arguments_that_do_not_go_together(golden, arguments, words, capsys):
    from todm.cli.main import main

    assert main(["transcribe", str(golden), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_no_sound_is_named(golden, capsys):
    from todm.cli.main import main

    with pytest.raises(SystemExit, match="2"):
        main(["transcribe", str(golden)])
    assert "required: audio" in capsys.readouterr().err


def test_recordings_may_stand_after_flags(golden, wav, capsys):
    from todm.cli.main import main

    assert main(["transcribe", str(golden), "--precision", "int8", str(wav)]) == 0
    assert capsys.readouterr().out.startswith(str(wav))
