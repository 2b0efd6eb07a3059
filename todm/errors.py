"""Errors that a user can correct. The CLI prints the message of a `TodmError` and exits with status 2."""


class TodmError(Exception):
    """An error the user can correct: the message says what was given, what is allowed, what to do."""

    status = 2
    """Exit status of the command line."""


class ConfigError(TodmError):
    """A configuration, flag or override that cannot be used."""


class CorpusError(TodmError):
    """A corpus, audio file or text that cannot be used at all."""


class BudgetError(TodmError):
    """A budget that no subnet meets, or that cannot be parsed."""


class ArtifactError(TodmError):
    """A directory that is not a complete, undamaged artifact of the needed kind."""


class BundleError(TodmError):
    """A bundle that is damaged, not from todm, or not loadable by a runtime."""


class TrainingError(TodmError):
    """Training that cannot go on: repeated non-finite steps, no data left, a full disk."""


class MissingExtra(TodmError):
    """An optional package is needed; the message names the pip command."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: "
            f"run  pip install 'todm[{extra}]'"
        )


def first_line(error: BaseException, most: int = 200) -> str:
    """The message of any error in a line, shortened; its class where it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]
