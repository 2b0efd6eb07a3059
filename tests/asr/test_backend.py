import itertools
import math
import shutil

import pytest
import torch

from todm.asr.backend import ASSETS, AsrBackend, AsrConfig
from todm.asr.data.acoustics import AcousticsConfig
from todm.asr.data.augment import AugmentConfig
from todm.asr.data.batch import LoaderConfig
from todm.asr.loading import same_outputs
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.transducer import RnntConfig
from todm.asr.objective import ObjectiveConfig
from todm.errors import ConfigError, CorpusError
from todm.supernet.space import SpaceConfig

CONFIG = AsrConfig(
    loader=LoaderConfig(batch_size=4, num_buckets=3, speeds=(1.0,)),
    augment=AugmentConfig(join_prob=0.5),
    model=RnntConfig(joiner_dim=16, encoder=EncoderConfig(d_model=32, state=4)),
    space=SpaceConfig(depths=(2, 3), widths={"ffn": (16, 32), "pairs": (1, 2)}),
    chunks=(8, 16, 0),
)


@pytest.fixture(scope="module")
def backend(tiny_corpus):
    """Prepared: features and their statistics are there."""
    backend = AsrBackend(CONFIG, tiny_corpus, corpus=tiny_corpus)
    backend.prepare()
    return backend


def _batches(backend, **changes):
    return backend.batches(**{"rank": 0, "world_size": 1, "num_updates": 40, **changes})


def _take(batches, num):
    """Batches, and the state after each of them."""
    return [(b, batches.state_dict()) for b in itertools.islice(batches, num)]


def _same(a, b):
    return (
        a.chunk == b.chunk
        and a.num_labels == b.num_labels
        and a.ids == b.ids
        and torch.equal(a.features_BTF, b.features_BTF)
        and torch.equal(a.targets_BU, b.targets_BU)
    )


@pytest.mark.parametrize("after", [1, 5, 6, 7, 11])
def test_batches_resume_exactly(backend, after):
    """Six batches are an epoch."""
    whole = _take(_batches(backend), 14)
    resumed = _batches(backend)
    resumed.load_state_dict(whole[after - 1][1])
    again = _take(resumed, 14 - after)
    for (got, got_state), (want, want_state) in zip(again, whole[after:], strict=True):
        assert _same(got, want)
        assert got_state == want_state


def test_the_state_is_plain_json(backend):
    assert all(isinstance(v, int) for v in _take(_batches(backend), 1)[0][1].values())


def test_processes_share_chunks_and_no_utterances(backend):
    ranks = [[b for b, _ in _take(_batches(backend, rank=r, world_size=2), 9)] for r in (0, 1)]
    assert [b.chunk for b in ranks[0]] == [b.chunk for b in ranks[1]]
    for one, two in zip(*ranks, strict=True):
        assert not set(one.ids) & set(two.ids)


def test_every_chunk_size_is_drawn(backend):
    steps = [b for b, _ in _take(_batches(backend), 40)]
    assert {b.chunk for b in steps} == {8, 16, 0}
    assert all(b.num_labels == int(b.target_lens_B.sum()) for b in steps)


def test_the_supernet_normalises_with_the_corpus(backend):
    model = backend.build(None)
    assert model.config.vocab_size == backend.tokenizer.vocab_size
    features = torch.cat([backend.store("train").features(i) for i in range(24)])
    normal = model.encoder.subsampling.normalise(features)
    assert normal.mean(0).abs().max() < 0.05
    assert normal.std(0).max() < 1.05
    assert model.ctc is not None


@torch.no_grad()
def test_a_subnet_is_built_as_it_is_extracted(backend):
    space = backend.space
    supernet = backend.build(None).eval()
    for subnet in (space.largest, space.smallest):
        plain = backend.extract(supernet, subnet)
        assert same_outputs(supernet, plain, subnet) <= 1e-5
        built = backend.build(subnet)
        built.load_state_dict(plain.state_dict())
        assert built.ctc is None


@torch.no_grad()
def test_the_wrong_subnet_has_other_outputs(backend):
    space, supernet = backend.space, backend.build(None).eval()
    plain = backend.extract(supernet, space.smallest)
    assert same_outputs(supernet, plain, space.largest) > 1e-3


def test_evaluation(backend):
    model = backend.build(None).train()
    figures = backend.evaluate(model, subnet=backend.space.smallest, split="dev")
    assert (figures["utterances"], figures["words"]) == (6, 12)
    mistakes = sum(figures[k] for k in ("insertions", "deletions", "substitutions"))
    assert figures["error"] == pytest.approx(mistakes / 12)
    assert figures["low"] <= figures["error"] <= figures["high"]
    assert model.training


def test_evaluation_can_be_limited(backend):
    model = backend.build(None)
    assert backend.evaluate(model, subnet=None, split="test", limit=2)["utterances"] == 2


def test_recognition_gives_every_utterance_once(backend):
    found = backend.recognise(backend.build(None), subnet=None, split="test")
    assert sorted(u.id for u in found) == [f"utt-{i:03d}" for i in range(6)]
    assert all(len(u.reference.split()) == 2 for u in found)


def test_graphs_state_what_their_modules_do(backend):
    plain = backend.build(backend.space.smallest).eval()
    graphs = backend.graphs(plain)
    assert [g.name for g in graphs] == ["encoder", "decoder", "joiner"]
    for graph in graphs:
        with torch.no_grad():
            out = graph.module(*(port.example for port in graph.inputs))
        outs = out if isinstance(out, tuple) else (out,)
        for got, port in zip(outs, graph.outputs, strict=True):
            assert (got.shape, got.dtype) == (port.example.shape, port.example.dtype)


def test_assets_travel(backend, tmp_path):
    backend.write_assets(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(ASSETS)


def test_an_example_is_long_enough(backend):
    samples, text = backend.example("test", seconds=1.0)
    assert len(samples) >= 16_000
    assert len(text.split()) == 2
    assert len(backend.example("test", seconds=60.0)[0])


def test_an_example_of_a_long_recording_is_the_cut_alone(tiny_corpus, tmp_path):
    import numpy as np
    import soundfile
    from lhotse import CutSet, Recording, SupervisionSegment

    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (160_000, 2))
    soundfile.write(tmp_path / "long.wav", wave, 16_000, subtype="FLOAT")
    cut = Recording.from_file(tmp_path / "long.wav").to_cut().truncate(offset=2.0, duration=1.5)
    fields = {"id": "a", "recording_id": "long", "start": 0.0, "duration": 1.5, "channel": [0, 1]}
    cut.supervisions = [SupervisionSegment(**fields, text="on")]
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts_test.jsonl.gz")
    samples, text = AsrBackend(CONFIG, tiny_corpus, corpus=tmp_path).example("test", seconds=1.0)
    assert text == "ON"
    np.testing.assert_allclose(samples, wave[32_000:56_000].mean(1), atol=1e-6)


@pytest.mark.parametrize(
    ("topology", "ctc", "num"),
    [("standard", False, 3), ("standard", True, 1), ("one_symbol", False, 1)],
    ids=["standard", "standard with CTC", "one symbol"],
)
def test_more_labels_than_frames_are_for_the_standard_lattice_alone(
    make_corpus, tiny_corpus, tmp_path, topology, ctc, num
):
    from lhotse import CutSet

    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    cuts = list(CutSet.from_file(make_corpus(tmp_path, num=3)))
    for cut in cuts[1:]:
        cut.supervisions[0].text = "ON OFF UP DOWN " * 10
    CutSet.from_cuts(cuts).to_file(tmp_path / "corpus" / "cuts_train.jsonl.gz")
    config = CONFIG.replace(
        objective=ObjectiveConfig(topology=topology), model=CONFIG.model.replace(ctc=ctc)
    )
    backend = AsrBackend(config, tmp_path / "corpus", corpus=tmp_path / "corpus")
    backend.prepare()
    batch = next(iter(_batches(backend)))
    assert len(set("+".join(batch.ids).split("+"))) == num


def test_full_context_training_is_evaluated_with_full_context(backend, caplog):
    offline = AsrBackend(CONFIG.replace(chunks=(0,)), backend.assets, corpus=backend.corpus)
    torch.manual_seed(1)
    model = backend.build(backend.space.smallest).eval()
    with torch.no_grad():
        model.output.weight.mul_(6)
    found = {
        chunk: backend.recognise(model, subnet=None, split="test", chunk=chunk)
        for chunk in (0, CONFIG.chunk)
    }
    assert found[0] != found[CONFIG.chunk]
    for own, chunk in ((offline, 0), (backend, CONFIG.chunk)):
        assert own.recognise(model, subnet=None, split="test") == found[chunk]
    backend.graphs(model)
    assert not caplog.records
    offline.graphs(model)
    assert "trained on whole utterances only" in caplog.text


def test_progress_is_reported(tiny_corpus, tmp_path):
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    calls, corpus = [], tmp_path / "corpus"
    report = lambda what, done, total: calls.append((what, done, total))  # noqa: E731
    AsrBackend(CONFIG, corpus, corpus=corpus, report=report).store("dev")
    assert calls[-1] == ("features of dev", 6, 6)


def test_batches_need_features(tiny_corpus):
    with pytest.raises(ConfigError, match=r"need prepare\(\) first"):
        _batches(AsrBackend(CONFIG, tiny_corpus, corpus=tiny_corpus))


def test_data_need_a_corpus(tiny_corpus):
    with pytest.raises(ConfigError, match="this needs a corpus"):
        AsrBackend(CONFIG, tiny_corpus).store("dev")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": SpaceConfig(depths=(2,), widths={"ffn": (16,)})}, "ffn and pairs are needed"),
        (
            {"space": SpaceConfig(depths=(2,), widths={"ffn": (24,), "pairs": (1,)})},
            "widths.ffn has 24: multiples of 16",
        ),
        ({"chunks": ()}, r"asr.chunks is \(\)"),
        ({"chunks": (-1,)}, "frames of 40 ms"),
        ({"chunk": 0}, "asr.chunk 0"),
        ({"endpoint_seconds": 0.19}, "asr.endpoint_seconds is 0.19: from 0.2 to 10 s"),
        ({"endpoint_seconds": 10.1}, "asr.endpoint_seconds is 10.1: from 0.2 to 10 s"),
        ({"endpoint_seconds": math.nan}, "asr.endpoint_seconds is nan"),
        ({"chunk": 4}, r"asr.chunk is 4 and asr.chunks \(8, 16, 0\)"),
    ],
    ids=[
        "widths",
        "ffn",
        "no chunks",
        "negative chunk",
        "offline chunk",
        "short",
        "long",
        "nan",
        "chunk not trained",
    ],
)
def test_settings_are_checked(changes, words):
    with pytest.raises(ConfigError, match=words):
        CONFIG.replace(**changes)


def test_a_chunk_of_the_export_was_trained_unless_none_was():
    assert CONFIG.chunk_sizes == (8, 16)
    assert CONFIG.at_chunk(16) == CONFIG.replace(chunk=16)
    with pytest.raises(
        ConfigError, match="trained with chunks of 8 and 16 frames of 40 ms: choose"
    ):
        CONFIG.at_chunk(5)
    with pytest.raises(ConfigError, match="chunks of 4, 8 and 16 frames"):
        CONFIG.replace(chunks=(16, 4, 8), chunk=4).at_chunk(0)
    with pytest.raises(ConfigError, match="chunks of 16 frames of 40 ms: choose this"):
        CONFIG.replace(chunks=(16,), chunk=16).at_chunk(8)
    offline = CONFIG.replace(chunks=(0,), chunk=5)
    assert offline.at_chunk(7).chunk == 7
    for wrong in (0, 1501):
        with pytest.raises(ConfigError, match=f"--chunk is {wrong}: 1 to 1500 frames"):
            offline.at_chunk(wrong)


def test_settings_are_json():
    assert AsrConfig.from_json(CONFIG.to_json()) == CONFIG


def test_batches_say_what_they_amount_to(backend):
    batches = _batches(backend)
    assert batches.limit == "asr.loader.batch_size=4"
    assert batches.batches_per_epoch == 6
    epoch = [b for b, _ in _take(batches, 6)]
    heard = sum(batches.seconds(b) for b in epoch)
    assert heard == pytest.approx(batches.hours * 3600, rel=0.05)
    worst = batches.worst_batch()
    assert worst.chunk == 0
    assert worst.num_labels == int(worst.target_lens_B.sum())
    most = max(b.features_BTF[..., 0].numel() for b in epoch)
    assert worst.features_BTF[..., 0].numel() >= most


def test_renderings_have_features_of_their_own(backend, tiny_corpus, tmp_path):
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    place = {"assets": tmp_path / "corpus", "corpus": tmp_path / "corpus"}
    config = CONFIG.replace(acoustics=AcousticsConfig(renderings=2, rendered=1.0))
    rendered = AsrBackend(config, **place)
    plain, more = (b.preparation()[0] for b in (AsrBackend(CONFIG, **place), rendered))
    assert more == pytest.approx(3 * plain, rel=1e-6)
    rendered.prepare()
    names = [path.name for path in (tmp_path / "corpus-features").iterdir()]
    assert sum(name.startswith("train-1.0-r2-") for name in names) == 1
    batch = next(iter(_batches(rendered)))
    assert batch.ids == next(iter(_batches(backend))).ids
    assert not batch.features_BTF.equal(next(iter(_batches(backend))).features_BTF)


@pytest.mark.parametrize("setting", ["noise", "rirs"])
def test_a_folder_that_cannot_be_used_is_known_before_features(tiny_corpus, tmp_path, setting):
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    nowhere = str(tmp_path / "nowhere")
    acoustics = AcousticsConfig(renderings=1, rirs=nowhere)
    config = {"noise": {"noise": nowhere}, "rirs": {"acoustics": acoustics}}[setting]
    backend = AsrBackend(CONFIG.replace(**config), tmp_path / "corpus", corpus=tmp_path / "corpus")
    with pytest.raises(CorpusError, match="nowhere is not a directory"):
        backend.prepare()
    assert not (tmp_path / "corpus-features").exists()


def test_features_that_are_there_need_no_disk(backend, tiny_corpus, tmp_path):
    assert backend.preparation()[0] == 0
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    needed, place = AsrBackend(
        CONFIG, tmp_path / "corpus", corpus=tmp_path / "corpus"
    ).preparation()
    assert needed > 10_000
    assert place.parent == tmp_path / "corpus-features"
