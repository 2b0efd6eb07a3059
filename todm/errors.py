"""What a user can get wrong. The CLI prints the message of a `TodmError` as one sentence and exits with 2."""


class TodmError(Exception):
    """Something the user can mend: the message says what was given, what is allowed, what to do."""


class ConfigError(TodmError):
    """A configuration, flag or override that cannot be used."""


class CorpusError(TodmError):
    """A corpus, audio file or text that cannot be used at all."""


class BudgetError(TodmError):
    """A budget that no subnet meets, or that cannot be read."""


class ArtifactError(TodmError):
    """A directory that is not the whole, undamaged artifact it should be."""


class BundleError(TodmError):
    """A bundle that is damaged, foreign, or not what a runtime loads."""


class TrainingError(TodmError):
    """Training that cannot go on: repeated non-finite steps, no data left, a full disk."""


class MissingExtra(TodmError):
    """An optional package is needed; the message names the pip command."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: "
            f"run  pip install 'todm[{extra}]'"
        )
