"""The recipes: complete, of the sizes they say, and every ablation one flag away."""

import json
import re

import pytest

torch = pytest.importorskip("torch")

from todm.asr.model.transducer import Rnnt  # noqa: E402
from todm.errors import ConfigError  # noqa: E402
from todm.kernels.rnnt_loss import Divergence  # noqa: E402
from todm.recipe import RECIPES, Recipe, full960, named  # noqa: E402
from todm.search.cost import costs  # noqa: E402
from todm.supernet.space import SearchSpace  # noqa: E402
from todm.train.optim import ClippedAdamW, ScaledAdam, build_optimizer  # noqa: E402

LONG = ("clean100", "full960")


def _model(recipe, subnet=None):
    """The supernet, or the plain model of a subnet, without memory."""
    config = recipe.asr.supernet(recipe.asr.data.tokens.vocab_size)
    if subnet is not None:
        config = config.replace(encoder=config.encoder.narrow(subnet), ctc=False)
    with torch.device("meta"):
        return Rnnt(config)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_json_and_back(name):
    recipe = named(name)
    assert recipe.name == name
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ConfigError, match="unknown config 'huge': choose one of debug, commands"):
        named("huge")


@pytest.mark.parametrize("name", RECIPES)
def test_the_space_is_the_models(name):
    """Every elastic width is a prefix of a weight, and a pair of heads is no wider than the model."""
    recipe = named(name)
    space, model = SearchSpace(recipe.asr.space), _model(recipe)
    assert len(model.encoder.blocks) == space.num_blocks
    encoder = model.config.encoder
    assert encoder == encoder.narrow(space.largest)
    assert 2 * max(encoder.pairs) * encoder.head_channels <= 2 * encoder.d_model
    smallest = costs(lambda: _model(recipe, space.smallest))["params"]
    largest = costs(lambda: _model(recipe, space.largest))["params"]
    assert largest > 1.5 * smallest


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_sizes_are_those_of_the_docstring(name, which):
    recipe = named(name)
    subnet = getattr(SearchSpace(recipe.asr.space), which)
    params = costs(lambda: _model(recipe, subnet))["params"]
    stated = re.search(rf"([\d.]+M)[a-z ]* in the {which}", RECIPES[name].__doc__)
    assert stated[1] == f"{params / 1e6:.1f}M"


@pytest.mark.parametrize("name", LONG)
def test_the_recipes_table_says_the_same(name, repo):
    table = (repo / "recipes" / "librispeech" / "README.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith(f"| `{name}`"))
    params = costs(lambda: _model(named(name), SearchSpace(named(name).asr.space).largest))
    assert f"| {params['params'] / 1e6:.1f}M |" in row


@pytest.mark.parametrize("name", LONG)
def test_long_recipes_train_as_icefall_does(name):
    recipe = named(name)
    loader, augment = recipe.asr.loader, recipe.asr.augment
    assert loader.speeds == (0.9, 1.0, 1.1)
    assert (loader.batch_size, loader.max_frames) == (None, 100_000)
    assert (augment.warp_frames, augment.noise_prob, augment.snr_db) == (80, 0.5, (10.0, 20.0))
    assert (augment.num_freq_masks, augment.freq_mask_bins) == (2, 27)
    assert (augment.num_time_masks, augment.time_mask_frames) == (10, 100)
    assert augment.time_mask_share == 0.15
    assert recipe.asr.data.tokens.vocab_size == 500
    assert set(recipe.asr.chunks) == {8, 16, 32, 0}
    schedule = recipe.train.schedule
    assert (schedule.kind, schedule.eden_batches, schedule.eden_epochs) == ("eden", 7500, 3.5)
    assert schedule.reference_seconds == 2000


@pytest.mark.parametrize("name", RECIPES)
def test_students_and_an_alignment_come_before_distillation(name):
    """In every recipe; students that come just after a flat start keep all nets from learning."""
    objective, train = named(name).asr.objective, named(name).train
    assert max(objective.align_until, train.sandwich_from) <= objective.distill_from
    assert train.sandwich_from == 0 or not objective.align_until
    assert objective.distill_from < objective.distill_full < 1 - train.average_last


def test_nothing_but_the_data_is_missing():
    """`prepare --data` brings the corpus: a recipe names no file of its own."""
    recipe = full960()
    data = recipe.asr.data.replace(source="librispeech", data="LibriSpeech")
    assert (recipe.asr.noise, data.text, data.grammar) == (None, None, None)


def _rule(recipe):
    return [block.dropout.rule for block in _model(recipe).encoder.blocks]


def _optimizer(recipe):
    return type(build_optimizer(recipe.train.optim, _model(recipe)))


def _divergence(recipe):
    return recipe.asr.objective.on_lattice


def _kept(recipe):
    return SearchSpace(recipe.asr.space).smallest.blocks


ABLATIONS = [
    ("asr.objective.distill=kl", _divergence, Divergence(kind="kl")),
    ("asr.objective.distill=collapsed", _divergence, Divergence(kind="collapsed")),
    ("asr.objective.distill=none", _divergence, None),
    ("asr.objective.divergence.alpha_min=-0.5", _divergence, Divergence(alpha_min=-0.5)),
    ("asr.objective.divergence.alpha_max=2", _divergence, Divergence(alpha_max=2.0)),
    ("asr.objective.divergence.clip=20", _divergence, Divergence(clip=20.0)),
    ("asr.objective.divergence.weighting=uniform", _divergence, Divergence(weighting="uniform")),
    ("asr.objective.divergence.min_weight=0.01", _divergence, Divergence(min_weight=0.01)),
    ("asr.model.encoder.dropout_rule=constant", _rule, ["constant"] * 5),
    ("asr.model.encoder.dropout_rule=off_for_students", _rule, ["off_for_students"] * 5),
    ("asr.model.encoder.dropout_rule=none", _rule, ["none"] * 5),
    ("train.optim.name=scaled_adam", _optimizer, ScaledAdam),
    ("train.optim.name=adamw", _optimizer, ClippedAdamW),
    ("asr.space.drop_order=even", _kept, (0, 2, 4)),
    ("asr.space.drop_order=first", _kept, (0, 1, 2)),
]


@pytest.mark.parametrize(
    ("flag", "found", "value"), ABLATIONS, ids=[flag for flag, *_ in ABLATIONS]
)
def test_an_ablation_is_one_flag(flag, found, value):
    recipe = named("commands").override([flag])
    assert found(recipe) == value
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
