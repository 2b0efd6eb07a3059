"""A model of another library on disk -> an artifact, without a network."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from todm.errors import ConfigError
from todm.files import path_or_none

if TYPE_CHECKING:
    from todm.artifact import Artifact

_BACKENDS = {
    "architecture": ("vision", "multimodal"),
    "data": ("vision", "multimodal"),
    "text": ("llm",),
    "context": ("llm",),
}


def import_model(
    source: str | Path,
    *,
    backend: Literal["llm", "vision", "multimodal"],
    out: str | Path,
    architecture: str | None = None,
    data: str | None = None,
    text: str | Path | None = None,
    context: int | None = None,
) -> "Artifact":
    """Import a language or multi-modal model of transformers, or a vision model of timm.

    Args:
        source: a directory with config.json and safetensors; vision: or a .safetensors file.
        backend: which of them.
        out: directory of the model.
        architecture: vision: timm's name, multimodal: transformers' class, if config.json lacks it.
        data: what it is calibrated and evaluated on; vision: digits, canvas, a folder, an .npz file;
            multimodal: a .safetensors of inputs as the processor makes them.
        text: llm: text of the same use, a file or a directory with train.txt, dev.txt and test.txt.
        context: llm: tokens of a window; at most 512 by default.

    Raises:
        TodmError: something given cannot be used; the message says what to do.
    """
    options = {"architecture": architecture, "data": data, "text": text, "context": context}
    for name, backends in _BACKENDS.items():
        if options[name] is not None and backend not in backends:
            raise ConfigError(f"--{name} is for --backend {' and '.join(backends)}: leave it out")
    source, out = Path(source), Path(out)
    if not source.exists():
        raise ConfigError(f"{source} is not there: check the path")
    if context is not None and context < 2:
        raise ConfigError(f"--context is {context}: at least 2 tokens are needed")
    if backend == "llm":
        from todm.llm import importing as llm

        return llm.import_checkpoint(source, out, text=path_or_none(text), context=context or 0)
    if backend == "vision":
        from todm.vision import importing as vision

        return vision.import_checkpoint(
            source, out, architecture=architecture or "", data=data or ""
        )
    if data is None:
        raise ConfigError("--backend multimodal needs --data: inputs to calibrate and evaluate on")
    from todm.multimodal import importing as multimodal

    return multimodal.import_checkpoint(
        source, out, data=Path(data), architecture=architecture or ""
    )
