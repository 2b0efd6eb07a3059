"""What users do with sherpa-onnx beside greedy search, on a bundle, in every form."""

import itertools
import shutil

import pytest

from todm.device.audio import read_audio
from todm.device.bundle import Bundle, graph_files, open_bundle
from todm.device.recognizer import OfflineRecognizer, StreamingRecognizer, pad_tail
from todm.export import sherpa
from todm.export.offline import wrap_in_scan
from todm.export.quantize import quantize_blocks
from todm.export.verify import three_streams

pytestmark = pytest.mark.runtime
FORMS = ["fp32", "int8", "int8.rr", "int8.block", "int4"]


@pytest.fixture(scope="module")
def bundle(toy_bundle, tmp_path_factory):
    """The toy with the blockwise forms beside the others."""
    folder = tmp_path_factory.mktemp("forms") / "bundle"
    shutil.copytree(toy_bundle, folder)
    for precision, bits in (("int8.block", 8), ("int4", 4)):
        name = f"encoder.{precision}.onnx"
        quantize_blocks(folder / "encoder.onnx", folder / name, bits=bits)
        wrap_in_scan(folder / name, folder / "offline" / name, tail_frames=68)
    return Bundle(path=folder, info=open_bundle(toy_bundle).info)


@pytest.fixture(scope="module")
def speech(toy_bundle):
    return read_audio(toy_bundle / "test_wavs" / "0.wav")


def _files(bundle, precision):
    found = {key: str(bundle.path / name) for key, name in graph_files(precision).items()}
    return {**found, "tokens": str(bundle.path / "tokens.txt"), "num_threads": 1}


def _recognizer(bundle, precision, **options):
    import sherpa_onnx

    return sherpa_onnx.OnlineRecognizer.from_transducer(
        **_files(bundle, precision), model_type="lstm", **options
    )


def _decode(recognizer, stream, samples_S):
    stream.accept_waveform(16_000, samples_S)
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)


@pytest.mark.parametrize("precision", FORMS)
def test_tokens_and_timestamps_are_those_of_the_device(bundle, speech, precision, skip_elsewhere):
    skip_elsewhere(precision)
    ours = StreamingRecognizer(bundle, precision=precision).transcribe(speech)
    recognizer = sherpa.online(bundle, precision)
    theirs = sherpa.decode_online(recognizer, [pad_tail(speech, bundle.tail_seconds)])[0]
    assert len(ours.tokens) > 10
    assert ours.tokens == theirs.tokens
    assert ours.timestamps == pytest.approx(theirs.timestamps, abs=1e-3)


@pytest.mark.parametrize("precision", FORMS)
def test_offline_tokens_are_those_of_the_device(bundle, speech, precision, skip_elsewhere):
    skip_elsewhere(precision)
    ours = OfflineRecognizer(bundle, precision=precision).transcribe(speech)
    theirs = sherpa.decode_offline(sherpa.offline(bundle, precision), [speech])[0]
    assert len(ours.tokens) > 10
    assert ours.tokens == theirs.tokens


@pytest.mark.parametrize("precision", FORMS)
def test_offline_batch(bundle, speech, precision):
    recordings = three_streams(speech)
    found = sherpa.decode_offline(sherpa.offline(bundle, precision), recordings)
    assert all(len(t.tokens) > 3 for t in found)


@pytest.mark.parametrize("precision", FORMS)
def test_beam_of_one_is_greedy_and_more_is_no_less_likely(
    bundle, speech, precision, skip_elsewhere
):
    skip_elsewhere(precision)
    padded = pad_tail(speech, bundle.tail_seconds)
    found = {}
    for beam in (1, 4):
        recognizer = _recognizer(
            bundle, precision, decoding_method="modified_beam_search", max_active_paths=beam
        )
        found[beam] = sherpa.decode_online(recognizer, [padded])[0].tokens
    assert found[1] == sherpa.decode_online(sherpa.online(bundle, precision), [padded])[0].tokens
    ours = StreamingRecognizer(bundle, precision=precision, beam=4).transcribe(speech)
    assert found[4] == ours.tokens


@pytest.mark.parametrize("precision", FORMS)
def test_hotwords_bend_the_search(bundle, speech, tmp_path, precision):
    padded = pad_tail(speech, bundle.tail_seconds)
    (tmp_path / "hotwords.txt").write_text(
        "c c c :8\n"
    )  # a piece of bpe.vocab that is likely anyway

    def decoded(**options):
        recognizer = _recognizer(
            bundle,
            precision,
            decoding_method="modified_beam_search",
            modeling_unit="bpe",
            bpe_vocab=str(bundle.path / "bpe.vocab"),
            **options,
        )
        return "".join(sherpa.decode_online(recognizer, [padded])[0].tokens)

    bent = decoded(hotwords_file=str(tmp_path / "hotwords.txt"))
    assert bent.count("▁c▁c▁c") > decoded().count("▁c▁c▁c")


@pytest.mark.parametrize("precision", FORMS)
def test_endpoint_and_reset(bundle, speech, precision):
    recognizer = _recognizer(
        bundle,
        precision,
        enable_endpoint_detection=True,
        rule1_min_trailing_silence=100.0,
        rule2_min_trailing_silence=100.0,
        rule3_min_utterance_length=1.5,
    )
    stream = recognizer.create_stream()
    _decode(recognizer, stream, speech[:16_000])
    assert not recognizer.is_endpoint(stream)
    _decode(recognizer, stream, speech[16_000:40_000])
    assert recognizer.is_endpoint(stream)
    assert recognizer.get_result(stream)
    recognizer.reset(stream)
    assert not recognizer.get_result(stream)
    _decode(recognizer, stream, speech[:24_000])
    assert recognizer.get_result(stream)


@pytest.mark.parametrize("precision", FORMS)
def test_keywords_are_spotted(bundle, speech, tmp_path, precision, skip_elsewhere):
    skip_elsewhere(precision)
    import sherpa_onnx

    spoken = StreamingRecognizer(bundle, precision=precision).transcribe(speech).tokens
    pair = next((a, b) for a, b in itertools.pairwise(spoken) if a != b)
    absent = "▁t" if "▁t" not in spoken else "▁u"
    lines = [f"{pair[0]} {pair[1]} @there", f"{absent} {absent} {absent} #0.9 @never"]
    (tmp_path / "keywords.txt").write_text("\n".join(lines) + "\n")
    spotter = sherpa_onnx.KeywordSpotter(
        **_files(bundle, precision),
        keywords_file=str(tmp_path / "keywords.txt"),
        keywords_score=2.0,
        keywords_threshold=0.02,
        num_trailing_blanks=0,
    )
    stream, heard = spotter.create_stream(), set()
    stream.accept_waveform(16_000, pad_tail(speech, bundle.tail_seconds))
    stream.input_finished()
    while spotter.is_ready(stream):
        spotter.decode_stream(stream)
        if found := spotter.get_result(stream):
            heard.add(found)
            spotter.reset_stream(stream)
    assert heard == {"there"}
