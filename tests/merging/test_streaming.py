"""What is streamed is what whole trees in memory would give.

Chunks are made tiny, so that a few hundred numbers are many chunks.
"""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxmerge.checkpoints import store
from jaxmerge.checkpoints.inputs import open_inputs
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.errors import InputError
from jaxmerge.formats.integrity import checksums
from jaxmerge.formats.lazy_tensors import Chunk, array_leaf
from jaxmerge.formats.records.metadata import (
  abstract_params,
  describe_leaves,
  read_metadata,
)
from jaxmerge.merging import chunks, streaming
from jaxmerge.merging.average import weighted_average
from jaxmerge.merging.differences import gram_of_trees, gram_weights
from jaxmerge.merging.method import METHODS, average_weights
from jaxmerge.parallel.rules import named_leaves
from tests.helpers import Telling, contents
from tests.merging import fixtures
from tests.merging.fixtures import assert_same_bytes, hugging_face, loaded
from tests.merging.in_memory import merge_trees

STREAMED = [name for name, method in METHODS.items() if not method.data]
TOLERANCE = {"float32": 2e-6, "bfloat16": 2**-7, "float16": 2**-10}


@pytest.fixture
def tiny_blocks(monkeypatch):
  """As if BLOCK and _SMALLEST were 64 and 16 from the beginning."""
  for module, name, value in (
    (chunks, "BLOCK", 64),
    (checksums, "BLOCK", 64),
    (checksums, "_SMALLEST", 16),
  ):
    assert hasattr(module, name)
    monkeypatch.setattr(module, name, value)


def some_tensors(seed, dtype=np.float32):
  """Names and shapes of all kinds, in one dtype."""
  rng = np.random.default_rng(seed)
  shapes = {
    "model.embed.weight": (37, 9),
    "a/b": (5, 3, 2),
    "lm head, 层": (131,),
    "wide.weight": (2, 150),
    "scale": (),
    "one": (1,),
    "empty.rows": (0, 4),
    "empty.columns": (4, 0),
  }
  return {
    name: np.asarray(rng.normal(size=shape), dtype)
    for name, shape in shapes.items()
  }


def some_tree(seed, dtype=np.float32):
  """With a stack of layers, as in a step directory."""
  rng = np.random.default_rng(seed)

  def leaf(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  return {
    "embed": {"table": leaf(37, 9)},
    "layers": {"norm": leaf(3, 9), "attention": {"query": leaf(3, 9, 11)}},
    "head": leaf(131),
    "scale": leaf(),
  }


def parameters_of(method):
  """What it uses, of values that matter for a few hundred numbers."""
  mattering = {
    "window": 1,
    "decay": 0.4,
    "scale": 0.7,
    "density": 0.4,
    "drop_rate": 0.5,
    "seed": 3,
    "regularization": 0.01,
  }
  used = METHODS[method].uses
  return {key: mattering[key] for key in used if key in mattering}


def weights_of(method, count):
  if METHODS[method].weights != "none":
    return [0.3, 0.7, 0.6, 0.4][:count]
  return []


def in_memory(method, trees, weights, base=None):
  known = METHODS[method]
  if known.acts == "on grams":
    knobs = known.knobs(**parameters_of(method))
    weights = gram_weights(known, gram_of_trees(trees), knobs)
    return weighted_average(trees, weights)
  if known.acts != "on weights":
    knobs = parameters_of(method)
    return merge_trees(method, trees, weights, base=base, **knobs)
  weights = weights or known.equal_weights(len(trees))
  knobs = known.knobs(**parameters_of(method))
  return weighted_average(trees, average_weights(known, weights, knobs))


def assert_near(found, expected):
  found, expected = named_leaves(found), named_leaves(expected)
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    array, other = np.asarray(array), np.asarray(found[name])
    assert array.dtype == other.dtype, name
    assert array.shape == other.shape, name
    tolerance = TOLERANCE[str(array.dtype)]
    np.testing.assert_allclose(
      other.astype(np.float32),
      array.astype(np.float32),
      rtol=tolerance,
      atol=tolerance,
      err_msg=name,
    )


def merged_by(method, inputs, output, **kwargs):
  base = {}
  if METHODS[method].base:
    base, inputs = {"base": str(inputs[0])}, inputs[1:]
  count = 2 if METHODS[method].most else len(inputs)
  fixtures.run(
    inputs[-count:],
    output,
    method,
    changes={**parameters_of(method), **base},
    weights=weights_of(method, count),
    **kwargs,
  )


def expected_of(method, trees):
  base = None
  if METHODS[method].base:
    base, *trees = trees
  count = 2 if METHODS[method].most else len(trees)
  return in_memory(method, trees[-count:], weights_of(method, count), base)


@pytest.fixture(scope="module")
def step_directories(tmp_path_factory):
  """Of each dtype, trees and the step directories that hold them."""
  folder = tmp_path_factory.mktemp("steps")
  found = {}
  for dtype in ("float32", "bfloat16"):
    trees = [some_tree(seed, dtype) for seed in range(4)]
    paths = [
      fixtures.step_directory(folder / dtype / str(i + 1), tree, step=i + 1)
      for i, tree in enumerate(trees)
    ]
    found[dtype] = trees, paths
  return found


@pytest.mark.parametrize("method", STREAMED)
def test_step_directories(step_directories, tmp_path, tiny_blocks, method):
  dtype = "bfloat16" if METHODS[method].whole else "float32"
  trees, paths = step_directories[dtype]
  merged_by(method, paths, tmp_path / "out")
  merged = restore_params(tmp_path / "out")
  assert_near(merged, expected_of(method, trees))
  written = read_metadata(tmp_path / "out").leaves["params"]
  assert_described(written, describe_leaves(merged))


def assert_described(written, anew):
  assert written.keys() == anew.keys()
  for name, leaf in anew.items():
    norm = leaf["norm"] and pytest.approx(leaf["norm"], rel=1e-5)
    assert written[name]["norm"] == norm, name
    assert {**written[name], "norm": 0} == {**leaf, "norm": 0}, name


def test_a_run(tiny_run, tmp_path, tiny_blocks):
  paths = [tiny_run / f"checkpoints/{step}" for step in (4, 8, 12)]
  trees = [restore_params(path) for path in paths]
  for method in ("weights", "dare_ties"):
    output = tmp_path / method
    merged_by(method, paths, output)
    merged = restore_params(output)
    assert_near(merged, expected_of(method, trees))
    written = read_metadata(output).leaves["params"]
    assert_described(written, describe_leaves(merged))
  target = abstract_params(read_metadata(output))
  with ocp.StandardCheckpointer() as checkpointer:
    theirs = checkpointer.restore(output / "params", target)
  assert_same_bytes(named_leaves(merged), named_leaves(theirs))


@pytest.mark.parametrize("method", STREAMED)
def test_hugging_face_directories(tmp_path, tiny_blocks, method):
  dtype = ml_dtypes.bfloat16 if METHODS[method].whole else np.float32
  trees = [some_tensors(seed, dtype) for seed in range(4)]
  # A .bin file is read a whole tensor at a time, which would hide offsets.
  some = "bin" if METHODS[method].whole else "shards"
  # Shards are in the order of `some_tensors`, other files in that of names.
  forms = ("shards", "one file", some, "one file")
  paths = [
    hugging_face(tmp_path / str(i), tree, form=form)
    for i, (tree, form) in enumerate(zip(trees, forms))
  ]
  merged_by(method, paths, tmp_path / "out", allow_unrelated=True)
  assert_near(loaded(tmp_path / "out"), expected_of(method, trees))


def test_dtypes_may_be_mixed_among_tensors(tmp_path, tiny_blocks):
  dtypes = (np.float32, ml_dtypes.bfloat16, np.float16)
  trees = [
    {
      f"{dtype.__name__}/{name}": array
      for dtype in dtypes
      for name, array in some_tensors(seed, dtype).items()
    }
    for seed in range(2)
  ]
  paths = [
    hugging_face(tmp_path / str(i), tree) for i, tree in enumerate(trees)
  ]
  fixtures.run(paths, tmp_path / "out", allow_unrelated=True)
  assert_near(loaded(tmp_path / "out"), expected_of("uniform", trees))


def test_bin_files_have_chunks_of_whole_tensors(tmp_path, tiny_blocks):
  trees = [some_tensors(seed) for seed in range(3)]
  paths = [
    hugging_face(tmp_path / str(i), tree, form=form)
    for i, (tree, form) in enumerate(zip(trees, ("bin", "shards", "bin")))
  ]
  fixtures.run(paths, tmp_path / "out", allow_unrelated=True)
  assert_near(loaded(tmp_path / "out"), expected_of("uniform", trees))


def test_layers_of_a_tensor_that_is_no_stack_are_not_told_apart(tmp_path):
  """Portions of SLERP are whole tensors, however large."""
  trees = [{"w": some_tensors(seed)["model.embed.weight"]} for seed in (0, 1)]
  paths = [
    hugging_face(tmp_path / str(i), tree) for i, tree in enumerate(trees)
  ]
  merged_by("slerp", paths, tmp_path / "out", allow_unrelated=True)
  assert_near(loaded(tmp_path / "out"), expected_of("slerp", trees))


def bits(dtype, *words):
  size = np.dtype(dtype).itemsize
  return np.array(words, f"uint{8 * size}").view(dtype)


ODD = {
  # NaN with a payload and a sign, -0.0, denormals, Inf.
  np.float32: bits(
    np.float32, 0x7FC12345, 0xFFA00001, 0x80000000, 1, 0x80000001, 0x7F800000
  ),
  np.float16: bits(np.float16, 0x7E01, 0xFD01, 0x8000, 1, 0x8001, 0x7C00),
  ml_dtypes.bfloat16: bits(
    ml_dtypes.bfloat16, 0x7FC1, 0xFFA1, 0x8000, 1, 0x8001, 0x7F80
  ),
}


def odd_tensors():
  tensors = {np.dtype(d).name: np.tile(odd, 40) for d, odd in ODD.items()}
  return {
    **tensors,
    "minus.zero": np.full((30, 7), -0.0, np.float32),
    "zero": np.zeros(99, np.float16),
    "alone": ODD[np.float32][:1].reshape(()),
  }


@pytest.mark.parametrize("method", ["weights", "slerp", "karcher"])
@pytest.mark.parametrize("first", [True, False])
def test_the_very_bytes_of_a_lone_tree(tmp_path, tiny_blocks, method, first):
  alone = odd_tensors()
  nowhere = {n: np.full_like(x, np.inf) for n, x in alone.items()}
  weights = [2, 0] if first else [0, 2]
  trees = [alone, nowhere] if first else [nowhere, alone]
  paths = [
    hugging_face(tmp_path / f"hf{i}", tree) for i, tree in enumerate(trees)
  ]
  fixtures.run(
    paths, tmp_path / "hf", method, weights=weights, allow_unrelated=True
  )
  assert_same_bytes(loaded(tmp_path / "hf"), alone)
  paths = [
    fixtures.step_directory(tmp_path / f"s{i}", tree, step=i + 1)
    for i, tree in enumerate(trees)
  ]
  store_of_the_other = paths[1 if first else 0] / "params"
  for file in store_of_the_other.rglob("*"):
    if file.is_file():
      file.unlink()
  fixtures.run(paths, tmp_path / "step", method, weights=weights)
  merged = restore_params(tmp_path / "step")
  assert_same_bytes(named_leaves(merged), alone)
  written = read_metadata(tmp_path / "step").leaves["params"]
  assert_described(written, describe_leaves(merged))


def test_whole_numbers_of_a_step_directory(tmp_path, tiny_blocks):
  counts = np.arange(200, dtype=np.int32).reshape(50, 4)
  paths = [
    fixtures.step_directory(
      tmp_path / str(i), {"counts": counts, "w": np.float32([i])}, step=i
    )
    for i in (1, 2)
  ]
  fixtures.run(paths, tmp_path / "out")
  merged = restore_params(tmp_path / "out")
  assert_same_bytes(
    named_leaves(merged), {"counts": counts, "w": np.float32([1.5])}
  )
  written = read_metadata(tmp_path / "out").leaves["params"]
  assert_described(written, describe_leaves(merged))


def test_minus_zero_is_not_lost_in_an_average(tmp_path, tiny_blocks):
  """TensorStore leaves out chunks that are all zero."""
  tree = {"w": np.full((30, 7), -0.0, np.float32)}
  paths = [
    fixtures.step_directory(tmp_path / str(i), tree, step=i) for i in (1, 2)
  ]
  fixtures.run(paths, tmp_path / "out")
  assert_same_bytes(named_leaves(restore_params(tmp_path / "out")), tree)


def test_weights_of_zero_among_several(tmp_path, tiny_blocks):
  trees = [some_tensors(seed) for seed in range(3)]
  trees[1] = {n: np.full_like(x, np.nan) for n, x in trees[1].items()}
  paths = [
    hugging_face(tmp_path / str(i), tree) for i, tree in enumerate(trees)
  ]
  weights = [0.5, 0, 1.5]
  used = [trees[0], trees[2]]
  for method in ("weights", "karcher"):
    fixtures.run(
      paths,
      tmp_path / method,
      method,
      weights=weights,
      allow_unrelated=True,
    )
    expected = in_memory(method, used, [0.5, 1.5])
    assert_near(loaded(tmp_path / method), expected)


@pytest.mark.parametrize("method", ["task_arithmetic", "dare", "dare_ties"])
def test_a_task_of_weight_zero_changes_no_draw(tmp_path, method):
  """Streamed it is not read; in memory it is there."""
  base, *trees = (some_tensors(seed) for seed in range(4))
  paths = [
    hugging_face(tmp_path / str(i), tree)
    for i, tree in enumerate([base, *trees])
  ]
  weights = [0.0, 0.3, 0.7]
  changes = {**parameters_of(method), "base": str(paths[0])}
  fixtures.run(
    paths[1:],
    tmp_path / "out",
    method,
    changes=changes,
    weights=weights,
    allow_unrelated=True,
  )
  knobs = parameters_of(method)
  expected = merge_trees(method, trees, weights, base=base, **knobs)
  assert_near(loaded(tmp_path / "out"), expected)


def test_no_task_at_all_is_the_base(tmp_path):
  base, *trees = (some_tensors(seed) for seed in range(3))
  paths = [
    hugging_face(tmp_path / str(i), tree)
    for i, tree in enumerate([base, *trees])
  ]
  for method in ("task_arithmetic", "dare"):
    fixtures.run(
      paths[1:],
      tmp_path / method,
      method,
      changes={**parameters_of(method), "base": str(paths[0])},
      weights=[0, 0],
      allow_unrelated=True,
    )
    assert_near(loaded(tmp_path / method), base)


WHOLE = {
  "ids": np.arange(200, dtype=np.int64) * 2**40,
  "small": np.arange(7, dtype=np.int8),
  "mask": np.arange(90) % 3 == 0,
  "inv_freq": np.linspace(0, 1, 50),  # float64
}


@pytest.mark.parametrize("method", ["uniform", "slerp"])
def test_what_cannot_be_averaged_is_copied_if_equal(
  tmp_path, tiny_blocks, method
):
  trees = [{**WHOLE, **some_tensors(seed)} for seed in (0, 1)]
  paths = [
    hugging_face(tmp_path / str(i), tree) for i, tree in enumerate(trees)
  ]
  weights = weights_of(method, 2)
  fixtures.run(
    paths, tmp_path / "out", method, weights=weights, allow_unrelated=True
  )
  found = loaded(tmp_path / "out")
  assert_same_bytes(WHOLE, {name: found[name] for name in WHOLE})
  floats = [some_tensors(seed) for seed in (0, 1)]
  assert_near(
    {name: found[name] for name in floats[0]},
    in_memory(method, floats, weights),
  )


@pytest.mark.parametrize("method", ["uniform", "slerp"])
@pytest.mark.parametrize("name", ["packed", "inv_freq"])
def test_what_cannot_be_averaged_and_differs_is_named(
  tmp_path, tiny_blocks, method, name
):
  whole = {**WHOLE, "packed": np.arange(200, dtype=np.int32).reshape(50, 4)}
  other = whole[name].copy()
  other[-1] += 1
  paths = [
    hugging_face(tmp_path / "a", whole),
    hugging_face(tmp_path / "b", {**whole, name: other}),
  ]
  before = contents(tmp_path)
  with pytest.raises(InputError) as error:
    fixtures.run(
      paths,
      tmp_path / "out",
      method,
      weights=weights_of(method, 2),
      allow_unrelated=True,
    )
  [problem] = error.value.problems
  kind = "whole numbers" if name == "packed" else "float64"
  assert problem.startswith(f"{name}: {kind}")
  assert contents(tmp_path) == before


def test_nan_is_named_by_input_and_leaf(tmp_path, tiny_blocks):
  trees = [some_tree(seed) for seed in range(2)]
  for tree, value in zip(trees, (np.nan, np.inf)):
    tree["head"] = tree["head"].at[100].set(value)
  trees[1]["embed"]["table"] = trees[1]["embed"]["table"].at[36, 8].set(-np.inf)
  folder = tmp_path / "in"
  steps = [
    fixtures.step_directory(folder / f"step{i}", tree, step=i + 1)
    for i, tree in enumerate(trees)
  ]
  hf = [
    hugging_face(folder / f"hf{i}", {n: np.asarray(x) for n, x in tree.items()})
    for i, tree in enumerate(map(named_leaves, trees))
  ]
  for paths in (steps, hf):
    for method in ("uniform", "slerp"):
      with pytest.raises(InputError) as error:
        fixtures.run(
          paths,
          tmp_path / "out",
          method,
          weights=weights_of(method, 2),
          allow_unrelated=True,
        )
      assert error.value.problems == [
        f"{paths[0]}: head holds NaN or Inf",
        f"{paths[1]}: embed/table holds NaN or Inf",
        f"{paths[1]}: head holds NaN or Inf",
      ]
  assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("method", ["weights", "task_arithmetic", "dare"])
def test_a_result_that_leaves_the_range_is_named(tmp_path, method):
  trees = [
    {"fine": np.ones(9, np.float16), "large": np.full(9, x, np.float16)}
    for x in (-6e4, 6e4, 6e4)
  ]
  folder = tmp_path / "in"
  paths = [hugging_face(folder / str(i), tree) for i, tree in enumerate(trees)]
  base = METHODS[method].base
  with pytest.raises(InputError, match="the merged large is too large"):
    fixtures.run(
      paths[1:] if base else paths[:2],
      tmp_path / "out",
      method,
      changes={"base": str(paths[0])} if base else {},
      weights=[1, 1] if base else [-3, 4],
      allow_unrelated=True,
    )
  assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_shares_of_the_largest_numbers_stay_in_range(tmp_path):
  largest = np.finfo(np.float16).max
  tree = {"w": np.full(9, largest, np.float16)}
  paths = [hugging_face(tmp_path / str(i), tree) for i in range(3)]
  fixtures.run(paths, tmp_path / "out", allow_unrelated=True)
  assert_same_bytes(loaded(tmp_path / "out"), tree)


@pytest.mark.parametrize("weights", [[0.5, 0], [0, -2], [0, 0], [1, -1]])
def test_weights_that_are_a_direction_are_used_as_they_are(weights):
  trees = [some_tensors(seed) for seed in (0, 1)]
  stored = [
    chunks.Stored(
      str(i), dict(map(_leaf, tree.items())), checksums.LeafChecksum()
    )
    for i, tree in enumerate(trees)
  ]
  average = streaming.Average(stored, lambda _: weights)
  for name, a in trees[0].items():
    rows = a.shape[0] if a.shape else 1
    found = average(Chunk(name, 0, rows))
    expected = weights[0] * a + weights[1] * trees[1][name]
    np.testing.assert_allclose(
      found.reshape(a.shape), expected, rtol=1e-5, atol=1e-6
    )


def test_chunks_cover_every_row_once_and_in_order(tiny_blocks):
  trees = [dict(map(_leaf, some_tensors(seed).items())) for seed in (0, 1)]
  for by_layer in (True, False):
    specs = chunks.specs(trees, by_layer=by_layer)
    for whole in (True, False):
      seen = {name: [] for name in specs}
      for chunk in chunks.chunks(specs, whole=whole):
        seen[chunk.name] += range(chunk.start, chunk.stop)
      for name, spec in specs.items():
        rows = spec.shape[0] if spec.shape else 1
        assert seen[name] == list(range(rows)), name


def _leaf(item):
  name, array = item
  return name, array_leaf(array)


def test_a_tree_of_any_number_of_leaves_is_restored(tmp_path, tiny_blocks):
  """A checkpoint whose only leaf has many chunks, and another of many."""
  for name, tree in (
    ("one", {"w": np.arange(1000, dtype=np.float32).reshape(100, 10)}),
    ("many", {f"w{i}": np.full(3, i, np.float32) for i in range(40)}),
  ):
    paths = [
      fixtures.step_directory(tmp_path / name / str(i), tree, step=i)
      for i in (1, 2)
    ]
    fixtures.run(paths, tmp_path / name / "out")
    merged = restore_params(tmp_path / name / "out")
    assert_same_bytes(named_leaves(merged), tree)
    # It may be merged again: rows that lie together are of several sizes now.
    fixtures.run([tmp_path / name / "out", paths[0]], tmp_path / name / "again")
    again = restore_params(tmp_path / name / "again")
    assert_same_bytes(named_leaves(again), tree)


def test_progress_tells_of_every_leaf(tmp_path):
  trees = [some_tensors(seed) for seed in (0, 1)]
  paths = [
    hugging_face(tmp_path / str(i), tree) for i, tree in enumerate(trees)
  ]
  told = []
  fixtures.merge.merge(
    fixtures.config_of("uniform"),
    [str(path) for path in paths],
    tmp_path / "out",
    allow_unrelated=True,
    progress=Telling(lambda *args: told.append(args)),
  )
  leaves = [note for _, _, total, note in told if total]
  assert set(leaves) | {"empty.rows"} == trees[0].keys() | {"empty.rows"}
  assert told[-1] == ("merge", 0, 0, f"saved {tmp_path / 'out'}")


def test_sources_stay_as_they_are(tmp_path):
  trees = [some_tree(seed) for seed in (0, 1)]
  paths = [
    fixtures.step_directory(tmp_path / str(i), tree, step=i + 1)
    for i, tree in enumerate(trees)
  ]
  before = contents(tmp_path)
  fixtures.run(paths, tmp_path / "out")
  after = contents(tmp_path)
  assert {k: after[k] for k in before} == before
  assert open_inputs([str(tmp_path / "out")])[0].metadata.kind == "merged"
  assert store.restore_params(paths[0])
