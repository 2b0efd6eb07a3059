"""A streamed model: what is in memory at any time, and that results are those of one in memory."""

import sys
from pathlib import Path

import pytest
import torch

from todm.compress.config import AwqConfig, CompressConfig, Int8Config, PruneConfig
from todm.compress.driver import compress

pytest.importorskip("transformers")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
IDS = torch.arange(38).view(2, 19)


def _file_places():
    """Address ranges that are mapped from files."""
    places = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and parts[5].startswith("/"):
            low, high = (int(p, 16) for p in parts[0].split("-"))
            places.append((low, high))
    return places


def _live_bytes(model):
    """Of parameters and buffers that lie in memory of their own."""
    places, seen, total = _file_places(), set(), 0
    for tensor in [*model.parameters(), *model.buffers()]:
        start = tensor.data_ptr()
        if tensor.numel() and start not in seen and not any(a <= start < b for a, b in places):
            seen.add(start)
            total += tensor.nbytes
    return total


def _bytes(module):
    return sum(p.nbytes for p in module.parameters())


@pytest.mark.parametrize(
    "config",
    [
        {"passes": ("awq",), "awq": AwqConfig(group=32, grid=4)},
        {
            "passes": ("prune", "int8"),
            "prune": PruneConfig(method="wanda"),
            "int8": Int8Config(),
        },
        {"passes": ("prune",)},
    ],
    ids=["awq", "prune+int8", "prune"],
)
def test_one_block_at_a_time_is_in_memory(adapter, tmp_path, config):
    settings = CompressConfig(num_calibration=8, **config)
    whole = adapter("llama_gqa")
    block, outside = _bytes(whole.model.model.layers[0]), _bytes(whole.model.model.embed_tokens)
    outside += _bytes(whole.model.lm_head) + _bytes(whole.model.model.norm)
    small = 1024  # rotary frequencies
    compress(whole, settings)
    streamed = adapter("llama_gqa", streamed=True, scratch=tmp_path)
    assert _live_bytes(streamed.model) <= small
    peaks = []
    for inner in streamed.model.model.layers:
        inner.register_forward_hook(lambda *_: peaks.append(_live_bytes(streamed.model)))
    compress(streamed, settings)
    assert peaks
    assert max(peaks) <= block + small  # what lies outside the blocks has left by then
    assert max(peaks) > block / 8
    assert _live_bytes(streamed.model) <= small
    got = streamed.run(streamed.model, IDS)
    assert max(peaks) <= block + outside + small
    torch.testing.assert_close(got, whole.run(whole.model, IDS), rtol=1e-5, atol=1e-5)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, streamed.model.state_dict()[name]), name


def test_changes_survive_and_old_files_go(adapter, tmp_path):
    found = adapter("llama_gqa", streamed=True, scratch=tmp_path)
    layer = found.model.model.layers[1].mlp.up_proj
    for value in (2.0, 3.0):
        with found.resident("model.layers.1"), torch.no_grad():
            assert _live_bytes(found.model) > 1024
            layer.weight.fill_(value)
        assert _live_bytes(found.model) <= 1024
        assert bool((layer.weight == value).all())
    (directory,) = tmp_path.iterdir()
    assert len(list(directory.iterdir())) == 1


def test_a_forward_pass_that_ends_early_leaves_nothing_in_memory(adapter):
    found = adapter("llama_gqa", streamed=True)

    def stop(_module, _args):
        raise KeyError

    found.model.model.layers[1].register_forward_pre_hook(stop)
    with pytest.raises(KeyError):
        found.run(found.model, IDS)
    assert _live_bytes(found.model) <= 1024


def test_a_streamed_model_of_half_precision_is_computed_in_float32(directories, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    from todm.llm.adapter import LlmAdapter
    from todm.llm.importing import import_checkpoint

    place = shutil.copytree(directories("llama"), tmp_path / "half")
    file = place / "model.safetensors"
    save_file({n: t.half() for n, t in load_file(file).items()}, file)
    made = import_checkpoint(place, tmp_path / "out")
    whole = LlmAdapter.load(made)
    streamed = LlmAdapter.load(made, streamed=True, scratch=tmp_path)
    assert torch.equal(streamed.run(streamed.model, IDS), whole.run(whole.model, IDS))
    assert streamed.model.model.norm.weight.dtype == torch.float16
