"""Weights as text."""

from collections.abc import Mapping

# Of more weights than this the largest are told.
_TOLD = 3


def all_weights(weights: Mapping[int, float]) -> str:
  """The weights of up to three checkpoints; of more what fits in a line.

  Equal ones are "12 x 0.083"; else weights of zero are left out, and of the
  rest all but the three largest are counted: "600: 0.350, ... and 9 others".
  """
  told = dict(sorted(weights.items()))
  others = ""
  if len(told) > _TOLD:
    told = {step: w for step, w in told.items() if f"{abs(w):.3f}" != "0.000"}
    texts = {f"{w:.3f}" for w in told.values()}
    if len(told) > _TOLD and len(texts) == 1:
      return f"{len(told)} x {texts.pop()}"
    largest = sorted(told, key=lambda step: -abs(told[step]))[:_TOLD]
    if len(told) > _TOLD + 1:
      others = f" and {len(told) - _TOLD} others"
      told = {step: w for step, w in told.items() if step in largest}
  return ", ".join(f"{step}: {w:.3f}" for step, w in told.items()) + others
