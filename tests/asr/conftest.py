"""A tiny corpus of made-up sounds with lhotse manifests, and its feature store."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def make_corpus():
    """Writes `num` utterances of noise bursts of 0.5 to 2 s, and their manifest, into a directory."""

    def make(root: Path, num: int = 40, seed: int = 0) -> Path:
        import numpy as np
        import soundfile
        from lhotse import CutSet, Recording, SupervisionSegment

        rng, cuts = np.random.default_rng(seed), []
        for i in range(num):
            name, path = f"utt-{i:03d}", root / f"utt-{i:03d}.flac"
            size = int(rng.uniform(0.5, 2.0) * 16000)
            envelope = 0.02 + 0.3 * np.sin(np.arange(size) / 1500) ** 2
            soundfile.write(path, envelope * rng.standard_normal(size) * 0.3, 16000)
            cut = Recording.from_file(path, recording_id=name).to_cut()
            cut.id = name
            words = " ".join(rng.choice(["ON", "OFF", "UP", "DOWN"], 2))
            cut.supervisions = [
                SupervisionSegment(
                    id=name,
                    recording_id=name,
                    start=0.0,
                    duration=cut.duration,
                    text=words,
                    speaker=f"s{i % 3}",
                )
            ]
            cuts.append(cut)
        CutSet.from_cuts(cuts).to_file(root / "cuts.jsonl.gz")
        return root / "cuts.jsonl.gz"

    return make


@pytest.fixture(scope="session")
def tiny_cuts(make_corpus, tmp_path_factory):
    """Path of a manifest of 40 utterances."""
    return make_corpus(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_store(tiny_cuts):
    """Its features at three speeds: 120 utterances."""
    from todm.asr.data.store import FeatureStore

    return FeatureStore.build(tiny_cuts, tiny_cuts.parent / "store", num_jobs=1)


@pytest.fixture(scope="session")
def encode():
    """Letters to ids from 3 on; what is no letter is unknown."""
    return lambda text: [ord(c) - 62 if c.isupper() else 2 for c in text.replace(" ", "")]


@pytest.fixture(scope="session")
def tiny_corpus(make_corpus, tmp_path_factory):
    """Directory of a corpus artifact: 24, 6 and 6 utterances, and a tokenizer."""
    from todm import artifact
    from todm.asr import tokens

    root = tmp_path_factory.mktemp("corpus")
    cuts = {}
    for seed, (split, num) in enumerate({"train": 24, "dev": 6, "test": 6}.items()):
        (root / split).mkdir()
        cuts[split] = make_corpus(root / split, num=num, seed=seed)

    def write(folder: Path) -> None:
        for split, path in cuts.items():
            (folder / f"cuts_{split}.jsonl.gz").write_bytes(path.read_bytes())
        config = tokens.TokensConfig(vocab_size=16)
        tokens.train(["ON OFF UP DOWN", "DOWN UP"], config, folder)

    return artifact.save(root / "corpus", kind="corpus", config={}, write=write).path
