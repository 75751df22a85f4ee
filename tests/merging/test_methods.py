"""The table of methods: what each takes, and what is refused."""

import dataclasses

import numpy as np
import pytest

from jaxmerge.config_reading import examine
from jaxmerge.errors import InputError
from jaxmerge.merging import method as methods
from jaxmerge.merging.config import MergeConfig
from jaxmerge.merging.group_texts import weight_count_problems
from jaxmerge.merging.method import METHODS
from tests.helpers import ROOT
from tests.merging.in_memory import merge_trees


def _problems(name, count, weights=(), **changes):
  config, found = examine(MergeConfig, {"method": name, **changes})
  if config is None or name not in METHODS:
    return found
  method = METHODS[name]
  asked = (method, count, weights, config.knobs)
  found = found + methods.problems(*asked)
  return found or methods.weight_problems(*asked)


def _given(method):
  return {"base": "x"} if method.base else {}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_called_as_it_should_be(name):
  method = METHODS[name]
  count = 2 if method.most else 6
  weights = [1.0] * count if method.weights == "required" else []
  assert _problems(name, count, weights, **_given(method)) == []
  assert f"| `{name}` |" in methods.table()


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_does_not_use_is_refused(name):
  method = METHODS[name]
  count = 2 if method.most else 6
  weights = [1.0] * count if method.weights == "required" else []
  other = {
    "window": 2,
    "decay": 0.3,
    "extrapolation": 1.0,
    "exponent": 2.0,
    "scale": 0.5,
    "density": 0.5,
    "drop_rate": 0.5,
    "seed": 1,
    "fisher_labels": "data",
    "off_diagonal": 0.5,
    "regularization": 0.1,
    "layer_groups": "1",
    "interpolate": True,
    "negative": True,
    "base": "x",
  }
  used = {knob for m in METHODS.values() for knob in m.uses}
  assert used == other.keys()
  for knob, value in other.items():
    found = _problems(name, count, weights, **{**_given(method), knob: value})
    is_refused = any(f"does not use config.{knob};" in text for text in found)
    assert is_refused == (knob not in method.uses), knob


def test_groups_have_weights_of_their_own():
  assert _problems("weights", 2, [0.5] * 8, layer_groups="2") == []
  (found,) = _problems("weights", 2, [0.5, 0.5], layer_groups="2")
  assert found == (
    "2 inputs in 4 groups but 2 --weights (of each group in this order: "
    "embeddings, band_0, band_1, head)"
  )
  many = ["embeddings", *(f"layer_{i}" for i in range(80)), "head"]
  (found,) = weight_count_problems(3, many, 12, interpolate=False)
  assert "layer_5, layer_6, ..., head)" in found
  # Which the model says is not known before it is open.
  assert _problems("weights", 2, [0.5] * 3, layer_groups="layer") == []


def test_weights_by_depth_are_of_two_layers_or_more():
  for rows in (2, 3):
    assert _problems("weights", 2, [0.5] * 2 * rows, interpolate=True) == []
  (found,) = _problems("weights", 2, [0.5] * 2, interpolate=True)
  assert found == (
    "2 inputs but 2 --weights (with interpolate 2 at the first and 2 at the "
    "last layer)"
  )
  (found,) = _problems(
    "weights", 2, [0.5] * 16, interpolate=True, layer_groups="2"
  )
  assert found.startswith("config.interpolate gives weights by depth, as")


def test_wrong_numbers_of_inputs_and_weights():
  assert "config.method must be one of" in _problems("mean", 2)[0]
  assert "did you mean karcher?" in _problems("karchr", 2)[0]
  assert "takes 2 or more inputs, got 1" in _problems("uniform", 1)[0]
  assert "takes 3 or more inputs, got 2" in _problems("rna", 2)[0]
  assert "takes 2 inputs, got 3" in _problems("slerp", 3, [1, 1, 1])[0]
  assert _problems("lawa", 2, [1, 1]) == [
    "the method 'lawa' takes no --weights; --config.method=weights does"
  ]
  assert "2 inputs but 0 --weights" in _problems("weights", 2)[0]
  assert "needs config.base" in _problems("ties", 2)[0]
  assert _problems("task_arithmetic", 1, base="x") == []
  assert "takes 2 or more" in _problems("model_stock", 1, base="x")[0]


def test_numbers_of_each_input():
  right = {"base": "x", "density": (0.5, 1), "drop_rate": [0.1, 0.2]}
  assert _problems("dare_ties", 2, **right) == []
  assert _problems("dare_ties", 3, **{**right, "density": (0.5,)}) == [
    "3 inputs but 2 numbers in config.drop_rate"
  ]
  assert _problems("ties", 2, base="x", density=(0.5, 0, 2)) == [
    "config.density must be in (0, 1], got 0",
    "config.density must be in (0, 1], got 2",
    "2 inputs but 3 numbers in config.density",
  ]
  (line,) = _problems("ties", 2, base="x", density=("a", 0.3))
  wanted = "a number, or one for each input, as (0.5, 0.3)"
  assert line == f"config.density must be {wanted}, got ('a', 0.3)"
  (line,) = _problems("ties", 2, base="x", density=(0.5, np.nan))
  assert "must be finite numbers" in line


@pytest.mark.parametrize(
  ("name", "knob", "wrong"),
  [
    ("lawa", "window", {"window": 0}),
    ("ema", "decay", {"decay": 0.0}),
    ("metric", "exponent", {"exponent": -1.0}),
    ("ties", "density", {"density": 1.5, "base": "x"}),
    ("dare", "drop_rate", {"drop_rate": 1.0, "base": "x"}),
    ("dare", "seed", {"seed": -1, "base": "x"}),
    ("regmean", "off_diagonal", {"off_diagonal": 1.1}),
    ("regmean", "off_diagonal", {"off_diagonal": -0.1}),
    ("rna", "regularization", {"regularization": 0.0}),
  ],
)
def test_values_out_of_range(name, knob, wrong):
  (found,) = _problems(name, 3, **wrong)
  assert f"config.{knob} must be" in found


def test_groups_that_are_no_number_of_bands():
  (found,) = _problems("weights", 2, [0.5] * 2, layer_groups="-1")
  assert (
    found == "config.layer_groups must be empty, a number of bands, as '4', "
    "'layer', 'attention_mlp' or patterns over names of parameters, as "
    "'embed.*,layers.[0-3].attention*', got '-1'"
  )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_way_to_its_result(name):
  method = METHODS[name]
  settings = {"window": 1} if "window" in method.uses else {}
  knobs = method.knobs(**settings)
  if method.acts == "on weights":
    assert len(methods.average_weights(method, [0.25, 0.75], knobs)) == 2
  elif method.acts == "on losses":
    assert len(method.function([1.0, 2.0], lambda w: 1.0, knobs)) == 2
  elif method.acts == "on grams":
    assert len(method.function(np.eye(2), knobs)) == 3
  elif method.acts == "on derivatives":
    rows = {"": [0.5, 0.5]}
    assert method.function(lambda: rows, knobs) == rows
  elif method.acts == "on models":
    assert method.ask is not None
  else:
    same = [{"x": np.float32([1, 2])}, {"x": np.float32([3, 5])}]
    merged = merge_trees(name, same, base={"x": np.float32([0, 1])})
    assert merged["x"].shape == (2,)


def test_the_table_of_the_docs_is_that_of_the_records():
  assert methods.table() in (ROOT / "docs/merge.md").read_text()


def test_the_config_says_nothing_by_default():
  for method in METHODS.values():
    config, _ = examine(MergeConfig, {"method": method.name})
    assert config.knobs == method.knobs()


def test_a_second_method_of_one_name_is_refused():
  other = dataclasses.replace(METHODS["wma"], function=lambda w, knobs: w)
  with pytest.raises(InputError, match="another 'wma' already"):
    METHODS.register(other)
  assert METHODS.register(METHODS["wma"]) is METHODS["wma"]


def test_weights_of_a_rule_are_checked():
  def half(weights_K, knobs):
    return [0.5] * len(weights_K)

  rule = methods.Method("half", "", half, acts="on weights")
  assert methods.average_weights(rule, [1.0] * 3, None) == [1 / 3] * 3
  short = dataclasses.replace(rule, function=lambda w, knobs: [1.0])
  with pytest.raises(InputError, match="gives 1 weights for 2 inputs"):
    methods.average_weights(short, [0.5, 0.5], None)


@pytest.mark.parametrize(
  "wrong",
  [
    {"acts": "on models"},
    {"acts": "per tensor", "ask": len},
    {"acts": "per tensor", "weights_are": "factors"},
    {"acts": "per tensor", "prepare": len},
  ],
)
def test_records_that_do_not_fit_together(wrong):
  with pytest.raises(InputError, match="the method 'mine'"):
    methods.Method("mine", "", len, **wrong)
