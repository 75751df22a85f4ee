"""Places in a model that a parameter may have: a part, and a layer's number."""

import re
from typing import NamedTuple

EMBEDDINGS, HEAD = "embeddings", "head"
ATTENTION, MLP = "attention", "mlp"

_PARTS = (
  (re.compile(r"embed/.*"), EMBEDDINGS),
  (re.compile(r"layers/attention(_norm)?/.*"), ATTENTION),
  (re.compile(r"layers/mlp(_norm)?/.*"), MLP),
  (re.compile(r"(final_norm|head)/.*"), HEAD),
)


class Place(NamedTuple):
  """The place of a parameter.

  Attributes:
    part: EMBEDDINGS, HEAD, ATTENTION, MLP, or "" where a name does not say.
    layer: from 0; None outside of the layers.
  """

  part: str
  layer: int | None = None

  @property
  def is_known(self) -> bool:
    return self.layer is not None or self.part in (EMBEDDINGS, HEAD)


def part_of(name: str) -> str:
  """The part that a parameter of our decoder belongs to; "" of another's."""
  return next((part for known, part in _PARTS if known.fullmatch(name)), "")
