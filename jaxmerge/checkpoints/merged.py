"""Saves a merged tree with where it came from.

Orbax is imported where it is needed: merges of Hugging Face directories start
in half of the time without it.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxmerge.checkpoints.input_order import latest
from jaxmerge.checkpoints.inputs import DECODER, PARAMS, Checkpoint
from jaxmerge.checkpoints.model_differences import (
  differences_beside,
  stated_differences,
)
from jaxmerge.checkpoints.outputs import output_directory
from jaxmerge.errors import Problems, check
from jaxmerge.formats.integrity.checksums import LeafChecksum, ReadMark
from jaxmerge.formats.lazy_tensors import (
  Chunk,
  LazyTensor,
  TensorSpec,
  num_rows,
)
from jaxmerge.formats.records.file_texts import to_bytes
from jaxmerge.formats.records.metadata import (
  Metadata,
  canonical_json,
  hash_text,
  versions,
)
from jaxmerge.formats.records.provenance import ITEM, Provenance, with_seen
from jaxmerge.huggingface.carried import CONFIG, find_carried, left_behind
from jaxmerge.huggingface.model_card import hub_name
from jaxmerge.huggingface.shards import (
  file_metadata,
  files_read,
  open_tensors,
  stem_of,
  write_tensors,
)
from jaxmerge.huggingface.tensors import with_dtype, write_contents
from jaxmerge.model.config import DecoderConfig


def identity(checkpoint: Checkpoint) -> str:
  """A hash of what a checkpoint's parameters are, wherever it lies.

  Of the digests of a step directory. A Hugging Face directory has none: of the
  first, the middle and the last row of each tensor, in which any two steps of
  a run differ.
  """
  found: dict[str, Any] = {}
  if checkpoint.leaves is None:
    for name, leaf in checkpoint.metadata.leaves["params"].items():
      found[name] = {key: leaf[key] for key in ("shape", "dtype", "digest")}
  else:
    for name, tensor in sorted(open_tensors(checkpoint.path).items()):
      sums = [zlib.crc32(row.tobytes()) for row in _some_rows(tensor)]
      found[name] = [str(tensor.dtype), list(tensor.shape), sums]
  return hash_text(canonical_json(found))


# A tensor of so many bytes is read sooner than three of its rows are.
_AT_ONCE = 1 << 16


def _some_rows(leaf: LazyTensor) -> list[np.ndarray]:
  count = num_rows(leaf.shape)
  chosen = sorted({0, count // 2, count - 1}) if count else []
  if leaf.rows_together < count and leaf.nbytes > _AT_ONCE:
    return [leaf.rows(row, row + 1) for row in chosen]
  array = leaf.rows(0, count)
  return [array[row] for row in chosen]


def describe_merged(
  sources: Sequence[Checkpoint],
  provenance: Provenance,
  leaves: Mapping[str, Any],
  hashes: Sequence[str],
) -> Metadata:
  """The metadata of a merged tree: that of its latest source, its origin.

  Args:
    sources: the K checkpoints it was made of.
    provenance: how.
    leaves: of the merged tree, as describe_leaves.
    hashes: of the parameters of each source.
  """
  known = {
    "method": provenance.method,
    "base": dict(provenance.base),
    "sources": [
      {
        **_named(source),
        **({} if source.item == PARAMS else {ITEM: source.item}),
        "run_id": source.metadata.run_id,
        "step": source.metadata.step,
        "weight": weight,
        "params": found,
      }
      for source, weight, found in zip(
        sources, provenance.weights_K, hashes, strict=True
      )
    ],
    "groups": {name: list(w) for name, w in provenance.groups.items()},
    "recipe": dict(provenance.parameters),
    "search": with_seen(provenance.search, [s.metadata for s in sources]),
    "differences": {
      **stated_differences([s.metadata for s in sources]),
      **differences_beside([s.path for s in sources if s.leaves is not None]),
    },
  }
  if provenance.notes:
    known["tensors"] = list(provenance.notes)
  return dataclasses.replace(
    latest(sources).metadata,
    kind="merged",
    leaves={"params": leaves},
    iterator="",
    metrics="",
    provenance={key: value for key, value in known.items() if value},
    versions=versions(),
  )


def _named(source: Checkpoint) -> dict[str, str]:
  """The name that was typed, and that of the hub where one is known."""
  # What is carried in a merge names one of its inputs.
  files = source.metadata.files if source.metadata.kind == "imported" else {}
  config = files.get(CONFIG, "")
  hub = hub_name(str(source.path), config)
  return {"name": source.name, **({"hub": hub} if hub else {})}


def left_of(sources: Sequence[Checkpoint]) -> str:
  """Says what of a Hugging Face directory does not go into a merge."""
  chosen = latest(sources)
  if chosen.leaves is None:
    return ""
  return left_behind(chosen.path, files_read(chosen.path))


def save_merged(
  path: epath.PathLike,
  params: Any,
  sources: Sequence[Checkpoint],
  provenance: Provenance,
  *,
  format: str = "orbax",
  overwrite: bool,
) -> None:
  """Saves the merged tree of K models, with its provenance; see models.save.

  Raises:
    InputError: `path` exists without `overwrite`, or cannot be written.
  """
  from jaxmerge.checkpoints import models

  hashes = [identity(source) for source in sources]
  known = describe_merged(sources, provenance, {}, hashes)
  config = DecoderConfig.from_dict(known.model)
  newest = latest(sources)
  header = {} if newest.leaves is None else file_metadata(newest.path)
  told = (known.tokenizer, known, known.files, header)
  saved = models.SavedModel(params, config, *told)
  models.save(saved, path, format, overwrite=overwrite)


class Readings(NamedTuple):
  """Sources as they are read for a merge, in order.

  Attributes:
    sources: the K checkpoints.
    checksums: what has been read of each.
  """

  sources: Sequence[Checkpoint]
  checksums: Sequence[LeafChecksum | ReadMark]

  @classmethod
  def of(cls, sources: Sequence[Checkpoint]) -> "Readings":
    return cls(
      sources,
      [ReadMark() if s.leaves else LeafChecksum(norms=False) for s in sources],
    )

  def hashes(self) -> list[str]:
    """Hashes the parameters of each source, after all have been read.

    "" of a Hugging Face directory that has not been read.

    Raises:
      InputError: what was read does not match its digest; names the leaves.
    """
    problems: list[str] = []
    found = []
    for source, checksum in zip(self.sources, self.checksums, strict=True):
      if isinstance(checksum, ReadMark):
        found.append(identity(source) if checksum.seen else "")
        continue
      found.append(identity(source))
      problems += [
        f"{source.path} is damaged: {source.item} {name} does not match its "
        "digest"
        for name, leaf in source.metadata.leaves["params"].items()
        if checksum.has(name) and checksum.digest(name) != leaf["digest"]
      ]
    check(problems)
    return found


def save_merged_rows(
  path: epath.PathLike,
  specs: Mapping[str, TensorSpec],
  chunks: Iterable[Chunk],
  readings: Readings,
  provenance: Provenance,
  problems: Callable[[], Iterable[str]],
  *,
  base: Readings | None = None,
  overwrite: bool,
) -> None:
  """Like save_merged, chunk by chunk, in the format of the sources.

  Args:
    path, provenance, overwrite: as for save_merged.
    specs: of the merged tree.
    chunks: its contents, of each leaf in order.
    readings: of the K sources; read when all chunks have been.
    problems: what is wrong with the merge, asked when all chunks are made.
    base: of the checkpoint that all came from, for methods that need it.

  Raises:
    InputError: as save_merged, a source is damaged, or there are problems.
  """
  written = LeafChecksum()

  def counted() -> Iterator[Chunk]:
    for chunk in chunks:
      written.add(chunk)
      yield chunk

  def metadata(leaves: Mapping[str, Any]) -> Metadata:
    found = Problems(problems())
    known = provenance
    if base is not None:
      [whole] = found(base.hashes) or [""]
      [source] = base.sources
      known = known._replace(
        parameters={**known.parameters, "base": whole},
        base={**_named(source), "params": whole},
        search=with_seen(known.search, [source.metadata]),
      )
    hashes = found(readings.hashes) or []
    found.check()
    return describe_merged(readings.sources, known, leaves, hashes)

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
  arrays = (chunk.array for chunk in chunks)
  with output_directory(path, overwrite=overwrite) as temporary:
    origin = latest(readings.sources).path
    _write_like(origin, temporary, specs, arrays, lambda: metadata({}))


def _write_like(
  origin: epath.Path,
  path: epath.Path,
  specs: Mapping[str, TensorSpec],
  arrays: Iterable[np.ndarray],
  describe: Callable[[], Metadata],
) -> None:
  """Writes a directory in which all else lies as in `origin`."""
  path.mkdir()
  write_tensors(
    path, specs, arrays, stem=stem_of(origin), metadata=file_metadata(origin)
  )
  metadata = describe()
  carried = find_carried(origin)
  texts = {CONFIG: with_dtype(metadata.files[CONFIG], specs.values())}
  contents = (
    (n, to_bytes(n, texts[n]) if n in texts else carried.read(n))
    for n in carried.files
  )
  write_contents(path, contents, metadata, is_known=False)
