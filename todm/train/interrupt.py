"""Ctrl-C that never cuts an update in half."""

import contextlib
import signal
from types import FrameType
from typing import Any


class StopFlag:
    """Turns the first Ctrl-C into a flag; the second interrupts at once.

    Processes other than the first ignore it: they hear of it from the first one, and stop after the
    same update.
    """

    def __init__(self, *, ignore: bool) -> None:
        self.raised = False
        self._ignore = ignore
        self._before: Any = None

    def __enter__(self) -> "StopFlag":
        handler = signal.SIG_IGN if self._ignore else self._raise
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            self._before = signal.signal(signal.SIGINT, handler)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _raise(self, _signal: int, _frame: FrameType | None) -> None:
        if self.raised:
            raise KeyboardInterrupt
        self.raised = True
