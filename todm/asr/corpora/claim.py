"""A directory that holds what one configuration made, and nothing else."""

import json
from pathlib import Path

from todm.errors import CorpusError
from todm.files import write_text


def claim(root: Path, marker: str, fingerprint: str, *, foreign: str, flag: str) -> bool:
    """Make a directory the place of what a fingerprint stands for; whether it was that before.

    Args:
        root: the directory, made if need be.
        marker: name of the file in it that holds the fingerprint.
        fingerprint: a hash of everything that the content depends on.
        foreign: what the directory holds where the fingerprint is another, for the message.
        flag: the option that chooses the directory, for the message.

    Raises:
        CorpusError: it holds something else.
    """
    file = root / marker
    if not (root.exists() and any(root.iterdir())):
        root.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({"fingerprint": fingerprint}) + "\n")
        return False
    known = json.loads(file.read_text()).get("fingerprint") if file.is_file() else None
    if known != fingerprint:
        what = foreign if known else "other files"
        raise CorpusError(f"{root} holds {what}: choose another {flag} or remove it")
    return True
