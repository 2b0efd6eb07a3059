"""Tensors that all nets of a sandwich step compute alike: worked out once, their gradients summed.

shared = Shared()
x = shared(f(parameters))       # a leaf; f ran once
for net in nets:
    net(x).backward()           # gradients add up in the leaf
shared.backward()               # and go through f once
"""

from collections.abc import Callable

import torch
from torch import Tensor

Share = Callable[[Tensor], Tensor]


class Shared:
    """Cuts tensors off from their past, and later hands them the gradients of all passes at once."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor) -> Tensor:
        """The same values, as a leaf of new graphs; as it is where no gradient is wanted."""
        if not x.requires_grad:
            return x
        leaf = x.detach().requires_grad_()
        self._pairs.append((x, leaf))
        return leaf

    def backward(self) -> None:
        """The second half of every backward pass so far."""
        reached = [(x, leaf.grad) for x, leaf in self._pairs if leaf.grad is not None]
        self._pairs = []
        if reached:
            torch.autograd.backward([x for x, _ in reached], [grad for _, grad in reached])
