"""Saves a merged tree with where it came from."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from jaxmerge.checkpoints.metadata import (
  Metadata,
  canonical_json,
  describe_leaves,
  hash_text,
  versions,
)
from jaxmerge.checkpoints.store import save_params
from jaxmerge.checkpoints.trajectory import Checkpoint


def identity(checkpoint: Checkpoint) -> str:
  """A hash of what a checkpoint's parameters are, wherever it lies."""
  return hash_text(canonical_json(checkpoint.metadata.leaves["params"]))


def save_merged(
  path: epath.PathLike,
  params: Any,
  sources: Sequence[Checkpoint],
  weights_K: Sequence[float],
  *,
  method: str,
  overwrite: bool,
  groups: Mapping[str, Sequence[float]] | None = None,
  recipe: Mapping[str, Any] | None = None,
) -> None:
  """Saves a step directory of kind `merged` with its provenance.

  Args:
    path: the new step directory.
    params: the merged tree.
    sources: the K checkpoints it was made of.
    weights_K: their weights, as applied.
    method: how the weights came about.
    overwrite: replace an existing directory.
    groups: weights of each group of parameters, where they differ; then
      `weights_K` are their mean.
    recipe: the method's parameters, if it has any.

  Raises:
    InputError: `path` exists without `overwrite`, or cannot be written.
  """
  latest = max((c.metadata for c in sources), key=lambda m: m.step)
  metadata = Metadata(
    kind="merged",
    step=latest.step,
    tokens=latest.tokens,
    run_id=latest.run_id,
    parent=latest.parent,
    model=latest.model,
    data=latest.data,
    corpus=latest.corpus,
    tokenizer=latest.tokenizer,
    leaves={"params": describe_leaves(params)},
    iterator="",
    provenance={
      "method": method,
      "sources": [
        {
          "name": source.name,
          "run_id": source.metadata.run_id,
          "step": source.metadata.step,
          "weight": weight,
          "params": identity(source),
        }
        for source, weight in zip(sources, weights_K)
      ],
      **({"groups": {n: list(w) for n, w in groups.items()}} if groups else {}),
      **({"recipe": dict(recipe)} if recipe else {}),
    },
    versions=versions(),
    files=latest.files,
  )
  save_params(path, params, metadata, overwrite=overwrite)
