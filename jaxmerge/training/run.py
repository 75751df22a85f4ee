"""The identity of a run, kept in `<workdir>/run.json`.

A workdir belongs to one config: another one is refused, so that a typed
command never continues a run with other numbers than it began with.
"""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from jaxmerge.checkpoints.metadata import canonical_json, hash_text
from jaxmerge.errors import InputError, check
from jaxmerge.files import write_json

# Keys that change how far, how often and where. A mesh changes rounding.
_FREE = ("num_steps", "log_every", "mesh", "eval_batch_size", "data.cache_dir")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested sections as `a.b` keys; tuples become lists, as in JSON."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat


def identity(
  config: Mapping[str, Any], corpus: str, parent: str
) -> dict[str, Any]:
  """What makes a run this run: config, corpus and parent, with their hash."""
  kept = {
    key: value
    for key, value in flatten(config).items()
    if key not in _FREE and key.split(".")[0] not in _FREE
  }
  value = {"config": kept, "corpus": corpus, "parent": parent}
  return {**value, "run_id": hash_text(canonical_json(value))[:16]}


def claim(workdir: epath.PathLike, run: Mapping[str, Any]) -> None:
  """Writes `run.json`, or checks that the workdir is this run's.

  Raises:
    InputError: the workdir is another run's; lists every key that differs.
  """
  path = epath.Path(workdir) / "run.json"
  if not path.exists():
    write_json(path, run)
    return
  try:
    before = json.loads(path.read_text())
    known = flatten(before)
  except (ValueError, AttributeError) as error:
    raise InputError(f"{path} is damaged: {error}") from error
  now = flatten(run)
  check(
    f"{workdir} is the workdir of another run: {key} was "
    f"{known.get(key)!r}, is now {now.get(key)!r}"
    for key in sorted(known.keys() | now.keys())
    if key != "run_id" and known.get(key) != now.get(key)
  )
