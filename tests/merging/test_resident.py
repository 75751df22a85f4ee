"""Trees on the devices, on the host and in storage merge alike."""

import functools
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge.checkpoints.inputs import open_steps
from jaxmerge.errors import InputError
from jaxmerge.evaluation.placing import place_trees
from jaxmerge.formats.records.metadata import abstract_params
from jaxmerge.merging import resident
from jaxmerge.merging.average import weighted_average
from jaxmerge.merging.groups import groups_of, one_group
from jaxmerge.merging.resident import (
  IN_HOST_MEMORY,
  IN_STORAGE,
  ON_DEVICES,
  choose_placement,
  open_trees,
)
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import shardings

STEPS = (4, 8, 12)
ROWS = ([0.2, 0.3, 0.5], [0.0, 1.0, 0.0], [0.7, -0.2, 0.5])


@pytest.fixture(scope="module")
def opened(tiny_run):
  checkpoints = open_steps(tiny_run, STEPS)
  where = shardings(abstract_params(checkpoints[0].metadata), make_mesh())
  trees = {
    place: open_trees(checkpoints, where, place)
    for place in (ON_DEVICES, IN_HOST_MEMORY, IN_STORAGE)
  }
  return checkpoints, where, trees


def _close(a, b):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b
  )


@pytest.mark.parametrize("place", [IN_HOST_MEMORY, IN_STORAGE])
def test_merges_do_not_depend_on_the_place(opened, place):
  _, _, trees = opened
  here, there = trees[ON_DEVICES], trees[place]
  assert len(there) == len(STEPS)
  _close(there[1], here[1])
  one, bands = one_group(here[0]), groups_of(here[0], "1")
  for row in ROWS:
    _close(there.average([row], one), here.average([row], one))
  _close(there.average(ROWS, bands), here.average(ROWS, bands))
  along = [[-1.0, 0.5, 0.5]] * 3
  _close(there.weighted_sum(along, bands), here.weighted_sum(along, bands))
  gradient = jax.tree.map(jnp.cos, here[2])
  slopes = here.slopes(gradient, bands)
  np.testing.assert_allclose(there.slopes(gradient, bands), slopes, rtol=1e-4)
  assert slopes.shape == (3, 3)
  assert np.all(slopes[:, 2] == 0)


def test_slopes_are_inner_products_of_differences(opened):
  _, _, trees = opened
  here = trees[ON_DEVICES]
  gradient = jax.tree.map(jnp.sin, here[0])
  found = here.slopes(gradient, one_group(here[0]))
  for k in range(2):
    trees = [jax.tree.leaves(t) for t in (gradient, here[k], here[2])]
    wide = [[np.float64(leaf) for leaf in leaves] for leaves in trees]
    total = sum(np.sum(g * (x - last)) for g, x, last in zip(*wide))
    assert found[0, k] == pytest.approx(total, rel=1e-4)


def test_gram_matrices_are_of_differences(opened):
  _, _, trees = opened
  rows = []
  for k in range(len(STEPS)):
    leaves = map(np.ravel, jax.tree.leaves(trees[ON_DEVICES][k]))
    rows.append(np.concatenate(list(leaves)).astype(np.float64))
  steps_PxD = np.diff(rows, axis=0)
  for place, here in trees.items():
    exact = steps_PxD @ steps_PxD.T
    np.testing.assert_allclose(here.gram(), exact, rtol=1e-6, err_msg=place)


def test_only_the_previous_merge_is_given_up(opened):
  _, _, trees = opened
  here = trees[ON_DEVICES]
  groups = groups_of(here[0], "1")
  first = here.average(ROWS, groups)
  again = here.average([ROWS[0]] * 3, groups, first)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(here[1]))
  _close(again, weighted_average([here[k] for k in range(3)], ROWS[0]))


def _budget(needed_trees, opened):
  checkpoints, _, _ = opened
  leaves = checkpoints[0].metadata.leaves["params"].values()
  size = 4 * sum(int(np.prod(leaf["shape"])) for leaf in leaves)
  return (needed_trees * size + 100) / 2**30


def test_the_place_is_where_trees_fit(opened, monkeypatch):
  checkpoints, where, _ = opened

  def place(trees):
    return choose_placement(
      checkpoints,
      where,
      merged_trees=2,
      memory_budget_gb=_budget(trees, opened),
    ).where

  assert place(5) == ON_DEVICES
  assert place(4) == IN_STORAGE  # on a CPU the host's memory is the devices'
  monkeypatch.setattr(resident.jax, "default_backend", lambda: "gpu")
  assert place(4) == IN_HOST_MEMORY
  assert place(2) == IN_STORAGE
  with pytest.raises(InputError, match=r"of memory are needed on each device"):
    place(1)
  plan = choose_placement(
    checkpoints, where, merged_trees=2, memory_budget_gb=0
  )
  assert plan.where == ON_DEVICES


def test_derivatives_take_float32_where_trees_are_read(opened):
  """Two merges of their own, and the heads of others, whatever was saved."""
  checkpoints, where, _ = opened
  leaves = checkpoints[0].metadata.leaves["params"]
  head = sum(
    math.prod(leaf["shape"])
    for name, leaf in leaves.items()
    if name.startswith(("embed", "final_norm"))
  )
  place = functools.partial(place_trees, checkpoints, where, derivatives=True)
  whole = place(_budget(6, opened))
  assert whole.where == ON_DEVICES
  size = whole.needed / 6
  stored = place(_budget(5, opened))
  assert stored.where == IN_STORAGE
  assert stored.needed == 2 * size + 2 * 4 * head
  with pytest.raises(InputError, match=r"of memory are needed on each device"):
    place(_budget(2, opened))


def test_damage_is_found_before_the_first_merge(tiny_run, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(tiny_run, run)
  checkpoints = open_steps(run, STEPS)
  where = shardings(abstract_params(checkpoints[0].metadata), make_mesh())
  params = run / "checkpoints/8/params"
  shutil.rmtree(params)
  shutil.copytree(run / "checkpoints/12/params", params)
  for place in (ON_DEVICES, IN_HOST_MEMORY, IN_STORAGE):
    with pytest.raises(InputError, match=r"checkpoints/8 is damaged"):
      open_trees(checkpoints, where, place)
