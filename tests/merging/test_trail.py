"""Means of saved steps are those of average.py, of one tree at a time."""

import gc
import shutil
import weakref

import jax
import numpy as np
import pytest

from jaxmerge.checkpoints import store
from jaxmerge.checkpoints.inputs import step_path
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import abstract_params, read_metadata
from jaxmerge.merging import trail
from jaxmerge.merging.average import weighted_average
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import shardings
from jaxmerge.training.config_checks import check_config
from tests.helpers import config_of

STEPS = (4, 8, 12, 16)


@pytest.fixture
def paths(tiny_run):
  return [step_path(tiny_run, step) for step in STEPS]


@pytest.fixture
def target(paths):
  params = abstract_params(read_metadata(paths[0]))
  return store.with_shardings(params, shardings(params, make_mesh()))


def same(a, b):
  return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.mark.parametrize(
  "weights", [None, (0.1, 0.3, 0.25, 0.35), (0.2, 0, 0.7, 0.1), (1, -1, 3, 0)]
)
def test_a_mean_is_the_weighted_average_bit_for_bit(paths, target, weights):
  trees = [store.restore_item(path, "params", target) for path in paths]
  wanted = weighted_average(trees, weights or [1] * len(paths))
  assert same(trail.mean_of(paths, "params", target, weights), wanted)


def test_one_tree_is_read_at_a_time(paths, target, monkeypatch):
  read, most = [], []

  def restore(path, item, target):
    gc.collect()
    most.append(sum(tree() is not None for tree in read))
    tree = store.restore_item(path, item, target)
    read.append(weakref.ref(jax.tree.leaves(tree)[0]))
    return tree

  monkeypatch.setattr(trail, "restore_item", restore)
  trail.mean_of(paths, "params", target)
  # The first lies where the sum will be.
  assert most == [0, 1, 0, 0]


def test_counts_of_a_state_are_the_last_steps(paths):
  _, trainer = check_config(config_of("pretrain"))
  size = read_metadata(paths[0]).model["vocab_size"]
  target = trainer.with_tokenizer(size, 0).abstract_state().opt_state
  trees = [store.restore_item(path, "opt_state", target) for path in paths]
  newest = jax.tree.leaves(trees[-1])
  for weights in (None, (0.5, 0.5, 0, 0), (1, 0, 0, 0)):
    mean = jax.tree.leaves(trail.mean_of(paths, "opt_state", target, weights))
    share = 0.25 if weights is None else weights[0]
    counts = 0
    for found, last, first, *others in zip(
      mean, newest, *map(jax.tree.leaves, trees), strict=True
    ):
      if last.dtype == np.int32:
        assert found == last
        counts += 1
      elif share < 1:
        used = [first, *others][: round(1 / share)]
        np.testing.assert_allclose(found, share * sum(used), 1e-5, 1e-9)
      else:
        np.testing.assert_array_equal(found, first)
    assert counts


def test_what_cannot_be_averaged_is_refused(paths, target, tmp_path):
  with pytest.raises(InputError, match="4 checkpoints but 2 weights"):
    trail.mean_of(paths, "params", target, [1, 2])
  with pytest.raises(InputError, match="not above zero"):
    trail.mean_of(paths, "params", target, [0, 0, 0, 0])
  for step in ("4", "8"):
    shutil.copytree(paths[0].parent / step, tmp_path / step)
  metadata = tmp_path / "4/metadata/metadata"
  shutil.copy(tmp_path / "8/metadata/metadata", metadata)
  with pytest.raises(InputError, match="does not match its digest"):
    trail.mean_of([tmp_path / "4", tmp_path / "8"], "params", target)
