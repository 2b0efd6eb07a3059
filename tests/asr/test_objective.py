import pytest
import torch

from todm.asr.data import Batch
from todm.asr.encoder import EncoderConfig
from todm.asr.model import Rnnt, RnntConfig, extract
from todm.asr.objective import ObjectiveConfig, RnntObjective, TrainingBatch, flat_alignment
from todm.errors import ConfigError
from todm.kernels.rnnt_loss import rnnt_loss
from todm.supernet.space import SearchSpace, SpaceConfig

SPACE = SearchSpace(SpaceConfig(depths=(2, 3), widths={"ffn": (16, 32), "pairs": (1, 2)}))
KINDS = ("alpha", "kl", "collapsed")


@pytest.fixture
def model():
    sizes = EncoderConfig(d_model=32, state=4, dropout=0.0).narrow(SPACE.largest)
    return Rnnt(RnntConfig(vocab_size=11, joiner_dim=16, encoder=sizes))


@pytest.fixture
def step():
    lens = torch.tensor([96, 61, 80])
    batch = Batch(
        features_BTF=torch.randn(3, 96, 80),
        feature_lens_B=lens,
        targets_BU=torch.tensor([[3, 4, 5], [6, 0, 0], [7, 7, 0]]),
        target_lens_B=torch.tensor([3, 1, 2]),
        ids=["a", "b", "c"],
        texts=["", "", ""],
    )
    return TrainingBatch(batch, chunk=8, num_labels=6.0)


def _objective(model, **config):
    return RnntObjective(model, ObjectiveConfig(**config), label_sizes=[1] * 11)


def _passes(model, step, *, progress, students=(SPACE.smallest,), **config):
    """Figures of the largest net and of students, and what the largest left for them."""
    objective = _objective(model, **config)
    first, told = objective(step, subnet=SPACE.largest, teacher=None, progress=progress)
    rest = [objective(step, subnet=s, teacher=told, progress=progress)[0] for s in students]
    return first, rest, told


@pytest.mark.parametrize("topology", ["standard", "one_symbol"])
def test_the_loss_is_the_ops_and_ctc_per_label(model, step, topology):
    out, _, _ = _passes(model, step, progress=0.0, topology=topology)
    batch = step.batch
    enc, lens = model.encode(batch.features_BTF, batch.feature_lens_B, chunk=8)
    args = (
        model.project_encoder(enc), model.predict_sequence(batch.targets_BU), model.output.weight,
        model.output.bias, batch.targets_BU, lens, batch.target_lens_B,
    )  # fmt: skip
    rnnt = rnnt_loss(*args, topology=topology, impl="reference").loss_B.sum() / 6
    ctc = torch.nn.functional.ctc_loss(
        model.ctc(enc).log_softmax(-1).transpose(0, 1),
        batch.targets_BU, lens, batch.target_lens_B, reduction="sum",
    ) / 6  # fmt: skip
    torch.testing.assert_close(out["rnnt"], rnnt.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["ctc"], ctc.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["loss"], rnnt + ctc, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("progress", "ctc", "distill"),
    [
        (0.0, 1.0, 0.0), (0.15, 0.6, 0.0), (0.3, 0.2, 0.0),
        (0.35, 0.2, 1.5), (0.4, 0.2, 3.0), (1.0, 0.2, 3.0),
    ],
)  # fmt: skip
def test_weights_follow_their_ramps(model, step, progress, ctc, distill):
    first, (student,), _ = _passes(model, step, progress=progress, distill_weight=3.0)
    want = first["rnnt"] + ctc * first["ctc"]
    assert first["loss"].item() == pytest.approx(want.item(), rel=1e-5)
    assert "divergence" not in first
    assert ("divergence" in student) == (distill > 0)
    parts = student["rnnt"] + ctc * student["ctc"] + distill * student.get("divergence", 0)
    assert student["loss"].item() == pytest.approx(parts.item(), rel=1e-5)


@pytest.mark.parametrize("topology", ["standard", "one_symbol"])
@pytest.mark.parametrize("kind", KINDS)
def test_students_learn_from_every_kind_of_distillation(model, step, kind, topology):
    model.ctc = None
    _, (student,), _ = _passes(
        model, step, progress=1.0, distill=kind, topology=topology, student_rnnt=False
    )
    assert student["divergence"] > 0
    model.zero_grad()
    student["loss"].backward()
    used = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(g).all() for g in used.values())
    for name in ("encoder.blocks.0.up.weight", "project.weight", "output.weight", "predictor.taps"):
        assert (used[name] != 0).any()
    assert not any(n.startswith("encoder.blocks.1.") for n in used)


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_itself_has_no_divergence(model, step, kind):
    _, (same,), _ = _passes(model, step, progress=1.0, distill=kind, students=[SPACE.largest])
    assert same["divergence"].item() == pytest.approx(0, abs=1e-5)


def test_the_teacher_is_left_alone(model, step):
    _, _, told = _passes(model, step, progress=1.0)
    assert not any(t.requires_grad for t in told.joiner)


def test_without_distillation_students_have_the_plain_loss(model, step):
    _, (student,), _ = _passes(model, step, progress=1.0, distill="none")
    assert set(student) == {"loss", "rnnt", "ctc"}


def test_before_distillation_a_student_without_rnnt_loss_has_ctc_alone(model, step):
    _, (student,), _ = _passes(model, step, progress=0.0, student_rnnt=False)
    assert student["loss"].item() == pytest.approx(student["ctc"].item(), rel=1e-6)


def test_twice_the_labels_halve_the_loss(model, step):
    once, _, _ = _passes(model, step, progress=0.0)
    twice, _, _ = _passes(model, TrainingBatch(step.batch, 8, 12.0), progress=0.0)
    for name in ("loss", "rnnt", "ctc"):
        torch.testing.assert_close(twice[name], once[name] / 2)


def test_the_chunk_is_the_steps(model, step):
    losses = [_passes(model, TrainingBatch(step.batch, c, 6.0), progress=0.0)[0] for c in (8, 0)]
    assert losses[0]["rnnt"] != losses[1]["rnnt"]


def test_the_ctc_head_stays_behind(model, step):
    plain = extract(model, SPACE.smallest)
    out, _ = _objective(plain)(step, subnet=None, teacher=None, progress=0.0)
    assert set(out) == {"loss", "rnnt"}
    assert not any("ctc" in name for name, _ in plain.named_parameters())


def test_figures_are_detached_but_for_the_loss(model, step):
    first, _, _ = _passes(model, step, progress=0.0)
    assert {name for name, value in first.items() if value.requires_grad} == {"loss"}


def test_torchaudios_loss_trains_a_plain_model(model, step):
    pytest.importorskip("torchaudio")
    config = {"rnnt_impl": "torchaudio", "topology": "standard", "distill": "none"}
    out, _, _ = _passes(model, step, progress=1.0, **config)
    out["loss"].backward()
    assert model.project.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    "settings",
    [{}, {"topology": "standard"}, {"topology": "standard", "distill": "none", "fastemit": 0.01}],
    ids=["one_symbol", "distillation", "fastemit"],
)
def test_what_torchaudio_cannot_do_is_said_before_training(settings):
    with pytest.raises(ConfigError, match="torchaudio"):
        ObjectiveConfig(rnnt_impl="torchaudio", **settings)


def test_a_batch_goes_to_a_device(step):
    there = step.to(torch.device("meta"))
    assert there.batch.features_BTF.device.type == "meta"
    assert (there.chunk, there.num_labels, there.ids) == (8, 6.0, ["a", "b", "c"])


def _speech(lens, loud, targets):
    """A batch of quiet frames with a loud part each, as (first, last + 1)."""
    features = torch.full((len(lens), max(lens), 80), -12.0) + 0.1 * torch.randn(1, max(lens), 80)
    for row, (first, end) in zip(features, loud, strict=True):
        row[first:end] += 8
    width = max(map(len, targets))
    return Batch(
        features_BTF=features,
        feature_lens_B=torch.tensor(lens),
        targets_BU=torch.tensor([t + [0] * (width - len(t)) for t in targets]),
        target_lens_B=torch.tensor([len(t) for t in targets]),
        ids=["x"] * len(lens),
        texts=[""] * len(lens),
    )


def test_a_flat_start_lays_labels_over_the_loud_part():
    """In proportion to their letters: label 3 has one, label 4 three. Blanks around, -1 behind."""
    batch = _speech([80, 48], [(16, 48), (0, 32)], [[3, 4], [4]])
    sizes = torch.tensor([1, 1, 1, 1, 3])
    found = flat_alignment(batch, sizes, 20)
    assert found[0].tolist() == [0] * 4 + [3] * 2 + [4] * 6 + [0] * 8
    assert found[1].tolist() == [4] * 8 + [0] * 4 + [-1] * 8


def test_a_flat_start_survives_silence():
    batch = _speech([40, 40], [(0, 0), (0, 40)], [[3, 4], [3]])
    found = flat_alignment(batch, torch.ones(5, dtype=torch.int64), 10)
    assert set(found.flatten().tolist()) <= {-1, 0, 3, 4}


def test_the_flat_start_teaches_encoder_and_ctc_head_and_ends(model, step):
    early, (student,), told = _passes(model, step, progress=0.05, align_until=0.1)
    assert told is None
    assert set(early) == set(student) == {"loss", "flat_start"}
    early["loss"].backward()
    grads = {n.partition(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert grads == {"encoder", "ctc"}
    late, _, _ = _passes(model, step, progress=0.1, align_until=0.1)
    assert set(late) == {"loss", "rnnt", "ctc"}


def test_a_plain_model_has_no_flat_start(model, step):
    model.ctc = None
    out, _, _ = _passes(model, step, progress=0.0, align_until=1.0)
    assert set(out) == {"loss", "rnnt"}
