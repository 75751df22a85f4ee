"""The plain mean, and an average at weights that are typed."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxmerge.config_fields import key
from jaxmerge.merging import weight_rules
from jaxmerge.merging.groups import layer_groups_problems
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
    "'' or a number of bands of layers: --weights for the embeddings, each"
    " band and the head, one group after the other",
  )

  def problems(self, prefix: str) -> list[str]:
    return layer_groups_problems(self.layer_groups, prefix)


@merge_method(
  "weights",
  "the weights typed, divided by their sum, with `layer_groups` for each group"
  " of layers; negative ones extrapolate",
  acts="on weights",
  knobs=WeightsKnobs,
  weights="required",
)
def weights(weights_K: Sequence[float], knobs: Any) -> Sequence[float]:
  return weights_K
