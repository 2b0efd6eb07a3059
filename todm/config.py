"""Configuration: frozen dataclasses, to and from JSON, strict about keys, types and values.

A config lives beside what it configures and derives from `Config`. A recipe is a Python function that
returns a complete one; artifacts carry it as JSON.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Self

from todm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of every configuration. Subclasses are frozen, keyword-only dataclasses.

    `__post_init__` of a subclass checks values, with `check` or by raising `ConfigError`.
    """

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types only, in the order of the fields."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, data: Any, *, where: str = "") -> Self:
        """The inverse of `to_json`. Missing keys take their default.

        Raises:
            ConfigError: an unknown key (with the nearest known one), or a value of the wrong type.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"{where or cls.__name__} must be a table of settings, not {data!r}")
        table = typing.cast("dict[str, Any]", data)
        hints = typing.get_type_hints(cls)
        known = [f.name for f in dataclasses.fields(cls)]
        for key in table:
            if key not in known:
                raise ConfigError(_unknown(key, known, where))
        values = {k: _convert(v, hints[k], f"{where}{k}") for k, v in table.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"{where or cls.__name__}: {error}") from None

    def check(
        self, where: str, names: Sequence[str], *, holds: Callable[[Any], bool], allowed: str
    ) -> None:
        """For `__post_init__`: refuse a field of `names` whose value does not hold.

        Raises:
            ConfigError: with `where`, the field, its value and what is allowed.
        """
        for name in names:
            if not holds(value := getattr(self, name)):
                raise ConfigError(f"{where}.{name} is {value}: {allowed}")

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; checked as if built anew."""
        return dataclasses.replace(self, **changes)

    def override(self, assignments: Sequence[str]) -> Self:
        """Apply `a.b=value` settings; values are read as JSON, else as text.

        Raises:
            ConfigError: no `=`, an unknown key, or a value of the wrong type.
        """
        data = self.to_json()
        for item in assignments:
            path, sep, text = item.partition("=")
            if not sep:
                raise ConfigError(f"--set {item!r} has no '=': write  --set train.num_updates=500")
            self._assign(data, path.strip().split("."), _parse(text.strip()), path)
        return type(self).from_json(data)

    @staticmethod
    def _assign(data: dict[str, Any], keys: list[str], value: object, path: str) -> None:
        for depth, key in enumerate(keys[:-1]):
            if not isinstance(data.get(key), dict):
                raise ConfigError(_unknown(key, list(data), ".".join([*keys[:depth], ""])))
            data = data[key]
        if keys[-1] not in data:
            raise ConfigError(_unknown(keys[-1], list(data), path[: -len(keys[-1])]))
        data[keys[-1]] = value


def _unknown(key: str, known: list[str], where: str) -> str:
    near = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"unknown setting {where + key!r}: {hint}"


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_json()
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in typing.cast("list[Any]", value)]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in typing.cast("dict[Any, Any]", value).items()}
    return value


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` (from JSON) as the annotated type `hint`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(value, next(a for a in args if a is not type(None)), where)
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{where} is {value!r}: allowed are {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        return _convert_tuple(value, args, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {value!r}: a table is needed")
        table = typing.cast("dict[str, Any]", value)
        return {k: _convert(v, args[1], f"{where}.{k}") for k, v in table.items()}
    if isinstance(hint, type) and issubclass(hint, Config):
        return hint.from_json(value, where=f"{where}.")  # pyright: ignore[reportArgumentType]
    return _scalar(value, hint, where)


def _convert_tuple(value: Any, args: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} is {value!r}: a list is needed, such as [1, 2]")
    items: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
    kinds = [args[0]] * len(items) if len(args) == 2 and args[1] is ... else list(args)
    if len(kinds) != len(items):
        raise ConfigError(f"{where} has {len(items)} values: {len(kinds)} are needed")
    return tuple(_convert(v, k, where) for v, k in zip(items, kinds, strict=True))


def _scalar(value: Any, hint: Any, where: str) -> object:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} is {value!r}: a value of type {hint.__name__} is needed")
