"""What an artifact says of a language model."""

import dataclasses

from todm.config import Config
from todm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlmConfig(Config):
    """A causal language model of transformers.

    Attributes:
        backend: llm.
        model: transformers' own config.json.
        context: tokens of a window, in calibration, training and evaluation.
    """

    backend: str = "llm"
    model: dict[str, object] = dataclasses.field(default_factory=dict)
    context: int = 512

    def __post_init__(self) -> None:
        if self.context < 2:
            raise ConfigError(f"llm.context is {self.context}: at least 2 tokens are needed")

    @property
    def vocab(self) -> int:
        """Ids that the model knows."""
        size = self.model.get("vocab_size")
        if not isinstance(size, int):
            raise ConfigError("llm.model has no vocab_size: import the model again")
        return size
