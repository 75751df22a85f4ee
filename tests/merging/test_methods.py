"""The table of methods: what each takes, and what is refused."""

import numpy as np
import pytest

from jaxmerge import runner
from jaxmerge.merging import methods
from jaxmerge.merging.methods import DEFAULTS, METHODS


def _problems(name, count, weights=(), **changes):
  return methods.problems(name, count, weights, {**DEFAULTS, **changes})


def _given(method):
  return {"base": "x"} if method.base else {}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_called_as_it_should_be(name):
  method = METHODS[name]
  count = 2 if method.most else 6
  weights = [1.0] * count if method.weights == "one" else []
  assert _problems(name, count, weights, **_given(method)) == []
  assert name in methods.help_text()


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_does_not_use_is_refused(name):
  method = METHODS[name]
  count = 2 if method.most else 6
  weights = [1.0] * count if method.weights == "one" else []
  other = {
    "newest": 2,
    "decay": 0.3,
    "beyond": 1.0,
    "penalty": 2.0,
    "scale": 0.5,
    "density": 0.5,
    "drop": 0.5,
    "seed": 1,
    "sampled": False,
    "off_diagonal": 0.5,
    "bands": 1,
    "base": "x",
  }
  assert other.keys() == DEFAULTS.keys()
  for key, value in other.items():
    changed = {**_given(method), key: value}
    typed = weights * 3 if key == "bands" else weights
    found = _problems(name, count, typed, **changed)
    assert bool(found) == (key not in method.parameters), key


def test_groups_have_weights_of_their_own():
  assert _problems("weights", 2, [0.5] * 8, bands=2) == []
  (found,) = _problems("weights", 2, [0.5, 0.5], bands=2)
  assert found == "2 inputs in 4 groups but 2 --weights"


def test_wrong_numbers_of_inputs_and_weights():
  assert "unknown config.method 'mean'" in _problems("mean", 2)[0]
  assert "takes 2 or more inputs, got 1" in _problems("uniform", 1)[0]
  assert "takes 2 inputs, got 3" in _problems("slerp", 3, [1, 1, 1])[0]
  assert "takes no --weights" in _problems("lawa", 2, [1, 1])[0]
  assert "2 inputs but 0 --weights" in _problems("weights", 2)[0]
  assert "needs config.base" in _problems("ties", 2)[0]
  assert _problems("task_arithmetic", 1, base="x") == []
  assert "takes 2 or more" in _problems("model_stock", 1, base="x")[0]


@pytest.mark.parametrize(
  ("name", "wrong"),
  [
    ("lawa", {"newest": 0}),
    ("ema", {"decay": 0.0}),
    ("metric", {"penalty": -1.0}),
    ("ties", {"density": 1.5, "base": "x"}),
    ("dare", {"drop": 1.0, "base": "x"}),
    ("dare", {"seed": -1, "base": "x"}),
    ("regmean", {"off_diagonal": 1.1}),
    ("regmean", {"off_diagonal": -0.1}),
  ],
)
def test_values_out_of_range(name, wrong):
  (found,) = _problems(name, 2, **wrong)
  assert f"config.{next(iter(wrong))} must be" in found


def test_every_method_has_one_way_to_its_result():
  tree = {"x": np.float32([1.0, 2.0])}
  other = {"x": np.float32([3.0, 5.0])}
  for name, method in METHODS.items():
    weights = [0.25, 0.75] if method.weights else []
    parameters = {**DEFAULTS, "newest": 1}
    fixed = methods.fixed_weights(name, 2, weights, parameters)
    if fixed is not None:
      assert name not in methods.MEASURED, name
      continue
    if name in methods.MEASURED:
      found = methods.measured_weights(
        name, [1.0, 2.0], lambda w: 1.0, parameters
      )
      assert len(found) == 2, name
      continue
    if method.data:  # of gradients or inputs of layers: measured_merge
      continue
    merged = methods.merge_trees(
      name,
      [tree, other],
      weights or [1.0, 1.0],
      parameters,
      base={"x": np.float32([0.0, 1.0])},
    )
    assert merged["x"].shape == (2,), name


def test_the_config_says_nothing_by_default():
  config = runner.load_config("configs/merge/uniform.py")
  assert {key: config[key] for key in DEFAULTS} == dict(DEFAULTS)
