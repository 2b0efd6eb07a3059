"""Flags of a verb, made from the parameters of its stage: a default is written once, in the signature."""

import argparse
import inspect
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from todm.errors import ConfigError

Stage = Callable[..., Any]


class Flags:
    """Adds flags to a parser, or a group of one: each is a parameter of a stage."""

    def __init__(self, parser: "argparse._ActionsContainer", stage: Stage) -> None:
        self._parser = parser
        self._parameters = inspect.signature(stage).parameters

    def __call__(
        self,
        flag: str,
        text: str,
        *,
        dest: str | None = None,
        **options: Any,  # noqa: ANN401 - those of argparse
    ) -> argparse.Action:
        """Add a flag, or a positional argument.

        Default, type and choices are the parameter's; one without a default is required.

        Args:
            flag: `--candidates`, or `supernet` for a positional argument.
            text: its help.
            dest: the parameter, if it is not called as the flag is.
            **options: what else argparse takes; these win.
        """
        name = dest or flag.lstrip("-").replace("-", "_")
        parameter = self._parameters[name]
        optional = parameter.default is not parameter.empty
        known = {"help": text, **_conversion(parameter)}
        if optional:
            known["default"] = parameter.default
        if flag.startswith("-"):
            known |= {"dest": name} if optional else {"dest": name, "required": True}
        elif optional:
            known["nargs"] = "?"
        return self._parser.add_argument(flag, **known | options)


class _Collect(argparse.Action):
    """Every use of the flag adds to the sequence, which is as immutable as the stage's default."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,  # noqa: ANN401 - as argparse has it
        option_string: str | None = None,
    ) -> None:
        added = values if isinstance(values, list) else [values]
        setattr(namespace, self.dest, (*(getattr(namespace, self.dest) or ()), *added))


def given(args: argparse.Namespace, *stages: Stage) -> dict[str, Any]:
    """The keywords of these stages as the command line has them."""
    names = {name for stage in stages for name in inspect.signature(stage).parameters}
    return {name: value for name, value in vars(args).items() if name in names}


def names(text: str) -> tuple[str, ...]:
    """Words joined by commas."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def numbers(flag: str) -> Callable[[str], tuple[int, ...]]:
    """Reads whole numbers joined by commas.

    Raises:
        ConfigError: of what is returned, for anything else.
    """

    def read(text: str) -> tuple[int, ...]:
        try:
            return tuple(int(word) for word in text.split(",") if word)
        except ValueError:
            raise ConfigError(f"{flag} is {text!r}: whole numbers joined by commas") from None

    return read


def _conversion(parameter: inspect.Parameter) -> dict[str, Any]:
    """What argparse needs to know of a parameter's type."""
    annotation = parameter.annotation
    if annotation is bool:
        return {"action": "store_false" if parameter.default is True else "store_true"}
    kinds = get_args(annotation) if get_origin(annotation) is types.UnionType else (annotation,)
    for kind in kinds:
        if get_origin(kind) is Literal:
            return {"choices": get_args(kind)}
        if kind in (int, float, Path):
            return {"type": kind}
        if get_origin(kind) is Sequence:
            return {"action": _Collect}
    return {}
