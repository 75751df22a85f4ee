"""Weights as text."""

from collections.abc import Mapping

# Of more weights than this the largest are shown.
_MOST = 3


def all_weights(weights: Mapping[int, float]) -> str:
  """The weights of up to three checkpoints; of more those that fit in a line.

  Equal ones are "12 x 0.083"; else weights of zero are left out, and of the
  rest all but the three largest are counted: "600: 0.350, ... and 9 others".
  """
  shown = dict(sorted(weights.items()))
  others = ""
  if len(shown) > _MOST:
    shown = {step: w for step, w in shown.items() if f"{abs(w):.3f}" != "0.000"}
    texts = {f"{w:.3f}" for w in shown.values()}
    if len(shown) > _MOST and len(texts) == 1:
      return f"{len(shown)} x {texts.pop()}"
    largest = sorted(shown, key=lambda step: -abs(shown[step]))[:_MOST]
    if len(shown) > _MOST + 1:
      others = f" and {len(shown) - _MOST} others"
      shown = {step: w for step, w in shown.items() if step in largest}
  return ", ".join(f"{step}: {w:.3f}" for step, w in shown.items()) + others
