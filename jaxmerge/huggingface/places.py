"""Tells from the names of any model's tensors where in it they lie.

A known family says it. Else words do: transformers and the checkpoints of
others name embeddings, layers, attention and MLP in a few ways.
"""

import collections
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxmerge.errors import InputError
from jaxmerge.huggingface.families import table
from jaxmerge.huggingface.families.family import Tensor
from jaxmerge.huggingface.prefixes import plain_names
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.places import (
  ATTENTION,
  EMBEDDINGS,
  HEAD,
  MLP,
  Place,
  part_of,
)
from jaxmerge.model.shapes import param_shapes

Shapes = Mapping[str, tuple[int, ...]]

_HEAD = re.compile(
  r"(.*[._])?(lm_head|embed_out|unembed\w*|head|output|score|classifier|cls"
  r"|pooler|qa_outputs|(final|post)_?\w*|(layer_?)?norm(_f)?|ln_(f|out|final))"
  r"(\..*)?",
  re.I,
)
_EMBEDDINGS = re.compile(r".*(embed|emb\b|\bw[tp]e\b|\bshared\b).*", re.I)
_NORM = re.compile(r"(.*_)?(ln|(layer_?)?norm)_?\w*", re.I)
# Before an MLP, or after attention where another is named after the MLP.
_AFTER_ATTENTION = re.compile(r"post_(self_)?att(n|ention)_\w+", re.I)
_ATTENTION = re.compile(r".*att(n|ention).*|att|(q|k|v|o|qkv|out)_proj", re.I)
_MLP = re.compile(
  r".*(mlp|ffn|feed_?forward|moe|densereludense).*|ff|fc_?[12]|experts?"
  r"|intermediate|(gate|up|down)_proj|w[123]",
  re.I,
)
_NORM_OF = (
  (re.compile(r".*(mlp|ffn|feed_?forward).*|\D+_?2|final_layer_norm"), MLP),
  (re.compile(r".*(att(n|ention)|input).*|\D+_?1"), ATTENTION),
)
_NUMBER = re.compile(r"[0-9]{1,6}")


class Layout(NamedTuple):
  """The places that the names of tensors tell, and tied copies.

  Attributes:
    places: of each tensor.
    copies: the embedding of which a tensor is a tied copy.
  """

  places: Mapping[str, Place]
  copies: Mapping[str, str]


def layout_of(shapes: Shapes, config: Mapping[str, Any]) -> Layout:
  """Finds where tensors lie, by name.

  Args:
    shapes: of the tensors.
    config: config.json.
  """
  places, is_tied = _by_words(list(shapes)), False
  try:
    model, found = _of_family(shapes, config)
  except InputError:  # a model of no known family
    is_tied = config.get("tie_word_embeddings") is True
  else:
    is_tied = model.tie_word_embeddings
    for name, tensor, layer in found:
      number = layer if tensor.stacked else None
      places[name] = Place(part_of(tensor.flax[0]), number)
  return Layout(places, _copies(shapes, places) if is_tied else {})


def names_by_parameter(
  names: Collection[str], config: Mapping[str, Any]
) -> dict[str, list[str]]:
  """The tensors of a known family that hold our parameters.

  Args:
    names: of the tensors.
    config: config.json.

  Returns:
    For each parameter the name of its tensor, of a stack one a layer.

  Raises:
    InputError: the model is not supported.
  """
  _, found = _of_family(names, config)
  held: dict[str, list[str]] = {}
  for name, tensor, layer in found:
    for parameter in tensor.flax:
      held.setdefault(parameter, [])[layer:] = [name]
  return held


def _of_family(
  names: Iterable[str], config: Mapping[str, Any]
) -> tuple[DecoderConfig, list[tuple[str, Tensor, int]]]:
  """The model, and what each tensor is in the table of its family.

  Raises:
    InputError: the model is not supported.
  """
  family = table.family_of_type(config)
  model = family.read_config(config)
  plain = plain_names({name: name for name in names}, model, family)
  return model, [
    (name, tensor, layer)
    for tensor in family.table(param_shapes(model))
    for layer, known in enumerate(tensor.names(model))
    for name in filter(None, map(plain.get, _names(family, known)))
  ]


def _names(family: table.Family, name: str) -> Iterator[str]:
  """A tensor's name and the others that files of its family have for it."""
  yield name
  yield from (n for n, known in family.other_names.items() if known == name)


def _copies(shapes: Shapes, places: Mapping[str, Place]) -> dict[str, str]:
  """Heads of the shape of an embedding."""
  tables = {
    shapes[name]: name
    for name, place in places.items()
    if place == Place(EMBEDDINGS) and len(shapes[name]) == 2
  }
  return {
    name: tables[shapes[name]]
    for name, place in places.items()
    if place == Place(HEAD) and shapes[name] in tables
  }


def _by_words(names: Sequence[str]) -> dict[str, Place]:
  """The place of each tensor; of two stacks of layers only the larger's."""
  numbered = {name: found for name in names if (found := _layer(name))}
  stacks = collections.Counter(stack for stack, _, _ in numbered.values())
  [(largest, _)] = stacks.most_common(1) or [("", 0)]
  inner: dict[int, list[str]] = collections.defaultdict(list)
  for stack, layer, rest in numbered.values():
    if stack == largest:
      inner[layer].append(rest)
  siblings = {k: {rest.split(".")[0] for rest in v} for k, v in inner.items()}

  def place(name: str) -> Place:
    if name not in numbered:
      return Place(_outside(name))
    stack, layer, rest = numbered[name]
    if stack != largest:
      return Place("")
    return Place(_inside(rest, siblings[layer]), layer)

  return {name: place(name) for name in names}


def _layer(name: str) -> tuple[str, int, str] | None:
  """The name before a layer's number, the number, and the name behind it."""
  parts = name.split(".")
  for i, part in enumerate(parts):
    if _NUMBER.fullmatch(part):
      return ".".join(parts[:i]), int(part), ".".join(parts[i + 1 :])
  return None


def _outside(name: str) -> str:
  """The part that a tensor of no layer belongs to, "" if it does not say."""
  if re.search("embed_out|unembed", name):
    return HEAD
  if _EMBEDDINGS.fullmatch(name):
    return EMBEDDINGS
  return HEAD if _HEAD.fullmatch(name) else ""


def _inside(rest: str, siblings: Collection[str]) -> str:
  """The part of a layer that a tensor belongs to, "" if it does not say."""
  first, *others = rest.split(".")
  if _NORM.fullmatch(first):
    if _AFTER_ATTENTION.fullmatch(first):
      norms = filter(_NORM.fullmatch, siblings)
      has_another = any(_NORM_OF[0][0].fullmatch(norm) for norm in norms)
      return ATTENTION if has_another else MLP
    return next((part for norm, part in _NORM_OF if norm.fullmatch(first)), "")
  if first == "output" and "intermediate" in siblings:  # of BERT
    return MLP
  for word in (first, *others):
    if _ATTENTION.fullmatch(word):
      return ATTENTION
    if _MLP.fullmatch(word):
      return MLP
  return ""
