"""Reads the pickle of a state dict without running it.

A pickle is a program whose instructions may call anything. Here only those instructions are known that build
containers, and only those names that stand for storages, tensors and dicts; nothing that a file names is ever
imported or called.
"""

import dataclasses
import pickletools
from typing import Any

import ml_dtypes
import numpy as np

Shape = tuple[int, ...]

STORAGES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
ORDERED_DICT = "collections.OrderedDict"
SIZE = "torch.Size"
TENSOR = "torch._utils._rebuild_tensor_v2"
PARAMETER = "torch._utils._rebuild_parameter"
NAMES = {*STORAGES, ORDERED_DICT, SIZE, TENSOR, PARAMETER}

CONSTANTS = {  # instructions that push the value written after them
    *("INT", "LONG", "FLOAT", "UNICODE", "STRING"),
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
}


class Refused(Exception):
    """The pickle is damaged or asks for more than a state dict needs; the message completes "FILE …"."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of `size` elements, kept in the archive under `key`."""

    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor: `shape` elements of a storage from `offset` on, `strides` apart; all counted in elements."""

    storage: Storage
    offset: int
    shape: Shape
    strides: Shape


@dataclasses.dataclass(frozen=True)
class _Name:
    dotted: str


def load(pickled: bytes) -> Any:
    """The object that the pickle describes: dicts, lists, tuples, numbers, strings, and `View`s for tensors.

    Raises:
        Refused: the pickle is damaged, or names or does what no state dict needs.
    """
    try:
        return _interpret(pickled)
    except Refused:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError) as error:
        raise Refused(f"holds a damaged pickle ({type(error).__name__}: {error}); download it again") from None


def _interpret(pickled: bytes) -> Any:
    stack, outer, memo = [], [], {}

    def pop_mark() -> list:
        nonlocal stack
        items, stack = stack, outer.pop()
        return items

    for opcode, argument, _ in pickletools.genops(pickled):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case name if name in CONSTANTS:
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "MARK":
                outer.append(stack)
                stack = []
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[argument])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                items = pop_mark()
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                items = pop_mark()
                stack.append(items)
            case "APPEND":
                item = stack.pop()
                _expect(stack[-1], list).append(item)
            case "APPENDS":
                items = pop_mark()
                _expect(stack[-1], list).extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = pop_mark()
                stack.append(dict(zip(items[::2], items[1::2], strict=True)))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _expect(stack[-1], dict)[key] = value
            case "SETITEMS":
                items = pop_mark()
                _expect(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
            case "GLOBAL" | "INST":
                stack.append(_name(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_name(f"{module}.{attribute}"))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, function = _expect(stack.pop(), tuple), _expect(stack.pop(), _Name)
                stack.append(_build(function.dotted, arguments))
            case "BUILD":  # the attributes of an OrderedDict: torch's `_metadata`, of no use here
                stack.pop()
                _expect(stack[-1], dict)
            case name:
                raise Refused(f"uses the pickle instruction {name}, which no state dict needs; nothing was run")
    raise ValueError("it does not end")


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} where {kind.__name__} is needed")
    return value


def _name(dotted: str) -> _Name:
    if dotted not in NAMES:
        raise Refused(
            f"names {dotted}, which no state dict needs; nothing was run (if you trust the file, "
            "load it with torch and save the state dict alone: torch.save(model.state_dict(), FILE))"
        )
    return _Name(dotted)


def _storage(persistent_id: tuple) -> Storage:
    kind, storage_type, key, _location, size = persistent_id
    if kind != "storage" or _expect(storage_type, _Name).dotted not in STORAGES:
        raise TypeError("not a typed storage")
    return Storage(_expect(key, str), STORAGES[storage_type.dotted], *_counts((size,)))


def _build(dotted: str, arguments: tuple) -> Any:
    match dotted:
        case "collections.OrderedDict":
            return dict(*arguments)
        case "torch.Size":
            return _counts(*arguments)
        case "torch._utils._rebuild_tensor_v2":
            storage, offset, shape, strides, _requires_grad, _hooks, *metadata = arguments
            if any(metadata):
                raise Refused("holds a tensor that is stored conjugated or negated; save it after .resolve_neg()")
            view = View(_expect(storage, Storage), *_counts((offset,)), _counts(shape), _counts(strides))
            if len(view.shape) != len(view.strides):
                raise ValueError("a tensor's shape and strides differ in length")
            return view
        case "torch._utils._rebuild_parameter":
            return _expect(arguments[0], View)
        case _:
            raise TypeError(f"{dotted} is called")


def _counts(values: Any) -> Shape:
    """A tuple of whole numbers, none negative."""
    values = tuple(values)
    if any(type(value) is not int or value < 0 for value in values):
        raise ValueError("a size that is no whole number from 0 on")
    return values
