"""What holds around every launch of an op."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def on_device_of(x: Tensor) -> Iterator[None]:
    """Launches inside go to the device of `x`, and products keep the dtypes they are given.

    Triton launches on the current device, which need not be the tensors'. Autocast would make sums
    bfloat16 that an op keeps in float32; a backward pass does not inherit what its forward pass set.
    """
    with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
        yield
