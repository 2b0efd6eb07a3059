"""Recognised corpora: at any chunk size, by every search, and as the verb shows them."""

import functools
import json
import math
import sys

import pytest
import torch

from todm import artifact
from todm.asr.backend import AsrBackend
from todm.asr.config import AsrConfig
from todm.asr.data.batch import LoaderConfig
from todm.asr.decode.evaluate import references
from todm.asr.decode.search import beam_search, greedy_search
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.transducer import RnntConfig
from todm.cli.main import main
from todm.supernet.space import SpaceConfig

CONFIG = AsrConfig(
    loader=LoaderConfig(batch_size=4, num_buckets=3, speeds=(1.0,)),
    model=RnntConfig(joiner_dim=16, encoder=EncoderConfig(d_model=32, state=4)),
    space=SpaceConfig(depths=(2, 3), widths={"ffn": (16, 32), "pairs": (1, 2)}),
    endpoint_seconds=0.2,
)


@pytest.fixture(scope="module")
def backend(tiny_corpus):
    return AsrBackend(CONFIG, tiny_corpus, corpus=tiny_corpus)


@pytest.fixture(scope="module")
def model(backend):
    """Random weights that emit now and then, and look at the context."""
    torch.manual_seed(1)
    model = backend.build(None).eval()
    with torch.no_grad():
        model.output.weight.mul_(6)
        model.output.bias[0] += 1
        model.predictor.project.weight.mul_(6)
    return model


@pytest.fixture(scope="module")
def corpus(tiny_corpus):
    return artifact.load(tiny_corpus, kind="corpus")


@pytest.fixture(scope="module")
def supernet(backend, model, tiny_corpus, tmp_path_factory):
    """Directory of the model as an artifact."""
    return artifact.save(
        tmp_path_factory.mktemp("evaluation") / "net",
        kind="supernet",
        config={"asr": CONFIG.to_json()},
        info={"corpus": str(tiny_corpus)},
        tensors=model.state_dict(),
        write=backend.write_assets,
    ).path


@pytest.mark.parametrize("search", [greedy_search, beam_search])
def test_the_words_of_an_utterance_are_its_hypothesis(backend, model, search):
    found = backend.recognise(model, subnet=None, split="test", search=search)
    assert any(u.words for u in found)
    assert all([w.text for w in u.words] == u.hypothesis.split() for u in found)


@pytest.mark.parametrize("flags", [[], ["--search", "beam"]], ids=["greedy", "beam"])
def test_contexts_start_again_after_the_seconds_of_the_recipe(
    backend, model, supernet, tmp_path, flags
):
    search = beam_search if flags else greedy_search

    def decoded(**options):
        bound = functools.partial(search, **options)
        return [
            u.hypothesis for u in backend.recognise(model, subnet=None, split="test", search=bound)
        ]

    out = tmp_path / "out"
    assert main(["evaluate", str(supernet), "--out", str(out), *flags]) == 0
    lines = (out / "utterances-torch.jsonl").read_text().splitlines()
    assert [json.loads(line)["hypothesis"] for line in lines] == decoded(endpoint=5)
    assert decoded(endpoint=5) != decoded()
    if not flags:
        plain = backend.recognise(model, subnet=None, split="test")
        assert [u.hypothesis for u in plain] == decoded(endpoint=5)


def test_chunk_sizes_and_subnets_decode_differently(backend, model):
    small = backend.space.smallest
    found = {
        (chunk, subnet): [
            u.words for u in backend.recognise(model, subnet=subnet, split="dev", chunk=chunk)
        ]
        for chunk in (8, 0)
        for subnet in (None, small)
    }
    assert len({str(v) for v in found.values()}) == 4


def test_word_ends_by_forced_alignment(backend, model):
    ends = backend.word_ends(model, split="test")
    assert len(ends) == 6
    for timed in ends.values():
        assert len(timed.words) == len(timed.ends) == 2
        assert list(timed.ends) == sorted(timed.ends)
        assert 0.4 < timed.seconds < 2.1
        assert timed.ends[-1] <= timed.seconds + CONFIG.loader.tail_seconds + 0.04


def test_word_ends_of_the_manifest_are_taken_first(backend, model, monkeypatch):
    def of_manifest(cut):
        text = cut.supervisions[0].text.lower().split() if cut.id.endswith("3") else []
        return [(word, 0.1 * i) for i, word in enumerate(text, 1)]

    before = backend.word_ends(model, split="test")
    monkeypatch.setattr("todm.asr.decode.word_ends.manifest_ends", of_manifest)
    after = backend.word_ends(model, split="test")
    assert after["utt-003"].ends == (0.1, 0.2)
    assert {k: v for k, v in after.items() if k != "utt-003"} == {
        k: v for k, v in before.items() if k != "utt-003"
    }


def test_of_a_long_recording_only_the_cut_is_read(corpus, tmp_path):
    import numpy as np
    import soundfile
    from lhotse import CutSet, Recording, SupervisionSegment

    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 160_000).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", samples, 16_000, subtype="FLOAT")
    cut = Recording.from_file(tmp_path / "long.wav").to_cut().truncate(offset=2.0, duration=1.5)
    cut.supervisions = [
        SupervisionSegment(id="a", recording_id="long", start=0, duration=1.5, text="on")
    ]

    def write(folder):
        CutSet.from_cuts([cut]).to_file(folder / "cuts_test.jsonl.gz")

    made = artifact.save(tmp_path / "corpus", kind="corpus", config={}, write=write)
    bundle = artifact.save(
        tmp_path / "bundle",
        kind="bundle",
        config={"model": {"asr": CONFIG.to_json()}},
        write=lambda folder: None,
    )
    (found,) = references(bundle, made, "test")
    assert found.text == "ON"
    np.testing.assert_allclose(found.samples(), samples[32_000:56_000], atol=1e-6)


def test_latency_of_a_bundle_needs_a_corpus_that_knows_word_ends_or_an_aligner(
    tiny_corpus, tmp_path, capsys
):
    made = artifact.save(
        tmp_path / "bundle",
        kind="bundle",
        config={"model": {"asr": CONFIG.to_json()}},
        write=lambda folder: None,
    )
    assert main(["evaluate", str(made.path), str(tiny_corpus), "--latency"]) == 2
    error = capsys.readouterr().err
    assert "does not say where words end" in error
    assert "by --aligner" in error
    assert error.count("\n") == 1


def test_the_verb_shows_every_chunk_size_and_its_latency(supernet, tmp_path, capsys):
    flags = ["--chunks", "8,16,0", "--latency", "--out", str(tmp_path / "out")]
    assert main(["evaluate", str(supernet), *flags]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert "difference to 320ms" in head
    assert "last word, s" in head
    assert "final text, s" in head
    assert [row.split("|")[1].strip() for row in rows] == ["320ms", "640ms", "offline"]
    found = json.loads((tmp_path / "out" / "figures.json").read_text())["results"]
    assert [row["chunk"] for row in found.values()] == [8, 16, 0]
    assert "against_first" not in found["320ms"]
    change = found["offline"]["against_first"]["difference"]["value"]
    assert math.isclose(change, found["offline"]["error"] - found["320ms"]["error"])
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"utterances-320ms.jsonl", "utterances-offline.jsonl", "alignments-640ms.txt"} <= files
    assert main(["evaluate", str(supernet), *flags]) == 0
    assert "done already" in capsys.readouterr().out


def test_the_verb_compares_two_evaluations(supernet, tmp_path, capsys):
    for name, subnet in (("a", "smallest"), ("b", "largest")):
        flags = ["--subnet", subnet, "--out", str(tmp_path / name)]
        assert main(["evaluate", str(supernet), *flags]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "a"), "--compare", str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "relative [" in out
    assert "12 words)" in out


def test_fast_beam_search_without_k2_says_how_to_get_it(supernet, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "k2", None)
    assert main(["evaluate", str(supernet), "--search", "fast_beam"]) == 2
    error = capsys.readouterr().err
    assert "fast beam search needs the package 'k2' built for torch" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--chunks", "8,x"], "--chunks is '8,x'"),
        (["--chunks", "8,8"], "--chunks is '8,8'"),
        (["--chunks", "99999999"], "--chunks is '99999999'"),
        (["--subnet", "tiny"], "--subnet is 'tiny': largest, smallest"),
        (["--subnet", '{"blocks": [0], "widths": {}}'], "depth 1 is not in the space"),
        (["--aligner", "x"], "--aligner is for --latency"),
        (["--compare", "nowhere"], "is not there"),
        (["--limit", "-1"], "--limit is -1"),
        (["--phrases", "x"], "--phrases is for --search fast_beam"),
        (["--search", "fast_beam", "--phrases", "nowhere"], "no such file or directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_that_cannot_be_used_are_named(supernet, capsys, flags, words):
    assert main(["evaluate", str(supernet), *flags]) == 2
    assert words in capsys.readouterr().err
