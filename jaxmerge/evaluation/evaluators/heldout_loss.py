"""Held-out loss, in nats/token."""

import dataclasses

from jaxmerge.data.heldout import HeldOut
from jaxmerge.evaluation.evaluator import EVALUATORS
from jaxmerge.evaluation.held_out_splits import Scorer, text_evaluator
from jaxmerge.evaluation.heldout_loss import HeldOutLoss


@dataclasses.dataclass(frozen=True)
class Knobs:
  """It has none of its own."""


def _build(scorer: Scorer, sequences: HeldOut, knobs: Knobs) -> HeldOutLoss:
  del knobs
  return scorer.loss(sequences)


EVALUATORS.register(
  text_evaluator(
    "heldout_loss",
    "loss of a split's tokens, in nats/token",
    "minimize",
    Knobs,
    _build,
    is_differentiable=True,
  )
)
