"""Names of config keys as they were, for what was written under them.

A config that still says an old name is refused with the new one. Checkpoints,
studies and run.json files are read through `renamed`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class NewName(NamedTuple):
  """The name of a key now, and its value from one under the old name."""

  name: str
  value: Callable[[Any], Any] = lambda value: value


# By the dotted name in a config, without the flag's own.
NEW_NAMES: Mapping[str, NewName] = {
  "model.width": NewName("model.hidden_size"),
  "model.depth": NewName("model.num_hidden_layers"),
  "model.num_heads": NewName("model.num_attention_heads"),
  "model.num_kv_heads": NewName("model.num_key_value_heads"),
  "model.mlp_width": NewName("model.intermediate_size"),
  "model.tied": NewName("model.tie_word_embeddings"),
  "model.norm_eps": NewName("model.rms_norm_eps"),
  "model.remat": NewName("step.remat", lambda x: "full" if x else "none"),
  "bands": NewName("layer_groups", lambda n: str(n) if n else ""),
  "newest": NewName("window"),
  "beyond": NewName("extrapolation"),
  "penalty": NewName("exponent"),
  "drop": NewName("drop_rate"),
  "sampled": NewName("fisher_labels", lambda s: "sampled" if s else "data"),
  "steps": NewName("checkpoint_steps"),
  "starts": NewName("initial_weights"),
  "name": NewName("study_name"),
  "report": NewName("report_dir"),
  "search_method": NewName("solver"),
}


def renamed(values: Mapping[str, Any], section: str = "") -> dict[str, Any]:
  """Values under their keys' names of now.

  Args:
    values: by dotted name below `section`; names that never changed stay.
    section: "model", for the keys of a model alone; those that have left the
      section are left out.
  """
  prefix = f"{section}." if section else ""
  found = {}
  for name, value in values.items():
    new = NEW_NAMES.get(prefix + name, NewName(prefix + name))
    if new.name.startswith(prefix):
      found[new.name.removeprefix(prefix)] = new.value(value)
  return found
