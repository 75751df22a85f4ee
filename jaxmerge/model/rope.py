"""Rotary position embedding (2104.09864) and how it is stretched.

B batch, L positions, H heads, S head size, R the part of it that rotates.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

KINDS = ("linear", "dynamic", "llama3", "yarn")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Fits a longer context into the angles that were trained.

  Attributes:
    kind: "linear" divides every frequency by `factor` (2306.15595); "dynamic"
      raises the base with the length of the sequence (NTK-aware, see section
      3.1 of 2309.00071); "llama3" divides low frequencies only (2407.21783);
      "yarn" blends by the number of turns (2309.00071).
    factor: how many times longer the context becomes.
    original_length: positions of the context before; unused by "linear".
    low: llama3: turns within `original_length` below which a frequency is
      divided; yarn: beta_slow.
    high: llama3: turns above which a frequency is kept; yarn: beta_fast.
    attention_factor: yarn: what the cosines and sines are multiplied by.
    truncate: yarn: bounds of the blend are whole numbers.
  """

  kind: str
  factor: float
  original_length: int = 0
  low: float = 1.0
  high: float = 4.0
  attention_factor: float = 1.0
  truncate: bool = True

  def problems(self) -> list[str]:
    """Lists numbers that mean nothing."""
    if self.kind not in KINDS:
      return [f"rope_scaling.kind must be one of {KINDS}, got {self.kind!r}"]
    found = [
      f"rope_scaling.{name} must be positive, got {getattr(self, name)}"
      for name in ("factor", "low", "high", "attention_factor")
      if not getattr(self, name) > 0
    ]
    if self.kind != "linear" and not self.original_length > 0:
      found.append("rope_scaling.original_length must be positive")
    if self.kind in ("llama3", "yarn") and not self.high > self.low:
      found.append(
        f"rope_scaling.high {self.high} must be more than low {self.low}"
      )
    return found


def rotate(
  x_BxLxHxS: jax.Array,
  theta: float,
  *,
  fraction: float = 1.0,
  scaling: RopeScaling | None = None,
  position_BxL: jax.Array | None = None,
) -> jax.Array:
  """Rotates queries or keys by their positions, halves paired as in Llama.

  Args:
    theta: the base of the frequencies.
    fraction: only the first int(S * fraction) entries are rotated.
    scaling: how the frequencies are changed for a longer context.
    position_BxL: int32, where they are not 0, 1 ...; "dynamic" goes by the
      largest of a row.
  """
  size = x_BxLxHxS.shape[3]
  rotated_size = int(size * fraction)
  if rotated_size < size:
    turned, kept = jnp.split(x_BxLxHxS, [rotated_size], axis=-1)
    turned = rotate(turned, theta, scaling=scaling, position_BxL=position_BxL)
    return jnp.concatenate([turned, kept], axis=-1)
  if position_BxL is None:
    length = x_BxLxHxS.shape[1]
    frequencies = _frequencies(size, length, theta, scaling)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies
  else:
    length_Bx1 = jnp.max(position_BxL, axis=1, keepdims=True) + 1
    frequencies = _frequencies(size, length_Bx1[..., None], theta, scaling)
    angles = position_BxL.astype(jnp.float32)[..., None] * frequencies
  cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
  if scaling and scaling.kind == "yarn":
    cos, sin = cos * scaling.attention_factor, sin * scaling.attention_factor
  left, right = jnp.split(x_BxLxHxS.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate(
    [left * cos - right * sin, right * cos + left * sin], axis=-1
  )
  return rotated.astype(x_BxLxHxS.dtype)


def _frequencies(
  size: int,
  length: int | jax.Array,
  theta: float,
  scaling: RopeScaling | None,
) -> jax.Array:
  """Radians a position, float32[..., R / 2], fastest first.

  Args:
    length: int32[..., 1], or of all sequences.
  """
  base: float | jax.Array = theta
  if scaling and scaling.kind == "dynamic":
    original = scaling.original_length
    # An int is known when the program is traced, so this is a constant then.
    longest = (
      max(length, original)
      if isinstance(length, int)
      else jnp.maximum(length, original)
    )
    ratio = longest / original
    stretch = scaling.factor * ratio - (scaling.factor - 1)
    base = theta * stretch ** (size / (size - 2))
  frequencies = base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
  if scaling is None or scaling.kind == "dynamic":
    return frequencies
  if scaling.kind == "linear":
    return frequencies / scaling.factor
  if scaling.kind == "llama3":
    kept = _kept_by_llama3(frequencies, scaling)
  else:
    kept = _kept_by_yarn(size, theta, scaling)
  return frequencies * kept + frequencies / scaling.factor * (1 - kept)


def _kept_by_llama3(frequencies: jax.Array, scaling: RopeScaling) -> jax.Array:
  """The part of each frequency that is kept, linear in its turns."""
  turns = scaling.original_length * frequencies / (2 * math.pi)
  return jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)


def _kept_by_yarn(size: int, theta: float, scaling: RopeScaling) -> jax.Array:
  """Like llama3's, but linear in the index of the frequency."""

  def index(turns: float) -> float:
    """The index that makes so many turns in the original length."""
    ratio = scaling.original_length / turns / (2 * math.pi)
    return size * math.log(ratio) / (2 * math.log(theta))

  first, last = index(scaling.high), index(scaling.low)
  if scaling.truncate:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, size - 1)
  width = last - first or 1e-3
  return 1 - jnp.clip((jnp.arange(size // 2) - first) / width, 0, 1)
