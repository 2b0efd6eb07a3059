"""The real encoder, predictor and joiner through the whole export."""

import numpy as np
import pytest
import torch

from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.streaming import Decoder, Joiner, StreamingEncoder
from todm.asr.model.transducer import Rnnt, RnntConfig
from todm.device.bundle import open_bundle
from todm.device.features import fbank
from todm.device.recognizer import OfflineRecognizer
from todm.export.bundle import ExportConfig, write_bundle
from todm.export.sample import Sample, sample_signal

CHUNK = 16


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    sizes = EncoderConfig(d_model=32, ffn=(64, 64), pairs=(2, 2), dropout=0.0)
    model = Rnnt(RnntConfig(vocab_size=24, joiner_dim=32, encoder=sizes, ctc=False)).eval()
    with torch.no_grad():
        model.output.weight.mul_(8)
    return model


@pytest.fixture(scope="module")
def bundle(model, build_graphs, write_assets, tmp_path_factory):
    encoder = StreamingEncoder(model, CHUNK).eval()
    graphs = build_graphs(
        encoder,
        Decoder(model),
        Joiner(model),
        state_sizes=encoder.state_sizes,
        vocab_size=24,
        joiner_dim=32,
    )
    path = tmp_path_factory.mktemp("speech") / "bundle"
    sample = Sample(samples_S=sample_signal(4.0))
    config = ExportConfig(precisions=("fp32", "int8"))
    write_bundle(path, graphs, write_assets=write_assets, config=config, sample=sample)
    return open_bundle(path)


@pytest.mark.slow
@pytest.mark.runtime
def test_exported_and_verified_in_sherpa(bundle):
    assert bundle.tail_seconds == 1.0
    assert bundle.precisions() == ("fp32", "int8")
    assert len(OfflineRecognizer(bundle).transcribe(sample_signal(4.0)).tokens) > 10


@pytest.mark.slow
def test_offline_graph_equals_the_chunked_training_form(bundle, model):
    """What training sees with chunk masks is what the device computes with carried states."""
    frames = fbank(sample_signal(3.2))[: 5 * 4 * CHUNK]
    lens = np.array([len(frames)], np.int64)
    session = bundle.session("offline/encoder.onnx")
    device = session.run(None, {"x": frames[None], "x_lens": lens})[0]
    with torch.inference_mode():
        encoded, _ = model.encode(
            torch.from_numpy(frames[None]), torch.from_numpy(lens), chunk=CHUNK
        )
        trained = model.project_encoder(encoded).numpy()
    np.testing.assert_allclose(device[:, : 5 * CHUNK], trained, atol=1e-4)
