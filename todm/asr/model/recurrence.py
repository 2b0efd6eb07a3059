"""One state-space recurrence of a mixer, with all that does not depend on its input.

Letters: H heads, T frames, B batch, P channels per head.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from todm.asr.model.wait import Wait
from todm.kernels.mh_ssm import Loop, Prepared, Ssm, mh_ssm, prepare


class Recurrence(NamedTuple):
    """A recurrence of some heads over a sequence, and the map of its output.

    Attributes:
        reset: it starts from zero every so many frames; 0 for never.
        reverse: it runs from the last frame to the first.
        loop_frames: of `loop`.
        ssm: discrete parameters.
        prepared: what the kernel works out from them.
        loop: what was heard before.
        mix_HPP: the linear map of each head's output.
    """

    reset: int
    reverse: bool
    loop_frames: int
    ssm: Ssm
    prepared: Prepared | None
    loop: Loop | None
    mix_HPP: Tensor

    @classmethod
    def of(
        cls,
        ssm: Ssm,
        mix_HPP: Tensor,
        *,
        frames: int,
        reset: int,
        reverse: bool,
        wait: Wait | None,
    ) -> "Recurrence":
        """For sequences of `frames` frames."""
        return cls(
            reset,
            reverse,
            wait.frames if wait else 0,
            ssm,
            prepare(ssm, frames, reset=reset, from_state=wait is not None),
            Loop.of(ssm, wait.frames, wait.times_B) if wait else None,
            mix_HPP,
        )

    def map(self, change: Callable[[Tensor], Any]) -> "Recurrence":
        """Every tensor changed; their first axis is that of the heads."""
        parts = self._asdict()
        changed = {n: _each(change, parts[n]) for n in ("ssm", "prepared", "loop")}
        return self._replace(**changed, mix_HPP=change(self.mix_HPP))

    def first(self, heads: int) -> "Recurrence":
        """Of the first heads."""
        if heads == self.ssm.skip_H.shape[0]:
            return self
        return self.map(lambda x: x[:heads])

    def split(self, heads: Sequence[int]) -> "list[Recurrence]":
        """Of so many heads each."""
        parts = self.map(lambda x: x.split(list(heads)))
        return [parts.map(lambda x, i=i: x[i]) for i in range(len(heads))]

    def run(self, h_HTBP: Tensor) -> Tensor:
        """The output for an input."""
        state = self.loop and self.loop.state(h_HTBP[:, : self.loop_frames])
        return mh_ssm(
            h_HTBP,
            self.ssm,
            state_H2NBP=state,
            reverse=self.reverse,
            reset=self.reset,
            want_state=False,
            prepared=self.prepared,
        )[0]


def _each(change: Callable[[Any], Any], part: Any) -> Any:  # noqa: ANN401 - a named tuple
    return part and part._make(None if x is None else change(x) for x in part)
