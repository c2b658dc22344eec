"""From a config file's nested mapping to typed dataclasses: no key unread, no key made up."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from mmaudio_jax.errors import UserError

T = TypeVar("T")

REFUSED = {  # keys that other tools have, and why there is none here
    "frequency_mask": "a latent's channels are not bins of frequency, so hiding some hides no band of the sound; "
    "augment.time_mask hides spans of what is seen",
}


def from_mapping(cls: type[T], values: Mapping[str, Any], prefix: str = "config") -> T:
    """Builds a config dataclass, nested ones included.

    Raises:
        UserError: a key that the dataclass does not have (names the nearest, or says why it is refused), a missing
            one, or a wrong type.
    """
    expected = typing.get_type_hints(cls)
    for key in values:
        if key in REFUSED:
            raise UserError(refusal(f"{prefix}.{key}"))
        if key not in expected:
            near = difflib.get_close_matches(key, expected, n=1)
            hint = f"; did you mean {prefix}.{near[0]}?" if near else f"; there are {', '.join(expected)}"
            raise UserError(f"the config key {prefix}.{key} does not exist{hint}")
    missing = [key for key in expected if key not in values]
    if missing:
        raise UserError(f"the config key {prefix}.{missing[0]} is missing")
    return cls(**{key: _typed(expected[key], values[key], f"{prefix}.{key}") for key in expected})


def refusal(name: str) -> str:
    """Why the key of this dotted name, of `REFUSED`, does not exist."""
    return f"the config key {name} is refused: {REFUSED[name.rpartition('.')[2]]}"


def _typed(expected: Any, value: Any, name: str) -> Any:
    if typing.get_origin(expected) is types.UnionType:  # `Group | None`
        if value is None:
            return None
        expected = typing.get_args(expected)[0]
    if dataclasses.is_dataclass(expected):
        if not isinstance(value, Mapping):
            raise UserError(f"{name} must be a group of keys, not {value!r}")
        return from_mapping(expected, value, name)
    origin = typing.get_origin(expected) or expected
    if origin is float and type(value) is int:
        return float(value)
    if origin is tuple and isinstance(value, list | tuple):
        (item, _) = typing.get_args(expected)
        return tuple(_typed(item, v, f"{name}[{i}]") for i, v in enumerate(value))
    accepted = Mapping if origin is dict else origin
    if not isinstance(value, accepted) or (isinstance(value, bool) and origin is not bool):
        raise UserError(f"{name} is {value!r}; it must be of type {origin.__name__}")
    if origin is dict:
        return {key: _typed(typing.get_args(expected)[1], v, f"{name}.{key}") for key, v in value.items()}
    return value
