"""Every optimiser: what its knobs do, and that a stack is layer by layer.

N layers, I inputs, O outputs.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmerge.config_fields import own_keys
from jaxmerge.config_reading import read
from jaxmerge.training.optimizer import OPTIMIZERS, OptimizerConfig, build
from jaxmerge.training.parameter_groups import per_layer

LAYERS, STEPS, RATE = 3, 4, 0.1
# Small matrices in place of those that the default is for.
SMALL = {"adafactor": {"min_factored_size": 4}}


@functools.cache
def tree(seed):
  """As a decoder's parameters; layers' values differ in size."""
  random = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(random.normal(size=shape), jnp.float32)

  sizes_N = jnp.asarray([1.0, 4.0, 0.1])
  return {
    "embed": {"embedding": draw(12, 8)},
    "final_norm": {"scale": draw(8)},
    "head": {"kernel": draw(8, 12)},
    "layers": {
      "mlp": {"up": {"kernel": draw(LAYERS, 8, 6) * sizes_N[:, None, None]}},
      "mlp_norm": {"scale": draw(LAYERS, 8) * sizes_N[:, None]},
    },
  }


def schedule(count):
  return RATE / (1 + count)


def updates_of(optimizer, choose=lambda tree: tree):
  """The updates of some steps, of chosen parts of the tree."""
  params, update = choose(tree(0)), jax.jit(optimizer.update)
  state, found = optimizer.init(params), []
  for step in range(STEPS):
    updates, state = update(choose(tree(step + 1)), state, params)
    params = optax.apply_updates(params, updates)
    found.append(updates)
  return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


def record_updates(name, **knobs):
  record = OPTIMIZERS[name]
  given = record.knobs(**SMALL.get(name, {}) | knobs)
  return updates_of(record.build(schedule, given))


def layer_of(layer):
  """A layer of the stack as a tree of its own."""

  def choose(params):
    [inner] = params["layers"]["mlp"].values()
    scale = params["layers"]["mlp_norm"]["scale"]
    return {"kernel": inner["kernel"][layer], "scale": scale[layer]}

  return choose


def rest(params):
  return {name: params[name] for name in ("embed", "final_norm", "head")}


def decayed(params):
  return {name: name != "scale" for name in params}


MASK = {"embed": True, "final_norm": False, "head": True}
PLAIN = {
  "adamw": lambda mask: optax.adamw(
    schedule, b1=0.9, b2=0.95, weight_decay=0.3, mask=mask
  ),
  "lion": lambda mask: optax.lion(
    schedule, b1=0.9, b2=0.99, weight_decay=0.3, mask=mask
  ),
  "sgd": lambda mask: optax.chain(
    optax.trace(0.9),
    optax.add_decayed_weights(0.3, mask),
    optax.scale_by_learning_rate(schedule),
  ),
  "adafactor": lambda mask: optax.chain(
    optax.adafactor(schedule, min_dim_size_to_factor=4),
    optax.add_decayed_weights(lambda count: -0.3 * schedule(count), mask),
  ),
}


def assert_layers_are(found, wanted_of_layer):
  for layer in range(LAYERS):
    wanted = wanted_of_layer(layer)
    for name, mine in (
      ("kernel", found["layers"]["mlp"]["up"]["kernel"]),
      ("scale", found["layers"]["mlp_norm"]["scale"]),
    ):
      if name in wanted:
        np.testing.assert_allclose(
          mine[:, layer], wanted[name], rtol=2e-5, atol=1e-7, err_msg=name
        )


@pytest.mark.parametrize("name", PLAIN)
def test_a_stack_is_updated_as_its_layers_one_by_one(name):
  found = record_updates(name, weight_decay=0.3)
  plain = PLAIN[name]
  assert_layers_are(
    found, lambda layer: updates_of(plain(decayed), layer_of(layer))
  )
  wanted = updates_of(plain(MASK), rest)
  for leaf in ("embed", "final_norm", "head"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
      found[leaf],
      wanted[leaf],
    )


def test_muon_orthogonalises_each_layers_matrices_and_nothing_else():
  found = record_updates("muon", weight_decay=0.3)

  def kernel(layer):
    plain = optax.contrib.muon(schedule, weight_decay=0.3, consistent_rms=0.2)
    choose = layer_of(layer)
    return updates_of(plain, lambda t: {"kernel": choose(t)["kernel"]})

  assert_layers_are(found, kernel)
  # Embedding, head and norms, stacked or not, are Adam's.
  adam = optax.adamw(
    schedule, b1=0.9, b2=0.95, weight_decay=0.3, mask=MASK, nesterov=True
  )
  wanted = updates_of(adam, rest)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    rest(found),
    wanted,
  )
  adam = optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=0, nesterov=True)
  for layer in range(LAYERS):
    wanted = updates_of(adam, layer_of(layer))["scale"]
    np.testing.assert_allclose(
      found["layers"]["mlp_norm"]["scale"][:, layer], wanted, rtol=1e-5
    )


def test_singular_values_of_muons_updates_are_near_one():
  found = record_updates("muon", consistent_rms=0.0, weight_decay=0.0)
  last_NxIxO = found["layers"]["mlp"]["up"]["kernel"][0] / RATE
  values = np.linalg.svd(last_NxIxO, compute_uv=False)
  assert values.shape == (LAYERS, 6)
  assert 0.5 < values.min() < values.max() < 1.5


def test_what_is_not_of_a_stack_is_one_parameter():
  params = {"layers": {"kernel": jnp.ones((2, 4))}, "head": jnp.ones((2, 4))}
  scaled = per_layer(optax.clip_by_block_rms(1.0))
  grads = {
    "layers": {"kernel": jnp.asarray([[3.0] * 4, [0.5] * 4])},
    "head": jnp.asarray([[3.0] * 4, [0.0] * 4]),
  }
  updates, _ = scaled.update(grads, scaled.init(params), params)
  np.testing.assert_allclose(updates["layers"]["kernel"][:, 0], [1.0, 0.5])
  np.testing.assert_allclose(updates["head"][:, 0], [2**0.5, 0.0], rtol=1e-6)


def other(value):
  if isinstance(value, bool):
    return not value
  if isinstance(value, int):
    return 8 * value
  return value / 2 if value else 0.25


@pytest.mark.parametrize(
  ("name", "knob"),
  [
    (name, knob)
    for name, record in OPTIMIZERS.items()
    for knob, _, _ in own_keys(record.knobs())
  ],
)
def test_every_knob_changes_the_updates(name, knob):
  was = dataclasses.replace(OPTIMIZERS[name].knobs(), **SMALL.get(name, {}))
  changed = {knob: other(getattr(was, knob))}
  found, before = record_updates(name, **changed), record_updates(name)
  differ = jax.tree.map(lambda a, b: np.abs(a - b).max(), found, before)
  assert max(jax.tree.leaves(differ)) > 1e-4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_config_names_an_optimiser(name):
  optimizer, rate = build(read(OptimizerConfig, {"name": name}), num_steps=4)
  params = tree(0)
  state = optimizer.init(params)
  for _ in range(2):  # the first rate is zero
    updates, state = jax.jit(optimizer.update)(params, state, params)
  assert rate(1) > 0
  sizes = jax.tree.leaves(jax.tree.map(lambda u: np.abs(u).max(), updates))
  assert 0 < min(sizes) <= max(sizes) < 0.1
