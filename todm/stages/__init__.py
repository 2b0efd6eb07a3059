"""The stages: one function a verb, from artifact to artifact, for Python as for the command line.

    from todm import stages

    corpus = stages.prepare("corpus", config="debug").corpus

Each is imported when it is first used, so that `stages.transcribe` needs no torch; `__init__.pyi` has their
types. The files have nouns for names: a module `train` in this package would take the place of the
function.
"""

import importlib
from typing import Any

_PLACES = {
    "analyse": "compression",
    "bench": "benchmarks",
    "bench_kernels": "benchmarks",
    "compare": "evaluation",
    "compress": "compression",
    "count_false_accepts": "false_accepts",
    "measure_after_silence": "after_silence",
    "dry_run": "training",
    "evaluate": "evaluation",
    "export": "exporting",
    "extract_subnet": "extraction",
    "import_model": "importing",
    "keep_table": "profiling",
    "listen": "transcription",
    "prepare": "preparation",
    "profile": "profiling",
    "report": "reporting",
    "search": "searching",
    "train": "training",
    "transcribe": "transcription",
    "write_pack": "profiling",
    "write_samples": "preparation",
}
__all__ = [*_PLACES]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a stage
    """Import a stage."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    """All that there is, imported or not."""
    return sorted([*globals(), *__all__])
