"""Names of tensors without what wrappers of torch put before them."""

from collections.abc import Mapping
from typing import Any

from jaxmerge.errors import InputError
from jaxmerge.huggingface.families.family import Family
from jaxmerge.model.config import DecoderConfig

# Of torch.compile, FSDP and activation checkpointing, at any place in a name.
_WRAPPERS = (
  "_orig_mod",
  "_fsdp_wrapped_module",
  "_checkpoint_wrapped_module",
)
# Of DataParallel, peft and models in models, at the beginning.
_OUTER = ("module", "base_model", "model")


def plain_names(
  tensors: Mapping[str, Any], config: DecoderConfig, family: Family
) -> dict[str, Any]:
  """The tensors under the names that a family gives them.

  A name that stays unknown without prefixes is kept as it is.

  Raises:
    InputError: two tensors would have one name.
  """
  known = {n for t in family.tensors for n in t.names(config)}
  known |= family.other_names.keys()
  [embedding] = [t for t in family.tensors if t.flax == ("embed/embedding",)]
  base = embedding.hf.partition(".")[0]
  found: dict[str, Any] = {}
  before: dict[str, str] = {}
  for name, tensor in tensors.items():
    plain = next(
      (
        candidate
        for candidate in _candidates(name, base)
        if candidate in known or family.derived.fullmatch(candidate)
      ),
      name,
    )
    if plain in found:
      raise InputError(
        f"tensors {before[plain]} and {name} are the same parameter"
      )
    found[plain], before[plain] = tensor, name
  return found


def _candidates(name: str, base: str) -> list[str]:
  parts = [part for part in name.split(".") if part not in _WRAPPERS]
  found = [".".join(parts), ".".join([base, *parts])]
  while parts and parts[0] in (*_OUTER, base):
    parts = parts[1:]
    found += [".".join(parts), ".".join([base, *parts])]
  return found
