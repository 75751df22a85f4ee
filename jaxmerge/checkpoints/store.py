"""Step directories on disk: `<step>/{params, opt_state, data, metadata}`.

Orbax writes each directory whole or not at all; what is read is compared with
the digests of its metadata, leaf by leaf.
"""

import contextlib
import gc
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from etils import epath

from jaxmerge.checkpoints.orbax_adapter import silence_orbax, write_rows
from jaxmerge.checkpoints.outputs import output_directory
from jaxmerge.errors import Diverged, InputError, check
from jaxmerge.files import absolute
from jaxmerge.formats.integrity.digest import digests
from jaxmerge.formats.lazy_tensors import Chunk, TensorSpec
from jaxmerge.formats.records.metadata import (
  Metadata,
  abstract_params,
  describe_leaves,
  hash_text,
  read_metadata,
  to_json,
)
from jaxmerge.parallel.rules import is_stacked, leaf_name

# Parameters are stored in parts, so that they can be read in parts: layers of a
# stack by themselves, and of what is large as much as this.
PART_BYTES = 16 * 2**20
# What Orbax and TensorStore say of a full disk.
_FULL = ("RESOURCE_EXHAUSTED", "No space left", "Disk quota")


def open_manager(workdir: epath.PathLike) -> ocp.CheckpointManager:
  """The run's manager: asynchronous, and it never deletes a step."""
  silence_orbax()
  return ocp.CheckpointManager(
    absolute(workdir) / "checkpoints",
    options=ocp.CheckpointManagerOptions(
      max_to_keep=None, enable_async_checkpointing=True
    ),
  )


def _iterator_digest(iterator: grain.DatasetIterator) -> str:
  state = iterator.get_state()
  return hash_text(state.decode() if isinstance(state, bytes) else str(state))


def save_step(
  manager: ocp.CheckpointManager,
  step: int,
  params: Any,
  opt_state: Any,
  iterator: grain.DatasetIterator,
  describe: Callable[..., Metadata],
) -> None:
  """Starts saving one step; the arrays may be donated right afterwards.

  `describe` gives the metadata, of the step, the leaves and the iterator.

  Raises:
    InputError: this or the save before it could not be written.
    Diverged: a parameter is not finite.
  """
  items = {"params": params, "opt_state": opt_state}
  leaves = {name: describe_leaves(tree) for name, tree in items.items()}
  position = _iterator_digest(iterator)
  metadata = describe(step=step, leaves=leaves, iterator=position)
  for name, leaf in metadata.leaves["params"].items():
    if leaf["norm"] is None:
      raise Diverged(f"the run has diverged: at step {step} {name} has NaN")
  with _writing(manager.directory):
    manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(params, save_args=_in_parts(params)),
        opt_state=ocp.args.StandardSave(opt_state),
        data=grain.checkpoint.CheckpointSave(iterator),
        metadata=ocp.args.JsonSave(to_json(metadata)),
      ),
    )


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
def _new_step(
  path: epath.PathLike, *, overwrite: bool
) -> Iterator[tuple[epath.Path, Callable[..., None]]]:
  """Yields a temporary path, and what saves metadata and other items there."""
  silence_orbax()
  with (
    output_directory(path, overwrite=overwrite) as temporary,
    _writing(temporary.parent),
    contextlib.closing(
      ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    ) as checkpointer,
  ):

    def save(metadata: Metadata, **items: ocp.args.CheckpointArgs) -> None:
      items["metadata"] = ocp.args.JsonSave(to_json(metadata))
      checkpointer.save(temporary, args=ocp.args.Composite(**items))

    yield temporary, save


def save_params(
  path: epath.PathLike,
  params: Any,
  metadata: Metadata,
  *,
  overwrite: bool = False,
) -> None:
  """Saves a step directory of params and metadata only, whole or not at all.

  InputError if `path` cannot be written, or exists and is to stay.
  """
  with _new_step(path, overwrite=overwrite) as (_, save):
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

  Args:
    chunks: of all parameters, of each in order.
    metadata: called when all chunks are written.
  """
  with _new_step(path, overwrite=overwrite) as (temporary, save):
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
  raise InputError(f"{path} is damaged: its {item} cannot be read ({reason})")


def _restore(
  path: epath.Path, item: str, target: Any, metadata: Metadata
) -> Any:
  with _reading(path, item), ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.restore(path / item, target)
  found, leaves = digests(tree), metadata.leaves.get(item, {})
  check(
    f"{path} is damaged: {item} {name} does not match its digest"
    for name in sorted(found.keys() | leaves.keys())
    if name not in leaves or found.get(name) != leaves[name]["digest"]
  )
  return tree


def with_shardings(abstract: Any, shardings: Any) -> Any:
  """Shapes and dtypes that say where each array is to live."""
  return jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
    abstract,
    shardings,
  )


def restore_params(path: epath.PathLike, shardings: Any = None) -> Any:
  """The params of a step directory, checked leaf by leaf.

  `shardings` is a tree like the params; None: the first local device.
  InputError names the leaves that are damaged.
  """
  path = absolute(path)
  metadata = read_metadata(path)
  abstract = abstract_params(metadata)
  if shardings is None:
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: one, abstract)
  target = with_shardings(abstract, shardings)
  return _restore(path, "params", target, metadata)


def restore_training(
  path: epath.PathLike, *, opt_state: Any, iterator: grain.DatasetIterator
) -> Any:
  """The optimiser state of a step; the iterator moves to the saved position.

  Args:
    opt_state: tree of ShapeDtypeStruct with shardings, as it will be restored.
    iterator: a new iterator over the same data.
  """
  path = absolute(path)
  metadata = read_metadata(path)
  restored = _restore(path, "opt_state", opt_state, metadata)
  positions = (path / "data").glob("process_*-of-*.json")
  counts = {int(p.stem.rpartition("-")[2]) for p in positions}
  if counts and jax.process_count() not in counts:
    raise InputError(
      f"{path} was saved by {max(counts)} processes and cannot be resumed by "
      f"{jax.process_count()}: each has its own place in the data"
    )
  with (
    _reading(path, "data position"),
    ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer,
  ):
    position = grain.checkpoint.CheckpointRestore(iterator)
    checkpointer.restore(path, args=ocp.args.Composite(data=position))
  if _iterator_digest(iterator) != metadata.iterator:
    raise InputError(f"{path} is damaged: its data position was changed")
  return restored
