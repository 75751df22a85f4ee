"""The plain mean, and an average at weights that are typed."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxmerge.config_fields import key
from jaxmerge.merging import weight_rules
from jaxmerge.merging.group_texts import (
  interpolation_problems,
  layer_groups_problems,
)
from jaxmerge.merging.method import merge_method


@merge_method(
  "uniform",
  "the plain mean (model soup, arXiv 2203.05482)",
  acts="on weights",
)
def uniform(weights_K: Sequence[float], knobs: Any) -> list[float]:
  return weight_rules.uniform(len(weights_K))


@dataclasses.dataclass(frozen=True)
class WeightsKnobs:
  layer_groups: str = key(
    "",
    "--weights for one group of parameters after the other: '' for all"
    " together; a number of bands of layers, 'layer' or 'attention_mlp' for the"
    " embeddings, each of these and the head; or patterns over names and the"
    " rest",
  )
  interpolate: bool = key(
    False,
    "--weights of the first and the last layer, or of more layers evenly"
    " between, of each group; all others lie on lines between them by depth",
  )

  def problems(self, prefix: str) -> list[str]:
    found = layer_groups_problems(self.layer_groups, prefix)
    if self.interpolate and not found:
      found += interpolation_problems(self.layer_groups, prefix)
    return found


@merge_method(
  "weights",
  "the weights typed, divided by their sum, with `layer_groups` for each group"
  " of parameters, with `interpolate` by depth; negative ones extrapolate",
  acts="on weights",
  knobs=WeightsKnobs,
  weights="required",
)
def weights(weights_K: Sequence[float], knobs: Any) -> Sequence[float]:
  return weights_K
