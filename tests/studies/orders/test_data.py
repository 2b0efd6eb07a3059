"""Material of espeak-ng and of natural voices, and what cannot be made."""

import json

import numpy as np
import pytest
import soundfile

from benchmarks.studies.orders import data
from benchmarks.studies.orders.data import Material
from benchmarks.studies.orders.scoring import order_parser
from todm.errors import ConfigError, CorpusError

SMALL = ("asr.data.num_train=6", "asr.data.num_dev=2", "asr.data.num_test=2")
VOICES = ("anna", "bert", "anna+bert", "carl")


@pytest.fixture
def natural(tmp_path):
    folder = tmp_path / "natural"
    folder.mkdir()
    lines = ["audio\tvoice\ttext"]
    for number, voice in enumerate(VOICES):
        tone = 0.5 * np.sin(np.arange(12_000) * (number + 1) / 20)
        soundfile.write(folder / f"{number}.opus", tone, 16_000, format="OGG", subtype="OPUS")
        lines.append(f"{number}.opus\t{voice}\tI WANT A LATTE")
    (folder / "meta.tsv").write_text("\n".join(lines) + "\n")
    return folder


def _lines(folder, split):
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def test_material_has_both_voices_and_dev_has_voices_of_its_own(natural, tmp_path):
    material = Material(natural=natural, renderings=2, dev_voices=["anna"], settings=SMALL)
    folder = data.make(tmp_path / "out", material)
    train, dev, test = (_lines(folder, split) for split in ("train", "dev", "test"))
    assert (len(train), len(dev), len(test)) == (6 + 2 * 2, 2 + 2, 2)
    assert {line["speaker"] for line in train} & {*VOICES} == {"bert", "carl"}
    assert {line["speaker"] for line in dev} & {*VOICES} == {"anna"}
    parser = order_parser()
    assert all(parser.parse(line["text"]).is_exact for line in [*train, *dev, *test])
    files = [line["audio"] for line in train if line["speaker"] == "carl"]
    renderings = [soundfile.read(file)[0] for file in files]
    assert [len(r) for r in renderings] == [12_000, 12_000]
    assert np.abs(renderings[0] - renderings[1]).max() > 1e-3
    peaks = [20 * np.log10(np.abs(r).max()) for r in renderings]
    assert all(-41 <= peak <= -2.9 for peak in peaks)
    with pytest.raises(ConfigError, match="made with other flags: choose another --out"):
        data.make(tmp_path / "out", Material(natural=natural, settings=SMALL))
    before = [(file, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())]
    assert data.make(tmp_path / "out", material) == folder
    assert [(file, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())] == before


def test_what_cannot_be_made_is_a_sentence_and_leaves_nothing(natural, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="--renderings is -1: 0 or more"):
        Material(natural=natural, renderings=-1)
    with pytest.raises(
        ConfigError, match=r"--dev-voices has 'zoe', which .*meta.tsv does not have"
    ):
        data.make(out, Material(natural=natural, dev_voices=["zoe"]))
    (natural / "meta.tsv").unlink()
    with pytest.raises(CorpusError, match=r"has no meta\.tsv: audio, voice and text by tabs"):
        data.make(out, Material(natural=natural))
    assert not out.exists()
