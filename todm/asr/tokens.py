"""Tokens: a sentencepiece unigram model and the rule that writes transcripts in its alphabet.

Ids 0 <blk>, 1 <sos/eos>, 2 <unk>, as in icefall and sherpa-onnx. A tokenizer on disk consists of
`bpe.model`, `bpe.vocab` ("piece<TAB>score", for hotwords) and `tokens.txt` ("symbol id", for the device).
"""

import dataclasses
import io
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from todm.config import Config
from todm.errors import ConfigError, CorpusError

if TYPE_CHECKING:
    import sentencepiece

BLANK_ID, SOS_ID, UNK_ID = 0, 1, 2
SPECIAL = ("<blk>", "<sos/eos>", "<unk>")
MODEL, VOCAB, TOKENS = "bpe.model", "bpe.vocab", "tokens.txt"
FixedRule = Literal["upper", "lower", "none"]
Rule = Literal["auto", "upper", "lower", "none"]
_ENGLISH_SHARE = 0.95
# Byte order marks and soft hyphens come from files and pages, not from speech.
_INVISIBLE = {0xFEFF: None, 0x00AD: None, 0x200B: " "}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokensConfig(Config):
    """Vocabulary size (the real one may be smaller), longest piece in letters, and text rule.

    `normalise` is how transcripts are written, in Unicode's form NFC. `upper`: everything in A-Z and
    the apostrophe; other signs are refused. `lower`: any script in lower case, with digits and the
    marks of letters, without punctuation. `none`: unchanged, with punctuation and case. `auto`:
    `upper` if that can write nearly all of the training transcripts, else `none`; the corpus records
    the choice, and everything made of the corpus keeps it.
    """

    vocab_size: int = 96
    max_piece_length: int = 4
    normalise: Rule = "upper"

    def __post_init__(self) -> None:
        if not 4 <= self.vocab_size <= 20_000:
            raise ConfigError(f"vocab_size is {self.vocab_size}: 4 to 20000 are allowed")
        if not 1 <= self.max_piece_length <= 64:
            raise ConfigError(f"max_piece_length is {self.max_piece_length}: 1 to 64 are allowed")


def normalise(text: str, rule: Rule = "upper") -> str:
    """A transcript in the alphabet of the tokens, in NFC, with single spaces.

    Args:
        text: the transcript.
        rule: see `TokensConfig`; `auto` must be resolved first.

    Raises:
        ValueError: there is a control character or, with rule `upper`, a sign other than A-Z and the
            apostrophe; the message names them.
    """
    assert rule != "auto", "resolve the rule first"
    text = unicodedata.normalize("NFC", text.translate(_INVISIBLE))
    text = " ".join(text.split())
    controls = sorted({c for c in text if unicodedata.category(c) in ("Cc", "Cs")})
    if controls:
        raise ValueError(f"control characters: {' '.join(f'U+{ord(c):04X}' for c in controls)}")
    if rule == "none":
        return text
    text = text.replace("\u2019", "'")
    if rule == "lower":
        return " ".join("".join(map(_lower, unicodedata.normalize("NFC", text.lower()))).split())
    text = text.upper()
    foreign = sorted(set(re.findall(r"[^A-Z' ]", text)))
    if foreign:
        raise ValueError(f"signs outside A-Z and ': {' '.join(foreign)}")
    return text


def _lower(sign: str) -> str:
    """The sign, or a space for punctuation and symbols; joiners belong to the letters around them."""
    keep = sign == "'" or unicodedata.category(sign)[0] in "LMN" or sign in "\u200c\u200d"
    return sign if keep else " "


def resolve(rule: Rule, texts: Iterable[str]) -> FixedRule:
    """The rule itself, or for `auto` the one that fits the training transcripts."""
    if rule != "auto":
        return rule
    fitting = [_fits_upper(text) for text in texts]
    return "upper" if fitting and sum(fitting) >= _ENGLISH_SHARE * len(fitting) else "none"


def _fits_upper(text: str) -> bool:
    try:
        normalise(text, "upper")
    except ValueError:
        return False
    return True


class Tokenizer:
    """Text to ids and back."""

    def __init__(self, processor: "sentencepiece.SentencePieceProcessor", *, rule: Rule) -> None:
        self._processor = processor
        self.rule: Rule = rule

    @property
    def vocab_size(self) -> int:
        """Number of ids, including blank and the other special ones."""
        return int(self._processor.get_piece_size())

    @property
    def symbols(self) -> list[str]:
        """The piece of every id."""
        return [self._processor.id_to_piece(i) for i in range(self.vocab_size)]

    def normalise(self, text: str) -> str:
        """The module's `normalise` with this tokenizer's rule."""
        return normalise(text, self.rule)

    def encode(self, text: str) -> list[int]:
        """Ids of a normalised transcript; `UNK_ID` stands for signs that training never saw."""
        return list(self._processor.encode(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; blank, sos/eos and unk are left out."""
        return str(self._processor.decode([int(i) for i in ids if int(i) > UNK_ID]))


def load(path: str | Path, *, rule: Rule = "upper") -> Tokenizer:
    """The tokenizer in an artifact's directory, or a model file.

    Raises:
        CorpusError: there is no model, or it is damaged or has other special tokens.
    """
    import sentencepiece

    path = Path(path)
    path = path / MODEL if path.is_dir() else path
    if not path.is_file():
        raise CorpusError(f"{path} does not exist: a tokenizer is made by  todm prepare")
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(path.read_bytes())
    except RuntimeError:
        raise CorpusError(f"{path} is not a sentencepiece model: make the corpus again") from None
    if tuple(processor.id_to_piece(i) for i in range(3)) != SPECIAL:
        raise CorpusError(f"{path} does not begin with the tokens {' '.join(SPECIAL)}")
    return Tokenizer(processor, rule=rule)


def train(texts: list[str], config: TokensConfig, out: str | Path) -> Tokenizer:
    """Train on normalised transcripts and write `bpe.model`, `bpe.vocab` and `tokens.txt` to `out`.

    Raises:
        CorpusError: there is no text, or it has more distinct characters than the vocabulary.
    """
    import sentencepiece

    alphabet = {c for text in texts for c in text if c != " "}
    if not alphabet:
        raise CorpusError("no transcript holds any text: a tokenizer cannot be trained")
    if len(alphabet) + len(SPECIAL) + 1 > config.vocab_size:
        raise CorpusError(
            f"{len(alphabet)} distinct characters do not fit a vocabulary of {config.vocab_size}: "
            f"set tokens.vocab_size to {len(alphabet) + len(SPECIAL) + 1} or more"
        )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, *_branches(texts, alphabet)]),
        model_writer=model,
        vocab_size=config.vocab_size,
        model_type="unigram",
        character_coverage=1.0,
        max_sentencepiece_length=config.max_piece_length,
        max_sentence_length=100_000,
        user_defined_symbols=list(SPECIAL[:2]),
        unk_id=UNK_ID,
        bos_id=-1,
        eos_id=-1,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    path = Path(out) / MODEL
    path.write_bytes(model.getvalue())
    tokenizer = load(path, rule=config.normalise)
    _write_tables(tokenizer, Path(out))
    return tokenizer


def _branches(texts: list[str], alphabet: set[str]) -> list[str]:
    """Lines that let whole words become pieces: every word once before each of two letters.

    The trainer takes its candidates from the branching nodes of a suffix tree. A word of a small
    closed vocabulary has only one continuation, so it would never be a candidate, and the word
    boundary would become a piece of its own, without a sound.
    """
    letters = sorted(alphabet)[:2]
    return [
        word + letter
        for word in sorted({w for t in texts for w in t.split()})
        for letter in letters
    ]


def _write_tables(tokenizer: Tokenizer, out: Path) -> None:
    symbols, processor = tokenizer.symbols, tokenizer._processor
    vocab = [f"{s}\t{processor.get_score(i):g}\n" for i, s in enumerate(symbols)]
    (out / VOCAB).write_text("".join(vocab), encoding="utf-8")
    lines = [f"{s} {i}\n" for i, s in enumerate(symbols)]
    (out / TOKENS).write_text("".join(lines), encoding="utf-8")
