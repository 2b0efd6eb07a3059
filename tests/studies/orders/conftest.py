"""The golden bundle, and a folder of recordings that it may hear."""

import json
from pathlib import Path

import numpy as np
import pytest

from todm.device.audio import write_wav

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def golden():
    """A small bundle with random weights; not to be changed."""
    return ROOT / "tests" / "device" / "golden"


@pytest.fixture(scope="session")
def spoken(tmp_path_factory):
    """Two recordings of swelling noise with labels."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(3)
    for name, drink in (("a.wav", "latte"), ("b.wav", "mocha")):
        swell = np.linspace(0, 0.5, 20_000)
        write_wav(folder / name, (0.3 * rng.normal(size=20_000) * swell).astype(np.float32))
        row = {"audio": name, "intent": "orderDrink", "slots": {"coffeeDrink": drink}}
        with (folder / "labels.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    return folder
