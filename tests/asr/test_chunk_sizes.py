"""Errors and delays at every chunk size of a training."""

import pytest
import torch

from todm.asr.backend import AsrBackend
from todm.asr.chunk_sizes import by_chunk
from todm.asr.config import AsrConfig
from todm.asr.data.batch import LoaderConfig
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.transducer import RnntConfig
from todm.supernet.space import SpaceConfig

CONFIG = AsrConfig(
    loader=LoaderConfig(batch_size=4, num_buckets=3, speeds=(1.0,)),
    model=RnntConfig(joiner_dim=16, encoder=EncoderConfig(d_model=32, state=4)),
    space=SpaceConfig(depths=(2,), widths={"ffn": (16,), "pairs": (1,)}),
    chunks=(16, 0, 4),
    chunk=16,
)


@pytest.fixture(scope="module")
def backend(tiny_corpus):
    return AsrBackend(CONFIG, tiny_corpus, corpus=tiny_corpus)


@pytest.fixture(scope="module")
def model(backend):
    """Random weights that emit now and then."""
    torch.manual_seed(1)
    model = backend.build(backend.space.largest).eval()
    with torch.no_grad():
        model.output.weight.mul_(6)
    return model


def test_every_trained_chunk_is_measured_as_an_evaluation_would(backend, model):
    seen = []
    rows = by_chunk(backend, model, progress=lambda *step: seen.append(step))
    assert [(row["chunk"], row["split"], row["utterances"]) for row in rows] == [
        (4, "dev", 6),
        (16, "dev", 6),
    ]
    assert seen == [("chunk sizes", done, 2) for done in range(3)]
    own = backend.evaluate(model, subnet=None, split="dev")
    assert {name: rows[1][name] for name in own} == own
    assert [row["latency"] for row in rows] == [None, None]  # the corpus has no word ends


def test_delays_where_the_corpus_knows_word_ends(backend, model, monkeypatch):
    """A net that says the first word half a second after it has ended."""

    def recognise(_, *, chunk, **options):
        found = recognise_all(model, chunk=chunk, **options)
        return [
            type(u)(
                id=u.id,
                reference=u.reference,
                hypothesis=u.reference,
                symbols=tuple(f"\u2581{word}" for word in u.reference.split()),
                frames=(10, 20),
            )
            for u in found
        ]

    def ends(cut):
        return [(word, 0.4 * i) for i, word in enumerate(cut.supervisions[0].text.split(), 1)]

    recognise_all = backend.recognise
    monkeypatch.setattr(backend, "recognise", recognise)
    monkeypatch.setattr("todm.asr.decode.word_ends.manifest_ends", ends)
    early, late = (row["latency"] for row in by_chunk(backend, model))
    # frame 20 is out after 24 frames of 40 ms, or 32
    assert (early["last"]["num"], late["last"]["of"]) == (6, 6)
    assert early["last"]["p50"] == pytest.approx(0.96 - 0.8)
    assert late["last"]["p90"] == pytest.approx(1.28 - 0.8)
    assert early["final"]["p50"] > early["last"]["p50"]


def test_a_net_of_whole_utterances_has_the_chunk_of_its_export(backend, model):
    config = CONFIG.replace(chunks=(0,), chunk=8)
    offline = AsrBackend(config, backend.assets, corpus=backend.corpus)
    assert [row["chunk"] for row in by_chunk(offline, model)] == [8]
