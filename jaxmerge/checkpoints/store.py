"""Step directories on disk: `<step>/{params, opt_state, metadata}`.

Orbax writes each directory whole or not at all; what is read is compared with
the digests of its metadata, leaf by leaf.
"""

import contextlib
import gc
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from jaxmerge.checkpoints.orbax_adapter import (
  FIRST,
  silence_orbax,
  unreadable,
  write_rows,
)
from jaxmerge.checkpoints.outputs import output_directory
from jaxmerge.errors import Damaged, Diverged, InputError, check
from jaxmerge.files import absolute
from jaxmerge.formats.integrity.digest import digests
from jaxmerge.formats.lazy_tensors import Chunk, TensorSpec
from jaxmerge.formats.records.metadata import (
  Metadata,
  abstract_params,
  describe_leaves,
  read_metadata,
  to_json,
)
from jaxmerge.parallel.distributed import held_by_first, on_every_process
from jaxmerge.parallel.exchange import is_job
from jaxmerge.parallel.rules import is_stacked, leaf_name

# Parameters are stored in parts, so that they can be read in parts: layers of a
# stack by themselves, and of what is large as much as this.
PART_BYTES = 16 * 2**20
# Items that are read in parts.
PARAMETERS = ("params", "ema", "lawa")
# What Orbax and TensorStore say of a full disk.
_FULL = ("RESOURCE_EXHAUSTED", "No space left", "Disk quota")
# What is said of a read that fails for another reason than damage.
_NOT_NOW = (
  *("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED"),
  *("UNAUTHENTICATED", "PERMISSION_DENIED", "Permission denied"),
  *("Too many open files", "Stale file handle", "Connection"),
)


class _Manager(ocp.CheckpointManager):
  """Does not ask for a preemption itself.

  Orbax would, with its own numbers of steps, and from the thread that ends a
  save with one of long ago: processes might never agree on a step any more.
  """

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


def open_manager(workdir: epath.PathLike) -> ocp.CheckpointManager:
  """The run's manager: asynchronous, and it never deletes a step."""
  silence_orbax()
  return _Manager(
    absolute(workdir) / "checkpoints",
    options=ocp.CheckpointManagerOptions(
      max_to_keep=None, enable_async_checkpointing=True
    ),
  )


def save_step(
  manager: ocp.CheckpointManager,
  step: int,
  items: Mapping[str, Any],
  describe: Callable[..., Metadata],
) -> None:
  """Starts saving one step; the arrays may be donated right afterwards.

  In a job of several processes all of them call it.

  Args:
    items: trees of arrays by the names of their directories; `params`, and
      what else a run goes on from. Trees of PARAMETERS are stored in parts.
    describe: gives the metadata, of the step and the leaves of the items.

  Raises:
    InputError: this or the save before it could not be written.
    Diverged: a parameter is not finite.
  """
  leaves = {name: describe_leaves(tree) for name, tree in items.items()}
  metadata = describe(step=step, leaves=leaves)
  for name, leaf in metadata.leaves["params"].items():
    if leaf["norm"] is None:
      raise Diverged(f"at step {step} {name} has NaN", step)
  saved: dict[str, ocp.args.CheckpointArgs] = {
    name: ocp.args.StandardSave(
      tree, save_args=_in_parts(tree) if name in PARAMETERS else None
    )
    for name, tree in items.items()
  }
  saved["metadata"] = ocp.args.JsonSave(to_json(metadata))
  with _writing(manager.directory):
    manager.save(step, args=ocp.args.Composite(**saved))


def _in_parts(params: Any) -> Any:
  return jax.tree_util.tree_map_with_path(
    lambda path, _: ocp.SaveArgs(
      chunk_byte_size=PART_BYTES,
      shard_axes=(0,) if is_stacked(leaf_name(path)) else (),
    ),
    params,
  )


def finish(manager: ocp.CheckpointManager) -> None:
  """Waits until the last save is on disk; InputError when it is not."""
  with _writing(manager.directory):
    manager.wait_until_finished()


def check_step(path: epath.PathLike) -> Metadata:
  """The metadata of a step all of whose items are there; reads no array.

  Raises:
    InputError: as read_metadata; Damaged: an item is missing.
  """
  path = absolute(path)
  metadata = read_metadata(path)
  check(
    (
      f"{path} is damaged: it has no {item}"
      for item in metadata.leaves
      if not (path / item).is_dir()
    ),
    Damaged,
  )
  return metadata


def _processes() -> ocp.options.MultiprocessingOptions:
  """All processes, or the first alone while the others wait for it."""
  return ocp.options.MultiprocessingOptions(**({} if is_job() else FIRST))


@contextlib.contextmanager
def _writing(path: epath.Path) -> Iterator[None]:
  """Turns whatever a full disk makes Orbax raise into an InputError."""
  try:
    yield
  except (OSError, ValueError, RuntimeError) as error:
    if isinstance(error, InputError):
      raise
    reason = str(error).strip() or type(error).__name__
    if any(words in reason for words in _FULL):
      reason = "no space left on device"
    reason = reason.partition("\n")[0][:200]
    raise InputError(
      f"cannot save a checkpoint under {path}: {reason}"
    ) from error


@contextlib.contextmanager
def _saving(path: epath.Path) -> Iterator[Callable[..., None]]:
  """Yields what saves metadata and other items at a temporary path."""
  silence_orbax()
  options = _processes()
  handler = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(multiprocessing_options=options)
  )
  with (
    _writing(path.parent),
    contextlib.closing(
      ocp.Checkpointer(handler, multiprocessing_options=options)
    ) as checkpointer,
  ):

    def save(metadata: Metadata, **items: ocp.args.CheckpointArgs) -> None:
      items["metadata"] = ocp.args.JsonSave(to_json(metadata))
      checkpointer.save(path, args=ocp.args.Composite(**items))

    yield save


def save_params(
  path: epath.PathLike,
  params: Any,
  metadata: Metadata,
  *,
  overwrite: bool = False,
) -> None:
  """Saves a step directory of params and metadata only, whole or not at all.

  In a job of several processes all of them call it.

  InputError if `path` cannot be written, or exists and is to stay.
  """
  with (
    held_by_first(output_directory(path, overwrite=overwrite)) as temporary,
    _saving(epath.Path(temporary)) as save,
  ):
    parts = _in_parts(params)
    save(metadata, params=ocp.args.StandardSave(params, save_args=parts))


def save_rows(
  path: epath.PathLike,
  specs: Mapping[str, TensorSpec],
  chunks: Iterable[Chunk],
  metadata: Callable[[], Metadata],
  *,
  overwrite: bool = False,
) -> None:
  """Like save_params, of a tree that may be larger than memory.

  In a job of several processes the first alone calls it.

  Args:
    chunks: of all parameters, of each in order.
    metadata: called when all chunks are written.
  """
  with (
    output_directory(path, overwrite=overwrite) as temporary,
    _saving(temporary) as save,
  ):
    params = temporary.with_name(f"{temporary.name}.params")
    write_rows(params, specs, chunks)
    save(metadata())
    params.rename(temporary / "params")


@contextlib.contextmanager
def _reading(path: epath.Path, item: str) -> Iterator[None]:
  """Turns whatever a damaged item makes Orbax raise into an InputError."""
  silence_orbax()
  try:
    yield
    return
  except Exception as error:  # noqa: BLE001  (Orbax raises Exception itself)
    is_damage = not isinstance(error, (MemoryError, PermissionError))
    is_damage &= not any(words in str(error) for words in _NOT_NOW)
    reason = str(error).partition(". ")[0].partition("\n")[0][:160]
    reason = reason or type(error).__name__
  # Collects the reads that Orbax left open, without their tracebacks.
  hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", RuntimeWarning)
      gc.collect()
  finally:
    sys.unraisablehook = hook
  if not is_damage:
    raise InputError(f"{path}: its {item} cannot be read now ({reason})")
  raise unreadable(path, item, reason)


def _restore(
  path: epath.Path, item: str, target: Any, metadata: Metadata
) -> Any:
  # Each process reads its shards by itself: where one failed, those that wait
  # for it in Orbax would never hear of it.
  alone = ocp.options.MultiprocessingOptions(
    primary_host=jax.process_index(), active_processes={jax.process_index()}
  )

  def read() -> Any:
    with (
      _reading(path, item),
      ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer,
    ):
      return checkpointer.restore(path / item, target)

  tree = on_every_process(read)
  found, leaves = digests(tree), metadata.leaves.get(item, {})
  check(
    (
      f"{path} is damaged: {item} {name} does not match its digest"
      for name in sorted(found.keys() | leaves.keys())
      if name not in leaves or found.get(name) != leaves[name]["digest"]
    ),
    Damaged,
  )
  return tree


def with_shardings(abstract: Any, shardings: Any) -> Any:
  """Shapes and dtypes that say where each array is to live."""
  return jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
    abstract,
    shardings,
  )


def restore_params(
  path: epath.PathLike, shardings: Any = None, item: str = "params"
) -> Any:
  """The params of a step directory, checked leaf by leaf.

  `shardings` is a tree like the params; None: the first local device. `item`
  names another tree of the same parameters, such as a running average.
  InputError names the leaves that are damaged.
  """
  path = absolute(path)
  metadata = read_metadata(path)
  abstract = abstract_params(metadata)
  if shardings is None:
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: one, abstract)
  target = with_shardings(abstract, shardings)
  return _restore(path, item, target, metadata)


def restore_item(path: epath.PathLike, item: str, target: Any) -> Any:
  """An item of a step beside its params, such as `opt_state`, checked likewise.

  `target` is a tree of ShapeDtypeStruct with shardings, as it is restored.
  """
  path = absolute(path)
  return _restore(path, item, target, read_metadata(path))
