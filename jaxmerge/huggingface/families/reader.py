"""Reads a config.json key by key and keeps every problem."""

import math
from collections.abc import Mapping
from typing import Any

from jaxmerge.errors import InputError, check
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.rope import RopeScaling

_SIZES = (
  "vocab_size",
  "hidden_size",
  "num_hidden_layers",
  "num_attention_heads",
  "intermediate_size",
)
# Numbers that are larger cannot be told apart in every JSON.
_LARGEST = 2**53
_ATTENTION = ("attention_factor", "mscale", "mscale_all_dim")
_ORIGINAL = "original_max_position_embeddings"
_PART = "partial_rotary_factor"
# Keys of each kind of RoPE scaling, beside those of all.
_SCALINGS: Mapping[str, tuple[str, ...]] = {
  "linear": (),
  "dynamic": (),
  "llama3": ("low_freq_factor", "high_freq_factor"),
  "yarn": ("beta_fast", "beta_slow", "truncate", *_ATTENTION),
}
_ALWAYS = ("rope_type", "type", "rope_theta", _PART, "factor", _ORIGINAL)


class ConfigReader:
  """Takes values out of a config.json; a null is as good as absent."""

  def __init__(self, value: Mapping[str, Any]):
    self.value = {k: v for k, v in value.items() if v is not None}
    self.problems: list[str] = []

  def integer(self, key: str, default: int | None = None) -> int:
    found = self.value.get(key, default)
    if found is None:
      self.problems.append(f"config.json has no {key}")
    elif type(found) is not int or not 1 <= found <= _LARGEST:
      self._refuse(key, found, "not a count")
    else:
      return found
    return 1

  def _refuse(self, key: str, found: Any, why: str) -> None:
    self.problems.append(f"config.json: {key} is {found!r}, {why}")

  def number(self, key: str, default: float) -> float:
    return self._number(self.value.get(key, default), key)

  def _number(self, found: Any, key: str) -> float:
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if not is_number or not math.isfinite(found) or found <= 0:
      self._refuse(key, found, "not a positive number")
      return 1.0
    return found

  def flag(self, key: str, default: bool) -> bool:
    found = self.value.get(key, default)
    if not isinstance(found, bool):
      self._refuse(key, found, "not a boolean")
      return default
    return found

  def only(self, key: str, supported: Any) -> None:
    """Refuses any other value of a key that may be absent."""
    found = self.value.get(key, supported)
    if found != supported:
      self._refuse(key, found, f"only {supported!r} is supported")

  def choice(self, key: str, choices: Mapping[str, str], default: str) -> str:
    """Our name for the value of a key."""
    found = self.value.get(key, default)
    if not isinstance(found, str) or found not in choices:
      self._refuse(key, found, f"only {', '.join(choices)} are supported")
      return choices[default]
    return choices[found]

  def sizes(self) -> dict[str, int]:
    """The sizes that every family names alike."""
    return {key: self.integer(key) for key in _SIZES}

  def head_dim(self, default: int | None = None) -> int:
    """The size of a head, 0 where it follows from the width."""
    width = self.integer("hidden_size")
    heads = self.integer("num_attention_heads")
    size = self.integer("head_dim", default or max(width // heads, 1))
    return 0 if size * heads == width else size

  def attention_bias(self, default: bool) -> str:
    return "all" if self.flag("attention_bias", default) else ""

  def rope(
    self, theta_key: str, fraction_key: str = "", fraction: float = 1.0
  ) -> dict[str, Any]:
    """Theta, scaling and the rotated fraction, written in either of two ways.

    Args:
      theta_key: where theta lies when it is not in `rope_parameters`.
      fraction_key: the same of the rotated fraction; "" where only 1 is known.
      fraction: its default.
    """
    rope = self._rope_settings()
    theta = rope.get("rope_theta", self.value.get(theta_key, 10_000.0))
    part_key = fraction_key or _PART
    part = rope.get(_PART, self.value.get(part_key, fraction))
    if not fraction_key and part != 1:
      self.problems.append(f"config.json: {_PART} {part} is not supported")
    return {
      "rope_theta": self._number(theta, theta_key),
      "rope_scaling": self._scaling(rope),
      "rotary_fraction": self._number(part, part_key),
    }

  def _rope_settings(self) -> dict[str, Any]:
    """The one description of RoPE, under its new name or its old."""
    ropes: list[dict[str, Any]] = []
    for key in ("rope_parameters", "rope_scaling"):
      found = self.value.get(key) or {}
      if not isinstance(found, dict) or any(
        isinstance(inner, dict) for inner in found.values()
      ):
        self._refuse(key, found, "not one description of RoPE for all layers")
        continue
      ropes.append({k: v for k, v in found.items() if v is not None})
    ropes = [rope for rope in ropes if rope]
    if ropes[1:] and ropes[0] != ropes[1]:
      self.problems.append(
        "config.json: rope_parameters and rope_scaling differ, of which "
        "versions of transformers read one or the other"
      )
    return ropes[0] if ropes else {}

  def _scaling(self, rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
      return None
    if str(kind) not in _SCALINGS:
      self.problems.append(
        f"config.json: RoPE scaling {kind!r} is not supported, only "
        f"{', '.join(_SCALINGS)}"
      )
      return None
    known = (*_ALWAYS, *_SCALINGS[kind])
    self.problems += [
      f"config.json: {key} of RoPE scaling {kind} is not supported"
      for key in rope
      if key not in known
    ]

    def number(key: str, default: Any = None) -> float:
      return self._number(rope.get(key, default), f"RoPE scaling's {key}")

    factor = number("factor")
    if kind == "linear":
      return RopeScaling(kind, factor)
    length = self.integer("max_position_embeddings")
    if _ORIGINAL in rope:
      length = int(number(_ORIGINAL))
    if kind == "dynamic":
      return RopeScaling(kind, factor, length)
    if kind == "llama3":
      low, high = number("low_freq_factor"), number("high_freq_factor")
      return RopeScaling(kind, factor, length, low, high)
    low, high = number("beta_slow", 1.0), number("beta_fast", 32.0)
    given = {key: number(key) for key in _ATTENTION if key in rope}
    attention = _attention_factor(factor, given)
    truncate = rope.get("truncate", True) is True
    return RopeScaling(kind, factor, length, low, high, attention, truncate)

  def build(self, **options: Any) -> DecoderConfig:
    """The config, or InputError with every problem found on the way."""
    check(self.problems)
    try:
      return DecoderConfig(**options)
    except InputError as error:
      raise InputError([f"config.json: {p}" for p in error.problems]) from error


def _attention_factor(factor: float, rope: Mapping[str, float]) -> float:
  """Equation 22 of 2309.00071, or a ratio of two such where both are given."""
  if "attention_factor" in rope:
    return rope["attention_factor"]

  def of(scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

  if "mscale" in rope and "mscale_all_dim" in rope:
    return of(rope["mscale"]) / of(rope["mscale_all_dim"])
  return of(1.0)


def rope_keys(config: DecoderConfig, theta_key: str) -> dict[str, Any]:
  """The keys of a config.json that `ConfigReader.rope` reads."""
  keys: dict[str, Any] = {theta_key: config.rope_theta}
  scaling = config.rope_scaling
  if scaling is None:
    return keys
  rope: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
  if scaling.kind == "dynamic":
    keys["max_position_embeddings"] = scaling.original_length
  elif scaling.kind in ("llama3", "yarn"):
    length = round(scaling.factor * scaling.original_length)
    keys["max_position_embeddings"] = length
    rope[_ORIGINAL] = scaling.original_length
  if scaling.kind == "llama3":
    rope["low_freq_factor"] = scaling.low
    rope["high_freq_factor"] = scaling.high
  if scaling.kind == "yarn":
    rope["beta_slow"], rope["beta_fast"] = scaling.low, scaling.high
    rope["attention_factor"] = scaling.attention_factor
    rope["truncate"] = scaling.truncate
  return {**keys, "rope_scaling": rope}


def size_keys(config: DecoderConfig) -> dict[str, int]:
  """The keys of a config.json that `ConfigReader.sizes` reads."""
  return {key: getattr(config, key) for key in _SIZES}
