"""Which modality stands behind an artifact, and its adapter for compression."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from todm.artifact import Artifact
    from todm.compress.adapter import ModelAdapter

DENSE = ("supernet", "subnet", "model")
"""Kinds of artifacts that hold a model and are not compressed."""


def backend_name(found: "Artifact") -> str:
    """The modality: asr, vision, llm or multimodal.

    Raises:
        ArtifactError: it is none of them.
    """
    from todm.errors import ArtifactError

    name = "asr" if "asr" in found.config else found.config.get("backend")
    if name not in ("asr", "vision", "llm", "multimodal"):
        raise ArtifactError(
            f"{found.path} does not say which kind of model it holds: give a directory that  todm "
            "extract-subnet  or  todm import  wrote"
        )
    return name


def adapter_of(found: "Artifact", *, corpus: Path | None = None) -> "ModelAdapter":
    """The model of an artifact, compressed or not, and what its modality knows of it.

    Args:
        found: the artifact.
        corpus: data of speech; by default the corpus it was trained on.

    Raises:
        ArtifactError: it cannot be loaded.
        ConfigError: a corpus for what is not speech.
    """
    from todm.errors import ConfigError

    name = backend_name(found)
    if name == "asr":
        from todm.asr.adapter import adapter_of as speech

        return speech(found, corpus=corpus)
    if corpus is not None:
        raise ConfigError(f"--corpus is for speech, and {found.path} is of {name}: leave it out")
    if name == "vision":
        from todm.vision.adapter import VisionAdapter

        return VisionAdapter.load(found)
    if name == "llm":
        from todm.llm.adapter import LlmAdapter

        return LlmAdapter.load(found)
    from todm.multimodal.adapter import MultimodalAdapter

    return MultimodalAdapter.load(found)
