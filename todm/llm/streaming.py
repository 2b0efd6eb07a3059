"""A model larger than memory: weights stay in files, and those of one block at a time come into memory.

Every parameter is a tensor mapped from a file; the system reads it on access, and may drop it again.
While a block is in use, its weights are float32 copies in memory. At the end of `resident` they are
written to a scratch file and mapped from there.
"""

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from todm.compress.packed import release


class Streaming:
    """Keeps the weights of a model in files."""

    def __init__(
        self, model: nn.Module, blocks: Sequence[str], scratch: Path | None = None
    ) -> None:
        """Blocks come into memory by themselves while they are called.

        Args:
            model: its parameters are mapped from files.
            blocks: names of modules that are loaded and dropped as a whole.
            scratch: a directory for changed blocks, with room for the model in float32; the system's
                temporary directory by default.
        """
        self._model, self._blocks = model, tuple(blocks)
        self._directory = Path(tempfile.mkdtemp(prefix="todm-blocks-", dir=scratch))
        weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        self._depth: dict[str, int] = {}
        self._on_disk: dict[str, dict[str, Tensor]] = {}
        self._files: dict[str, Path] = {}
        self._count = 0
        for name in blocks:
            self._watch(name)

    @contextmanager
    def resident(self, prefix: str) -> Iterator[None]:
        """Inside, a block (or with "", everything outside the blocks) is in memory; changes are kept."""
        self._enter(prefix)
        try:
            yield
            self._spool(prefix)
        finally:
            self._leave(prefix)

    @contextmanager
    def present(self, prefix: str) -> Iterator[None]:
        """As `resident`, read-only: nothing is written."""
        self._enter(prefix)
        try:
            yield
        finally:
            self._leave(prefix)

    def _watch(self, name: str) -> None:
        block = self._model.get_submodule(name)

        def enter(_module: nn.Module, _args: Any) -> None:  # noqa: ANN401
            self._enter(name)

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:  # noqa: ANN401
            self._leave(name)

        block.register_forward_pre_hook(enter)
        # Also where a hook ends the forward pass early, as the capture of a block_list's inputs does.
        block.register_forward_hook(leave, always_call=True)

    def _enter(self, prefix: str) -> None:
        self._depth[prefix] = self._depth.get(prefix, 0) + 1
        if self._depth[prefix] == 1:
            modules = self._modules(prefix)
            self._on_disk[prefix] = _tensors(modules)
            _put(modules, {n: t.clone() for n, t in self._on_disk[prefix].items()})
            for module in modules.values():
                for parameter in module._parameters.values():
                    if parameter is not None:
                        parameter.data = parameter.data.float()

    def _leave(self, prefix: str) -> None:
        self._depth[prefix] -= 1
        if self._depth[prefix] == 0:
            release(self._model.get_submodule(prefix))
            _put(self._modules(prefix), self._on_disk.pop(prefix))

    def _spool(self, prefix: str) -> None:
        """Write the tensors in memory, and map them."""
        from safetensors.torch import load_file, save_file

        tensors = {n: t.detach().contiguous() for n, t in _tensors(self._modules(prefix)).items()}
        self._count += 1
        file = self._directory / f"{self._count}.safetensors"
        save_file(tensors, file)
        self._on_disk[prefix] = load_file(file)
        if prefix in self._files:
            self._files[prefix].unlink()
        self._files[prefix] = file

    def _modules(self, prefix: str) -> dict[str, nn.Module]:
        """The modules of a block, or those outside all blocks, by full name."""
        if prefix:
            inner = self._model.get_submodule(prefix).named_modules(prefix=prefix)
            return dict(inner)
        return {
            n: m
            for n, m in self._model.named_modules()
            if not any(n == b or n.startswith(f"{b}.") for b in self._blocks)
        }


def _tensors(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and stored buffers, each once."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, module in modules.items():
        for own, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                tensors[f"{name}.{own}"] = parameter.data
        for own, buffer in module._buffers.items():
            if buffer is not None and own not in module._non_persistent_buffers_set:
                tensors[f"{name}.{own}"] = buffer
    return tensors


def _put(modules: dict[str, nn.Module], tensors: dict[str, Tensor]) -> None:
    for full, tensor in tensors.items():
        name, _, own = full.rpartition(".")
        module = modules[name]
        parameter = module._parameters.get(own)
        if parameter is not None:
            parameter.data = tensor
        else:
            module._buffers[own] = tensor
