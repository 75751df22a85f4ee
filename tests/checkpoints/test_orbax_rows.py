"""Step directories read and written by rows are those that Orbax knows."""

import random
import threading

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxmerge.checkpoints.orbax_adapter import open_orbax, write_rows
from jaxmerge.checkpoints.store import restore_params, save_rows
from jaxmerge.errors import InputError
from jaxmerge.formats.integrity import checksums
from jaxmerge.formats.lazy_tensors import Chunk, TensorSpec, tree_of_leaves
from jaxmerge.formats.records.metadata import (
  describe_leaves,
  read_metadata,
)
from jaxmerge.parallel.rules import named_leaves
from tests.merging import fixtures

DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16, np.int32, np.bool_)


def arrays(dtype=np.float32):
  rng = np.random.default_rng(0)
  shapes = {"a": (20, 3), "b/c": (5,), "b/d": (6, 2, 4), "e": (), "f": (1, 7)}
  return {
    name: np.asarray(rng.normal(size=shape) * 9, dtype)
    for name, shape in shapes.items()
  }


def by_rows(tree, step):
  for name, array in tree.items():
    flat = array if array.ndim else array.reshape(1)
    for start in range(0, len(flat), step):
      array = flat[start : start + step]
      yield Chunk(name, start, start + len(array), array)


def save(path, tree, *, together, step):
  """As a merge does, with rows that come `step` at a time."""
  specs = {
    name: TensorSpec(
      x.shape, x.dtype, min(together, x.shape[0] if x.ndim else 1)
    )
    for name, x in tree.items()
  }
  nested = tree_of_leaves(tree)
  fixtures.step_directory(path.with_name("like"), nested)
  metadata = read_metadata(path.with_name("like"))
  save_rows(path, specs, by_rows(tree, step), lambda: metadata)


@pytest.mark.parametrize(
  ("dtype", "together", "step"),
  [
    *((dtype, 7, 7) for dtype in DTYPES),
    *((np.float32, *rows) for rows in ((20, 1), (1, 3), (3, 20))),
  ],
)
def test_orbax_and_we_read_what_was_written(tmp_path, dtype, together, step):
  tree = arrays(dtype)
  save(tmp_path / "x", tree, together=together, step=step)
  fixtures.assert_same_bytes(tree, named_leaves(restore_params(tmp_path / "x")))
  with ocp.StandardCheckpointer() as checkpointer:
    theirs = checkpointer.restore(tmp_path / "x/params")
  fixtures.assert_same_bytes(tree, named_leaves(theirs))
  leaves = open_orbax(tmp_path / "x", read_metadata(tmp_path / "x"))
  assert leaves.keys() == tree.keys()
  choose = random.Random(0)
  for name, array in tree.items():
    leaf = leaves[name]
    assert (leaf.shape, leaf.dtype) == (array.shape, array.dtype)
    assert leaf.rows_together == min(together, len(array) if array.ndim else 1)
    flat = array.reshape(-1, *array.shape[1:])
    for _ in range(3):
      start = choose.randrange(len(flat))
      stop = choose.randrange(start, len(flat)) + 1
      found = leaf.rows(start, stop)
      assert found.shape == flat[start:stop].shape
      assert found.tobytes() == flat[start:stop].tobytes()


def test_a_directory_of_zarr3_is_read(tmp_path):
  tree = arrays()
  fixtures.step_directory(tmp_path / "x", tree_of_leaves(tree))
  params = tmp_path / "x/params"
  params.rename(tmp_path / "old")
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
  with ocp.Checkpointer(handler) as checkpointer:
    nested = jax.tree.map(jnp.asarray, tree_of_leaves(tree))
    checkpointer.save(params, args=ocp.args.PyTreeSave(nested))
  leaves = open_orbax(tmp_path / "x", read_metadata(tmp_path / "x"))
  for name, array in tree.items():
    rows = len(array) if array.ndim else 1
    assert leaves[name].rows(0, rows).tobytes() == array.tobytes(), name


def test_all_that_is_missing_or_different_is_told(tmp_path):
  tree = arrays()
  fixtures.step_directory(tmp_path / "x", tree_of_leaves(tree))
  other = {**tree, "a": tree["a"].T.copy(), "f": tree["f"].astype(np.float16)}
  del other["e"]
  fixtures.step_directory(tmp_path / "y", tree_of_leaves(other))
  with pytest.raises(InputError) as error:
    open_orbax(tmp_path / "y", read_metadata(tmp_path / "x"))
  said = "\n".join(error.value.problems)
  assert len(error.value.problems) == 3
  assert "a is float32[3, 20], its metadata says float32[20, 3]" in said
  assert "f is float16[1, 7], its metadata says float32[1, 7]" in said
  assert "its params cannot be read" in said


def test_no_rows_or_too_few_leave_nothing(tmp_path):
  """What is wrong is found while rows are fixtures."""

  def broken():
    yield Chunk("a", 0, 5, np.zeros((5, 3), np.float32))
    raise InputError("a source is damaged")

  specs = {"a": TensorSpec((20, 3), np.dtype(np.float32), 5)}
  with pytest.raises(InputError, match="a source is damaged"):
    save_rows(tmp_path / "x", specs, broken(), lambda: None)
  with pytest.raises(InputError, match="params are missing"):
    save_rows(tmp_path / "x", specs, by_rows({}, 1), lambda: None)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  "dtype", [*DTYPES, ml_dtypes.float8_e4m3fn, np.uint8], ids=str
)
def test_sums_over_portions_are_those_of_the_whole(monkeypatch, dtype):
  """In any order, from several threads, whatever the size of a portion."""
  monkeypatch.setattr(checksums, "BLOCK", 32)
  monkeypatch.setattr(checksums, "_SMALLEST", 8)
  tree = {**arrays(dtype), "empty": np.zeros((3, 0), dtype)}
  checksum = checksums.LeafChecksum()
  portions = list(by_rows(tree, 3))
  random.Random(0).shuffle(portions)
  threads = [
    threading.Thread(target=lambda p=p: [checksum.add(rows) for rows in p])
    for p in (portions[::2], portions[1::2])
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  found = checksum.leaves(fixtures.specs_of(tree))
  expected = describe_leaves(tree_of_leaves(tree))
  for name, leaf in expected.items():
    norm = found[name]["norm"]
    assert norm == pytest.approx(leaf["norm"], rel=1e-5), name
    assert found[name]["digest"] == leaf["digest"], name


def test_a_write_into_a_directory_that_is_there_is_refused(tmp_path):
  specs = {"a": TensorSpec((2,), np.dtype(np.float32), 1)}
  tree = {"a": np.zeros(2, np.float32)}
  (tmp_path / "params").mkdir()
  with pytest.raises(ValueError, match="already exists"):
    write_rows(tmp_path / "params", specs, by_rows(tree, 1))
