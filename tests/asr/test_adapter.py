import copy
import itertools
import shutil
from fnmatch import fnmatchcase

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from todm import artifact
from todm.asr.adapter import AsrAdapter, adapter_of
from todm.asr.backend import AsrBackend
from todm.asr.config import AsrConfig
from todm.asr.data.augment import AugmentConfig
from todm.asr.data.batch import LoaderConfig
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.transducer import RnntConfig
from todm.asr.objective import ObjectiveConfig, RnntObjective
from todm.compress.calibrate import capture
from todm.compress.config import CompressConfig
from todm.compress.plan import select
from todm.errors import ArtifactError, CorpusError
from todm.supernet.space import SearchSpace, SpaceConfig, Subnet

CONFIG = AsrConfig(
    loader=LoaderConfig(batch_size=4, num_buckets=3, speeds=(1.0,)),
    augment=AugmentConfig(join_prob=0.2, wait_prob=1.0, context_reset=0.3),
    model=RnntConfig(joiner_dim=16, encoder=EncoderConfig(d_model=32, state=4)),
    space=SpaceConfig(depths=(2, 3), widths={"ffn": (16, 32, 48), "pairs": (1, 2, 3)}),
    chunks=(8, 16),
    chunk=8,
)
UNEVEN = Subnet(blocks=(0, 1, 2), widths=(("ffn", (16, 48, 32)), ("pairs", (3, 1, 2))))


@pytest.fixture(scope="module")
def speech(tiny_corpus):
    """A prepared backend."""
    backend = AsrBackend(CONFIG, tiny_corpus, corpus=tiny_corpus)
    backend.prepare()
    return backend


@pytest.fixture
def adapter(speech):
    """A net whose blocks have other widths each, with norms and biases that are not the initial ones."""
    model = speech.build(UNEVEN).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn_like(p)
    return AsrAdapter(speech, model)


@pytest.fixture
def saved(speech, tmp_path):
    """Writes an artifact of a kind; returns it."""

    def make(kind="subnet", corpus="", **info):
        subnet = SearchSpace(CONFIG.space).smallest
        model = speech.build(subnet if kind == "subnet" else None)
        return artifact.save(
            tmp_path / kind,
            kind=kind,
            config={"asr": CONFIG.to_json()},
            info={"corpus": str(corpus), "subnet": subnet.to_json(), **info},
            tensors=model.state_dict(),
            write=speech.write_assets,
        )

    return make


@pytest.fixture
def recordings(tmp_path):
    """Writes recordings of so many seconds into a folder."""

    def make(*seconds):
        folder = tmp_path / "audio" / "deep"
        folder.mkdir(parents=True)
        draws = np.random.default_rng(0)
        for i, length in enumerate(seconds):
            rate = (16000, 8000)[i % 2]
            soundfile.write(
                folder / f"{i}.wav", 0.1 * draws.standard_normal(int(length * rate)), rate
            )
        return folder.parent

    return make


def test_every_layer_is_in_a_block_or_kept_with_a_reason(adapter):
    plan = select(adapter, CompressConfig(passes=("int8",)))
    layers = {
        n for n, m in adapter.model.named_modules() if isinstance(m, (nn.Linear, nn.Embedding))
    }
    assert layers <= set(plan.all)
    for name in layers:
        inside = name.startswith("encoder.blocks.")
        why = next((why for p, why in adapter.kept.items() if fnmatchcase(name, p)), "")
        assert bool(why) != inside, name
    linears = ("mixer.w_in", "mixer.w_out", "up", "down")
    assert set(plan.chosen) == {f"encoder.blocks.{i}.{n}" for i in range(3) for n in linears}
    assert plan.all["encoder.blocks.0.mixer.mix"][2] == "not a linear or convolution layer"


def test_a_run_calls_every_layer_and_leaves_the_mode(adapter):
    called = set()
    model = adapter.model.train()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.register_forward_hook(lambda *_, name=name: called.add(name))
    # A joiner that says something now and then: the predictor's layers run at a label only.
    model.output.bias.data[5] += 3
    (batch,) = adapter.calibration(3, None)
    got = adapter.run(model, batch)
    assert model.training
    assert called == {
        n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Embedding))
    }
    with torch.no_grad():
        want, _ = model.eval().encode(batch.features_BTF, batch.feature_lens_B, chunk=8)
    assert torch.equal(got, want)


@torch.no_grad()
def test_blocks_one_by_one_are_the_encoder(adapter):
    """The order that compression relies on, with blocks of several widths."""
    batches = adapter.calibration(10, None)
    calls = capture(adapter, "encoder.blocks", batches)
    for block in adapter.model.encoder.blocks:
        calls = [call.after(block(*call.args, **call.kwargs)) for call in calls]
    for call, batch in zip(calls, batches, strict=True):
        assert torch.equal(
            adapter.model.encoder.norm(call.args[0]), adapter.run(adapter.model, batch)
        )


@torch.no_grad()
def test_folds_do_not_change_what_a_block_puts_out(adapter):
    block = adapter.model.encoder.blocks[1]
    (call,) = capture(adapter, "encoder.blocks", adapter.calibration(4, None))
    want = block(*call.args, **call.kwargs)
    taken = {n for fold in adapter.folds(block) for n in fold.layers}
    assert taken == {"mixer.w_in", "mixer.w_out", "up", "down"}
    for fold in (f for f in adapter.folds(block) if f.into):
        layers = [block.get_submodule(n) for n in fold.layers]
        factor = torch.rand(layers[0].in_features) + 0.5
        for layer in layers:
            layer.weight *= factor
        before = block.get_submodule(fold.into)
        before.weight /= factor
        before.bias /= factor
    torch.testing.assert_close(block(*call.args, **call.kwargs), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("topology", ["standard", "one_symbol"])
def test_losses_are_those_of_the_training_objective(speech, adapter, topology):
    config = CONFIG.replace(objective=ObjectiveConfig(topology=topology, distill_from=0.0))
    adapter.speech = AsrBackend(config, speech.assets, corpus=speech.corpus)
    student, teacher = adapter.model, copy.deepcopy(adapter.model)
    with torch.no_grad():
        teacher.encoder.blocks[0].up.weight.mul_(1.5)
    sizes = [1] * student.config.vocab_size
    step = next(adapter.batches(3))
    assert step.wait is not None
    assert step.reset_BU.any()
    teach = RnntObjective(teacher, config.objective, label_sizes=sizes)
    learn = RnntObjective(student, config.objective, label_sizes=sizes)
    _, teacher_out = teach(step, subnet=None, teacher=None, progress=1.0)
    want, _ = learn(step, subnet=None, teacher=teacher_out, progress=1.0)
    got = adapter.losses(step, student, teacher, temperature=1.0)
    torch.testing.assert_close(got["hard"].detach(), want["rnnt"])
    torch.testing.assert_close(got["soft"].detach(), want["divergence"])
    assert got["soft"] > 0
    sum(got.values()).backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_without_a_teacher_there_is_no_soft_loss(adapter):
    step = next(adapter.batches(0))
    assert set(adapter.losses(step, adapter.model, None, temperature=1.0)) == {"hard"}


def test_a_teacher_like_the_student_teaches_nothing(adapter):
    step = next(adapter.batches(0))
    got = adapter.losses(step, adapter.model, copy.deepcopy(adapter.model), temperature=2.0)
    assert abs(float(got["soft"].detach())) < 1e-5


def test_a_temperature_divides_the_logits_of_both(adapter):
    """Once by networks with smaller output layers; the weights of nodes are the warm teacher's."""
    step = next(adapter.batches(0))
    student, teacher = adapter.model, copy.deepcopy(adapter.model)
    with torch.no_grad():
        teacher.project.weight.mul_(1.3)
    got = adapter.losses(step, student, teacher, temperature=3.0)
    warm = adapter.losses(step, student, teacher, temperature=1.0)
    torch.testing.assert_close(got["hard"], warm["hard"])
    cool = [copy.deepcopy(m) for m in (student, teacher)]
    for model in cool:
        model.output.weight.data /= 3
        model.output.bias.data /= 3
    all_cool = adapter.losses(step, *cool, temperature=1.0)["soft"]
    # Occupancies differ a little, and the divergence itself by far more.
    assert float(got["soft"].detach()) == pytest.approx(9 * float(all_cool.detach()), rel=0.2)
    assert abs(float(got["soft"].detach()) - float(warm["soft"].detach())) > 1e-6


def test_training_batches_follow_the_seed(adapter):
    def first(seed):
        return [b.ids for b in itertools.islice(adapter.batches(seed), 4)]

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_calibration_hears_what_evaluation_hears(adapter):
    """Whole utterances of the training split, the same each time, with a chunk of silence and more behind."""
    batches = adapter.calibration(10, None)
    assert [len(b) for b in batches] == [8, 2]
    assert all(b.chunk == CONFIG.chunk for b in batches)
    lens = torch.cat([b.feature_lens_B for b in batches])
    assert lens.tolist() == sorted(lens.tolist())
    store = adapter.speech.store("train")
    tail = 80
    assert {n - tail for n in lens.tolist()} <= set(store.lens_N.tolist())
    again = adapter.calibration(10, None)
    for a, b in zip(batches, again, strict=True):
        assert torch.equal(a.features_BTF, b.features_BTF)


@pytest.mark.parametrize("way", ["folder", "list", "one"])
def test_calibration_on_the_users_audio(adapter, recordings, tmp_path, way):
    """A recording of 41 s is two of 20 s and one of a second."""
    folder = recordings(41.0, 1.5)
    place, num = folder, 4
    if way == "list":
        place = tmp_path / "list.txt"
        place.write_text("audio/deep/1.wav\n\naudio/deep/0.wav\n")
    if way == "one":
        place, num = folder / "deep" / "0.wav", 3
    (batch,) = adapter.calibration(num, place)
    lens = (batch.feature_lens_B - 80).tolist()
    assert lens == [100, 150, 2000, 2000][: num + 1] if num == 4 else [100, 2000, 2000]
    assert adapter.run(adapter.model, batch).isfinite().all()
    with pytest.raises(
        CorpusError, match=rf"needs {num + 1} .* has {num}: .*num_calibration={num}"
    ):
        adapter.calibration(num + 1, place)


def test_audio_that_cannot_be_used_is_named(adapter, recordings, tmp_path):
    with pytest.raises(CorpusError, match=r"nowhere\.txt cannot be read"):
        adapter.calibration(1, tmp_path / "nowhere.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="holds no audio"):
        adapter.calibration(1, tmp_path / "empty")
    folder = recordings(1.0)
    soundfile.write(folder / "a.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    with pytest.raises(CorpusError, match=r"a\.wav holds samples that are not finite"):
        adapter.calibration(2, folder)


def test_too_few_training_utterances(adapter):
    with pytest.raises(CorpusError, match=r"needs 25 utterances, and .* has 24"):
        adapter.calibration(25, None)


def test_evaluation_names_its_metric(adapter):
    found = adapter.evaluate(adapter.model, split="dev", limit=3)
    assert found["metric"] == "WER"
    assert found["utterances"] == 3
    assert [g.name for g in adapter.graphs(adapter.model)] == ["encoder", "decoder", "joiner"]


def test_a_subnet_on_disk_becomes_a_subject(saved, tiny_corpus, tmp_path):
    found = saved(corpus=tiny_corpus)
    adapter = adapter_of(found)
    assert adapter.speech.corpus == tiny_corpus
    for name, tensor in adapter.model.state_dict().items():
        assert torch.equal(tensor, found.tensors()[name])
    adapter.write_assets(tmp_path)
    assert (tmp_path / "tokens.txt").is_file()


def test_a_supernet_is_refused(saved):
    with pytest.raises(ArtifactError, match="todm extract-subnet"):
        adapter_of(saved("supernet"))


def test_a_subnet_whose_corpus_is_gone(saved, tiny_corpus, recordings, tmp_path):
    found = saved(corpus=tmp_path / "gone")
    adapter = adapter_of(found)
    with pytest.raises(CorpusError, match="name a corpus, or audio with"):
        adapter.calibration(1, None)
    assert adapter.calibration(1, recordings(1.0))
    shutil.copytree(tiny_corpus, tmp_path / "there")
    assert adapter_of(found, tmp_path / "there").calibration(1, None)
