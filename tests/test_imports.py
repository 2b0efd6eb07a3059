"""Imports: every module imports, what a device runs brings no torch, and layers hold."""

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import todm

MODULES = sorted(m.name for m in pkgutil.walk_packages(todm.__path__, "todm."))
# Rooms of which no module needs more than `pip install todm` brings.
DEVICE = [m for m in MODULES if m.startswith("todm.device")] + [
    "todm", "todm.errors", "todm.config", "todm.artifact", "todm.cli.main", "todm.cli.transcribe",
]  # fmt: skip
OPTIONAL = {
    "triton": r"kernels\.(\w+\.triton_\w+|_tune)$",
    "torchaudio": r"\.torchaudio_impl$",
    "k2": r"\.k2_impl$",
}
HEAVY = (
    "torch", "torchaudio", "triton", "lhotse", "onnx", "onnxscript", "onnxruntime", "sherpa_onnx",
    "sentencepiece", "safetensors", "matplotlib", "scipy", "espeakng_loader", "soundfile",
)  # fmt: skip


def _loaded(*names: str) -> set[str]:
    """Top-level packages in memory after these modules are imported in a fresh interpreter."""
    code = (
        f"import sys, {', '.join(names)}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    )
    return set(
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.split()
    )


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name):
    if not name.startswith("todm.device"):
        pytest.importorskip("torch")
    for package, modules in OPTIONAL.items():
        if re.search(modules, name):
            pytest.importorskip(package)
    importlib.import_module(name)


def test_import_todm_is_light():
    assert _loaded("todm") & {*HEAVY, "numpy", "rich"} == set()


def test_what_a_device_runs_imports_no_torch():
    assert _loaded(*DEVICE) & set(HEAVY) == set()


@pytest.mark.skipif(
    "torch" not in sys.modules and not importlib.util.find_spec("torch"), reason="needs torch"
)
def test_optional_packages_are_imported_where_they_are_used():
    """The whole tree in one interpreter loads torch, and none of the rest."""
    names = [m for m in MODULES if not any(re.search(o, m) for o in OPTIONAL.values())]
    assert _loaded(*names) & (set(HEAVY) - {"torch", "triton"}) == set()


def test_layers():
    pytest.importorskip("importlinter")
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint, "--no-cache"], cwd=Path(todm.__path__[0]).parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_version_is_the_packages():
    from importlib import metadata

    try:
        installed = metadata.version("todm")
    except metadata.PackageNotFoundError:
        pytest.skip("todm is used from its directory, not installed")
    assert installed == todm.__version__


def test_types_are_shipped():
    assert (Path(todm.__path__[0]) / "py.typed").is_file()


@pytest.mark.parametrize("folder", ["recipes", "export"])
def test_leaves_are_not_packages(folder):
    with pytest.raises(ImportError, match="todm"):
        importlib.import_module(folder)
