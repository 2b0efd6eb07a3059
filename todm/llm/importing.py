"""`todm import` of a language model: a directory of transformers becomes an artifact, offline.

The artifact holds config.json, the tokenizer's files and the weights as they were, and the text it is
calibrated, trained and evaluated on, if some is given. Nothing else of the directory is taken.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from todm import artifact
from todm.artifact import Artifact
from todm.errors import ArtifactError, CorpusError
from todm.llm import awq_checkpoint
from todm.llm.checkpoint import (
    CONFIG,
    INDEX,
    TOKENIZER,
    check_weights,
    empty_model,
    load_tokenizer,
    read_config,
    shapes,
    weight_files,
)
from todm.llm.config import LlmConfig
from todm.llm.data import read_texts

SPLITS = ("train", "dev", "test")
_LONGEST = 512
"""Tokens of a window, as AWQ's calibration has."""


def import_checkpoint(
    source: Path, out: Path, *, text: Path | None = None, context: int = 0
) -> Artifact:
    """Make an artifact: of kind `model`, or `compressed` where it is an AWQ checkpoint.

    Args:
        source: the directory.
        out: the artifact's place.
        text: a directory with train.txt, dev.txt and test.txt (some will do), or a file, which counts
            as train.txt; texts are paragraphs. Without it, calibration and evaluation need files of
            their own.
        context: tokens of a window; by default 512, or the model's limit if that is less.

    Raises:
        ArtifactError: a directory that is damaged, foreign, holds pickles, or is not quantised in
            AWQ's way.
        CorpusError: text that cannot be read.
        MissingExtra: transformers is not installed.
    """
    if not source.is_dir():
        raise ArtifactError(f"{source} is not a directory: give one that save_pretrained wrote")
    described = read_config(source)
    texts = _texts(text)
    config = LlmConfig(model=described, context=context or _context(described))
    if quantised := described.get("quantization_config"):
        model = awq_checkpoint.read(source, described, quantised)
        copy = partial(_copy, source, texts)
        return awq_checkpoint.save(out, config, model=model, source=source, write=copy)
    model = empty_model(described)
    files = weight_files(source)
    check_weights(model, shapes(files), source)
    load_tokenizer(source)

    def write(to: Path) -> None:
        _copy(source, texts, to)
        index = [source / INDEX] if (source / INDEX).is_file() else []
        for file in [*files, *index]:
            shutil.copyfile(file, to / file.name)

    return artifact.save(out, kind="model", config=config.to_json(), write=write)


def text_file(directory: Path, split: str) -> Path:
    """Where an artifact keeps the text of a split."""
    return directory / f"{split}.txt"


def _context(described: dict[str, Any]) -> int:
    """The longest window that every block sees in the same way."""
    known = [described.get(name) for name in ("max_position_embeddings", "sliding_window")]
    return min([_LONGEST, *(n for n in known if isinstance(n, int) and n > 1)])


def _texts(text: Path | None) -> dict[str, Path]:
    """The files of text by split, each readable."""
    if text is None:
        return {}
    if text.is_file():
        files = {"train": text}
    else:
        files = {s: text_file(text, s) for s in SPLITS if text_file(text, s).is_file()}
    if not files:
        raise CorpusError(
            f"{text} is neither a text file nor a directory with train.txt, dev.txt or test.txt: give one"
        )
    for file in files.values():
        read_texts(file)
    return files


def _copy(source: Path, texts: dict[str, Path], to: Path) -> None:
    """The small files of an artifact."""
    for name in (CONFIG, *TOKENIZER):
        if (source / name).is_file():
            shutil.copyfile(source / name, to / name)
    for split, file in texts.items():
        shutil.copyfile(file, text_file(to, split))
