"""Text to windows of tokens.

A text is a paragraph: lines up to an empty one, joined by spaces.

Letters: W windows, T tokens of a window.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from todm.errors import CorpusError


class Tokenizer(Protocol):
    """What is used of a tokenizer of transformers."""

    def __call__(self, text: str, /) -> Any:  # noqa: ANN401 - a mapping with input_ids
        """Ids of a text, special ones included."""
        ...


def read_texts(file: Path) -> list[str]:
    """The texts of a file in UTF-8.

    Raises:
        CorpusError: it cannot be read, is not text, or is empty.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{file} cannot be read as text in UTF-8: {error}") from None
    if "\0" in content:
        raise CorpusError(f"{file} is not text: it contains zero bytes; give a plain text file")
    texts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", content)]
    if not any(texts):
        raise CorpusError(f"{file} holds no text: give a plain text file")
    return [text for text in texts if text]


def tokens_of(texts: Sequence[str], tokenizer: Tokenizer, *, vocab: int) -> list[Tensor]:
    """Ids of every text, int64.

    Raises:
        CorpusError: an id that the model does not know.
    """
    texts_ids = [torch.tensor(tokenizer(text)["input_ids"], dtype=torch.int64) for text in texts]
    largest = max((int(ids.max()) for ids in texts_ids if len(ids)), default=0)
    if largest >= vocab:
        raise CorpusError(
            f"the tokenizer gives the id {largest}, and the model knows {vocab}: they do not belong "
            "together; import the model with its own tokenizer"
        )
    return texts_ids


def windows(texts_ids: Sequence[Tensor], num: int, *, context: int, source: object) -> Tensor:
    """Windows of the joined texts, spread evenly over them and not overlapping, [W, T].

    Args:
        texts_ids: ids of each text.
        num: W.
        context: T.
        source: where the texts are from, for messages.

    Raises:
        CorpusError: too few tokens.
    """
    tokens = torch.cat([torch.zeros(0, dtype=torch.int64), *texts_ids])
    if len(tokens) < num * context:
        raise CorpusError(
            f"calibration needs {num} windows of {context} tokens, and {source} has {len(tokens)} "
            f"tokens: give more text, or ask for fewer with  --set num_calibration="
            f"{max(len(tokens) // context, 1)}"
        )
    step = (len(tokens) - context) / max(num - 1, 1)
    starts = torch.tensor([int(i * step) for i in range(num)])
    return tokens[starts[:, None] + torch.arange(context)]
