"""The origin of a checkpoint, as its metadata says it."""

import base64
import dataclasses
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxmerge.errors import InputError, check
from jaxmerge.formats.records.metadata import FORMAT, Metadata
from jaxmerge.formats.records.values import value_problems


class Provenance(NamedTuple):
  """The origin of a merge.

  Attributes:
    method: by its name.
    weights_K: of the sources, as applied.
    groups: weights of each group of parameters, where they differ; then
      `weights_K` are their mean.
    parameters: of the method, if it has any.
    notes: told of tensors that were not averaged, a line for each kind.
    base: name and hash of what all came from, for methods that need it.
    search: what a search has measured of its merge, and where it is told.
  """

  method: str
  weights_K: Sequence[float]
  groups: Mapping[str, Sequence[float]] = {}
  parameters: Mapping[str, Any] = {}
  notes: Sequence[str] = ()
  base: Mapping[str, str] = {}
  search: Mapping[str, Any] = {}


# In `search`: the items that a search has chosen by, a record of seen_items or
# of seen_hashes for each set of them.
SEEN = "seen"
_HASHES = "hashes"


def seen_items(content: str, split: str, items: int) -> dict[str, Any]:
  """Names items of a split: the corpus by its hash, how many they are."""
  return {"content": content, "split": split, "items": items}


def seen_hashes(hashes: Iterable[str]) -> dict[str, Any]:
  """Names items by their hashes, each 32 hexadecimal digits.

  In base64, one behind the other, in order: 22 characters an item.
  """
  each = sorted({bytes.fromhex(one) for one in hashes})
  packed = base64.b64encode(b"".join(each)).decode()
  return {"items": len(each), _HASHES: packed}


def has_seen(metadata: Metadata, content: str, split: str) -> bool:
  """Says whether a merge was chosen by items of this split."""
  return any(
    (seen.get("content"), seen.get("split")) == (content, split)
    for seen in _seen(metadata)
  )


def hashes_seen(metadata: Metadata) -> set[str]:
  """The hashes of single items by which a merge was chosen.

  Raises:
    InputError: the record of them is damaged.
  """
  found: set[str] = set()
  for seen in _seen(metadata):
    if _HASHES not in seen:
      continue
    try:
      packed = base64.b64decode(seen[_HASHES], validate=True)
    except (ValueError, TypeError):
      packed = b""
    each = {
      packed[start : start + _BYTES].hex()
      for start in range(0, len(packed), _BYTES)
    }
    if len(packed) % _BYTES or len(each) != seen.get("items"):
      raise InputError(
        "the record of the items that its weights were searched on is damaged"
      )
    found |= each
  return found


def with_seen(
  search: Mapping[str, Any], sources: Iterable[Metadata]
) -> dict[str, Any]:
  """Adds what sources were chosen by to what a search says of a merge."""
  found = list(search.get(SEEN, []))
  for source in sources:
    found += [seen for seen in _seen(source) if seen not in found]
  return {**search, SEEN: found} if found else dict(search)


_BYTES = 16  # of a hash


def _seen(metadata: Metadata) -> list[Mapping[str, Any]]:
  """Records of the items by which a merge was chosen."""
  search = metadata.provenance.get("search")
  found = search.get(SEEN) if isinstance(search, dict) else None
  if not isinstance(found, list):
    return []
  return [seen for seen in found if isinstance(seen, dict)]


# Of a source, or of what is none of a merge: the item of a run's step that it
# is, where that is no step's parameters but an average beside them.
ITEM = "item"
# What a Hugging Face directory cannot say of a model.
_ORIGIN = (
  "kind",
  "step",
  "tokens",
  "run_id",
  "parent",
  "data",
  "corpus",
  "provenance",
  "versions",
)
# In jaxmerge.json: what lies there because an input had it, by name the sha256
# of its content; earlier versions listed code alone.
CARRIED, CODE = "carried", "code"


def origin(metadata: Metadata) -> dict[str, Any]:
  """The JSON value of where a model comes from."""
  return {"format": FORMAT, **{key: getattr(metadata, key) for key in _ORIGIN}}


def with_origin(metadata: Metadata, value: Any) -> Metadata:
  """Metadata with what `origin` gave.

  Raises:
    ValueError: the value is something else.
  """
  if not isinstance(value, dict) or value.keys() - {CARRIED, CODE} != {
    "format",
    *_ORIGIN,
  }:
    raise ValueError(f"it does not have the keys {', '.join(_ORIGIN)}")
  if value["format"] != FORMAT:
    raise ValueError(f"it is not of format {FORMAT}")
  known = {key: value[key] for key in _ORIGIN}
  check(value_problems(known, typing.get_type_hints(Metadata)))
  return dataclasses.replace(metadata, **known)
