"""Held-out loss, in nats/token."""

import dataclasses

from jaxmerge.evaluation.evaluator import EVALUATORS
from jaxmerge.evaluation.held_out_splits import text_evaluator


@dataclasses.dataclass(frozen=True)
class Knobs:
  """It has none of its own."""


EVALUATORS.register(
  text_evaluator(
    "heldout_loss",
    "loss of a split's tokens, in nats/token",
    "minimize",
    Knobs,
    lambda scorer, sequences, knobs: scorer.loss(sequences),
    is_differentiable=True,
  )
)
