"""The weights that Newton's method finds for the loss of a merge."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from jaxmerge.config_fields import key
from jaxmerge.merging.group_texts import layer_groups_problems
from jaxmerge.merging.method import merge_method


@dataclasses.dataclass(frozen=True)
class NewtonKnobs:
  layer_groups: str = key(
    "",
    "weights of their own for groups of parameters: a number of bands of"
    " layers, 'layer', 'attention_mlp' or patterns over names",
  )
  negative: bool = key(False, "every weight is in [-1, 2], else in [0, 1]")

  def problems(self, prefix: str) -> list[str]:
    return layer_groups_problems(self.layer_groups, prefix)


@merge_method(
  "newton",
  "the optimum of a quadratic model of the loss on the search split, with"
  " `layer_groups` for each group of parameters, with `negative` from -1 to 2",
  acts="on derivatives",
  knobs=NewtonKnobs,
  ordered=True,
)
def newton(
  solve: Callable[[], Mapping[str, Sequence[float]]], knobs: NewtonKnobs
) -> Mapping[str, Sequence[float]]:
  """The weights of each group, of a merge that has been scored."""
  del knobs  # which say what is solved
  return solve()
