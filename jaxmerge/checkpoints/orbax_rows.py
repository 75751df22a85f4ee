"""The params of a step directory, read and written a few rows at a time.

Orbax's own handlers take and give whole arrays. Here TensorStore reads parts of
what Orbax has written, and a handler of Orbax is given the shapes, and the rows
as they come; what lies on disk is the same, and Orbax restores it.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

from jaxmerge.checkpoints.orbax_adapter import (
  read_spec,
  tensorstore_context,
  write_spec,
)
from jaxmerge.errors import InputError, check
from jaxmerge.files import absolute
from jaxmerge.formats.lazy_tensors import (
  Chunk,
  LazyTensor,
  TensorSpec,
  tree_of_leaves,
)
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.reading import read_file, read_json


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class OrbaxLeaf(LazyTensor):
  """A parameter of a step directory, as TensorStore reads it."""

  store: tensorstore.TensorStore
  path: epath.Path

  def rows(self, start: int, stop: int) -> np.ndarray:
    part = self.store[start:stop] if self.shape else self.store
    try:
      found = part.read().result()
    except ValueError as error:
      raise damaged(self.path, error) from error
    return found.reshape(stop - start, *self.shape[1:])


def damaged(path: epath.Path, error: Exception) -> InputError:
  reason = str(error).partition("\n")[0][:160]
  return InputError(f"{path} is damaged: its params cannot be read ({reason})")


def open_orbax(
  path: epath.PathLike, metadata: Metadata
) -> dict[str, LazyTensor]:
  """The parameters of a step directory by name, none of them read.

  Raises:
    InputError: one is missing, or of another shape or dtype than its metadata
      says; lists all.
  """
  path = absolute(path)
  context = tensorstore_context()
  zarr3 = _uses_zarr3(path / "params")
  problems: list[str] = []
  leaves: dict[str, LazyTensor] = {}
  for name, said in metadata.leaves["params"].items():
    try:
      store = tensorstore.open(
        read_spec(path / "params", name, context, zarr3),
        open=True,
        read=True,
        context=context,
      ).result()
    except (ValueError, OSError) as error:
      problems += damaged(path, error).problems
      continue
    chunk = store.chunk_layout.read_chunk.shape
    leaf = OrbaxLeaf(
      tuple(store.shape),
      store.dtype.numpy_dtype,
      (chunk[0] or 1) if chunk else 1,
      store=store,
      path=path,
    )
    if [list(leaf.shape), str(leaf.dtype)] != [said["shape"], said["dtype"]]:
      problems.append(
        f"{path} is damaged: params {name} is {leaf.dtype}{list(leaf.shape)}, "
        f"its metadata says {said['dtype']}{said['shape']}"
      )
    leaves[name] = leaf
  check(problems)
  return leaves


def _uses_zarr3(params: epath.Path) -> bool:
  try:
    return bool(read_json(read_file(params / "_METADATA"))["use_zarr3"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise damaged(params.parent, error) from error


class _RowsHandler(ocp.type_handlers.NumpyHandler):
  """Writes LeafSpecs whose contents come from an iterable of Chunks."""

  def __init__(self, chunks: Iterable[Chunk]):
    super().__init__()
    self._chunks = chunks

  async def serialize(
    self,
    values: Sequence[Any],
    infos: Sequence[ocp.type_handlers.ParamInfo],
    args: Sequence[ocp.SaveArgs] | None = None,
  ) -> Sequence[Any]:
    stores = {
      info.name: await _create(spec, info)
      for spec, info in zip(values, infos, strict=True)
    }
    # One write is under way while the next rows are made.
    writing = None
    for name, start, _, array in self._chunks:
      store = stores[name.replace("/", ".")]
      target = store[start : start + len(array)] if store.rank else store
      pending = target.write(array.reshape(target.shape))
      if writing is not None:
        await writing
      writing = pending
    if writing is not None:
      await writing
    return []


async def _create(
  spec: TensorSpec, info: ocp.type_handlers.ParamInfo
) -> tensorstore.TensorStore:
  await info.await_path_creation()
  together = (spec.rows_together, *spec.shape[1:]) if spec.shape else ()
  where = write_spec(info, spec.shape, together, spec.dtype)
  return await tensorstore.open(where, create=True, context=info.ts_context)


def write_rows(
  path: epath.Path, specs: Mapping[str, TensorSpec], chunks: Iterable[Chunk]
) -> None:
  """Writes the new item directory `path`.

  Args:
    path: a directory that does not exist.
    specs: of each parameter, by name.
    chunks: of all parameters; of each in order.
  """
  handler = _RowsHandler(chunks)
  registry = ocp.type_handlers.create_type_handler_registry(
    (TensorSpec, handler)
  )
  checkpointer = ocp.Checkpointer(
    ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
  )
  with contextlib.closing(checkpointer):
    checkpointer.save(path, args=ocp.args.PyTreeSave(tree_of_leaves(specs)))
