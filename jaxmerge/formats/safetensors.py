"""safetensors files, read without trusting what they say of themselves.

A file is 8 bytes of the header's length, a JSON header with each tensor's
dtype, shape and place, and the tensors one after the other:
https://huggingface.co/docs/safetensors
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxmerge.errors import InputError, check
from jaxmerge.formats.lazy_tensors import (
  LazyTensor,
  TensorSpec,
  are_counts,
  is_shape,
  num_rows,
)
from jaxmerge.reading import check_is_file, read_json

_DTYPES: Mapping[str, np.dtype] = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(jnp.bfloat16),
  "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
  "F8_E5M2": np.dtype(jnp.float8_e5m2),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "I16": np.dtype(np.int16),
  "I8": np.dtype(np.int8),
  "U64": np.dtype(np.uint64),
  "U32": np.dtype(np.uint32),
  "U16": np.dtype(np.uint16),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH_BYTES = 8
_ALIGNMENT = 64
_LONGEST_HEADER = 100_000_000
_MOST_TENSORS = 200_000  # each takes a kilobyte of memory


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class StoredTensor(LazyTensor):
  """A tensor in a file that `opened` opens, from a byte on."""

  path: epath.Path
  opened: Callable[[], Any]
  start: int

  def rows(self, start: int, stop: int) -> np.ndarray:
    """The rows from start to stop; of a tensor without axes its one value."""
    size = self.nbytes // max(num_rows(self.shape), 1)
    content = aligned((stop - start) * size)
    with self.opened() as file:
      file.seek(self.start + start * size)
      read = file.readinto(content.data)
    if read != len(content):
      raise InputError(f"{self.path} has become shorter while it was read")
    return content.view(self.dtype).reshape(stop - start, *self.shape[1:])


def aligned(size: int) -> np.ndarray:
  """Bytes that begin where JAX takes them without a copy."""
  content = np.empty(size + _ALIGNMENT, np.uint8)
  first = -content.__array_interface__["data"][0] % _ALIGNMENT
  return content[first : first + size]


def open_file(path: epath.PathLike) -> dict[str, StoredTensor]:
  """The tensors of a file by name; their contents are not read yet.

  Raises:
    InputError: the file is truncated or its header is damaged; lists all
      problems.
  """
  path = epath.Path(path)
  try:
    header, start, size = _read_header(path)
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or error
    raise InputError(f"{path} cannot be read: {reason}") from error
  opened: Callable[[], Any] = functools.partial(path.open, "rb")
  if "://" not in os.fspath(path):  # epath would take ten times as long
    opened = functools.partial(open, os.fspath(path), "rb")
  tensors: dict[str, StoredTensor] = {}
  problems: list[str] = []
  for name, entry in header.items():
    if name == "__metadata__":
      continue
    try:
      tensors[name] = _stored(path, opened, entry, start)
    except ValueError as error:
      problems.append(f"{path} is damaged: tensor {name!r} {error}")
  if not problems:
    problems = _misplaced(path, tensors, start, size)
  check(problems)
  return tensors


def read_metadata(path: epath.PathLike) -> dict[str, str]:
  """The texts that the header of a file holds beside its tensors.

  Raises:
    InputError: as open_file.
  """
  path = epath.Path(path)
  try:
    header, _, _ = _read_header(path)
  except (OSError, ValueError) as error:
    raise InputError(f"{path} cannot be read: {error}") from error
  found = header.get("__metadata__", {})
  if not isinstance(found, dict) or not all(
    isinstance(text, str) for text in found.values()
  ):
    raise InputError(f"{path} is damaged: its __metadata__ is not of texts")
  return found


def _read_header(path: epath.Path) -> tuple[dict[str, Any], int, int]:
  """The header, where the tensors start, and the size of the file."""
  check_is_file(path)
  size = path.stat().length
  with path.open("rb") as file:
    first = file.read(_LENGTH_BYTES)
    length = int.from_bytes(first, "little")
    if len(first) < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
      raise ValueError(f"it is truncated: it has {size} bytes in all")
    if length > _LONGEST_HEADER:
      raise ValueError(f"its header is said to have {length} bytes")
    text = file.read(length)
  try:
    header = read_json(text)
  except ValueError as error:
    raise ValueError(f"its header is not JSON ({error})") from error
  if not isinstance(header, dict):
    raise ValueError("its header is not a JSON object")
  if len(header) > _MOST_TENSORS:
    raise ValueError(f"it is said to hold {len(header)} tensors")
  return header, _LENGTH_BYTES + length, size


def _stored(
  path: epath.Path, opened: Callable[[], Any], entry: Any, start: int
) -> StoredTensor:
  """ValueError says what is wrong with a tensor's entry."""
  if not isinstance(entry, dict):
    raise ValueError("is not described by a JSON object")
  dtype: Any = entry.get("dtype")
  shape: Any = entry.get("shape")
  offsets: Any = entry.get("data_offsets")
  if not isinstance(dtype, str) or dtype not in _DTYPES:
    raise ValueError(f"has dtype {dtype!r}, which is not supported")
  if not is_shape(shape):
    raise ValueError(f"has shape {shape!r}")
  if not are_counts(offsets) or len(offsets) != 2:
    raise ValueError(f"has offsets {offsets!r}")
  size = math.prod(shape) * _DTYPES[dtype].itemsize
  if offsets[1] - offsets[0] != size:
    raise ValueError(
      f"is said to lie at {offsets[0]} to {offsets[1]}, but {dtype} of shape "
      f"{shape} has {size} bytes"
    )
  return StoredTensor(
    tuple(shape),
    _DTYPES[dtype],
    path=path,
    opened=opened,
    start=start + offsets[0],
  )


def _misplaced(
  path: epath.Path, tensors: Mapping[str, StoredTensor], start: int, size: int
) -> list[str]:
  """Tensors must follow each other from the header to the end of the file."""
  problems = []
  place = start
  for name, tensor in sorted(
    tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)
  ):
    if tensor.start != place:
      what = "overlaps" if tensor.start < place else "leaves a gap after"
      problems.append(f"{path} is damaged: tensor {name!r} {what} another")
    place = tensor.start + tensor.nbytes
  if place > size:
    problems.append(
      f"{path} is truncated: it has {size} bytes, its header describes {place}"
    )
  elif place < size:
    problems.append(f"{path} has {size - place} bytes too many")
  return problems


def write_file(
  path: epath.PathLike,
  specs: Mapping[str, TensorSpec],
  portions: Iterator[np.ndarray],
  metadata: Mapping[str, str] = {},
) -> None:
  """Writes a file of tensors in their order.

  Args:
    path: of the file.
    specs: what the tensors are, by name.
    portions: their contents one after the other, whole or in parts; what
      belongs to this file is taken.
    metadata: texts for the header.

  Raises:
    InputError: a dtype has no name in the format.
  """
  check_dtypes(specs)
  header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
  place = 0
  for name, spec in specs.items():
    header[name] = {
      "dtype": _NAMES[spec.dtype],
      "shape": list(spec.shape),
      "data_offsets": [place, place + spec.nbytes],
    }
    place += spec.nbytes
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % _LENGTH_BYTES)  # tensors start aligned
  with epath.Path(path).open("wb") as file:
    file.write(len(text).to_bytes(_LENGTH_BYTES, "little"))
    file.write(text)
    while place > 0:
      array = np.ascontiguousarray(next(portions)).reshape(-1)
      file.write(array.view(np.uint8).data)
      place -= array.nbytes
  if place:
    raise ValueError("a portion belongs to two files")


def check_dtypes(specs: Mapping[str, TensorSpec]) -> None:
  """Raises InputError for dtypes that safetensors cannot hold."""
  check(
    f"tensor {name} is {spec.dtype}, which safetensors cannot hold"
    for name, spec in specs.items()
    if spec.dtype not in _NAMES
  )
