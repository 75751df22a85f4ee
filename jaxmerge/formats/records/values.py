"""Checks that what a checkpoint says of itself can be meant.

A digest shows that metadata has not been damaged, not that who wrote it means
well: every value is looked at before it is used.
"""

import itertools
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmerge.config_fields import rows
from jaxmerge.data.config import DataConfig
from jaxmerge.formats.lazy_tensors import is_shape
from jaxmerge.formats.records.file_texts import to_bytes

_KINDS = ("trained", "merged", "converted", "imported")
_LARGEST = 2**53  # as exact as any JSON number
_MOST_TOLD = 5
# A tree of names is walked by functions that call themselves.
_MOST_PARTS = 100


def value_problems(
  fields: Mapping[str, Any], kinds: Mapping[str, Any]
) -> Iterator[str]:
  """Says of each field why it cannot be meant.

  Args:
    fields: of Metadata, some or all, from JSON.
    kinds: the types of all fields: int, bool, str, Any or a Mapping from str
      to one.
  """
  for name, value in fields.items():
    found = list(
      itertools.islice(_mistyped(value, kinds[name]), _MOST_TOLD + 1)
    )
    if not found and name in _CHECKS:
      found = list(itertools.islice(_CHECKS[name](value), _MOST_TOLD + 1))
    if found[_MOST_TOLD:]:
      found[_MOST_TOLD] = "has further problems"
    yield from (f"its {name} {problem}" for problem in found)


def _mistyped(value: Any, kind: Any) -> Iterator[str]:
  if kind is int:
    if type(value) is not int or not 0 <= value <= _LARGEST:
      yield f"is {value!r}, not a count"
  elif kind is bool:
    if type(value) is not bool:
      yield f"is {value!r}, not true or false"
  elif kind is str:
    if not isinstance(value, str):
      yield f"is {value!r}, not a text"
    elif not _is_utf8(value):
      yield "is not UTF-8"
  elif kind is not Any:
    if not isinstance(value, dict):
      yield f"is {value!r}, not an object"
      return
    _, inner = typing.get_args(kind)
    for name, item in value.items():
      yield from (
        f"of {name!r} {problem}" for problem in _mistyped(item, inner)
      )


def _is_utf8(text: str) -> bool:
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def _kind(value: str) -> Iterator[str]:
  if value not in _KINDS:
    yield f"is {value!r}, none of {', '.join(_KINDS)}"


def _data(value: Mapping[str, Any]) -> Iterator[str]:
  if not value:
    return
  named = {row.name: row.kind for row in rows(DataConfig, given=value)}
  if "packing" not in value:  # as in checkpoints of before
    del named["packing"]
  for key, kind in {"seq_len": int, **named}.items():
    found = value.get(key)
    texts = found if isinstance(found, list | tuple) else ()
    if kind is float:
      is_wrong = not isinstance(found, int | float) or not 0 < found < math.inf
    elif kind in (int, str):
      is_wrong = any(_mistyped(found, kind)) or "\0" in str(found)
    else:  # several texts
      is_wrong = texts is not found or any(
        problem for text in texts for problem in _mistyped(text, str)
      )
    if is_wrong:
      yield f"has a {key} of {found!r}"


def _leaves(value: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
  if "params" not in value:
    yield "has no params"
  for item, leaves in value.items():
    for name, leaf in leaves.items():
      yield from (f"of {item} {name!r} {p}" for p in _leaf(leaf))
      if name.count("/") >= _MOST_PARTS:
        yield f"of {item} has a name of more than {_MOST_PARTS} parts"
        continue
      above = itertools.accumulate(name.split("/")[:-1], "{}/{}".format)
      if any(other in leaves for other in above):
        yield f"of {item} has {name!r} below another leaf"


def _leaf(leaf: Mapping[str, Any]) -> Iterator[str]:
  if leaf.keys() != {"shape", "dtype", "digest", "norm"}:
    yield "is not described by shape, dtype, digest and norm"
    return
  shape, norm = leaf["shape"], leaf["norm"]
  if not is_shape(shape):
    yield f"has shape {shape!r}"
  if not _is_dtype(leaf["dtype"]):
    yield f"has dtype {leaf['dtype']!r}"
  if not isinstance(leaf["digest"], str):
    yield f"has digest {leaf['digest']!r}"
  if norm is not None and type(norm) not in (int, float):
    yield f"has norm {norm!r}"


def _is_dtype(name: Any) -> bool:
  if not isinstance(name, str):
    return False
  try:
    dtype = np.dtype(name)
  except (TypeError, ValueError):  # not known, or no name at all
    return False
  is_number = jnp.issubdtype(dtype, jnp.number) and dtype.kind != "m"
  return str(dtype) == name and (is_number or dtype == np.bool_)


def _provenance(value: Mapping[str, Any]) -> Iterator[str]:
  sources = value.get("sources", [])
  if not isinstance(sources, list) or not all(
    isinstance(source, dict) for source in sources
  ):
    yield f"has sources {sources!r}"


def _versions(value: Mapping[str, str]) -> Iterator[str]:
  if "jaxmerge" not in value:
    yield "does not have that of jaxmerge"


def _files(value: Mapping[str, str]) -> Iterator[str]:
  for name, text in value.items():
    try:
      to_bytes(name, text)
    except ValueError:
      yield f"of {name!r} is not base64"


_CHECKS: Mapping[str, Callable[[Any], Iterator[str]]] = {
  "kind": _kind,
  "data": _data,
  "leaves": _leaves,
  "provenance": _provenance,
  "versions": _versions,
  "files": _files,
}
