"""The merge verb: every method on a run's checkpoints, and what is refused."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from jaxmerge import merge
from jaxmerge.checkpoints.store import restore_params, save_params
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import describe_leaves, read_metadata
from jaxmerge.merging.average import grouped_average
from jaxmerge.merging.groups import groups_of
from jaxmerge.merging.method import METHODS
from tests.helpers import config_of, quiet


def _config(run, method, **changes):
  settings = {
    "method": method,
    "search_sequences": 8,
    "batch_size": 8,
    "base": f"{run}@4" if METHODS[method].base else "",
    **changes,
  }
  return config_of("merge", "uniform", **settings)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_checkpoint(tiny_run, tmp_path, method):
  steps = (
    [8, 12] if METHODS[method].base or METHODS[method].most else [4, 8, 12]
  )
  weights = [0.3, 0.7] if METHODS[method].weights == "required" else []
  if method == "weights":
    steps = steps[-2:]
  uses_window = "window" in METHODS[method].uses
  merge.merge(
    _config(tiny_run, method, **({"window": 1} if uses_window else {})),
    [f"{tiny_run}@{step}" for step in steps],
    tmp_path / "out",
    weights=weights,
    progress=quiet,
  )
  metadata = read_metadata(tmp_path / "out")
  assert metadata.kind == "merged"
  assert metadata.step == 12
  assert metadata.provenance["method"] == method
  recipe = metadata.provenance.get("recipe", {})
  assert recipe.keys() == set(METHODS[method].uses)
  sources = metadata.provenance["sources"]
  assert [source["step"] for source in sources] == steps
  merged = restore_params(tmp_path / "out")
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(merged))
  if method == "secant":
    trees = [restore_params(tiny_run / f"checkpoints/{s}") for s in (8, 12)]
    by_hand = jax.tree.map(lambda a, b: 1.5 * b - 0.5 * a, *trees)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, by_hand
    )


def test_the_plan_names_the_base_and_what_is_read(tiny_run, tmp_path, capsys):
  inputs = [f"{tiny_run}@{step}" for step in (8, 12)]
  for method, words in (("ties", "base  "), ("lawa", "0.000000")):
    changes = {"window": 1} if method == "lawa" else {}
    merge.merge(
      _config(tiny_run, method, **changes),
      inputs,
      tmp_path / "out",
      dry_run=True,
      progress=quiet,
    )
    assert words in capsys.readouterr().out
  assert not (tmp_path / "out").exists()


def test_groups_of_layers_have_weights_of_their_own(tiny_run, tmp_path):
  rows = [[0.3, 0.7], [1.0, 0.0], [0.5, 0.5], [0.2, 0.8]]
  merge.merge(
    _config(tiny_run, "weights", layer_groups="2"),
    [f"{tiny_run}@8", f"{tiny_run}@12"],
    tmp_path / "out",
    weights=[w for row in rows for w in row],
    progress=quiet,
  )
  trees = [restore_params(tiny_run / f"checkpoints/{s}") for s in (8, 12)]
  expected = grouped_average(trees, rows, groups_of(trees[0], "2"))
  jax.tree.map(
    # Sums of terms that cancel keep the terms' rounding, 1e-9 of 0.02.
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9),
    restore_params(tmp_path / "out"),
    expected,
  )
  provenance = read_metadata(tmp_path / "out").provenance
  assert provenance["groups"]["band_0"] == [1.0, 0.0]
  assert provenance["recipe"] == {"layer_groups": "2", "interpolate": False}


def test_what_metadata_knows_not_to_be_finite_is_not_read(tiny_run, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(tiny_run, run)
  path = run / "checkpoints/8"
  metadata = read_metadata(path)
  params = restore_params(path)
  params["final_norm"]["scale"] = (
    params["final_norm"]["scale"].at[3].set(np.nan)
  )
  leaves = describe_leaves(params)
  assert leaves["final_norm/scale"]["norm"] is None
  assert leaves["embed/embedding"]["norm"] == pytest.approx(
    np.linalg.norm(params["embed"]["embedding"]), rel=1e-6
  )
  bad = dataclasses.replace(metadata, leaves={"params": leaves})
  save_params(tmp_path / "bad", params, bad)
  with pytest.raises(InputError, match=r"bad: final_norm/scale holds NaN"):
    merge.merge(
      _config(run, "uniform"),
      [str(tmp_path / "bad"), f"{run}@12"],
      tmp_path / "out",
      progress=quiet,
      dry_run=True,
    )
