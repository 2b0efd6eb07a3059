"""Every backend x every pass x every target, on models as small as can be.

Targets: the artifact itself (equal outputs), an ONNX file in onnxruntime (close outputs), AutoAWQ's
layout (equal outputs, or a sentence that says why not). The ways of a backend are exported side by side in
one file, which takes a tenth of the time.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import torch
from torch import nn

from todm import artifact
from todm.backend import Graph
from todm.cli import main as cli
from todm.compress import packed, storage
from todm.compress.config import CompressConfig
from todm.compress.driver import compress
from todm.errors import ConfigError
from todm.export.compressed import is_rounding
from todm.export.model import check_model
from todm.export.to_onnx import graph_to_onnx
from todm.stages.adapters import adapter_of

pytestmark = pytest.mark.runtime

GROUP = {"int4.group": 32, "awq.group": 32, "awq.grid": 4}
WAYS: dict[str, dict[str, Any]] = {
    "2:4": {"passes": ["prune"]},
    "int8 dynamic": {"passes": ["int8"]},
    "int8 static": {"passes": ["int8"], "int8.activations": "static"},
    "int4 rtn": {"passes": ["int4"]},
    "int4 gptq": {"passes": ["int4"], "int4.method": "gptq"},
    "awq 4": {"passes": ["awq"]},
    "awq 3": {"passes": ["awq"], "awq.bits": 3},
    "2:4 + int8": {"passes": ["prune", "int8"], "int8.activations": "static"},
    "2:4 + awq": {"passes": ["prune", "awq"]},
}
FORMS = {
    "2:4": ("sparse24", None, None),
    "int8 dynamic": ("int8", False, None),
    "int8 static": ("int8", False, None),
    "int4 rtn": ("w4", False, 4),
    "int4 gptq": ("w4", False, 4),
    "awq 4": ("w4", False, 4),
    "awq 3": ("w4", False, 3),
    "2:4 + int8": ("int8", True, None),
    "2:4 + awq": ("w4", True, 4),
}
BACKENDS = ("asr", "vision", "llm")


def config_of(way):
    settings = {"num_calibration": 8, **GROUP, **WAYS[way]}
    return CompressConfig().override([f"{k}={json.dumps(v)}" for k, v in settings.items()])


@dataclasses.dataclass
class Made:
    """A way done: the adapter in memory, and the artifact it became."""

    adapter: Any
    found: artifact.Artifact
    batch: Any


def speech(folder):
    """A subnet of random weights, and noise to calibrate on."""
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("lhotse")
    from todm.asr import tokens
    from todm.asr.backend import AsrBackend
    from todm.asr.config import AsrConfig
    from todm.asr.model.encoder_config import EncoderConfig
    from todm.asr.model.transducer import RnntConfig
    from todm.supernet.space import SearchSpace, SpaceConfig

    (folder / "audio").mkdir()
    draws = np.random.default_rng(0)
    for i in range(8):
        soundfile.write(folder / "audio" / f"{i}.wav", 0.1 * draws.standard_normal(9000), 16000)
    words = tokens.TokensConfig(vocab_size=16)
    tokens.train(["ON OFF UP DOWN", "DOWN UP"], words, folder)
    encoder = EncoderConfig(d_model=32, state=2)
    config = AsrConfig(
        model=RnntConfig(joiner_dim=16, encoder=encoder),
        space=SpaceConfig(depths=(1,), widths={"ffn": (32,), "pairs": (2,)}),
        chunks=(4,),
        chunk=4,
    )
    backend = AsrBackend(config, folder)
    subnet = SearchSpace(config.space).largest
    found = artifact.save(
        folder / "subnet",
        kind="subnet",
        config={"asr": config.to_json()},
        info={"subnet": subnet.to_json()},
        tensors=backend.build(subnet).state_dict(),
        write=backend.write_assets,
    )
    return found, folder / "audio"


def vision(folder):
    """A vision transformer of one block on scikit-learn's digits."""
    pytest.importorskip("timm")
    pytest.importorskip("sklearn")
    from todm.vision.adapter import VisionAdapter
    from todm.vision.config import VisionConfig, build

    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 1}
    config = VisionConfig(
        architecture="vit_tiny_patch16_224",
        arguments={**sizes, "num_heads": 2, "mlp_ratio": 2},
        classes=tuple("0123456789"),
        size=(8, 8),
        channels=1,
        mean=(0.25,),
        std=(0.5,),
        data="digits",
        batch=8,
    )
    return VisionAdapter(config, build(config)).save(folder / "vit"), None


def language(folder):
    """A Llama of one block."""
    transformers = pytest.importorskip("transformers")
    from benchmarks.studies.small_llama import SmallLlama, train_tokenizer
    from todm.llm.importing import import_checkpoint

    draws = np.random.default_rng(0)
    lines = [" ".join(draws.choice(["the", "cat", "sat", "on", "a", "mat"], 20)) for _ in range(30)]
    (folder / "train.txt").write_text("\n\n".join(lines) + "\n")
    tokenizer = train_tokenizer(lines, SmallLlama(vocab=40))
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16}
    config = transformers.LlamaConfig(**sizes, **heads, vocab_size=len(tokenizer))
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "hub")
    tokenizer.save_pretrained(folder / "hub")
    return import_checkpoint(folder / "hub", folder / "llama", text=folder / "train.txt"), None


MAKERS = {"asr": speech, "vision": vision, "llm": language}


class Workshop:
    """Everything made of a backend, each when it is first asked for."""

    def __init__(self, backend, folder):
        torch.manual_seed(0)
        self.backend, self.folder = backend, folder
        self.parent, self.calibration = MAKERS[backend](folder)
        self._made: dict[str, Made] = {}
        self._onnx: tuple[dict[str, Graph], Path] | None = None

    def made(self, way):
        if way not in self._made:
            adapter, config = adapter_of(self.parent), config_of(way)
            result = compress(adapter, config, calibration=self.calibration)
            found = storage.save(
                self.folder / "out" / way,
                adapter.model,
                parent=self.parent,
                config=config,
                reports=result.reports,
                write=adapter.write_assets,
            )
            batch = adapter.calibration(4, self.calibration)[0]
            self._made[way] = Made(adapter=adapter, found=found, batch=batch)
        return self._made[way]

    def onnx(self):
        """The first graph of every way, and the file that holds them all."""
        if self._onnx is None:
            graphs = {way: self._graph(self.made(way).adapter) for way in WAYS}
            file = self.folder / "all.onnx"
            graph_to_onnx(side_by_side(list(graphs.values())), file)
            self._onnx = graphs, file
        return self._onnx

    def _graph(self, adapter):
        # Of fixed size: open axes are tested elsewhere, and double the time.
        graph = adapter.graphs(adapter.model)[0]
        ins, outs = (
            tuple(dataclasses.replace(p, dynamic={}) for p in ports)
            for ports in (graph.inputs, graph.outputs[:1])
        )
        return dataclasses.replace(graph, inputs=ins, outputs=outs, module=First(graph.module))


class First(nn.Module):
    """The first output of a graph."""

    def __init__(self, module):
        super().__init__()
        self.module = module.eval()

    def forward(self, *inputs):
        found = self.module(*inputs)
        return found[0] if isinstance(found, tuple) else found


class SideBySide(nn.Module):
    """Graphs on the same input."""

    def __init__(self, modules):
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, x):
        return tuple(part(x) for part in self.parts)


class StreamsSideBySide(SideBySide):
    """Graphs on the same input and states: torch.export wants each to have a name."""

    def forward(self, x, state0, state1):
        return tuple(part(x, state0, state1) for part in self.parts)


def side_by_side(graphs):
    ports = [dataclasses.replace(g.outputs[0], name=f"y{i}") for i, g in enumerate(graphs)]
    inputs = graphs[0].inputs
    kind = {1: SideBySide, 3: StreamsSideBySide}[len(inputs)]
    module = kind([g.module for g in graphs])
    return Graph(name="all", module=module, inputs=inputs, outputs=tuple(ports))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    shops = {}

    def get(backend):
        if backend not in shops:
            shops[backend] = Workshop(backend, tmp_path_factory.mktemp(backend))
        return shops[backend]

    return get


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_artifact_gives_equal_outputs(workshop, backend, way):
    made = workshop(backend).made(way)
    again = adapter_of(artifact.load(made.found.path))
    ours = made.adapter.run(made.adapter.model.eval(), made.batch)
    assert torch.equal(again.run(again.model.eval(), made.batch), ours)
    layers = packed.layers_of(again.model)
    forms = [layer.format() for layer in layers.values()]
    kind, sparse24, bits = FORMS[way]
    assert forms
    assert {form["kind"] for form in forms} == {kind}
    assert {form.get("sparse24") for form in forms} == {sparse24}
    assert {form.get("bits") for form in forms} == {bits}
    rows = storage.read(made.found).reports[-1].rows
    assert {row.name for row in rows if row.done} == set(layers)
    assert all(row.why_not for row in rows if not row.done)
    if "2:4" in way:
        for layer in layers.values():
            weight_NG4 = layer.dense_weight().unflatten(1, (-1, 4))
            assert int((weight_NG4 != 0).sum(-1).max()) == 2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_onnxruntime_gives_close_outputs(workshop, backend, way):
    graphs, file = workshop(backend).onnx()
    at = list(graphs).index(way)
    found = check_model(graphs[way], file, first=at)
    assert found.rounds == is_rounding(graphs[way].module) == ("int8" in way)
    assert found.figures


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_autoawq_holds_it_or_says_why_not(workshop, backend, way, tmp_path, capsys):
    made = workshop(backend).made(way)
    arguments = ["export", str(made.found.path), "--target", "awq", "--out", str(tmp_path / "awq")]
    status = cli.main(arguments)
    said = capsys.readouterr().err
    if backend != "llm":
        assert status == 2
        assert f"--target awq is not for a model of {backend}" in said
        return
    if FORMS[way][0] != "w4" or FORMS[way][2] == 3:
        assert status == 2
        assert "an AWQ checkpoint holds" in said
        assert not (tmp_path / "awq").exists()
        return
    assert status == 0, said
    from todm.llm.importing import import_checkpoint

    again = adapter_of(import_checkpoint(tmp_path / "awq", tmp_path / "again"))
    ours, theirs = packed.layers_of(made.adapter.model), packed.layers_of(again.model)
    assert set(ours) == set(theirs)
    for name, layer in ours.items():
        assert torch.equal(layer.dense_weight(), theirs[name].dense_weight()), name


def test_a_pass_that_no_backend_knows_is_refused_before_any_work(workshop):
    with pytest.raises(ConfigError, match="unknown pass 'int5'; choose from"):
        CompressConfig(passes=("int5",))
    adapter = workshop("vision").made("int8 dynamic").adapter
    with pytest.raises(ConfigError, match="compressed already"):
        compress(adapter, config_of("int8 dynamic"))
