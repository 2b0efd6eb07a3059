import pytest
import torch

from todm import artifact
from todm.asr import tokens
from todm.asr.backend import AsrBackend
from todm.asr.config import AsrConfig
from todm.asr.loading import same_outputs
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.transducer import RnntConfig, extract
from todm.asr.tokens import TokensConfig
from todm.errors import ArtifactError, ConfigError
from todm.supernet.space import SpaceConfig

TEXTS = {
    "first": ["TURN ON THE LIGHT", "TURN OFF THE HEATER", "OPEN THE DOOR"],
    "second": ["TURN ON THE RADIO", "OPEN THE WINDOW", "CLOSE IT"],
}
CONFIG = AsrConfig(
    model=RnntConfig(joiner_dim=16, encoder=EncoderConfig(d_model=32, state=4)),
    space=SpaceConfig(depths=(2, 3, 4), widths={"ffn": (16, 32, 48), "pairs": (1, 2, 3)}),
)


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    """Directories with a tokenizer each."""
    places = {}
    for name, texts in TEXTS.items():
        places[name] = tmp_path_factory.mktemp(name)
        tokens.train(texts, TokensConfig(vocab_size=40, max_piece_length=8), places[name])
    return places


def _model(backend, seed):
    torch.manual_seed(seed)
    model = backend.build(None)
    for name, value in model.state_dict().items():
        value.copy_(torch.randn_like(value).abs() if name.endswith("scale") else value)
    return model


def _saved(backend, model, path, *, subnet=None):
    plain = model if subnet is None else extract(model, subnet)
    return artifact.save(
        path,
        kind="supernet" if subnet is None else "subnet",
        config={"asr": backend.config.to_json()},
        info={} if subnet is None else {"subnet": subnet.to_json()},
        tensors=plain.state_dict(),
        write=backend.write_assets,
    )


@pytest.fixture
def earlier(vocabularies, tmp_path):
    """A backend, its supernet, and that as an artifact."""
    backend = AsrBackend(CONFIG, vocabularies["first"])
    model = _model(backend, 1)
    return backend, model, _saved(backend, model, tmp_path / "earlier")


@torch.no_grad()
def _distance(model, new, subnet):
    return same_outputs(model.eval(), new.eval(), subnet)


def test_the_same_again_is_taken_whole(earlier):
    backend, model, found = earlier
    again = _model(backend, 2)
    report = backend.init_from(again, found)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    size = backend.tokenizer.vocab_size
    assert report[1:] == [f"vocabulary: {size} of {size} pieces taken, none fresh"]
    assert (
        f"taken from {found.path}: encoder (blocks 4, ffn 48, pairs 3 of its 4 blocks)" in report[0]
    )


def test_of_another_vocabulary_rows_are_taken_by_piece(earlier, vocabularies):
    backend, model, found = earlier
    other = AsrBackend(CONFIG, vocabularies["second"])
    fresh, new = _model(other, 2), _model(other, 2)
    report = other.init_from(new, found)
    old_symbols, symbols = backend.tokenizer.symbols, other.tokenizer.symbols
    assert set(symbols) & set(old_symbols) > set(tokens.SPECIAL)
    assert set(symbols) - set(old_symbols)
    for rows in ("predictor.embedding.weight", "output.weight", "output.bias", "ctc.weight"):
        for index, piece in enumerate(symbols):
            shared = piece in old_symbols
            source = model if shared else fresh
            at = old_symbols.index(piece) if shared else index
            assert torch.equal(new.state_dict()[rows][index], source.state_dict()[rows][at]), piece
    taken = [
        k for k in model.state_dict() if k.startswith(("encoder.", "project.", "predictor.taps"))
    ]
    assert all(torch.equal(new.state_dict()[k], model.state_dict()[k]) for k in taken)
    count = len(set(symbols) - set(old_symbols))
    assert f"{len(symbols) - count} of {len(symbols)} pieces taken, {count} fresh: " in report[1]


def test_a_smaller_space_begins_as_a_subnet_of_the_larger(earlier, vocabularies):
    backend, model, found = earlier
    space = SpaceConfig(depths=(2, 3), widths={"ffn": (16, 32), "pairs": (1, 2)})
    smaller = AsrBackend(CONFIG.replace(space=space), vocabularies["first"])
    new = _model(smaller, 2)
    smaller.init_from(new, found)
    subnet = backend.space.uniform(3, {"ffn": 32, "pairs": 2})
    assert _distance(model, new, subnet) < 1e-4


def test_a_subnet_of_the_same_architecture_has_all_but_a_ctc_head(earlier, vocabularies, tmp_path):
    backend, model, _ = earlier
    subnet = backend.space.uniform(2, {"ffn": 32, "pairs": 2})
    found = _saved(backend, model, tmp_path / "subnet", subnet=subnet)
    space = SpaceConfig(depths=(2,), widths={"ffn": (32,), "pairs": (2,)})
    plain = AsrBackend(CONFIG.replace(space=space), vocabularies["first"])
    fresh, new = _model(plain, 2), _model(plain, 2)
    report = plain.init_from(new, found)
    assert report[-1] == "fresh: CTC head (the artifact has none)"
    assert _distance(model, new, subnet) < 1e-4
    assert torch.equal(new.ctc.weight, fresh.ctc.weight)


def _with(**changes):
    model, encoder = dict(changes), {}
    for name in list(model):
        if name in ("d_model", "state", "context"):
            encoder[name] = model.pop(name)
    own = CONFIG.model
    return CONFIG.replace(model=own.replace(encoder=own.encoder.replace(**encoder), **model))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (_with(d_model=48), r"has asr.model.encoder.d_model=32 and this config 48: .* --init out"),
        (_with(state=8), "asr.model.encoder.state=4 and this config 8"),
        (_with(joiner_dim=32), "asr.model.joiner_dim=16 and this config 32"),
        (
            CONFIG.replace(space=CONFIG.space.replace(depths=(2, 6))),
            "has 4 blocks and this config 6: only fewer can be taken",
        ),
        (
            CONFIG.replace(space=CONFIG.space.replace(widths={"ffn": (16, 64), "pairs": (1, 2)})),
            "has ffn 48 and this config 64: .* set asr.space.widths.ffn to end at 48",
        ),
    ],
    ids=["d_model", "state", "joiner", "deeper", "wider"],
)
def test_what_does_not_fit_is_named(earlier, vocabularies, config, words):
    backend = AsrBackend(config, vocabularies["first"])
    with pytest.raises(ConfigError, match=words):
        backend.init_from(backend.build(None), earlier[2])


def test_a_subnet_of_another_depth_is_refused(earlier, tmp_path):
    backend, model, _ = earlier
    subnet = backend.space.uniform(3, {"ffn": 48, "pairs": 3})
    found = _saved(backend, model, tmp_path / "subnet", subnet=subnet)
    with pytest.raises(ConfigError, match="has 3 blocks and this config 4: a subnet's blocks"):
        backend.init_from(_model(backend, 2), found)


def test_weights_of_another_configuration_are_refused(earlier, vocabularies, tmp_path):
    backend, model, _ = earlier
    state = {k: v for k, v in model.state_dict().items() if k != "encoder.norm.weight"}
    found = artifact.save(
        tmp_path / "odd",
        kind="supernet",
        config={"asr": CONFIG.to_json()},
        tensors=state,
        write=backend.write_assets,
    )
    with pytest.raises(ArtifactError, match=r"has no encoder\.norm\.weight"):
        backend.init_from(_model(backend, 2), found)


def _slower(config, seconds):
    """The config with another bound of the memory."""
    encoder = config.model.encoder.replace(memory_seconds=seconds)
    return config.replace(model=config.model.replace(encoder=encoder))


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [(None, 1.0, True), (9.0, 1.0, True), (1.0, 1.0, False), (1.0, 9.0, False), (9.0, None, False)],
)
def test_modes_that_have_to_forget_sooner_are_counted(vocabularies, tmp_path, theirs, ours, said):
    before = AsrBackend(_slower(CONFIG, theirs), vocabularies["first"])
    model = before.build(None)
    with torch.no_grad():
        for mixer in (block.mixer for block in model.encoder.blocks):
            mixer.log_dt.zero_()
            mixer.log_neg_re.fill_(-1.0)
            mixer.log_neg_re[0, :, 0, :2] = -5.0  # e^5 frames are 6 s
    found = _saved(before, model, tmp_path / "slow")
    now = AsrBackend(_slower(CONFIG, ours), vocabularies["first"])
    report = now.init_from(now.build(None), found)
    total = sum(m.log_neg_re.numel() for m in (b.mixer for b in model.encoder.blocks))
    lines = [line for line in report if line.startswith("memory")]
    want = f"memory: 16 of {total} modes remembered for more than 1 s and are cut to it"
    assert [line[: len(want)] for line in lines] == [want] * said
