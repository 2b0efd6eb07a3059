"""What the command lines of studies share: their verbs run, and their errors are one line."""

import argparse
import sys
from collections.abc import Sequence

from todm.errors import TodmError


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse the arguments and run the verb, which the parser names as `run`.

    Args:
        parser: its `prog` begins every message.
        argv: arguments without the program's name; those of the process if None.

    Returns:
        The exit status: 2, with a one-line message, for errors that the user can correct.
    """
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except TodmError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted; the same command continues\n")
        return 130
    return 0
