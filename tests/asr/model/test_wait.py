"""A wait in the whole encoder, against an encoder that really hears it.

Letters: B batch, T frames, H heads, N modes, P channels of a head.
"""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from todm.asr.model.encoder import Encoder
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.mixer import Mixer
from todm.asr.model.recurrence import Recurrence
from todm.asr.model.streaming import StreamingEncoder
from todm.asr.model.transducer import Rnnt, RnntConfig, extract
from todm.asr.model.wait import Wait, loop_frames
from todm.errors import ConfigError
from todm.kernels.mh_ssm import mh_ssm
from todm.supernet.space import Subnet

SMALL = EncoderConfig(
    d_model=32, ffn=(32, 64, 32), pairs=(1, 3, 2), head_channels=16, state=4, dropout=0.0
)
# Settled after 40 loops of 8 frames, through all recurrences: a time constant is 10 frames.
FORGETS = SMALL.replace(memory_seconds=0.4)
MANY = 40
SUBNETS = {
    "all": None,
    "fewer": Subnet(blocks=(0, 2), widths=(("ffn", (16, 32)), ("pairs", (1, 1)))),
}
LENS = torch.tensor([230, 128, 177])


def _encoder(config=FORGETS):
    encoder = Encoder(config).double().eval()
    with torch.no_grad():
        encoder.subsampling.mean.uniform_(-8, -4)
        encoder.subsampling.scale.uniform_(0.2, 0.5)
        for name, p in encoder.named_parameters():
            if name.endswith(("log_neg_re", "im")):
                p += 0.3 * torch.randn_like(p)
    return encoder


def _features():
    return torch.randn(len(LENS), int(LENS.max()), 80).double() * 3 - 6


def _heard(encoder, features_BTF, loop, times, **options):
    """Outputs [T, D] of each sequence after really hearing its first `loop` frames so many times."""
    outs = []
    for row, length, num in zip(features_BTF, LENS.tolist(), times, strict=True):
        before = row[: 4 * loop].repeat(num, 1)
        whole = torch.cat([before, row[:length]])[None]
        out, lens = encoder(whole, torch.tensor([whole.shape[1]]), **options)
        outs.append(out[0, num * loop : int(lens)])
    return outs


@pytest.mark.parametrize("subnet", SUBNETS)
@pytest.mark.parametrize(
    ("lookahead", "context"), [("chunk", 8), ("chunk", 4), ("none", 7)], ids=str
)
@pytest.mark.parametrize("chunk", [4, 8, 16])
@torch.no_grad()
def test_a_long_wait_is_as_if_heard(chunk, lookahead, context, subnet):
    """New streams and waits in one batch, of unequal lengths."""
    encoder = _encoder(FORGETS.replace(lookahead=lookahead, context=context))
    features, loop, times = _features(), loop_frames(chunk), (MANY, 0, 3 * MANY)
    options = {"chunk": chunk, "subnet": SUBNETS[subnet]}
    want = _heard(encoder, features, loop, times, **options)
    features[1, 128:] = math.nan  # beyond the end
    got, lens = encoder(features, LENS, wait=Wait(loop, torch.tensor(times)), **options)
    new, _ = encoder(features, LENS, **options)
    for row, alone, length in zip(got, want, lens, strict=True):
        torch.testing.assert_close(row[:length], alone, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(got[1, :32], new[1, :32])
    assert (got[0] - new[0])[:loop].abs().max() > 0.1


def test_gradients_of_a_long_wait_are_those_of_hearing_it():
    encoder, features, times = _encoder(), _features(), (MANY, 0, 2 * MANY)
    found = []
    for heard in (True, False):
        encoder.zero_grad()
        leaf = features.clone().requires_grad_()
        if heard:
            outs = _heard(encoder, leaf, 8, times, chunk=8)
        else:
            out, lens = encoder(leaf, LENS, chunk=8, wait=Wait(8, torch.tensor(times)))
            outs = [row[:n] for row, n in zip(out, lens, strict=True)]
        torch.cat(outs).sin().sum().backward()
        found.append([leaf.grad, *(p.grad for p in encoder.parameters())])
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, atol=1e-7, rtol=1e-6)


@torch.no_grad()
def test_a_few_loops_are_exact_in_the_first_recurrence(monkeypatch):
    """The others are given the state after loops of their present input, for any number of loops."""

    def by_repeating(self, h_HTBP):
        rows = []
        for row, num in enumerate(wait.times_B.tolist() if self.loop else []):
            alone = h_HTBP[:, : self.loop_frames, row : row + 1]
            state = mh_ssm(alone.repeat(1, max(num, 1), 1, 1), self.ssm, impl="reference")[1]
            rows.append(state * (num > 0))
        state = torch.cat(rows, 2) if rows else None
        options = {"reverse": self.reverse, "reset": self.reset, "impl": "reference"}
        return mh_ssm(h_HTBP, self.ssm, state_H2NBP=state, **options)[0]

    encoder, features, wait = _encoder(SMALL), _features(), Wait(8, torch.tensor([1, 0, 3]))
    got, _ = encoder(features, LENS, chunk=8, wait=wait)
    monkeypatch.setattr(Recurrence, "run", by_repeating)
    want, _ = encoder(features, LENS, chunk=8, wait=wait)
    torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_the_look_back_of_a_waiting_stream_is_the_end_of_its_loop():
    x_BTF, start_BTF = torch.randn(3, 100, 80), torch.zeros(3, 3, 80)
    got = Wait(8, torch.tensor([0, 1, 9])).history(x_BTF, start_BTF, 4)
    assert torch.equal(got, torch.cat([start_BTF[:1], x_BTF[1:, 29:32]]))
    assert Wait(8, torch.tensor([0, 1, 9])).history(x_BTF, start_BTF[:, :0], 4).shape == (3, 0, 80)


def _model(**changes):
    model = Rnnt(RnntConfig(vocab_size=9, joiner_dim=16, encoder=FORGETS.replace(**changes)))
    model.eval()
    with torch.no_grad():
        for block in model.encoder.blocks:  # slow beyond the bound, and fast
            block.mixer.log_neg_re.uniform_(-12, 1)
    return model


@pytest.mark.parametrize("chunk", [8, 16])
@torch.no_grad()
def test_an_extracted_net_waits_as_the_supernet_and_as_its_stream(chunk):
    model, features, subnet = _model(), _features().float(), SUBNETS["fewer"]
    lens, wait = torch.full((3,), 192), Wait(loop_frames(chunk), torch.tensor([MANY] * 3))
    features = features[:, :192]
    plain = extract(model, subnet)
    want, _ = model.encode(features, lens, subnet=subnet, chunk=chunk, wait=wait)
    got, _ = plain.encode(features, lens, chunk=chunk, wait=wait)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    stream, outs = StreamingEncoder(plain, chunk), []
    states = [torch.zeros(1, 3, size) for size in stream.state_sizes]
    loop = features[:, : 4 * wait.frames]
    for part in torch.cat([loop] * MANY + [features], 1).split(stream.num_frames, 1):
        out, *states = stream(part, *states)
        outs.append(out)
    heard = torch.cat(outs, 1)[:, MANY * wait.frames :]
    torch.testing.assert_close(model.project_encoder(want), heard, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seconds", [0.1, 4.0, 60.0])
@torch.no_grad()
def test_no_mode_remembers_longer_whatever_the_parameters_are(seconds):
    mixer = Mixer(SMALL.replace(memory_seconds=seconds), 3)
    for p in (mixer.log_dt, mixer.log_neg_re):
        p.uniform_(-12, 3)
    for ssm in (ssm for stage in mixer.ssms() for ssm in stage):
        assert ssm.log_decay_HN.max() <= -(1 - 1e-5) / (25 * seconds)
        assert all(p.isfinite().all() for p in ssm)


def test_the_bound_takes_the_gradient_of_what_it_binds():
    mixer = Mixer(SMALL.replace(memory_seconds=1.0), 3)
    with torch.no_grad():
        mixer.log_dt.fill_(math.log(0.1))  # a bound of log(0.4)
        mixer.log_neg_re.uniform_(-3, 2)
    free = mixer.log_neg_re > math.log(0.4)
    loss = torch.stack([p.sin().sum() for stage in mixer.ssms() for s in stage for p in s[:4]])
    loss.sum().backward()
    assert ((mixer.log_neg_re.grad != 0) == free).all()
    assert 0 < free.sum() < free.numel()
    assert (mixer.log_dt.grad != 0).all()


def test_without_a_bound_decays_are_the_parameters():
    mixer = Mixer(SMALL.replace(memory_seconds=None), 3)
    with torch.no_grad():
        mixer.log_neg_re.uniform_(-20, 1)
    for stage, ssms in enumerate(mixer.ssms()):
        for direction, ssm in enumerate(ssms):
            rate = mixer.log_neg_re[stage, direction] + mixer.log_dt[stage, direction, :, None]
            torch.testing.assert_close(ssm.log_decay_HN, -rate.exp())
    sum(ssm.log_decay_HN.sum() for stage in mixer.ssms() for ssm in stage).backward()
    assert mixer.log_dt.grad.isfinite().all()
    assert (mixer.log_neg_re.grad != 0).all()


def test_a_wait_asks_the_device_nothing():
    """Tensors without data: whoever reads a number of one, and so waits for a GPU, fails."""
    with FakeTensorMode():
        encoder = Encoder(SMALL)
        wait = Wait(8, torch.zeros(2, dtype=torch.int64))
        lens = torch.zeros(2, dtype=torch.int64)
        out, _ = encoder(torch.randn(2, 128, 80), lens, chunk=8, wait=wait)
        out.sum().backward()
    assert out.shape == (2, 32, 32)


def test_a_wait_in_mixed_precision_is_nearly_as_in_single():
    """States stay float32; what autocast rounds is the matmuls' input."""
    encoder, features = _encoder(SMALL).float().train(), _features().float()
    wait, outs = Wait(8, torch.tensor([0, 3, 11_250])), []
    for enabled in (False, True):
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out, _ = encoder(features, LENS, chunk=8, wait=wait)
        out.float().square().mean().backward()
        outs.append(out.float())
        assert all(p.grad.isfinite().all() for p in encoder.parameters())
    inside = torch.arange(outs[0].shape[1]) < LENS[:, None] // 4
    want, got = (out[inside] for out in outs)
    assert (got - want).norm() < 0.05 * want.norm()


@pytest.mark.parametrize(("frames", "chunk"), [(8, 0), (12, 8)], ids=["offline", "not whole"])
def test_a_wait_is_whole_chunks(frames, chunk):
    with pytest.raises(AssertionError, match="whole chunks"):
        _encoder()(_features(), LENS, chunk=chunk, wait=Wait(frames, torch.tensor([1, 1, 1])))


@pytest.mark.parametrize(
    ("chunk", "frames"), [(0, 0), (1, 8), (4, 8), (7, 14), (8, 8), (16, 16), (32, 32)]
)
def test_a_loop_is_whole_chunks_and_long_enough(chunk, frames):
    assert loop_frames(chunk) == frames


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory_seconds": 0.0}, r"encoder.memory_seconds is 0.0: more than 0, or null"),
        ({"memory_seconds": -1.0}, r"encoder.memory_seconds is -1.0"),
        ({"step_range": (0.1, 0.01)}, r"encoder step range \[0.1, 0.01\]: positive, the lower"),
        ({"step_range": (0.0, 0.01)}, r"encoder step range \[0.0, 0.01\]"),
        ({"backward_step_range": (0.1, 0.01)}, r"encoder step range \[0.1, 0.01\]"),
    ],
    ids=["none", "negative", "the wrong way", "zero", "backward"],
)
def test_time_scales_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        SMALL.replace(**changes)
