"""Merges with weights for each group of tensors, of any model."""

import json

import numpy as np
import pytest

from jaxmerge.errors import InputError
from tests.merging import fixtures
from tests.merging.fixtures import command, hugging_face, loaded, run_rows

ROWS = [[0.3, 0.7], [1.0, 0.0], [-0.5, 1.5], [0.2, 0.8]]
# Layers of no family that jaxmerge knows.
NAMES = {
  "wte.weight": (7, 4),
  **{
    f"h.{layer}.{name}": (4, 3)
    for layer in range(5)
    for name in ("ln_1.weight", "attn.qkv.weight", "ln_2.weight", "mlp.w.bias")
  },
  "ln_f.weight": (4,),
}


def _tensors(seed):
  rng = np.random.default_rng(seed)
  found = {n: rng.normal(size=s).astype(np.float32) for n, s in NAMES.items()}
  # Of no group, and no mean of it would mean anything.
  return {**found, "h.0.attn.bias_index": np.arange(3), "odd": np.arange(2)}


@pytest.fixture
def unknown(tmp_path):
  """Two directories of a model that jaxmerge does not know."""
  return [
    hugging_face(tmp_path / name, _tensors(seed))
    for seed, name in enumerate("ab")
  ]


def _check(output, row_of):
  """Compares with a sum in float64 at the weights that a name shall have."""
  first, second = _tensors(0), _tensors(1)
  for name, found in loaded(output).items():
    if name in NAMES:
      a, b = row_of(name)
      one, two = (np.float64(tree[name]) for tree in (first, second))
      expected = (a * one + b * two) / (a + b)
      np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)
    else:
      np.testing.assert_array_equal(found, first[name])


def test_patterns_over_the_names_of_any_model(unknown, tmp_path):
  text = "wte*,h.[0-2].attn*,h.*.mlp.*"
  out = run_rows(unknown, tmp_path / "out", ROWS, layer_groups=text)

  def row_of(name):
    if name.startswith("wte"):
      return ROWS[0]
    if "attn" in name and name[2] in "012":
      return ROWS[1]
    return ROWS[2] if "mlp" in name else ROWS[3]

  _check(out, row_of)
  known = json.loads((out / "jaxmerge.json").read_text())["provenance"]
  patterns = [*text.split(","), "rest"]
  assert list(known["groups"]) == patterns
  np.testing.assert_allclose([*known["groups"].values()], ROWS)
  assert known["recipe"] == {"layer_groups": text, "interpolate": False}
  card = (out / "README.md").read_text()
  assert r"| h.\*.mlp.\* | -0.5 | 1.5 |" in card
  # The mean weights are those of all numbers that are averaged.
  total = sum(np.prod(shape) for shape in NAMES.values())
  mean = sum(row_of(n)[0] * np.prod(s) for n, s in NAMES.items()) / total
  assert known["sources"][0]["weight"] == pytest.approx(mean)


@pytest.mark.parametrize("text", ["2", "layer", "attention_mlp"])
def test_words_in_the_names_of_any_model(unknown, tmp_path, text):
  between = {
    "2": ["0", "1"],
    "layer": list("01234"),
    "attention_mlp": [f"{i}{part}" for i in range(5) for part in "am"],
  }[text]
  keys = ["wte", *between, "ln_f"]
  rows = [[k + 1.0, 2.0] for k in range(len(keys))]

  def row_of(name):
    if not name.startswith("h."):
      return rows[0 if name.startswith("wte") else -1]
    layer, part = name[2], "a" if "attn" in name or "ln_1" in name else "m"
    band = str(int(layer) * 2 // 5)
    key = {"2": band, "layer": layer, "attention_mlp": layer + part}[text]
    return rows[keys.index(key)]

  _check(run_rows(unknown, tmp_path / "out", rows, layer_groups=text), row_of)


@pytest.mark.parametrize("rows", [ROWS[:2], ROWS[:3]])
def test_weights_by_depth(unknown, tmp_path, rows):
  out = run_rows(unknown, tmp_path / "out", rows, interpolate=True)

  def row_of(name):
    depth = int(name[2]) / 4 if name.startswith("h.") else name == "ln_f.weight"
    scaled = depth * (len(rows) - 1)
    i = min(int(scaled), len(rows) - 2)
    part = scaled - i
    return [(1 - part) * a + part * b for a, b in zip(rows[i], rows[i + 1])]

  _check(out, row_of)
  known = json.loads((out / "jaxmerge.json").read_text())["provenance"]
  assert list(known["groups"]) == [
    "embeddings",
    *(f"layer_{i}" for i in range(5)),
    "head",
  ]
  assert known["groups"]["layer_4"] == pytest.approx(rows[-1])


def test_weights_by_depth_of_each_pattern(unknown, tmp_path):
  changes = {"layer_groups": "*attn*", "interpolate": True}
  out = run_rows(unknown, tmp_path / "out", ROWS, **changes)

  def row_of(name):
    depth = int(name[2]) / 4 if name.startswith("h.") else name == "ln_f.weight"
    first, last = ROWS[:2] if "attn" in name else ROWS[2:]
    return [(1 - depth) * a + depth * b for a, b in zip(first, last)]

  _check(out, row_of)
  known = json.loads((out / "jaxmerge.json").read_text())["provenance"]
  assert known["groups"]["*attn*/layer_0"] == ROWS[0]
  assert known["groups"]["rest/head"] == ROWS[3]


def test_one_input_alone_is_copied(unknown, tmp_path):
  rows = [[1.0, 0.0]] * 4
  out = run_rows(unknown, tmp_path / "out", rows, layer_groups="2")
  fixtures.assert_same_bytes(loaded(out), _tensors(0))


def test_the_plan_lists_the_groups(unknown, tmp_path, capsys):
  words = ["--config.method=weights", "--config.layer_groups=*attn*,h.*"]
  words += [f"--inputs={unknown[0]},{unknown[1]}", "--allow_unrelated"]
  weights = "--weights=.5,.5,1,0,.25,.75"
  out = f"--output={tmp_path / 'out'}"
  assert command(*words, weights, out, "--dry_run") == 0
  printed = capsys.readouterr().out
  assert "3 groups of parameters\n" in printed
  assert "  0.500000 0.500000  *attn* (60 numbers)\n" in printed
  assert "  1.000000 0.000000  h.* (180 numbers)\n" in printed
  assert "  0.250000 0.750000  rest (32 numbers)" in printed
  assert not (tmp_path / "out").exists()


def test_all_that_is_wrong_is_said_at_once(unknown, tmp_path, capsys):
  out = tmp_path / "out"
  words = ["--config.method=weights", f"--output={out}"]
  words += [f"--inputs={unknown[0]},{unknown[1]}"]

  def said(*more):
    assert command(*words, *more) == 2
    assert not out.exists()
    return " ".join(capsys.readouterr().err.split())

  found = said("--config.layer_groups=h.*,h.9.*,q*", "--weights=1,2")
  for text in ("'h.9.*' matches", "'q*' matches no parameter; there are h.0"):
    assert text in found
  found = said("--config.layer_groups=-3", "--weights=1,2", "--config.dtype=x")
  assert "layer_groups must be empty, a number of bands" in found
  assert "dtype" in found
  found = said("--config.layer_groups=9", "--weights=1,2")
  assert "2 inputs in 11 groups but 2 --weights" in found
  assert "the model has 5 layers: from 1 to 5 bands, not 9" in found
  found = said("--config.layer_groups=attention_mlp", "--weights=1,2")
  assert "2 inputs in 12 groups but 2 --weights" in found
  assert "embeddings, layer_0/attention, layer_0/mlp, layer_1/attent" in found
  found = said(
    "--config.layer_groups=h.*", "--config.interpolate=True", "--weights=1,2"
  )
  assert "2 inputs in 2 groups but 2 --weights" in found
  assert "in this order: h.*, rest; with interpolate 2 at the first" in found
  found = said(
    "--config.layer_groups=layer", "--config.interpolate=True", "--weights=1,2"
  )
  assert "interpolate gives weights by depth, as layer_groups='layer'" in found
  # Halfway between them is nothing to divide by.
  found = said("--config.interpolate=True", "--weights=1,2,3,-5.5")
  assert "not above zero" in found


def test_a_tied_head_stays_the_embedding(tmp_path):
  inputs = []
  for seed in (1, 2):
    tensors = _tensors(seed)
    tensors["lm_head.weight"] = tensors["wte.weight"]
    path = tmp_path / f"in{seed}"
    inputs.append(hugging_face(path, tensors, tie_word_embeddings=True))
  out = run_rows(inputs, tmp_path / "out", ROWS[:3], layer_groups="h.*,wte*")
  found = loaded(out)
  np.testing.assert_array_equal(found["lm_head.weight"], found["wte.weight"])
  one, two = (_tensors(seed)["wte.weight"] for seed in (1, 2))
  a, b = ROWS[1]
  np.testing.assert_allclose(found["wte.weight"], a * one + b * two, atol=1e-6)
  with pytest.raises(InputError, match="'lm_\\*' matches no parameter"):
    run_rows(inputs, tmp_path / "no", ROWS[:3], layer_groups="lm_*,wte*")


def test_an_input_without_weight_may_lack_the_tied_head(tmp_path):
  inputs = []
  for seed in range(3):
    tensors = _tensors(seed)
    if seed < 2:
      tensors["lm_head.weight"] = tensors["wte.weight"]
    path = tmp_path / f"in{seed}"
    inputs.append(hugging_face(path, tensors, tie_word_embeddings=True))
  rows = [[0.3, 0.7, 0], [0.9, 0.1, 0]]
  out = run_rows(inputs, tmp_path / "out", rows, layer_groups="*attn*")
  # The embedding is of the rest, not of the first group.
  assert "lm_head.weight" not in loaded(out)
  assert "lm_head.weight: not in all inputs" in (out / "README.md").read_text()
  rows = [[0.3, 0.7, 0]]
  out = run_rows(inputs, tmp_path / "all", rows)
  found = loaded(out)
  np.testing.assert_array_equal(found["lm_head.weight"], found["wte.weight"])


def test_an_input_whose_weights_cancel_is_a_base(unknown, tmp_path):
  rows = [[-0.5, 1.5], [0.5, 0.5], [0, 1]]
  text = "h.[01].*,h.[34].*"
  out = run_rows(unknown, tmp_path / "out", rows, layer_groups=text)
  known = json.loads((out / "jaxmerge.json").read_text())["provenance"]
  assert known["sources"][0]["weight"] == 0
  card = (out / "README.md").read_text()
  assert 'base_model:\n- "a"\n- "b"\n' in card


def test_what_interpolation_needs_is_said(tmp_path):
  names = {f"{stack}.{i}.q": (3, 3) for stack in "ab" for i in range(2)}
  none = {"emb.weight": (3, 3)}
  for i, shapes in enumerate((names, none)):
    path = tmp_path / str(i)
    tensors = {n: np.ones(shape, np.float32) for n, shape in shapes.items()}
    inputs = [hugging_face(path / name, tensors) for name in "xy"]
    told = ("leave interpolate out", "has no layers for interpolate")[i]
    with pytest.raises(InputError, match=told):
      run_rows(inputs, path / "out", ROWS[:2], interpolate=True)
