"""Parameters by a few rows at a time, and all private use of Orbax.

Orbax's own handlers take and give whole arrays. Here TensorStore reads parts of
what Orbax has written, and a handler of Orbax is given the shapes, and the rows
as they come; what lies on disk is the same, and Orbax restores it.

More than Orbax's supported interface are

- `get_ts_context`, `get_json_tspec_read` and `get_json_tspec_write` of
  `orbax.checkpoint.type_handlers`, which its source marks as deprecated: they
  say where a parameter lies and with which chunks and compression.
- Where its log records, and the tracebacks of its threads, come from. A save
  or restore that fails reaches the user as one InputError; Orbax and the event
  loop below it report the same failure again from other threads, also after
  the call has returned, in hundreds of lines. No option turns these off: the
  level of the logger "absl", which it shares, is the program's own.
"""

import contextlib
import dataclasses
import functools
import logging
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

from jaxmerge.errors import Damaged, InputError, check
from jaxmerge.files import absolute
from jaxmerge.formats.lazy_tensors import (
  Chunk,
  LazyTensor,
  TensorSpec,
  tree_of_leaves,
)
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.reading import read_file, read_json

# Options of a save that the first process of a job makes alone.
FIRST: Mapping[str, Any] = {
  "primary_host": 0,
  "active_processes": {0},
  "barrier_sync_key_prefix": "first",
}
_CLOSED = "Event loop is closed"


def _is_orbax(record: logging.LogRecord) -> bool:
  if record.name == "absl":
    return "orbax" in record.pathname
  if "never retrieved" not in record.getMessage():
    return False
  trace = record.exc_info[2] if record.exc_info else None
  if trace is None:  # a future of TensorStore, whose failure is of C++
    return True
  return any("orbax" in f.filename for f in traceback.extract_tb(trace))


@functools.cache
def silence_orbax() -> None:
  """Drops what Orbax logs, and the calls to event loops that it has closed.

  Once for the whole process: its threads outlive the call that failed.
  """
  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(lambda record: not _is_orbax(record))
  report = sys.unraisablehook

  def report_others(unraisable: Any) -> None:
    if str(unraisable.exc_value) != _CLOSED:
      report(unraisable)

  sys.unraisablehook = report_others


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class OrbaxLeaf(LazyTensor):
  """A parameter of a step directory, as TensorStore reads it."""

  store: tensorstore.TensorStore
  path: epath.Path
  item: str

  def rows(self, start: int, stop: int) -> np.ndarray:
    part = self.store[start:stop] if self.shape else self.store
    try:
      found = part.read().result()
    except ValueError as error:
      raise unreadable(self.path, self.item, str(error)) from error
    return found.reshape(stop - start, *self.shape[1:])


def unreadable(path: epath.Path, item: str, reason: str) -> InputError:
  """The error of a step directory whose arrays cannot be read."""
  if not path.exists():  # its metadata has been read
    return InputError(
      f"{path} was deleted while it was read: a run deletes what its "
      "config.keep does not keep"
    )
  reason = reason.partition("\n")[0][:160]
  return Damaged(f"{path} is damaged: its {item} cannot be read ({reason})")


def open_orbax(
  path: epath.PathLike, metadata: Metadata, item: str = "params"
) -> dict[str, LazyTensor]:
  """The parameters of a step directory by name, none of them read.

  Args:
    path: of the step.
    metadata: whose `params` are of the item that is read.
    item: the tree of them.

  Raises:
    InputError: lists all that are missing, or other than their metadata says.
  """
  path = absolute(path)
  params = path / item
  # With the limits and caches with which Orbax opens its parameters.
  context = ocp.type_handlers.get_ts_context(use_ocdbt=True)
  try:
    zarr3 = bool(read_json(read_file(params / "_METADATA"))["use_zarr3"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise unreadable(path, item, str(error)) from error
  problems: list[str] = []
  leaves: dict[str, LazyTensor] = {}
  for name, said in metadata.leaves["params"].items():
    info = ocp.type_handlers.ParamInfo(
      name=name.replace("/", "."),
      parent_dir=params,
      is_ocdbt_checkpoint=True,
      use_zarr3=zarr3,
      ts_context=context,
    )
    spec = ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=True)
    try:
      opened = tensorstore.open(spec, open=True, read=True, context=context)
      store = opened.result()
    except (ValueError, OSError) as error:
      problems += unreadable(path, item, str(error)).problems
      continue
    chunk = store.chunk_layout.read_chunk.shape
    leaf = OrbaxLeaf(
      tuple(store.shape),
      store.dtype.numpy_dtype,
      (chunk[0] or 1) if chunk else 1,
      store=store,
      path=path,
      item=item,
    )
    if [list(leaf.shape), str(leaf.dtype)] != [said["shape"], said["dtype"]]:
      problems.append(
        f"{path} is damaged: {item} {name} is {leaf.dtype}{list(leaf.shape)}, "
        f"its metadata says {said['dtype']}{said['shape']}"
      )
    leaves[name] = leaf
  check(problems)
  return leaves


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
    stores = {}
    for spec, info in zip(values, infos, strict=True):
      await info.await_path_creation()
      where = ocp.type_handlers.get_json_tspec_write(
        info,
        use_ocdbt=bool(info.is_ocdbt_checkpoint),
        global_shape=spec.shape,
        local_shape=(spec.rows_together, *spec.shape[1:]) if spec.shape else (),
        dtype=spec.dtype,
        process_index=0,
      )
      stores[info.name] = await tensorstore.open(
        where, create=True, context=info.ts_context
      )
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


def write_rows(
  path: epath.Path, specs: Mapping[str, TensorSpec], chunks: Iterable[Chunk]
) -> None:
  """Writes the new item directory `path`; the chunks of each in order."""
  handler = _RowsHandler(chunks)
  registry = ocp.type_handlers.create_type_handler_registry(
    (TensorSpec, handler)
  )
  options = ocp.options.MultiprocessingOptions(**FIRST)
  checkpointer = ocp.Checkpointer(
    ocp.PyTreeCheckpointHandler(
      type_handler_registry=registry, multiprocessing_options=options
    ),
    multiprocessing_options=options,
  )
  with contextlib.closing(checkpointer):
    checkpointer.save(path, args=ocp.args.PyTreeSave(tree_of_leaves(specs)))
