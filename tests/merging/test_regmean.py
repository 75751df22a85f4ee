"""RegMean: Grams against NumPy, merges against what they must minimise.

K models, N sequences, L positions, D inputs and E outputs of a linear layer.
"""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from jaxmerge.errors import InputError
from jaxmerge.merging.average import weighted_average
from jaxmerge.merging.grams import layer_grams
from jaxmerge.merging.method import METHODS
from jaxmerge.merging.methods import regmean as method
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.parallel.rules import named_leaves
from tests.helpers import decoder, random_params

CONFIG = decoder(
  vocab_size=30, hidden_size=8, num_attention_heads=2, intermediate_size=12
)
WEIGHTS = [0.2, 0.3, 0.5]
RNG = np.random.default_rng(0)
TOKENS_NxL1 = RNG.integers(0, 30, size=(6, 8)).astype(np.int32)
MASK_NxL = np.arange(7) < RNG.integers(2, 7, size=(6, 1))


def regmean(trees, grams, weights, off_diagonal):
  knobs = method.RegMeanKnobs(off_diagonal=off_diagonal)
  weights_K = METHODS["regmean"].usable(weights, knobs)
  return method.regmean(trees, grams, weights_K, knobs)


def _decoder(seed=0, **changes):
  """A decoder whose norms, too, differ from layer to layer."""
  config = dataclasses.replace(CONFIG, **changes)
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda x: x + rng.normal(size=x.shape).astype(np.float32) / 3,
    random_params(config, seed),
  )
  return config, abstract_decoder(config)[0], params


def _grams(graph, params, tokens=TOKENS_NxL1, mask=MASK_NxL):
  return layer_grams(graph, params, tokens, mask)


def _rms_norm(x, norm):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * norm["scale"]


def _rotated(x_NxLxHxS):
  """Pairs (i, i + S / 2) as complex numbers, turned by position."""
  left, right = np.split(x_NxLxHxS, 2, axis=-1)
  size, length = left.shape[-1], left.shape[1]
  angle_LxS = np.arange(length)[:, None] * 1e4 ** (-np.arange(size) / size)
  turned = (left + 1j * right) * np.exp(1j * angle_LxS)[:, None]
  return np.concatenate([turned.real, turned.imag], axis=-1)


def _inputs_of_linear_layers(params, tokens_NxL):
  """What each kernel of CONFIG meets, in float64: (depth,) N, L, D."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  seen = {name: [] for name in ("attention/query", "attention/out")}
  seen |= {name: [] for name in ("mlp/up", "mlp/down")}
  x = params["embed"]["embedding"][tokens_NxL]
  for i in range(CONFIG.num_hidden_layers):
    layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
    kernels = {n: leaf["kernel"] for n, leaf in layer["attention"].items()}
    y = _rms_norm(x, layer["attention_norm"])
    seen["attention/query"].append(y)
    query, key, value = (
      (y @ kernels[n]).reshape(*tokens_NxL.shape, 2, 4)
      for n in ("query", "key", "value")
    )
    scores = np.einsum("nihs,njhs->nhij", _rotated(query), _rotated(key)) / 2
    later = np.triu(np.ones(scores.shape[-2:], bool), 1)
    p = np.exp(np.where(later, -np.inf, scores))
    p /= p.sum(-1, keepdims=True)
    y = np.einsum("nhij,njhs->nihs", p, value).reshape(x.shape)
    seen["attention/out"].append(y)
    x = x + y @ kernels["out"]
    y = _rms_norm(x, layer["mlp_norm"])
    seen["mlp/up"].append(y)
    gate = y @ layer["mlp"]["gate"]["kernel"]
    y = gate / (1 + np.exp(-gate)) * (y @ layer["mlp"]["up"]["kernel"])
    seen["mlp/down"].append(y)
    x = x + y @ layer["mlp"]["down"]["kernel"]
  seen["attention/key"] = seen["attention/value"] = seen["attention/query"]
  seen["mlp/gate"] = seen["mlp/up"]
  found = {f"layers/{n}/kernel": np.stack(xs) for n, xs in seen.items()}
  return {**found, "head/kernel": _rms_norm(x, params["final_norm"])}


def _gram(rows_NxLxD, mask_NxL=MASK_NxL):
  kept_RxD = rows_NxLxD[mask_NxL]
  return kept_RxD.T @ kept_RxD


def test_grams_are_those_of_a_numpy_decoder():
  _, graph, params = _decoder()
  found = _grams(graph, params)
  inputs = _inputs_of_linear_layers(params, TOKENS_NxL1[:, :-1])
  assert found.keys() == inputs.keys()
  for name, rows in inputs.items():
    expected = (
      np.stack([_gram(x) for x in rows]) if rows.ndim == 4 else _gram(rows)
    )
    assert found[name].dtype == np.float32
    np.testing.assert_allclose(
      found[name], expected, rtol=1e-4, atol=1e-4, err_msg=name
    )


def test_positions_that_do_not_count_change_nothing():
  _, graph, params = _decoder()
  found = _grams(graph, params)
  changed = TOKENS_NxL1.copy()
  changed[:, :-1][~MASK_NxL] = 0
  changed[:, -1] = 0
  assert not np.array_equal(changed, TOKENS_NxL1)
  again = _grams(graph, params, changed)
  every = _grams(graph, params, mask=np.ones_like(MASK_NxL))
  for name, gram in found.items():
    np.testing.assert_allclose(gram, again[name], rtol=1e-6, err_msg=name)
    less, more = (np.trace(x, axis1=-2, axis2=-1) for x in (gram, every[name]))
    assert (less < more).all(), name


@pytest.mark.parametrize(
  ("changes", "averaged"),
  [
    ({"tie_word_embeddings": True}, set()),
    ({"unit_head": True}, {"head/kernel"}),
    ({"gated_mlp": False, "mlp_bias": True, "attention_bias": "all"}, set()),
    ({"norm": "layer", "parallel_residual": True}, set()),
    ({"norm_after": True, "query_key_norm": "projection"}, set()),
    (
      {"query_key_norm": "head", "head_dim": 6, "num_key_value_heads": 1},
      set(),
    ),
    ({"dtype": "bfloat16"}, set()),
  ],
)
def test_every_linear_kernel_has_a_gram_in_every_family(changes, averaged):
  config, graph, params = _decoder(**changes)
  found = _grams(graph, params)
  leaves = named_leaves(params)
  kernels = {name for name in leaves if name.endswith("/kernel")}
  assert found.keys() == kernels - averaged
  for name, gram in found.items():
    *stack, size, _ = leaves[name].shape
    assert gram.shape == (*stack, size, size)
    assert gram.dtype == np.float32
    assert np.isfinite(gram).all()
  first = np.asarray(found["layers/attention/query/kernel"][0])
  x = np.asarray(params["embed"]["embedding"], np.float64)[TOKENS_NxL1[:, :-1]]
  if config.norm_after:
    np.testing.assert_allclose(first, _gram(x), rtol=1e-4, atol=1e-4)
  if config.parallel_residual:
    # The MLP of a layer reads the layer's input, by its own norm.
    norm = jax.tree.map(lambda leaf: leaf[0], params["layers"]["mlp_norm"])
    centred = x - x.mean(-1, keepdims=True)
    y = _rms_norm(centred, norm) + np.asarray(norm["bias"])
    expected = _gram(y)
    np.testing.assert_allclose(
      found["layers/mlp/up/kernel"][0], expected, rtol=1e-3, atol=1e-3
    )


def test_watching_leaves_the_decoder_as_it_was():
  _, graph, params = _decoder()
  before = nnx.merge(graph, params)(TOKENS_NxL1)
  kept = jax.tree.map(np.array, params)
  _grams(graph, params)
  np.testing.assert_array_equal(nnx.merge(graph, params)(TOKENS_NxL1), before)
  assert jax.tree.all(jax.tree.map(np.array_equal, params, kept))


def _linear_models(depth=2, rows=40, size=6):
  """K stacks of linear layers and inputs that differ in scale and span."""
  rng = np.random.default_rng(1)
  shape = (3, depth, rows, size)
  mixing = rng.normal(size=(3, depth, size, size))
  inputs = rng.normal(size=shape) @ mixing * rng.uniform(0.1, 9, size=size)
  kernels = rng.normal(size=(3, depth, size, 4))
  return inputs, kernels


def _trees(kernels):
  return [
    {
      "layers": {"up": {"kernel": w.astype(np.float32)}},
      "norm": w[0, 0].astype(np.float32),
    }
    for w in kernels
  ]


def _grams_of(inputs):
  return [
    {"layers/up/kernel": (x.swapaxes(-1, -2) @ x).astype(np.float32)}
    for x in inputs
  ]


def _merged(inputs, kernels, weights=WEIGHTS, off_diagonal=1.0):
  return regmean(_trees(kernels), _grams_of(inputs), weights, off_diagonal)


def test_it_minimises_the_difference_of_linear_models():
  """sum_i w_i |X_i W - X_i W_i|^2: no slope, and below the plain average."""
  inputs, kernels = _linear_models()
  merged = _merged(inputs, kernels)
  average = weighted_average(_trees(kernels), WEIGHTS)
  np.testing.assert_allclose(merged["norm"], average["norm"], rtol=1e-6)
  for i in range(2):

    def loss(kernel, i=i):
      return sum(
        w * np.sum((x[i] @ (kernel - k[i])) ** 2)
        for w, x, k in zip(WEIGHTS, inputs, kernels)
      )

    found = np.float64(merged["layers"]["up"]["kernel"][i])
    grams = [x[i].T @ x[i] for x in inputs]
    total = sum(w * g for w, g in zip(WEIGHTS, grams))
    right = sum(w * g @ k[i] for w, g, k in zip(WEIGHTS, grams, kernels))
    np.testing.assert_allclose(found, np.linalg.solve(total, right), atol=1e-3)
    assert np.abs(total @ found - right).max() < 1e-4 * np.abs(right).max()
    assert loss(found) < 0.9 * loss(average["layers"]["up"]["kernel"][i])


@pytest.mark.parametrize("off_diagonal", [0.0, 0.3, 0.9])
def test_the_factor_off_the_diagonal(off_diagonal):
  inputs, kernels = _linear_models()
  merged = _merged(inputs, kernels, off_diagonal=off_diagonal)
  factor = np.where(np.eye(6), 1.0, off_diagonal)
  for i in range(2):
    grams = [factor * (x[i].T @ x[i]) for x in inputs]
    total = sum(w * g for w, g in zip(WEIGHTS, grams))
    right = sum(w * g @ k[i] for w, g, k in zip(WEIGHTS, grams, kernels))
    expected = np.linalg.solve(total, right)
    if off_diagonal == 0:
      sure = np.stack([w * np.diag(g) for w, g in zip(WEIGHTS, grams)])
      by_row = np.einsum("kd,kde->de", sure, kernels[:, i])
      np.testing.assert_allclose(expected, by_row / sure.sum(0)[:, None])
    found = merged["layers"]["up"]["kernel"][i]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_it_acts_on_each_layer_of_a_stack():
  inputs, kernels = _linear_models(depth=3)
  found = _merged(inputs, kernels, off_diagonal=0.9)
  trees = [
    {f"layer_{i}": {"up": k[i].astype(np.float32)} for i in range(3)}
    for k in kernels
  ]
  grams = [
    {f"layer_{i}/up": gram["layers/up/kernel"][i] for i in range(3)}
    for gram in _grams_of(inputs)
  ]
  alone = regmean(trees, grams, WEIGHTS, 0.9)
  for i in range(3):
    np.testing.assert_allclose(
      found["layers"]["up"]["kernel"][i],
      alone[f"layer_{i}"]["up"],
      rtol=1e-5,
      atol=1e-6,
    )


def test_equal_models_give_that_model():
  _, graph, params = _decoder()
  grams = [
    _grams(graph, params),
    _grams(graph, params, TOKENS_NxL1[::-1, ::-1].copy()),
  ]
  for off_diagonal in (0.0, 0.9, 1.0):
    merged = regmean([params, params], grams, [0.3, 0.7], off_diagonal)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      merged,
      params,
    )


def test_equal_grams_give_the_plain_average():
  inputs, kernels = _linear_models()
  same = np.stack([inputs[0]] * 3)
  average = weighted_average(_trees(kernels), WEIGHTS)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    _merged(same, kernels, off_diagonal=0.9),
    average,
  )


@pytest.mark.parametrize("rows", [0, 1, 30])
def test_fewer_tokens_than_inputs_give_no_nan(rows):
  inputs, kernels = _linear_models(rows=rows, size=200)
  inputs[..., 5] = 0  # an input that is never active
  average = weighted_average(_trees(kernels), WEIGHTS)["layers"]["up"]["kernel"]
  for off_diagonal in (0.9, 1.0):
    merged = _merged(inputs, kernels, off_diagonal=off_diagonal)
    found = merged["layers"]["up"]["kernel"]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 5], average[:, 5], rtol=1e-5)
    if rows == 0:
      np.testing.assert_allclose(found, average, rtol=1e-5)
  if rows:
    # Fewer equations than unknowns: each model's answers can all be kept.
    answers = inputs @ kernels
    misses = inputs @ np.asarray(found) - answers
    assert np.abs(misses).max() < 0.01 * np.abs(answers).max()


def test_a_wide_layer_with_one_token_gives_no_nan():
  """Rank two, and inputs of many sizes: rounding outweighs the first ridge."""
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(2, 1, 1500)).astype(np.float32)
  inputs *= np.exp(3 * rng.normal(size=1500)).astype(np.float32)
  kernels = rng.normal(size=(2, 1500, 3)).astype(np.float32)
  found = regmean(
    [{"head": kernel} for kernel in kernels],
    [{"head": x.T @ x} for x in inputs],
    [0.5, 0.5],
    1.0,
  )["head"]
  assert np.isfinite(found).all()
  misses, of_average = (
    sum(np.sum((x @ (merged - k)) ** 2) for x, k in zip(inputs, kernels))
    for merged in (np.asarray(found), kernels.mean(axis=0))
  )
  assert misses < of_average


def test_weights_count_and_a_weight_of_zero_is_not_there():
  inputs, kernels = _linear_models()
  even = _merged(inputs, kernels, [1, 1, 1])
  doubled = _merged(inputs, kernels, [2, 2, 2])
  uneven = _merged(inputs, kernels)
  jax.tree.map(np.testing.assert_array_equal, even, doubled)
  kernels_of = (tree["layers"]["up"]["kernel"] for tree in (even, uneven))
  assert np.abs(np.subtract(*kernels_of)).max() > 0.01
  two = regmean(_trees(kernels)[:2], _grams_of(inputs)[:2], [0.4, 0.6], 0.9)
  kernels[2] = np.nan
  without = _merged(inputs, kernels, [0.4, 0.6, 0.0], 0.9)
  jax.tree.map(np.testing.assert_array_equal, two, without)
  trees = _trees(kernels)
  assert regmean(trees, _grams_of(inputs), [0, 1, 0], 0.9) is trees[1]


@pytest.mark.parametrize("weights", [[1.0], [2.0, 1.0, -1.0], [0.0] * 3])
def test_bad_weights(weights):
  inputs, kernels = _linear_models()
  with pytest.raises(InputError):
    _merged(inputs, kernels, weights)
