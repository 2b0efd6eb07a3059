"""`todm profile`, `search` and `extract-subnet` find their devices and say what is wrong."""

import json

import pytest

from todm.cli.main import main
from todm.device.profiler import FORMAT_VERSION, KIND, checksum
from todm.errors import ConfigError

pytest.importorskip("torch")

from todm.asr.backend import AsrBackend
from todm.asr.config import AsrConfig
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.transducer import RnntConfig
from todm.search.choice import Choice
from todm.search.devices import Devices
from todm.supernet.space import SpaceConfig

CONFIG = AsrConfig(
    model=RnntConfig(joiner_dim=16, encoder=EncoderConfig(d_model=32, state=4)),
    space=SpaceConfig(depths=(2, 3), widths={"ffn": (16, 32), "pairs": (1, 2)}),
    chunks=(8,),
    chunk=8,
)


@pytest.fixture
def backend(tmp_path):
    from todm.asr import tokens

    (tmp_path / "tokens").mkdir()
    tokens.train(
        ["ON OFF UP DOWN", "DOWN UP"], tokens.TokensConfig(vocab_size=16), tmp_path / "tokens"
    )
    return AsrBackend(CONFIG, tmp_path / "tokens")


@pytest.fixture
def devices(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("TODM_HOME", str(tmp_path / "home"))
    return Devices(backend, lambda what, done, total: None)


@pytest.fixture
def table(devices, tmp_path):
    """The file of a device on which a block takes 1 ms for each gate pair."""
    found = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "name": "pi5",
        "space": devices.key,
        "chunk_seconds": 0.32,
        "machine": {},
        "entries": [
            {"subnet": s.to_json(), "precision": "fp32", "ms": float(sum(dict(s.widths)["pairs"]))}
            for s in devices.space.uniforms()
        ],
        "search_ms": {"fp32": 1.0},
        "features_ms": None,
        "operators_ms": {},
    }
    path = tmp_path / "brought.json"
    path.write_text(json.dumps(found | {"sha256": checksum(found)}))
    return path


def test_a_table_is_brought_and_found_by_its_name(devices, table):
    kept = devices.keep(table, None)
    assert kept == devices.folder / "pi5.json"
    assert devices.keep(table, "my-phone").stem == "my-phone"
    prices = devices.prices(["pi5", str(table)])
    costs = prices(Choice(devices.space.largest))
    assert costs["latency@pi5"] == pytest.approx(7e-3, rel=1e-3)
    assert costs[f"latency@{table}"] == costs["latency@pi5"]
    assert costs["rtf@pi5"] == pytest.approx(7e-3 / 0.32, rel=1e-3)
    assert set(devices.tables) == {"pi5", str(table)}


@pytest.mark.parametrize("name", ["local", "../x", "a b", ""])
def test_a_device_needs_a_name_of_its_own(devices, table, name):
    content = json.loads(table.read_text()) | {"name": name or "local"}
    table.write_text(json.dumps(content | {"sha256": checksum(content)}))
    with pytest.raises(ConfigError, match="a device cannot be called"):
        devices.keep(table, name or None)


def test_an_unknown_device_names_the_known_ones(devices, table):
    devices.keep(table, None)
    with pytest.raises(ConfigError, match=r"no device 'pi4' is known .*known: local, pi5"):
        devices.table("pi4")


def test_a_table_of_another_space_is_not_brought(backend, devices, table):
    wider = CONFIG.replace(space=SpaceConfig(depths=(2, 3), widths={"ffn": (16,), "pairs": (1,)}))
    other = Devices(AsrBackend(wider, backend.assets), lambda what, done, total: None)
    assert other.key != devices.key
    with pytest.raises(ConfigError, match="another search space"):
        other.keep(table, None)


def test_the_two_commands_of_profile_exclude_each_other(capsys, tmp_path):
    assert main(["profile", str(tmp_path), "--pack", "a", "--import", "b"]) == 2
    assert "give one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "2M", "--compression", "int4"], "errors in int4 are not known before"),
        (["--budget", "2M", "--compression", "fp8"], "'fp8' is not one of"),
        (["--budget", "2M", "--evaluations", "0"], "--evaluations is 0"),
    ],
)
def test_a_search_says_what_is_wrong_at_once(capsys, tmp_path, arguments, words):
    assert main(["search", str(tmp_path), *arguments]) == 2
    assert words in capsys.readouterr().err
