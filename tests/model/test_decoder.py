import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmerge.errors import InputError
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import (
  Decoder,
  abstract_decoder,
  init_params,
)
from jaxmerge.model.execution import PLAIN, Execution
from jaxmerge.model.loss import token_losses
from jaxmerge.model.rope import rotate
from tests.helpers import decoder, random_params

CONFIG = decoder(num_hidden_layers=3, tie_word_embeddings=True)
TOKENS = np.random.default_rng(0).integers(0, 50, size=(2, 9)).astype(np.int32)


def build(config=CONFIG):
  graph, _ = abstract_decoder(config)
  params = random_params(config, 1)
  return graph, params


@functools.partial(jax.jit, static_argnums=0)
def logits_of(graph, params, tokens, segments=None):
  logits = nnx.merge(graph, params).padded_logits(tokens, segments)
  return logits[..., :50]


def rms_norm(x, scale, eps):
  return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * scale


def rope(x, theta):
  length, size = x.shape[1], x.shape[3]
  out = np.empty_like(x)
  for position in range(length):
    for i in range(size // 2):
      angle = position * theta ** (-2 * i / size)
      a, b = x[:, position, :, i], x[:, position, :, i + size // 2]
      out[:, position, :, i] = a * np.cos(angle) - b * np.sin(angle)
      out[:, position, :, i + size // 2] = a * np.sin(angle) + b * np.cos(angle)
  return out


def numpy_logits(config, params, tokens):
  """The decoder written once more, layer by layer, in float64."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  table = params["embed"]["embedding"]
  x = table[tokens]
  batch, length = tokens.shape
  size, groups = (
    config.head_size,
    config.num_attention_heads // config.num_key_value_heads,
  )
  for i in range(config.num_hidden_layers):
    layer = jax.tree.map(lambda p, i=i: p[i], params["layers"])
    y = rms_norm(x, layer["attention_norm"]["scale"], config.rms_norm_eps)
    heads = {
      name: (y @ layer["attention"][name]["kernel"]).reshape(
        batch, length, -1, size
      )
      for name in ("query", "key", "value")
    }
    query, key = (rope(heads[n], config.rope_theta) for n in ("query", "key"))
    mixed = np.empty_like(query)
    for head in range(config.num_attention_heads):
      k, v = key[:, :, head // groups], heads["value"][:, :, head // groups]
      scores = query[:, :, head] @ k.swapaxes(1, 2) / np.sqrt(size)
      scores[:, np.triu(np.ones((length, length), bool), 1)] = -np.inf
      scores = np.exp(scores - scores.max(-1, keepdims=True))
      mixed[:, :, head] = scores / scores.sum(-1, keepdims=True) @ v
    x = (
      x + mixed.reshape(batch, length, -1) @ layer["attention"]["out"]["kernel"]
    )
    y = rms_norm(x, layer["mlp_norm"]["scale"], config.rms_norm_eps)
    mlp = layer["mlp"]
    gate = y @ mlp["gate"]["kernel"]
    silu = gate / (1 + np.exp(-gate))
    x = x + silu * (y @ mlp["up"]["kernel"]) @ mlp["down"]["kernel"]
  x = rms_norm(x, params["final_norm"]["scale"], config.rms_norm_eps)
  head = table.T if config.tie_word_embeddings else params["head"]["kernel"]
  return (x @ head)[..., : config.vocab_size]


@pytest.mark.parametrize("tied", [True, False])
def test_equals_an_unscanned_numpy_decoder(tied):
  config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
  graph, params = build(config)
  logits = nnx.merge(graph, params)(TOKENS)
  expected = numpy_logits(config, params, TOKENS)
  assert logits.shape == (2, 9, 50)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_a_token_never_sees_what_comes_after_it():
  graph, params = build()
  changed = TOKENS.copy()
  changed[:, 5:] = 0
  before, after = (logits_of(graph, params, x) for x in (TOKENS, changed))
  np.testing.assert_array_equal(before[:, :5], after[:, :5])


def test_rotation_depends_on_relative_positions_only():
  random = np.random.default_rng(0)
  query, key = random.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
  queries = rotate(jnp.tile(query, (1, 6, 1, 1)), 100.0)[0, :, 0]
  keys = rotate(jnp.tile(key, (1, 6, 1, 1)), 100.0)[0, :, 0]
  products = np.asarray(queries @ keys.T)
  for offset in range(5):
    diagonal = np.diagonal(products, offset)
    np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)


def test_the_padding_of_the_vocabulary_takes_no_probability():
  graph, params = build()
  losses_of = jax.jit(lambda params: token_losses(graph, params, TOKENS))
  losses = losses_of(params)
  logits = numpy_logits(CONFIG, params, TOKENS[:, :-1])
  shifted = logits - logits.max(-1, keepdims=True)
  log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
  chosen = np.take_along_axis(log_p, TOKENS[:, 1:, None], axis=-1)[..., 0]
  np.testing.assert_allclose(losses, -chosen, atol=2e-5)
  # Whatever is in the padded rows of the table, the loss is the same.
  table = params["embed"]["embedding"]
  params["embed"]["embedding"] = table.at[50:].set(1e3)
  np.testing.assert_array_equal(losses_of(params), losses)


def test_bfloat16_computes_in_bfloat16_over_float32_parameters():
  config = dataclasses.replace(CONFIG, dtype="bfloat16")
  graph, params = build(config)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
    jnp.dtype("float32")
  }
  exact = logits_of(build()[0], params, TOKENS)
  rounded = logits_of(graph, params, TOKENS)
  difference = np.abs(np.asarray(exact - rounded)).max()
  assert 1e-4 < difference < 0.1


def test_bfloat16_adds_up_the_gradient_of_a_frequent_token_in_float32():
  tokens = np.zeros((64, 17), np.int32)  # one token, 1,024 times

  def gradient(dtype):
    config = dataclasses.replace(CONFIG, dtype=dtype, tie_word_embeddings=False)
    graph, params = build(config)
    losses = lambda params: token_losses(graph, params, tokens).sum()
    found = jax.jit(jax.grad(losses))(params)
    return np.asarray(found["embed"]["embedding"][0])

  exact, rounded = gradient("float32"), gradient("bfloat16")
  assert np.linalg.norm(rounded - exact) < 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize(
  ("execution", "cap"),
  [
    (Execution(remat="full"), 0.0),
    (Execution(remat="dots", loss_chunk=2, own_backward=True), 0.0),
    (Execution(unroll=True, loss_chunk=1), 0.5),
    (
      Execution("blocked", rows=True, unroll=True, own_backward=True),
      0.0,
    ),
    (Execution("blocked", rows=True, own_backward=True), 0.5),
  ],
  ids=str,
)
def test_an_execution_changes_no_gradient(execution, cap):
  graph, params = build(dataclasses.replace(CONFIG, logit_softcap=cap))
  segments = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0] * 9], np.int32)

  def losses_and_gradient(execution):
    def total(params):
      losses = token_losses(graph, params, TOKENS, segments, execution)
      return (losses * losses).sum(), losses  # no two weigh the same

    (_, losses), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(
      params
    )
    return losses, gradient

  plain, other = map(losses_and_gradient, (PLAIN, execution))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5),
    plain,
    other,
  )


def test_tokens_attend_to_their_own_document_alone():
  graph, params = build()
  document = TOKENS[:1, :4]
  packed = np.concatenate([TOKENS[1:, :5], document], axis=1)
  segments = np.array([[0] * 5 + [1] * 4], np.int32)
  alone = logits_of(graph, params, document)
  inside = logits_of(graph, params, packed, segments)[:, 5:]
  np.testing.assert_allclose(inside, alone, atol=1e-5)
  others = logits_of(graph, params, packed)[:, 5:]
  assert np.abs(others - alone).max() > 1e-3


def test_logits_are_capped():
  graph, params = build()
  capped, _ = build(dataclasses.replace(CONFIG, logit_softcap=0.25))
  logits = np.asarray(logits_of(graph, params, TOKENS), np.float64)
  found = logits_of(capped, params, TOKENS)
  np.testing.assert_allclose(found, 0.25 * np.tanh(logits / 0.25), atol=1e-6)
  assert np.abs(logits).max() > 0.5


def test_initialisation_depends_on_the_key_alone():
  first, again = (init_params(CONFIG, jax.random.key(3)) for _ in range(2))
  other = init_params(CONFIG, jax.random.key(4))
  assert jax.tree.all(jax.tree.map(np.array_equal, first, again))
  assert not np.array_equal(
    first["embed"]["embedding"], other["embed"]["embedding"]
  )
  layers = first["layers"]["mlp"]["up"]["kernel"]
  assert not np.array_equal(layers[0], layers[1])


def test_the_model_carries_its_config():
  model = Decoder(CONFIG, nnx.Rngs(0))
  assert model.config is CONFIG


def test_all_problems_of_a_config_are_listed():
  with pytest.raises(InputError) as error:
    dataclasses.replace(CONFIG, num_attention_heads=3, num_key_value_heads=2)
  assert len(error.value.problems) == 2
  with pytest.raises(InputError) as error:
    DecoderConfig.from_dict({"widht": 3})
  assert "unknown model key 'widht'" in error.value.problems
  assert "missing model key 'hidden_size'" in error.value.problems


def test_a_layer_norm_survives_a_large_mean():
  """E[x^2] - E[x]^2 would leave nothing of the variance in float32."""
  config = dataclasses.replace(CONFIG, norm="layer")
  model = Decoder(config, nnx.Rngs(0))
  x = np.random.default_rng(0).normal(size=(5, 16)) + 3000
  x = x.astype(np.float32).astype(np.float64)
  centred = x - x.mean(-1, keepdims=True)
  expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True))
  found = model.final_norm(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(found, expected, atol=2e-3)
