"""Imports: every module imports, what a device runs brings no torch, and layers hold."""

import ast
import graphlib
import importlib.util
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import todm

MODULES = sorted(m.name for m in pkgutil.walk_packages(todm.__path__, "todm."))
# Rooms of which no module needs more than `pip install todm` brings.
DEVICE = [m for m in MODULES if m.startswith("todm.device")] + [
    "todm", "todm.errors", "todm.config", "todm.artifact", "todm.cli.main", "todm.cli.transcribe",
    "todm.stages", "todm.stages.transcription",
]  # fmt: skip
OPTIONAL = {
    "triton": r"kernels\.((\w+\.)?triton_\w+|_tune)$",
    "torchaudio": r"\.torchaudio_impl$",
    "k2": r"\.k2_impl$",
}
HEAVY = (
    "torch", "torchaudio", "triton", "lhotse", "onnx", "onnxscript", "onnxruntime", "sherpa_onnx",
    "sentencepiece", "safetensors", "matplotlib", "scipy", "espeakng_loader", "soundfile", "jinja2",
    "kaldialign", "tensorboard", "soxr", "accelerate",
)  # fmt: skip
ROOT = Path(todm.__path__[0]).parent
EXTRAS = {"device": {"mic"}, "llm": {"train", "llm"}, "vision": {"train", "vision"}}
EXTRAS |= {"multimodal": {"train", "llm", "vision"}, "export": {"train", "executorch"}}
EXTRAS |= {"asr": {"train", "kokoro", "piper"}}
EXTRAS |= {"bench": {"train", "executorch"}}
"""What a room may import besides the dependencies of the core; the other rooms have `train`."""
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "google": "protobuf"}
DISTRIBUTIONS |= {"hibari": "hibari-tts", "kokoro_onnx": "kokoro-onnx", "piper": "piper-tts"}


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
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_modules_import_each_other_in_a_circle():
    """Imports within functions and those only for types count as well."""
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("todm", cache_dir=None, exclude_type_checking_imports=False)
    imported = {m: graph.find_modules_directly_imported_by(m) for m in sorted(graph.modules)}
    graphlib.TopologicalSorter(imported).prepare()  # a CycleError names the circle


def _imports(source):
    """(package, names) of every import statement of a file, those within functions included."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, [alias.name for alias in node.names]


def _declared(extras):
    """Distributions of the core and of these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    needed = [*project["dependencies"], *(r for extra in sorted(extras) for r in optional[extra])]
    return {re.match(r"[\w-]+", requirement)[0].lower() for requirement in needed}


@pytest.mark.parametrize(
    "room",
    sorted(p for p in (ROOT / "todm").iterdir() if p.suffix in ("", ".py")),
    ids=lambda p: p.stem,
)
def test_packages_are_declared_in_the_extras_of_the_room(room):
    sources = [room] if room.suffix else room.rglob("*.py")
    packages = {name.partition(".")[0] for source in sources for name, _ in _imports(source)}
    packages -= {*sys.stdlib_module_names, "todm"}
    wanted = {DISTRIBUTIONS.get(name, name.replace("_", "-").lower()) for name in packages}
    assert wanted <= _declared(EXTRAS.get(room.stem, {"train"}))


@pytest.mark.parametrize("folder", ["todm", "benchmarks", "export", "scripts"])
def test_private_names_are_not_imported(folder):
    private = [
        f"{source.relative_to(ROOT)}: {name}"
        for source in sorted((ROOT / folder).rglob("*.py"))
        for module, names in _imports(source)
        for name in names
        if module.startswith(("todm", "benchmarks"))
        and re.match(r"_(?!_)", name)
        and (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
    ]
    assert private == []


def test_the_package_imports_no_leaf():
    leaves = {"benchmarks", "recipes", "export", "scripts", "tests"}
    for source in (ROOT / "todm").rglob("*.py"):
        assert not {name.partition(".")[0] for name, _ in _imports(source)} & leaves, source


def test_version_is_the_packages():
    from importlib import metadata

    try:
        installed = metadata.version("todm")
    except metadata.PackageNotFoundError:
        pytest.skip("todm is used from its directory, not installed")
    assert installed == todm.__version__


def test_types_are_shipped():
    assert (ROOT / "todm/py.typed").is_file()


def test_only_todm_is_packaged():
    setuptools = pytest.importorskip("setuptools")
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    include = options["packages"]["find"]["include"]
    found = setuptools.find_namespace_packages(str(ROOT), include=include)
    assert {name.partition(".")[0] for name in found} == {"todm"}
