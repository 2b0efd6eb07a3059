"""A recogniser's chunk and tail are chosen at export."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("sherpa_onnx")

from todm import artifact
from todm.asr.decode.utterances import Decoded
from todm.device.bundle import open_bundle
from todm.device.contract import validate

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.runtime]


def export(run, out, *flags, model=None):
    flags = ["--out", out, "--target", "onnx", "--precisions", "fp32", *flags]
    return run.todm("export", model or run.subnet, *flags)


@pytest.fixture(scope="module")
def short(debug_run, tmp_path_factory):
    """A bundle of the shortest chunks, with a tail that is barely enough."""
    out = tmp_path_factory.mktemp("exporting") / "short"
    status, _, err = export(debug_run, out, "--chunk", 4, "--tail", 0.2)
    assert status == 0, err
    return out


def test_a_bundle_has_the_chunk_and_the_tail_that_were_asked_for(debug_run, short):
    bundle = open_bundle(short)
    assert (bundle.info["chunk_seconds"], bundle.tail_seconds) == (0.16, 0.2)
    assert validate(bundle).chunk_frames == 16
    card = (short / "README.md").read_text()
    assert "# Speech recogniser, 160 ms chunks" in card
    assert "feed **0.2 s of silence**" in card
    usual = open_bundle(debug_run.bundle)
    assert (usual.info["chunk_seconds"], usual.tail_seconds) == (0.32, 0.68)


def test_every_form_of_the_net_gives_the_same_text_at_another_chunk(short):
    """Streaming and offline; the export has compared them with torch before."""
    expected = json.loads((short / "test_wavs" / "expected.json").read_text())["fp32"]
    streamed, offline = expected["streaming"]["tokens"], expected["offline"]["tokens"]
    assert streamed
    assert offline[: len(streamed)] == streamed
    assert "encoder, offline and streaming" in artifact.load(short).metrics["checks"]


def test_the_card_compares_the_chunk_sizes_of_the_training(debug_run, short):
    for path, chunk in ((short, 4), (debug_run.bundle, 8)):
        rows = artifact.load(path).metrics["chunk_sizes"]
        assert [(row["chunk"], row["split"]) for row in rows] == [(c, "dev") for c in (4, 8, 16)]
        card = (path / "README.md").read_text()
        assert f"The net on {rows[0]['utterances']} dev utterances" in card
        assert card.count("ms** |") == 1
        assert f"| **{40 * chunk} ms** | **" in card


def test_what_a_model_evaluates_to_is_what_its_card_says(debug_run, short, tmp_path):
    flags = ["--split", "dev", "--chunks", "4,8,16", "--out", tmp_path]
    status, _, err = debug_run.todm("evaluate", debug_run.subnet, *flags)
    assert status == 0, err
    found = json.loads((tmp_path / "figures.json").read_text())["results"]
    rows = artifact.load(short).metrics["chunk_sizes"]
    assert [row["error"] for row in rows] == [row["error"] for row in found.values()]


def test_another_chunk_is_another_export_and_a_given_sample_needs_no_corpus(
    debug_run, short, tmp_path
):
    out = tmp_path / "b"
    sample = ["--sample", short / "test_wavs" / "0.wav"]
    for flags, chunk_seconds, done in (
        (["--chunk", 16], 0.64, False),
        (["--chunk", 16], 0.64, True),
        ([], 0.32, False),
        (["--chunk", 8], 0.32, True),
        (["--chunk", 8, "--tail", 0.5], 0.32, False),
    ):
        status, told, err = export(debug_run, out, *flags, *sample)
        assert status == 0, err
        assert ("done already" in told) == done
        found = artifact.load(out)
        assert found.info["chunk_seconds"] == chunk_seconds
        assert found.metrics["chunk_sizes"] == []
        assert "## Chunk sizes" not in (out / "README.md").read_text()


def test_a_compressed_net_is_exported_at_another_chunk(debug_run, tmp_path):
    small = ["--passes", "int8", "--set", "num_calibration=8", "--out", tmp_path / "net"]
    status, _, err = debug_run.todm("compress", debug_run.subnet, *small)
    assert status == 0, err
    status, _, err = export(debug_run, tmp_path / "b", "--chunk", 16, model=tmp_path / "net")
    assert status == 0, err
    assert open_bundle(tmp_path / "b").info["chunk_seconds"] == 0.64
    card = (tmp_path / "b" / "README.md").read_text()
    assert "layers: int8" in card
    assert "| **640 ms** | **" in card


@pytest.mark.parametrize("target", ["onnx", "sherpa-onnx", "web", "executorch"])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--chunk", 5], "--chunk is 5: the net was trained with chunks of 4, 8 and 16 frames"),
        (["--chunk", 0], "--chunk is 0: the net was trained with chunks of 4, 8 and 16 frames"),
        (["--tail", 0.1], "--tail is 0.1: 0.36 to 10 seconds"),
        (["--chunk", 16, "--tail", 0.5], "--tail is 0.5: 0.68 to 10 seconds"),
        (["--tail", 10.5], "--tail is 10.5: 0.36 to 10 seconds"),
    ],
    ids=["chunk", "whole", "tail", "tail of chunk", "long tail"],
)
def test_a_chunk_that_was_not_trained_and_a_tail_that_loses_words_are_refused(
    debug_run, tmp_path, target, flags, words
):
    place = ["--target", target, "--out", tmp_path / "b"]
    status, out, err = debug_run.todm("export", debug_run.subnet, *place, *flags)
    assert (status, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_latency_of_a_bundle_by_the_words_of_its_corpus(debug_run, short, tmp_path, monkeypatch):
    """A net that says each word in the chunk in which it ends, so that delays are known."""
    spoken = {}

    def decode(bundle, utterances, **_):
        from todm.asr.decode.word_ends import manifest_ends

        found = []
        for u in utterances:
            ends = spoken[u.id] = [end for _, end in manifest_ends(u.cut)]
            found.append(
                Decoded(
                    id=u.id,
                    reference=u.text,
                    hypothesis=u.text,
                    symbols=tuple(f"\u2581{word}" for word in u.text.split()),
                    frames=tuple(int(end / 0.04) for end in ends),
                )
            )
        return found

    monkeypatch.setattr("todm.asr.decode.evaluate.decode_bundle", decode)
    flags = ["--latency", "--out", tmp_path]
    status, out, err = debug_run.todm("evaluate", short, debug_run.corpus, *flags)
    assert status == 0, err
    assert "final text, s" in out
    found = json.loads((tmp_path / "figures.json").read_text())["results"]["fp32"]["latency"]
    assert found["words"]["num"] == found["words"]["of"] == sum(map(len, spoken.values()))
    timed = [name for name, ends in spoken.items() if ends]  # unseen voices say no times
    assert found["last"]["num"] == found["final"]["num"] == len(timed) > 0
    assert 0 <= found["last"]["p50"] <= found["last"]["p90"] <= 0.16
    # The pause is over 0.6 s later, or the input ends a tail after it.
    assert found["last"]["p50"] < found["final"]["p50"] <= 0.6 + 0.32
    status, out, _ = debug_run.todm("evaluate", short, debug_run.corpus, *flags)
    assert "done already" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-lost", 0.9], "--max-lost is 0.9: a share of the commands from 0 to 0.5"),
        (["--max-lost", -1], "--max-lost is -1"),
        (["--max-lost", 0.1, "--target", "executorch"], "--max-lost is for bundles"),
    ],
)
def test_a_share_of_lost_commands_that_cannot_be(debug_run, tmp_path, flags, message):
    status, _, err = debug_run.todm("export", debug_run.subnet, "--out", tmp_path / "b", *flags)
    assert status == 2
    assert message in err
    assert not (tmp_path / "b").exists()
