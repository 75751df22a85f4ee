"""Saves a merged tree with where it came from.

Orbax is imported where it is needed: merges of Hugging Face directories start
in half of the time without it.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from jaxmerge.checkpoints.leaves import (
  Chunk,
  Leaf,
  LeafSpec,
  num_rows,
  whole,
)
from jaxmerge.checkpoints.metadata import (
  Metadata,
  canonical_json,
  describe_leaves,
  hash_text,
  versions,
)
from jaxmerge.checkpoints.outputs import output_directory
from jaxmerge.checkpoints.shards import open_tensors, write_tensors
from jaxmerge.checkpoints.tallies import LeafTally, SeenTally
from jaxmerge.checkpoints.tensor_trees import write_beside
from jaxmerge.checkpoints.trajectory import DECODER, Checkpoint
from jaxmerge.errors import Problems, check


def identity(checkpoint: Checkpoint) -> str:
  """A hash of what a checkpoint's parameters are, wherever it lies.

  Of the digests of a step directory. A Hugging Face directory has none: of the
  first, the middle and the last row of each tensor, in which any two steps of
  a run differ.
  """
  if checkpoint.leaves is not None:
    return _hash_of_rows(open_tensors(checkpoint.path))
  leaves = {
    name: {key: leaf[key] for key in ("shape", "dtype", "digest")}
    for name, leaf in checkpoint.metadata.leaves["params"].items()
  }
  return hash_text(canonical_json(leaves))


def _hash_of_rows(tensors: Mapping[str, Leaf]) -> str:
  found = {}
  for name, leaf in sorted(tensors.items()):
    count = num_rows(leaf.shape)
    chosen = sorted({0, count // 2, count - 1}) if count else []
    if leaf.rows_together < count:
      rows = [leaf.rows(row, row + 1) for row in chosen]
    else:  # a part cannot be read
      array = whole(leaf)
      rows = [array.reshape(count, -1)[row] for row in chosen]
    sums = [zlib.crc32(row.tobytes()) for row in rows]
    found[name] = [str(leaf.dtype), list(leaf.shape), sums]
  return hash_text(canonical_json(found))


class Recipe(NamedTuple):
  """How a merge was made.

  Attributes:
    method: by its name.
    weights_K: of the sources, as applied.
    groups: weights of each group of parameters, where they differ; then
      `weights_K` are their mean.
    parameters: of the method, if it has any.
  """

  method: str
  weights_K: Sequence[float]
  groups: Mapping[str, Sequence[float]] = {}
  parameters: Mapping[str, Any] = {}


def describe_merged(
  sources: Sequence[Checkpoint],
  recipe: Recipe,
  leaves: Mapping[str, Any],
  hashes: Sequence[str],
) -> Metadata:
  """The metadata of a merged tree: that of its latest source, its origin.

  Args:
    sources: the K checkpoints it was made of.
    recipe: how.
    leaves: of the merged tree, as describe_leaves.
    hashes: of the parameters of each source.
  """
  latest = latest_of(sources).metadata
  return dataclasses.replace(
    latest,
    kind="merged",
    leaves={"params": leaves},
    iterator="",
    metrics="",
    provenance={
      "method": recipe.method,
      "sources": [
        {
          "name": source.name,
          "run_id": source.metadata.run_id,
          "step": source.metadata.step,
          "weight": weight,
          "params": found,
        }
        for source, weight, found in zip(
          sources, recipe.weights_K, hashes, strict=True
        )
      ],
      **(
        {"groups": {n: list(w) for n, w in recipe.groups.items()}}
        if recipe.groups
        else {}
      ),
      **({"recipe": dict(recipe.parameters)} if recipe.parameters else {}),
    },
    versions=versions(),
  )


def latest_of(sources: Sequence[Checkpoint]) -> Checkpoint:
  """The source of the highest step, the last of several."""
  return max(reversed(sources), key=lambda c: c.metadata.step)


def save_merged(
  path: epath.PathLike,
  params: Any,
  sources: Sequence[Checkpoint],
  recipe: Recipe,
  *,
  overwrite: bool,
) -> None:
  """Saves a step directory of kind `merged` with its provenance.

  Args:
    path: the new step directory.
    params: the merged tree.
    sources: the K step directories it was made of.
    recipe: how.
    overwrite: replace an existing directory.

  Raises:
    InputError: `path` exists without `overwrite`, or cannot be written.
  """
  from jaxmerge.checkpoints.store import save_params

  metadata = describe_merged(
    sources, recipe, describe_leaves(params), [identity(s) for s in sources]
  )
  save_params(path, params, metadata, overwrite=overwrite)


class Readings(NamedTuple):
  """Sources as they are read for a merge, in order.

  Attributes:
    sources: the K checkpoints.
    tallies: what has been read of each.
  """

  sources: Sequence[Checkpoint]
  tallies: Sequence[LeafTally | SeenTally]

  @classmethod
  def of(cls, sources: Sequence[Checkpoint]) -> "Readings":
    kinds = (SeenTally if s.leaves else LeafTally for s in sources)
    return cls(sources, [kind() for kind in kinds])

  def hashes(self) -> list[str]:
    """Of the parameters of each source, after all of them have been read.

    "" of a Hugging Face directory that has not been read.

    Raises:
      InputError: what was read does not match its digest; names the leaves.
    """
    problems: list[str] = []
    found = []
    for source, tally in zip(self.sources, self.tallies, strict=True):
      if isinstance(tally, SeenTally):
        found.append(identity(source) if tally.seen else "")
        continue
      found.append(identity(source))
      problems += [
        f"{source.path} is damaged: params {name} does not match its digest"
        for name, leaf in source.metadata.leaves["params"].items()
        if tally.has(name) and tally.digest(name) != leaf["digest"]
      ]
    check(problems)
    return found


def save_merged_rows(
  path: epath.PathLike,
  specs: Mapping[str, LeafSpec],
  chunks: Iterable[Chunk],
  readings: Readings,
  recipe: Recipe,
  problems: Callable[[], Iterable[str]],
  *,
  base: Readings | None = None,
  overwrite: bool,
) -> None:
  """Like save_merged, chunk by chunk, in the format of the sources.

  Args:
    path: the new step directory or Hugging Face directory.
    specs: of the merged tree.
    chunks: its contents, of each leaf in order.
    readings: of the K sources; read when all chunks have been.
    recipe: how.
    problems: what is wrong with the merge, asked when all chunks are made.
    base: of the checkpoint that all came from, for methods that need it.
    overwrite: replace an existing directory.

  Raises:
    InputError: as save_merged, a source is damaged, or there are problems.
  """
  written = LeafTally()

  def counted() -> Iterator[Chunk]:
    for chunk in chunks:
      written.add(chunk)
      yield chunk

  def metadata(leaves: Mapping[str, Any]) -> Metadata:
    found = Problems(problems())
    of_base = found(base.hashes) if base is not None else None
    hashes = found(readings.hashes) or []
    found.check()
    known = dict(recipe.parameters)
    if of_base is not None:
      known["base"] = of_base[0]
    return describe_merged(
      readings.sources, recipe._replace(parameters=known), leaves, hashes
    )

  if readings.sources[0].layout == DECODER:
    from jaxmerge.checkpoints.store import save_rows

    save_rows(
      path,
      specs,
      counted(),
      lambda: metadata(written.leaves(specs)),
      overwrite=overwrite,
    )
    return
  with output_directory(path, overwrite=overwrite) as temporary:
    temporary.mkdir()
    write_tensors(temporary, specs, (chunk.array for chunk in chunks))
    latest = latest_of(readings.sources).metadata
    write_beside(temporary, latest.files, metadata({}), is_known=False)
