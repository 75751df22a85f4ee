"""Whether what a checkpoint says of itself can be meant.

A digest shows that metadata has not been damaged, not that who wrote it means
well: every value is looked at before it is used.
"""

import base64
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmerge.data.config import DataConfig

KINDS = ("trained", "merged", "converted", "imported")
_LARGEST = 2**53  # as exact as any JSON number
_MOST_AXES = 32
_MOST_ENTRIES = 2**59
_MOST_TOLD = 5


def value_problems(fields: Mapping[str, Any]) -> Iterator[str]:
  """Of each field of Metadata that is given, why it cannot be meant."""
  for name, value in fields.items():
    for number, problem in enumerate(_CHECKS[name](value)):
      if number == _MOST_TOLD:
        yield f"its {name} has further problems"
        break
      yield f"its {name} {problem}"


def _kind(value: Any) -> Iterator[str]:
  if value not in KINDS:
    yield f"is {value!r}, none of {', '.join(KINDS)}"


def _count(value: Any) -> Iterator[str]:
  if type(value) is not int or not 0 <= value <= _LARGEST:
    yield f"is {value!r}, not a count"


def _text(value: Any) -> Iterator[str]:
  if not isinstance(value, str):
    yield f"is {value!r}, not a text"
  elif not _is_utf8(value):
    yield "is not UTF-8"


def _is_utf8(text: str) -> bool:
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def _section(value: Any) -> Iterator[str]:
  if not isinstance(value, dict):
    yield f"is {value!r}, not an object"


def _data(value: Any) -> Iterator[str]:
  yield from _section(value)
  if not isinstance(value, dict) or not value:
    return
  named = {"seq_len": int, **typing.get_type_hints(DataConfig)}
  for key, kind in named.items():
    found = value.get(key)
    if kind is int:
      is_right = type(found) is int and found >= 0
    elif kind is str:
      is_right = isinstance(found, str) and "\0" not in found
    else:  # several texts
      is_right = isinstance(found, list | tuple) and all(
        isinstance(text, str) for text in found
      )
    if not is_right:
      yield f"has a {key} of {found!r}"


def _leaves(value: Any) -> Iterator[str]:
  yield from _section(value)
  if not isinstance(value, dict):
    return
  if "params" not in value:
    yield "has no params"
  for item, leaves in value.items():
    if not isinstance(leaves, dict):
      yield f"of {item} is {leaves!r}, not an object"
      continue
    for name, leaf in leaves.items():
      yield from (f"of {item} {name!r} {p}" for p in _leaf(leaf))
      above = name.split("/")[:-1]
      for end in range(1, len(above) + 1):
        if "/".join(above[:end]) in leaves:
          yield f"of {item} has {name!r} below another leaf"


def _leaf(leaf: Any) -> Iterator[str]:
  if not isinstance(leaf, dict) or leaf.keys() != {
    "shape",
    "dtype",
    "digest",
    "norm",
  }:
    yield "is not described by shape, dtype, digest and norm"
    return
  shape, norm = leaf["shape"], leaf["norm"]
  if (
    not isinstance(shape, list)
    or len(shape) > _MOST_AXES
    or not all(type(n) is int and n >= 0 for n in shape)
    or math.prod(max(n, 1) for n in shape) > _MOST_ENTRIES
  ):
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
  return jnp.issubdtype(dtype, jnp.number) or dtype == np.bool_


def _provenance(value: Any) -> Iterator[str]:
  yield from _section(value)
  sources = value.get("sources", []) if isinstance(value, dict) else []
  if not isinstance(sources, list) or not all(
    isinstance(source, dict) for source in sources
  ):
    yield f"has sources {sources!r}"


def _counts(value: Any) -> Iterator[str]:
  yield from _section(value)
  if isinstance(value, dict):
    for name, count in value.items():
      yield from (f"of {name!r} {problem}" for problem in _count(count))


def _texts(value: Any) -> Iterator[str]:
  yield from _section(value)
  if isinstance(value, dict):
    for name, text in value.items():
      yield from (f"of {name!r} {problem}" for problem in _text(text))


def _versions(value: Any) -> Iterator[str]:
  yield from _texts(value)
  if isinstance(value, dict) and "jaxmerge" not in value:
    yield "does not have that of jaxmerge"


def _files(value: Any) -> Iterator[str]:
  yield from _texts(value)
  for name, text in value.items() if isinstance(value, dict) else ():
    if name.endswith(".model") and isinstance(text, str):
      try:
        base64.b64decode(text, validate=True)
      except ValueError:
        yield f"of {name!r} is not base64"


_CHECKS: Mapping[str, Callable[[Any], Iterator[str]]] = {
  "kind": _kind,
  "step": _count,
  "tokens": _count,
  "run_id": _text,
  "parent": _text,
  "model": _section,
  "data": _data,
  "corpus": _text,
  "tokenizer": _text,
  "leaves": _leaves,
  "iterator": _text,
  "provenance": _provenance,
  "versions": _versions,
  "files": _files,
  "metrics": _text,
  "skipped": _counts,
}
