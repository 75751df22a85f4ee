"""The pickle of a .bin file, followed without running anything.

A pickle is a program that may call any function and take any memory. Of its
steps those are taken that make dicts of tensors; nothing is looked up, imported
or called, and all other steps are refused by name
(https://docs.python.org/3/library/pickletools.html).
"""

import pickletools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmerge.errors import InputError

_STORAGES: Mapping[str, np.dtype] = {
  "torch.DoubleStorage": np.dtype(np.float64),
  "torch.FloatStorage": np.dtype(np.float32),
  "torch.HalfStorage": np.dtype(np.float16),
  "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
  "torch.LongStorage": np.dtype(np.int64),
  "torch.IntStorage": np.dtype(np.int32),
  "torch.ShortStorage": np.dtype(np.int16),
  "torch.CharStorage": np.dtype(np.int8),
  "torch.ByteStorage": np.dtype(np.uint8),
  "torch.BoolStorage": np.dtype(np.bool_),
}
_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_KNOWN = (_DICT, _TENSOR, _PARAMETER, *_STORAGES)
# A step leaves 72 bytes in memory, and a tensor of a model takes 45 steps.
_MOST_STEPS = 2_500_000


class Built(NamedTuple):
  """A tensor as a pickle says it: but for the dtype, anything may be in it.

  Attributes:
    storage: its dtype, and one of the storages or None where it is none.
    start: its first element, counted in the storage.
    shape: of the tensor.
    strides: elements from one index to the next, along each axis.
  """

  storage: Any
  start: Any
  shape: Any
  strides: Any


# Steps that put a value on the stack: their argument, or a constant.
_ARGUMENTS = {
  "BINFLOAT",
  "BININT",
  "BININT1",
  "BININT2",
  "BINUNICODE",
  "BINUNICODE8",
  "INT",
  "LONG1",
  "SHORT_BINUNICODE",
}
_CONSTANTS: Mapping[str, Any] = {
  "NONE": None,
  "NEWTRUE": True,
  "NEWFALSE": False,
  "EMPTY_TUPLE": (),
}


class Machine:
  """Takes the steps of a pickle on plain values.

  It raises any exception where the pickle is damaged.

  Args:
    storages: what a tensor may refer to, by name.
  """

  def __init__(self, storages: Mapping[str, Any]):
    self._storages = storages
    self._stack: list[Any] = []
    self._marks: list[int] = []
    self._memo: dict[int, Any] = {}

  def run(self, program: bytes) -> Any:
    """Returns the value that the pickle makes, tensors in it as Built."""
    steps = pickletools.genops(program)
    for number, (opcode, argument, _) in enumerate(steps):
      if number == _MOST_STEPS:
        raise InputError(f"its pickle has more than {_MOST_STEPS} steps")
      if opcode.name in _ARGUMENTS:
        self._stack.append(argument)
      elif opcode.name in _CONSTANTS:
        self._stack.append(_CONSTANTS[opcode.name])
      else:
        self._step(opcode.name, argument)
    [value] = self._stack
    return value

  def _step(self, name: str, argument: Any) -> None:
    push = self._stack.append
    match name:
      case "BINPUT" | "LONG_BINPUT":
        self._memo[argument] = self._stack[-1]
      case "MEMOIZE":
        self._memo[len(self._memo)] = self._stack[-1]
      case "BINGET" | "LONG_BINGET":
        push(self._memo[argument])
      case "MARK":
        self._marks.append(len(self._stack))
      case "EMPTY_DICT":
        push({})
      case "EMPTY_LIST":
        push([])
      case "TUPLE":
        push(tuple(self._from(self._marks.pop())))
      case "TUPLE1" | "TUPLE2" | "TUPLE3":
        push(tuple(self._last(int(name[-1]))))
      case "APPEND":
        _of(list, self._stack[-2]).append(self._stack.pop())
      case "APPENDS":
        values = self._from(self._marks.pop())
        _of(list, self._stack[-1]).extend(values)
      case "SETITEM":
        self._set(self._last(2))
      case "SETITEMS":
        self._set(self._from(self._marks.pop()))
      case "GLOBAL":
        push(_known(argument.replace(" ", ".")))
      case "STACK_GLOBAL":
        push(_known(".".join(self._last(2))))
      case "BINPERSID":
        push(self._storage(self._stack.pop()))
      case "REDUCE":
        push(_call(*self._last(2)))
      case "BUILD":  # attributes of a dict, which say nothing of its tensors
        self._stack.pop()
        _of(dict, self._stack[-1])
      case "PROTO" | "FRAME" | "STOP":
        pass
      case _:
        raise InputError(f"its pickle has a {name}, which makes no tensor")

  def _from(self, start: int) -> list[Any]:
    values = self._stack[start:]
    del self._stack[start:]
    return values

  def _last(self, count: int) -> list[Any]:
    if len(self._stack) < count:
      raise ValueError("a value is missing")
    return self._from(len(self._stack) - count)

  def _set(self, values: list[Any]) -> None:
    pairs = zip(values[::2], values[1::2], strict=True)
    # Python's stack ends in the hash of a tuple of tuples of tuples.
    _of(dict, self._stack[-1]).update((_of(str | int, k), v) for k, v in pairs)

  def _storage(self, value: Any) -> tuple[np.dtype, Any]:
    match value:
      case ("storage", str(kind), str(key), *_) if kind in _STORAGES:
        return _STORAGES[kind], self._storages.get(key)
    raise InputError("it holds something else than storages of numbers")


def _of(kind: Any, value: Any) -> Any:
  if not isinstance(value, kind):
    raise TypeError(f"a {type(value).__name__} is where it cannot be")
  return value


def _known(name: str) -> str:
  if name not in _KNOWN:
    raise InputError(
      f"it names {name[:200]}, which makes no tensor; it is not run"
    )
  return name


def _call(function: Any, arguments: Any) -> Any:
  """The value of one of the known functions."""
  match _of(tuple, arguments):
    case () if function == _DICT:
      return {}
    case (storage, start, shape, strides, *_) if function == _TENSOR:
      return Built(storage, start, shape, strides)
    case (tensor, *_) if function == _PARAMETER:
      return tensor
  raise ValueError("a function has other arguments than its own")
