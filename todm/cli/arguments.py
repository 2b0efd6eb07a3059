"""Flags of a verb, made from the parameters of its stage: a default is written once, in the signature."""

import argparse
import inspect
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

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


def names(flag: str) -> Callable[[str], tuple[str, ...]]:
    """Reads words joined by commas, each once.

    Raises:
        ConfigError: by what is returned, if there is no word.
    """

    def read(text: str) -> tuple[str, ...]:
        words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
        if not words:
            raise ConfigError(f"{flag} is {text!r}: give names joined by commas, or leave it out")
        return words

    return read


def numbers(flag: str) -> Callable[[str], tuple[int, ...]]:
    """Reads whole numbers joined by commas.

    Raises:
        ConfigError: by what is returned, for anything else, and if there is no number.
    """

    def read(text: str) -> tuple[int, ...]:
        try:
            return tuple(int(word) for word in text.split(","))
        except ValueError:
            raise ConfigError(
                f"{flag} is {text!r}: give whole numbers joined by commas, as in 8,16"
            ) from None

    return read


def _conversion(parameter: inspect.Parameter) -> dict[str, Any]:
    """What argparse needs to know of a parameter's type."""
    annotation = parameter.annotation
    if annotation is bool:
        return {"action": "store_false" if parameter.default is True else "store_true"}
    unions = (types.UnionType, Union)  # the latter: `Literal["a"] | None`
    is_union = get_origin(annotation) in unions
    kinds = get_args(annotation) if is_union else (annotation,)
    for kind in kinds:
        if get_origin(kind) is Literal:
            return {"choices": get_args(kind)}
        if kind in (int, float, Path):
            return {"type": kind}
        if get_origin(kind) is Sequence:
            return {"action": _Collect}
    return {}
