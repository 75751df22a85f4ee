"""Weights as text."""

from collections.abc import Mapping

# Of more weights than this the largest are shown.
_MOST = 3


def without_zeros(weights: Mapping[int, float]) -> dict[int, float]:
  """The weights by step, without those that four digits show as zero."""
  kept = sorted(weights.items())
  return {step: w for step, w in kept if f"{abs(w):.4f}" != "0.0000"}


def all_weights(weights: Mapping[int, float], most: int = _MOST) -> str:
  """The weights of a few checkpoints; of more those that fit in a line.

  Equal ones are "12 x 0.0833"; else, of more than `most`, weights of zero are
  left out and the rest but the largest are counted: "600: 0.3500, ... and 9
  others".
  """
  shown = dict(sorted(weights.items()))
  others = ""
  if len(shown) > _MOST:
    shown = without_zeros(shown)
    texts = {f"{w:.4f}" for w in shown.values()}
    if len(shown) > _MOST and len(texts) == 1:
      return f"{len(shown)} x {texts.pop()}"
    if len(shown) > most + 1:
      largest = sorted(shown, key=lambda step: -abs(shown[step]))[:most]
      others = f" and {len(shown) - most} others"
      shown = {step: w for step, w in shown.items() if step in largest}
  return ", ".join(f"{step}: {w:.4f}" for step, w in shown.items()) + others
