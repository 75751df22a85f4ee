"""A damaged step is refused by name, or what it gives is what was saved."""

import pathlib
import random
import shutil

import jax
import numpy as np
import pytest

from jaxmerge.checkpoints import inputs
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import read_metadata

# Orbax leaves its unfinished reads to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)


def copy_step(tiny_run, tmp_path, step=8) -> pathlib.Path:
  path = tmp_path / str(step)
  shutil.copytree(tiny_run / "checkpoints" / str(step), path)
  return path


def files_of(path: pathlib.Path) -> list[pathlib.Path]:
  return sorted(p for p in path.rglob("*") if p.is_file())


def read(path: pathlib.Path):
  [checkpoint] = inputs.open_inputs([str(path)])
  return restore_params(checkpoint.path)


def flip_bit(file: pathlib.Path, choose: random.Random) -> None:
  content = bytearray(file.read_bytes())
  content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
  file.write_bytes(bytes(content))


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_in_any_file(tiny_run, tmp_path, seed):
  saved = read(tiny_run / "checkpoints/8")
  choose = random.Random(seed)
  refused = 0
  step = copy_step(tiny_run, tmp_path)
  needed = [
    f
    for f in files_of(step)
    if "params" in f.parts or "metadata" in f.parts
    if f.stat().st_size
  ]
  for file in needed:
    whole = file.read_bytes()
    flip_bit(file, choose)
    try:
      restored = read(step)
    except InputError:
      refused += 1
    else:
      jax.tree.map(np.testing.assert_array_equal, restored, saved)
    file.write_bytes(whole)
  assert refused >= 2


def test_every_bit_of_the_arrays_counts(tiny_run, tmp_path):
  """Orbax alone restores these in silence.

  The file also holds what Orbax replaced while it wrote: there a bit counts
  for nothing, and what is read is what was saved.
  """
  saved = read(tiny_run / "checkpoints/8")
  step = copy_step(tiny_run, tmp_path)
  largest = max(files_of(step / "params"), key=lambda file: file.stat().st_size)
  whole = largest.read_bytes()
  choose = random.Random(0)
  refused = 0
  for _ in range(8):
    flip_bit(largest, choose)
    try:
      restored = read(step)
    except InputError as error:
      refused += "damaged" in str(error)
    else:
      jax.tree.map(np.testing.assert_array_equal, restored, saved)
    largest.write_bytes(whole)
  assert refused >= 5


@pytest.mark.parametrize("how", ["truncated", "removed"])
def test_a_file_that_is_not_whole(tiny_run, tmp_path, how):
  step = copy_step(tiny_run, tmp_path)
  largest = max(files_of(step / "params"), key=lambda file: file.stat().st_size)
  if how == "truncated":
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
  else:
    largest.unlink()
  with pytest.raises(InputError, match="params cannot be read"):
    read(step)


def test_a_step_without_params_or_metadata(tiny_run, tmp_path):
  step = copy_step(tiny_run, tmp_path)
  shutil.rmtree(step / "params")
  with pytest.raises(InputError, match="params cannot be read"):
    read(step)
  shutil.rmtree(step / "metadata")
  with pytest.raises(InputError, match="not a whole checkpoint"):
    read(step)


def test_changed_metadata_is_noticed(tiny_run, tmp_path):
  step = copy_step(tiny_run, tmp_path)
  file = step / "metadata/metadata"
  text = file.read_text()
  file.write_text(text.replace('"step": 8', '"step": 9'))
  with pytest.raises(InputError, match="own digest"):
    read(step)
  file.write_text(text[:-10])
  with pytest.raises(InputError, match="damaged"):
    read(step)


def test_the_params_of_another_step_are_not_taken_for_its_own(
  tiny_run, tmp_path
):
  step = copy_step(tiny_run, tmp_path)
  shutil.rmtree(step / "params")
  shutil.copytree(tiny_run / "checkpoints/12/params", step / "params")
  with pytest.raises(InputError) as error:
    read(step)
  names = read_metadata(step).leaves["params"]
  assert len(error.value.problems) == len(names)
