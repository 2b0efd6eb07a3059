"""Legs that need programs beside Python: each test says what it misses where it is skipped."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

CHROMIUM = Path("/usr/bin/chromium")


def pytest_configure(config):
    """The marks of these legs: `pytest -m web`, `pytest -m cpp`."""
    config.addinivalue_line("markers", "web: needs node, npm packages and Chromium")
    config.addinivalue_line("markers", "cpp: needs g++ and onnxruntime's headers")
    config.addinivalue_line("markers", "executorch: needs the extra executorch")
    config.addinivalue_line("markers", "releases: installs old and new releases of sherpa-onnx")
    config.addinivalue_line("markers", "qemu: needs qemu-user-static")


@pytest.fixture(scope="session")
def node():
    """The program `node`."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("needs Node.js 18 or newer on the path")
    return found


@pytest.fixture(scope="session")
def npm_packages(node, repo):
    """Where export/web/setup.sh has put onnxruntime-web and playwright-core."""
    packages = repo / "build" / "node_modules"
    if not all((packages / name).is_dir() for name in ("onnxruntime-web", "playwright-core")):
        pytest.skip("needs npm packages: run export/web/setup.sh")
    return packages


@pytest.fixture(scope="session")
def chromium():
    """The system's browser."""
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}: apt-get install chromium")
    return CHROMIUM


@pytest.fixture(scope="session")
def golden_bundle(repo):
    """A small bundle of random weights that emits often; not to be changed."""
    return repo / "tests" / "device" / "golden"


@pytest.fixture(scope="session")
def endpoint_bundle(golden_bundle, tmp_path_factory):
    """The same, with an endpoint after 0.2 s: five frames."""
    path = shutil.copytree(golden_bundle, tmp_path_factory.mktemp("endpoint") / "bundle")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["info"]["endpoint_seconds"] = 0.2
    (path / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return path


@pytest.fixture(scope="session")
def bursts():
    """25 s of silence, then noise between silences of many lengths: float32 [S] that 16 bits hold."""
    rng = np.random.default_rng(5)
    pieces = [np.zeros(25 * 16_000)]
    for noise, silence in zip(rng.uniform(0.2, 1, 12), rng.uniform(0.1, 1.5, 12), strict=True):
        pieces += [0.2 * rng.standard_normal(int(16_000 * noise)), np.zeros(int(16_000 * silence))]
    return (np.rint(2**15 * np.concatenate(pieces)) / 2**15).astype(np.float32)


@pytest.fixture(scope="session")
def trained_bundle(repo):
    """A bundle that knows words: TODM_BUNDLE, or what the recipe leaves in runs/."""
    given = os.environ.get("TODM_BUNDLE")
    found = [Path(given)] if given else sorted(repo.glob("runs/commands/bundles/*"))
    if not found or not (found[0] / "manifest.json").is_file():
        pytest.skip("needs a trained bundle: run the recipe, or set TODM_BUNDLE")
    return found[0]
