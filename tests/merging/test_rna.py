"""Regularised nonlinear acceleration: weights, and merges of files.

K inputs, oldest first; P = K - 1 differences; D entries of a tree.
"""

import json

import ml_dtypes
import numpy as np
import pytest

from jaxmerge.checkpoints.store import restore_params
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.merging.differences import gram_of_arrays, gram_weights
from jaxmerge.merging.method import METHODS, Method
from jaxmerge.parallel.rules import named_leaves
from tests.merging import fixtures
from tests.merging.fixtures import hugging_face, loaded

RNA = METHODS["rna"]


def _weights(x_KxD, regularization=1e-5):
  knobs = RNA.knobs(regularization=regularization)
  return gram_weights(RNA, gram_of_arrays(list(x_KxD)), knobs)


def _by_multipliers(x_KxD, regularization):
  """min |R w|^2 + lambda |R'R| |w|^2 with sum w = 1, by its KKT system."""
  steps_PxD = np.diff(np.float64(x_KxD), axis=0)
  gram = steps_PxD @ steps_PxD.T
  count = len(gram)
  system = np.ones((count + 1, count + 1))
  ridge = regularization * np.linalg.eigvalsh(gram)[-1] * np.eye(count)
  system[:count, :count] = gram + ridge
  system[-1, -1] = 0.0
  found = np.linalg.solve(system, np.eye(count + 1)[-1])
  return [0.0, *found[:-1]]


def _iterates(count, scale=1.0):
  """x_{k+1} = A x_k + b in three dimensions, and the fixed point."""
  rng = np.random.default_rng(3)
  q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
  a_DxD = q @ np.diag([0.9, 0.4, -0.6]) @ q.T
  b_D = rng.normal(size=3) * scale
  x = [rng.normal(size=3) * scale]
  for _ in range(count - 1):
    x.append(a_DxD @ x[-1] + b_D)
  return np.array(x), np.linalg.solve(np.eye(3) - a_DxD, b_D)


@pytest.mark.parametrize("regularization", [1e-8, 1e-3, 1.0])
def test_the_weights_are_those_of_the_constrained_problem(regularization):
  x_KxD = np.random.default_rng(0).normal(size=(5, 40))
  x_KxD = np.cumsum(x_KxD, axis=0)
  found = _weights(x_KxD, regularization)
  wanted = _by_multipliers(x_KxD, regularization)
  np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
  assert found[0] == 0
  assert sum(found) == pytest.approx(1)
  scaled = _weights(1e3 * x_KxD, regularization)
  np.testing.assert_allclose(scaled, found, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("count", [5, 6])
def test_the_fixed_point_of_a_linear_iteration_is_found(count):
  x_KxD, fixed_D = _iterates(count)
  weights_K = _weights(x_KxD, 1e-14)
  assert min(weights_K) < 0
  np.testing.assert_allclose(weights_K @ x_KxD, fixed_D, atol=1e-6)
  assert np.abs(x_KxD[-1] - fixed_D).max() > 0.1


def test_much_regularization_gives_the_mean_of_all_but_the_oldest():
  x_KxD, _ = _iterates(4)
  np.testing.assert_allclose(_weights(x_KxD, 1e9), [0, 1 / 3, 1 / 3, 1 / 3])


def test_inputs_that_do_not_differ():
  x_D = np.arange(4.0)
  assert _weights([x_D] * 4) == [0, 1 / 3, 1 / 3, 1 / 3]
  # A step that changes nothing is where the iteration has come to rest.
  stopped = _weights([x_D, 2 * x_D, x_D**2, x_D**2])
  np.testing.assert_allclose(stopped, [0, 0, 0, 1], atol=1e-4)
  # The same step twice: both halves of it weigh the same.
  straight = _weights([x_D, x_D + 1, x_D + 2])
  assert straight == pytest.approx([0, 0.5, 0.5])


def test_what_cannot_be_weighed():
  x_KxD = np.ones((3, 2))
  x_KxD[1, 0] = np.nan
  with pytest.raises(InputError, match="hold NaN or Inf"):
    _weights(x_KxD)
  # Steps of nearly the same length along a line, back and forth again.
  far = np.array([[0.0, 0], [1, 0], [2.001, 0], [3.003001, 0]])
  with pytest.raises(InputError, match=r"a larger config.regularization"):
    _weights(far, 1e-14)
  short = Method("short", "", lambda gram, knobs: [1.0], acts="on grams")
  with pytest.raises(InputError, match="gives 1 weights for 3 inputs"):
    gram_weights(short, np.eye(2), None)


def _tree(x_D):
  x_D = np.float32(x_D)
  return {"layers": {"kernel": x_D[:2].reshape(2, 1)}, "head": x_D[2:]}


def _steps(folder, x_KxD):
  return [
    fixtures.step_directory(folder / f"{k + 1}", _tree(x_D), step=k + 1)
    for k, x_D in enumerate(x_KxD)
  ]


def test_step_directories_in_any_order_give_the_fixed_point(tmp_path):
  x_KxD, fixed_D = _iterates(5)
  paths = _steps(tmp_path, x_KxD)
  changes = {"regularization": 1e-12}
  fixtures.run(paths, tmp_path / "out", "rna", changes=changes)
  turned = [paths[i] for i in (3, 0, 4, 2, 1)]
  fixtures.run(turned, tmp_path / "again", "rna", changes=changes)
  merged = named_leaves(restore_params(tmp_path / "out"))
  again = named_leaves(restore_params(tmp_path / "again"))
  fixtures.assert_same_bytes(again, merged)
  flat = [merged["layers/kernel"].ravel(), merged["head"].ravel()]
  np.testing.assert_allclose(np.concatenate(flat), fixed_D, atol=2e-3)
  provenance = read_metadata(tmp_path / "out").provenance
  weights = [source["weight"] for source in provenance["sources"]]
  exact = _weights(np.float64(np.float32(x_KxD)), 1e-12)
  np.testing.assert_allclose(weights, exact, rtol=1e-9, atol=1e-12)
  assert provenance["recipe"] == {"regularization": 1e-12}
  assert all(source["params"] for source in provenance["sources"])


def test_directories_of_an_unknown_family_in_several_dtypes(tmp_path):
  rng = np.random.default_rng(1)
  kinds = (np.float32, np.float16, ml_dtypes.bfloat16)
  mask = np.triu(np.full((3, 3), -np.inf, np.float32), 1)
  paths, rows = [], []
  for k, kind in enumerate(kinds):
    x = rng.normal(size=(7, 5)).astype(kind)
    rows.append(np.float64(x).ravel())
    tensors = {
      "x.weight": x,
      "offset.weight": mask,
      "bn.num_batches_tracked": np.array(k, np.int64),
    }
    paths.append(hugging_face(tmp_path / f"a-{k}", tensors))
  fixtures.run(paths, tmp_path / "out", "rna", allow_unrelated=True)
  found = loaded(tmp_path / "out")
  weights_K = _by_multipliers(np.array(rows), 1e-5)
  merged = (weights_K @ np.array(rows)).reshape(7, 5)
  assert found["x.weight"].dtype == np.float32
  np.testing.assert_allclose(found["x.weight"], merged, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(found["offset.weight"], mask)
  assert found["bn.num_batches_tracked"] == 2
  told = json.loads((tmp_path / "out/jaxmerge.json").read_text())
  sources = told["provenance"]["sources"]
  assert sources[0]["weight"] == 0
  assert all(source["params"] for source in sources)  # the oldest is read too


def test_damage_and_nan_of_the_oldest_are_refused(tmp_path):
  """It weighs nothing, but what it holds decides what the others weigh."""
  x_KxD, _ = _iterates(3)
  paths = _steps(tmp_path / "steps", x_KxD)
  metadata = json.loads((paths[0] / "metadata/metadata").read_text())
  metadata["leaves"]["params"]["head"]["digest"] = "0" * 16
  (paths[0] / "metadata/metadata").write_text(json.dumps(metadata))
  with pytest.raises(InputError, match=r"1 is damaged"):
    fixtures.run(paths, tmp_path / "out", "rna")
  x_KxD[0, 1] = np.inf
  bad = [
    hugging_face(tmp_path / f"b-{k}", {"w.weight": np.float32(x_D)})
    for k, x_D in enumerate(x_KxD)
  ]
  with pytest.raises(InputError, match=r"b-0: w.weight holds NaN or Inf"):
    fixtures.run(bad, tmp_path / "out", "rna", allow_unrelated=True)
  assert not (tmp_path / "out").exists()


def test_a_tied_head_counts_once(tmp_path):
  rng = np.random.default_rng(0)
  trees = [
    {
      "wte.weight": rng.normal(size=(7, 4)).astype(np.float32),
      "h.0.w.weight": rng.normal(size=(4, 4)).astype(np.float32),
    }
    for _ in range(3)
  ]
  copies = [{**tree, "lm_head.weight": tree["wte.weight"]} for tree in trees]
  weights = []
  for name, tensors in (("plain", trees), ("copies", copies)):
    paths = [
      hugging_face(tmp_path / f"{name}-{k}", tree, tie_word_embeddings=True)
      for k, tree in enumerate(tensors)
    ]
    out = tmp_path / name
    fixtures.run(paths, out, "rna", allow_unrelated=True)
    known = json.loads((out / "jaxmerge.json").read_text())["provenance"]
    weights.append([source["weight"] for source in known["sources"]])
  assert weights[0] == weights[1]
  found = loaded(tmp_path / "copies")
  np.testing.assert_array_equal(found["lm_head.weight"], found["wte.weight"])


def test_the_plan_says_that_inputs_are_read_twice(tmp_path, capsys):
  x_KxD, _ = _iterates(4)
  paths = _steps(tmp_path, x_KxD)
  fixtures.run(paths, tmp_path / "out", "rna", dry_run=True)
  plan = capsys.readouterr().out
  assert "read 84 B, write 12 B" in plan  # four trees, then three
  assert "all are read for their weights, then all but the oldest" in plan
  assert "  rna  " in plan
  assert not (tmp_path / "out").exists()
