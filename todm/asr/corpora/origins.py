"""Where the speech of a corpus comes from, with licences."""

from todm.asr.corpora.config import DataConfig
from todm.asr.corpora.provenance import Source, of_folder
from todm.asr.corpora.voices import catalogue


def of_corpus(config: DataConfig) -> list[Source]:
    """The engines and voices that speak it, or the speech on disk."""
    if not config.is_spoken:
        assert config.data is not None
        return [of_folder("speech", config.data)]
    trained = [(name, f"{share}") for name, share in config.speech.voices.items()]
    total = sum(config.speech.voices.values())
    found = [s for name, share in trained for s in of_engine(name, f"{int(share) / total:.0%}")]
    for name in catalogue.unseen(config.speech):
        found += of_engine(name, "a test of its own")
    if config.text:
        found.append(of_folder("speech", config.text, "sentences"))
    return found


def of_engine(name: str, detail: str) -> list[Source]:
    """An engine, its phonemiser and its voices."""
    licences = catalogue.CLASSES[name].licences
    program = f"{licences.engine}; phonemes: {licences.phonemiser}"
    return [
        Source(kind="engine", name=name, licence=program, detail=detail),
        Source(kind="voices", name=name, licence=licences.voices, detail=detail),
    ]
