"""N:M masks learnt in training: evaluated and written weights are masked, and resuming is exact."""

import copy
import json

import pytest
import torch

from todm import artifact
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.transducer import Rnnt, RnntConfig, extract
from todm.compress.masks import is_nm
from todm.compress.train.sr_ste import SrSte, SrSteConfig
from todm.errors import ConfigError
from todm.supernet.space import SearchSpace, SpaceConfig
from todm.train import loop
from todm.train.checkpoint import read_latest
from todm.train.loop import CHECKPOINTS, SUPERNET
from todm.train.monitor import CURVES, METRICS, plot_curves, read_metrics

SPARSE = SrSteConfig(n=2, m=4, decay=1e-2, refresh=2, freeze=0.25, layers=("layers.*",))
MEASURED = ("seconds", "time", "audio_hours_per_hour", "audio_hours_per_hour_per_process")


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    monkeypatch.setattr(loop, "plot_curves", lambda metrics, out: None)


@pytest.fixture(scope="module")
def config(fake):
    return fake.CONFIG.replace(sparse=SPARSE)


@pytest.fixture(scope="module")
def straight(fake, config, tmp_path_factory):
    """A training that nothing interrupted."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("sparse")
    fake.run(out, config=config)
    return out


def _rows(out):
    rows = [r for r in read_metrics(out / METRICS) if r["kind"] != "event"]
    return [{k: v for k, v in r.items() if k not in MEASURED} for r in rows]


def _layers(tensors):
    return {k: v for k, v in tensors.items() if v.ndim > 1}


def _crash(at):
    def before(index):
        if index == at:
            raise InterruptedError

    return before


@pytest.mark.parametrize("name", ["scaled_adam", "adamw"])
@pytest.mark.parametrize("sandwich", [True, False])
def test_the_artifact_is_sparse_and_its_info_records_it(fake, config, tmp_path, name, sandwich):
    config = config.replace(sandwich=sandwich, optim=config.optim.replace(name=name))
    done = fake.run(tmp_path, config=config)
    for layer, weight in _layers(done.tensors()).items():
        assert is_nm(weight, 2, 4), layer
        assert weight.count_nonzero() == weight.numel() // 2
    assert done.info["sparse"] == {
        "n": 2,
        "m": 4,
        "density": 0.5,
        "layers": ["layers.0", "layers.1", "layers.2"],
    }


def test_the_average_is_masked(fake, straight):
    """The mean of dense weights times the last masks, which are those of the checkpoint."""
    state = read_latest(straight / CHECKPOINTS)
    done = artifact.load(straight / SUPERNET).tensors()
    assert state["average"]["n_averaged"] == 4
    for layer, mask in state["sparse"]["masks"].items():
        mean = state["average"][f"module.{layer}.weight"]
        assert torch.equal(done[f"{layer}.weight"], mean * mask)
        assert (mean[~mask] != 0).all()
        assert (state["model"][f"{layer}.weight"][~mask] != 0).all()  # dense ones go on


def test_evaluations_are_of_masked_weights(fake, config, tmp_path, monkeypatch):
    seen, evaluate = [], fake.FakeBackend.evaluate

    def watched(self, model, **options):
        seen.append(copy.deepcopy(model.state_dict()))
        return evaluate(self, model, **options)

    monkeypatch.setattr(fake.FakeBackend, "evaluate", watched)
    fake.run(tmp_path, config=config)
    assert len(seen) == 4 * 3
    for weights in seen:
        for layer, weight in _layers(weights).items():
            assert is_nm(weight, 2, 4), layer


def test_training_is_with_masked_weights_only(fake, config, tmp_path, monkeypatch):
    forward, begin = fake.Net.forward, 5
    counts = []

    def watched(self, x, subnet):
        counts.append(sum(int(layer.weight.count_nonzero()) for layer in self.layers))
        return forward(self, x, subnet)

    monkeypatch.setattr(fake.Net, "forward", watched)
    late = config.replace(sparse=SPARSE.replace(begin=begin / 20), eval_every=2.0)
    fake.run(tmp_path, config=late)
    assert counts[:begin] == [48] * begin
    assert set(counts[begin:]) == {24}


@pytest.mark.parametrize("at", [3, 9, 17])
def test_crashed_and_resumed_gives_the_same_result(fake, config, straight, tmp_path, at):
    with pytest.raises(InterruptedError):
        fake.run(tmp_path, fake.FakeBackend(_crash(at)), config=config)
    fake.run(tmp_path, config=config)
    want, got = (artifact.load(out / SUPERNET).tensors() for out in (straight, tmp_path))
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert _rows(tmp_path) == _rows(straight)


def test_flips_are_logged(straight):
    rows = _rows(straight)
    renewals = [r for r in rows if r["kind"] == "masks"]
    assert [r["update"] for r in renewals] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert set(renewals[0]["layers"]) == {"layers.0", "layers.1", "layers.2"}
    assert sum(f["sad"] for f in renewals[0]["layers"].values()) == 0
    for row in (r for r in rows if r["kind"] == "train"):
        last = [r for r in renewals if r["update"] <= row["update"]][-1]["layers"].values()
        assert row["flip_rate"] == pytest.approx(sum(f["sad"] for f in last) / 48)
        assert row["mask_drift"] == pytest.approx(sum(f["sad_first"] for f in last) / 48)


def test_a_training_without_masks_logs_none(fake, tmp_path):
    done = fake.run(tmp_path)
    assert "sparse" not in done.info
    assert not any("flip_rate" in r or r["kind"] == "masks" for r in _rows(tmp_path))


def test_the_picture_and_the_summary_show_them(fake, straight, tmp_path):
    plot_curves(straight / METRICS, straight / CURVES)
    size = (straight / CURVES).read_bytes()[16:24]
    assert int.from_bytes(size[4:], "big") == round(14.5 * 110)
    text = (straight / "summary.md").read_text()
    assert "2:4 in 3 layers, 50.0% of their weights kept. Masks were renewed 7 times;" in text


def test_layers_that_are_not_there_are_refused(fake, tmp_path):
    wrong = fake.CONFIG.replace(sparse=SPARSE.replace(layers=("encoder.*",)))
    with pytest.raises(ConfigError, match=r"'encoder.\*', which fits no linear layer"):
        fake.run(tmp_path, config=wrong)


def test_settings_are_set_from_the_command_line(fake):
    found = fake.CONFIG.override(["sparse.n=1", 'sparse.layers=["layers.0"]'])
    assert (found.sparse.n, found.sparse.m, found.sparse.layers) == (1, 4, ("layers.0",))
    assert type(found).from_json(json.loads(json.dumps(found.to_json()))) == found


SPACE = SearchSpace(SpaceConfig(depths=(2, 3, 4), widths={"ffn": (16, 32, 48), "pairs": (1, 2, 3)}))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_every_extracted_prefix_is_sparse_with_equal_outputs(n, m):
    """Of the speech supernet; its default layers are the matrices of the encoder's blocks."""
    encoder = EncoderConfig(d_model=32, state=2, dropout=0.0).narrow(SPACE.largest)
    model = Rnnt(RnntConfig(vocab_size=11, joiner_dim=16, encoder=encoder)).eval()
    sparse = SrSte.of(model, SrSteConfig(n=n, m=m), num_updates=9)
    inner = ("mixer.w_in", "mixer.w_out", "up", "down")
    assert sparse.layers == [f"encoder.blocks.{i}.{name}" for i in range(4) for name in inner]
    sparse.enter(0)
    sparse.finish()
    x, lens = torch.randn(2, 64, 80), torch.tensor([64, 40])
    mixed = SPACE.subnet(3, {"ffn": (16, 48, 32), "pairs": (1, 3, 2)})
    for subnet in (SPACE.largest, mixed, SPACE.smallest):
        plain = extract(model, subnet)
        for name, weight in plain.named_parameters():
            if name.startswith("encoder.blocks.") and weight.ndim == 2 and "mix_" not in name:
                assert is_nm(weight, n, m), name
                assert weight.count_nonzero() == weight.numel() * n // m
        with torch.no_grad():
            want = model.encode(x, lens, subnet=subnet)[0]
            torch.testing.assert_close(plain.encode(x, lens)[0], want, rtol=0, atol=1e-5)
