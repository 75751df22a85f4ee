"""Texts that say into which groups a model's parameters are divided.

The texts are those of merging/groups.py.
"""

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from jaxmerge.errors import InputError, check
from jaxmerge.model.places import ATTENTION, EMBEDDINGS, HEAD, MLP, Place

BY_LAYER, BY_PART = "layer", "attention_mlp"
REST = "rest"
# With a letter or a wildcard, so that no number is one.
_PATTERN = re.compile(r"[\w.*?\[\]!:/-]*[A-Za-z*?][\w.*?\[\]!:/-]*", re.ASCII)
_MOST_SHOWN, _MOST_NAMED, _MOST_BANDS = 3, 8, 10_000


class Parameter(NamedTuple):
  """A parameter, of a stack that of one layer.

  Attributes:
    leaf: its name in the tree.
    name: as patterns see it.
    size: its numbers.
    stacked: the leaf is a stack of layers.
  """

  leaf: str
  name: str
  place: Place
  size: float
  stacked: bool = False


def layer_groups_problems(text: str, prefix: str) -> list[str]:
  """Says what is wrong with the text of a key `layer_groups`."""
  if not text or text in (BY_LAYER, BY_PART) or _bands(text):
    return []
  patterns = patterns_of(text)
  odd = [p for p in patterns if not _PATTERN.fullmatch(p)]
  if odd:
    return [
      f"{prefix}layer_groups must be empty, a number of bands, as '4', "
      f"'{BY_LAYER}', '{BY_PART}' or patterns over names of parameters, as "
      f"'embed.*,layers.[0-3].attention*', got {text!r}"
    ]
  problems = []
  if twice := [p for p in dict.fromkeys(patterns) if patterns.count(p) > 1]:
    problems.append(
      f"{prefix}layer_groups has {', '.join(map(repr, twice))} twice"
    )
  if REST in patterns:
    problems.append(
      f"{prefix}layer_groups: {REST!r} is the group of what no pattern "
      "matches, no pattern"
    )
  return problems


def interpolation_problems(text: str, prefix: str) -> list[str]:
  """Says where groups are of depths already, between which nothing lies."""
  if not text or patterns_of(text):
    return []
  return [
    f"{prefix}interpolate gives weights by depth, as layer_groups={text!r} "
    "does; leave layer_groups empty or let it be patterns over names"
  ]


def names_of(text: str) -> list[str] | None:
  """Names of the groups of a text; None where the model decides."""
  bands = _bands(text)
  if bands > _MOST_BANDS or (text and not bands):
    return None
  return _around(f"band_{b}" for b in range(bands)) if bands else [""]


def _around(names: Iterable[str]) -> list[str]:
  return [EMBEDDINGS, *names, HEAD]


def weight_count_problems(
  inputs: int, names: Sequence[str], weights: int, *, interpolate: bool
) -> list[str]:
  """Says whether there are too few or too many weights for the groups.

  Args:
    inputs: their number.
    names: of the groups.
    weights: the number of weights.
    interpolate: they are given at the first and the last layer, or at two or
      more layers that are as far from each other.
  """
  rows, rest = divmod(weights, max(inputs, 1) * len(names))
  if not rest and (rows > 1 if interpolate else rows == min(inputs, 1)):
    return []
  groups = f" in {len(names)} groups" if names[1:] else ""
  found = f"{inputs} inputs{groups} but {weights} --weights"
  each = []
  if names[1:]:
    few = [*names[:_MOST_NAMED], "...", names[-1]]
    each.append(
      "of each group in this order: "
      + ", ".join(few if len(names) > len(few) else names)
    )
  if interpolate:
    each.append(
      f"with interpolate {inputs} at the first and {inputs} at the last layer"
    )
  return [f"{found} ({'; '.join(each)})" if each else found]


def _bands(text: str) -> int:
  """The number of bands that a text says; 0: none."""
  return int(text) if text.isascii() and text.isdecimal() else 0


def patterns_of(text: str) -> list[str]:
  if not text or text in (BY_LAYER, BY_PART) or _bands(text):
    return []
  return [pattern.strip() for pattern in text.split(",")]


def labels_of(
  parameters: Sequence[Parameter], text: str, *, by_depth: bool = False
) -> tuple[list[str], list[str]]:
  """Names of the groups in their order, and the one of each parameter.

  `by_depth` only says that weights are interpolated, for messages.

  Raises:
    InputError: too many bands, a pattern that matches nothing, or parameters
      of which the model does not say where they lie.
  """
  if patterns := patterns_of(text):
    return _matched(parameters, patterns)
  layers = [p.place.layer for p in parameters if p.place.layer is not None]
  depth, bands = max(layers, default=-1) + 1, _bands(text)
  if bands > depth or not depth:
    wanted = f"layer_groups of {f'{bands} bands' if bands else repr(text)}"
    wanted = "interpolate" if by_depth else wanted
    raise InputError(
      f"the model has {depth} layers: from 1 to {depth} bands, not {bands}"
      if depth
      else f"the model has no layers for {wanted}"
    )
  by_part = text == BY_PART
  advice = "let layer_groups be patterns over names"
  if by_depth:
    advice += " that say the layers, and leave interpolate out"
  check(_unplaced(parameters, advice, by_part=by_part))

  def label(place: Place) -> str:
    if place.layer is None:
      return place.part
    if bands:
      return f"band_{place.layer * bands // depth}"
    layer = f"layer_{place.layer}"
    return f"{layer}/{place.part}" if by_part else layer

  parts = (ATTENTION, MLP) if by_part else ("",)
  between = [label(Place(p, layer)) for layer in range(depth) for p in parts]
  names_G = _around(dict.fromkeys(between))
  return names_G, [label(parameter.place) for parameter in parameters]


def _unplaced(
  parameters: Sequence[Parameter], advice: str, *, by_part: bool
) -> Iterator[str]:
  """Says which parameters cannot be told to be of which group."""
  found = dict.fromkeys(
    repr(leaf)
    for leaf, _, (part, layer), *_ in parameters
    if part not in ((EMBEDDINGS, HEAD) if layer is None else (ATTENTION, MLP))
    and (by_part or layer is None)
  )
  if found:
    parts = "a layer's attention or MLP" if by_part else "a layer"
    yield (
      f"parameter {_shown([*found])} belongs to no group: its name does not "
      f"say whether of the embeddings, of {parts} or of the head; {advice}"
    )


def _matched(
  parameters: Sequence[Parameter], patterns: Sequence[str]
) -> tuple[list[str], list[str]]:
  """Groups by the first pattern that matches; REST is of none."""
  known = {p: re.compile(fnmatch.translate(p)).match for p in patterns}
  names = [parameter.name for parameter in parameters]
  labels = [
    next((p for p, matches in known.items() if matches(name)), REST)
    for name in names
  ]
  check(
    f"layer_groups: {pattern!r} matches no parameter"
    + (" that none before it does" if any(map(known[pattern], names)) else "")
    + f"; there are {_some(names)}"
    for pattern in patterns
    if pattern not in labels
  )
  return [*patterns, *([REST] if REST in labels else [])], labels


def _shown(names: Sequence[str]) -> str:
  more = len(names) - _MOST_SHOWN
  return ", ".join(names[:_MOST_SHOWN]) + (f" and {more} more" * (more > 0))


def _some(names: Sequence[str]) -> str:
  """A few names from everywhere."""
  step = max(len(names) // _MOST_SHOWN, 1)
  return ", ".join(dict.fromkeys([*names[::step][:_MOST_SHOWN], names[-1]]))
