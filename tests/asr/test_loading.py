import json
import shutil

import pytest
import torch

from todm import artifact
from todm.asr.backend import AsrBackend
from todm.asr.config import AsrConfig
from todm.asr.loading import backend_of, check_numbers, load_model, subnet_of
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.transducer import RnntConfig
from todm.errors import ArtifactError, ConfigError
from todm.supernet.space import SearchSpace, SpaceConfig

CONFIG = AsrConfig(
    model=RnntConfig(joiner_dim=16, encoder=EncoderConfig(d_model=32, state=4)),
    space=SpaceConfig(depths=(2, 3), widths={"ffn": (16, 32), "pairs": (1, 2)}),
)


@pytest.fixture
def save(tiny_corpus, tmp_path):
    """Writes a supernet, or a subnet of it; returns the artifact and the model in it."""

    def make(subnet=None, *, corpus=tiny_corpus, config=CONFIG):
        backend = AsrBackend(CONFIG, tiny_corpus)
        model = backend.build(subnet)
        info = {"corpus": str(corpus)} | ({"subnet": subnet.to_json()} if subnet else {})
        found = artifact.save(
            tmp_path / "net",
            kind="subnet" if subnet else "supernet",
            config={"asr": config.to_json()},
            info=info,
            tensors=model.state_dict(),
            write=backend.write_assets,
        )
        return found, model

    return make


@pytest.mark.parametrize("which", ["supernet", "largest", "smallest"])
def test_a_model_comes_back_from_disk(save, which):
    subnet = None if which == "supernet" else getattr(SearchSpace(CONFIG.space), which)
    found, model = save(subnet)
    backend = backend_of(found)
    again = load_model(found, backend)
    assert backend.config == CONFIG
    assert not again.training
    for (name, want), got in zip(
        model.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(got, want), name


def test_a_corpus_that_moved_is_named(save, tmp_path):
    found, _ = save(corpus=tmp_path / "gone")
    with pytest.raises(ArtifactError, match=r"gone any more: name a corpus"):
        backend_of(found)
    backend_of(found, with_data=False)


def test_another_corpus_can_be_given(save, tiny_corpus, tmp_path):
    found, _ = save(corpus=tmp_path / "gone")
    assert backend_of(found, corpus=tiny_corpus).corpus == tiny_corpus


def test_a_damaged_corpus_is_refused(save, tiny_corpus, tmp_path):
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    (tmp_path / "corpus" / "cuts_dev.jsonl.gz").write_bytes(b"")
    found, _ = save(corpus=tmp_path / "corpus")
    with pytest.raises(ArtifactError, match=r"cuts_dev\.jsonl\.gz does not match"):
        backend_of(found)


def test_weights_of_another_size_are_refused(save):
    found, _ = save(config=CONFIG.replace(model=CONFIG.model.replace(joiner_dim=32)))
    with pytest.raises(ArtifactError, match="do not fit its configuration"):
        load_model(found, backend_of(found))


def test_settings_of_another_todm_are_named(save):
    found, _ = save()
    found.config["asr"]["chunky"] = 1
    with pytest.raises(ConfigError, match=r"asr.chunky': did you mean 'chunk'"):
        backend_of(found)


def test_a_net_of_before_the_bound_keeps_its_decays(save):
    """Its configuration knows no memory_seconds, and it was trained to remember as long as it does."""
    found, model = save()
    encoder = found.config["asr"]["model"]["encoder"]
    assert encoder["memory_seconds"] == CONFIG.model.encoder.memory_seconds == 4.0
    assert load_model(found, backend_of(found)).config.encoder.memory_seconds == 4.0
    del encoder["memory_seconds"]
    again = load_model(found, backend_of(found))
    assert again.config.encoder.memory_seconds is None
    assert again.state_dict().keys() == model.state_dict().keys()


def test_numbers_below_one_are_refused():
    check_numbers(limit=1)
    with pytest.raises(ConfigError, match="--limit is 0: at least 1"):
        check_numbers(limit=0)


def test_a_subnet_has_a_name_json_or_a_file(tmp_path):
    space = SearchSpace(CONFIG.space)
    assert subnet_of("largest", space) == space.largest
    assert subnet_of("smallest", space) == space.smallest
    text = json.dumps(space.smallest.to_json())
    assert subnet_of(text, space) == space.smallest
    (tmp_path / "subnet.json").write_text(text)
    assert subnet_of(str(tmp_path / "subnet.json"), space) == space.smallest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tiny", "largest, smallest, or blocks and widths"),
        ("{}", "largest, smallest, or blocks and widths"),
        ('{"blocks": [0, 2], "widths": {"ffn": [16, 17], "pairs": [1, 1]}}', "not in the space"),
        ('{"blocks": [0, 1], "widths": {"ffn": [16, 16], "pairs": [1, 1]}}', "kept by any subnet"),
    ],
    ids=["name", "empty", "width", "blocks"],
)
def test_a_wrong_subnet_is_named(text, words):
    with pytest.raises(ConfigError, match=words):
        subnet_of(text, SearchSpace(CONFIG.space))


def test_a_compressed_subnet_comes_back_and_recognises_the_same(save, tiny_corpus):
    from todm.asr.adapter import AsrAdapter
    from todm.compress import storage
    from todm.compress.config import CompressConfig
    from todm.compress.driver import compress

    found, model = save(SearchSpace(CONFIG.space).largest)
    backend = backend_of(found)
    config = CompressConfig(passes=("prune", "int8"), num_calibration=4)
    result = compress(AsrAdapter(backend, model.eval()), config)
    compressed = storage.save(
        found.path.with_name("small"),
        model,
        parent=found,
        config=config,
        reports=result.reports,
        write=backend.write_assets,
    )
    again = backend_of(compressed)
    assert again.corpus == backend.corpus
    loaded = load_model(compressed, again)
    features, lens = torch.randn(2, 90, 80), torch.tensor([90, 50])
    with torch.no_grad():
        assert torch.equal(loaded.encode(features, lens)[0], model.encode(features, lens)[0])
    assert again.evaluate(loaded, subnet=None, split="dev")["words"] > 0


def test_another_modality_is_refused(tmp_path):
    found = artifact.save(tmp_path / "vit", kind="model", config={"backend": "vision"})
    with pytest.raises(ArtifactError, match="is not a speech recogniser"):
        backend_of(found)
