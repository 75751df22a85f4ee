"""An optimiser's state lies where its parameters lie, whatever it is."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.training.optimizer import OPTIMIZERS
from jaxmerge.training.state_shardings import bytes_of, state_shardings
from tests.helpers import with_devices

# Steps of each optimiser as the trainer takes them, all in one process, of
# given gradients: most of a step's compile time is not the optimiser's.
EACH = """
import json, sys
import jax, numpy as np, optax
from jaxmerge.config_reading import read
from jaxmerge.model.config import DecoderConfig
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import named_leaves
from jaxmerge.training.optimizer import OPTIMIZERS, OptimizerConfig, build
from jaxmerge.training.state_shardings import bytes_of
from jaxmerge.training.trainer import Trainer

data, fsdp, tensor = map(int, sys.argv[2:])
config = DecoderConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2,
                       num_attention_heads=4, num_key_value_heads=2,
                       intermediate_size=24, tie_word_embeddings=False,
                       vocab_multiple=64)
mesh = make_mesh(data=data, fsdp=fsdp, tensor=tensor)
found, arrays = {}, {}
for name in OPTIMIZERS:
  given = {"name": name, "learning_rate": 1e-2, "warmup_steps": 1}
  if name == "adafactor":
    given["min_factored_size"] = 4
  trainer = Trainer.build(config, mesh, *build(read(OptimizerConfig, given), 4))
  places, abstract = trainer.shardings, trainer.abstract_state()
  random = np.random.default_rng(0)

  def draw():
    return jax.tree.map(
      lambda x: jax.device_put(random.normal(size=x.shape).astype("float32"),
                               x.sharding), abstract.params)

  def step(grads, opt_state, params):
    updates, opt_state = trainer.optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  step = jax.jit(step, donate_argnums=(1, 2),
                 out_shardings=(places.params, places.opt_state))
  params = draw()
  start = jax.device_get(params)
  init = jax.jit(trainer.optimizer.init, out_shardings=places.opt_state)
  opt_state = init(params)
  for _ in range(3):
    params, opt_state = step(draw(), opt_state, params)
  moved = jax.tree.map(lambda a, b: a - b, jax.device_get(params), start)
  for leaf, value in named_leaves(moved).items():
    arrays[f"{name}/{leaf}"] = value
  params = named_leaves(params)
  owned, lacking, wrong = set(), 0, []
  for leaf, value in named_leaves(opt_state).items():
    owner = next((n for n in params if leaf.endswith("/" + n)), None)
    if owner is None:
      continue
    if value.shape == params[owner].shape:
      owned.add(owner)
      of_owner = params[owner].sharding
      if not value.sharding.is_equivalent_to(of_owner, value.ndim):
        wrong.append(leaf)
    elif value.ndim == params[owner].ndim - 1:
      lacking += not value.sharding.is_fully_replicated
  sizes = [x.addressable_shards[0].data.nbytes
           for x in jax.tree.leaves(opt_state)]
  found[name] = {"compiles": step._cache_size(), "wrong": wrong,
                 "owned": len(owned), "lacking": lacking,
                 "on_device": sum(sizes),
                 "told": bytes_of(abstract.opt_state).on_device}
np.savez(sys.argv[1], **arrays)
print(json.dumps(found))
"""


def train_on(path, devices, *mesh):
  done = subprocess.run(
    [sys.executable, "-c", EACH, str(path), *map(str, mesh)],
    env=with_devices(devices),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout), np.load(path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  return train_on(tmp_path_factory.mktemp("one") / "moved.npz", 1, 1, 1, 1)


@pytest.mark.parametrize("mesh", [(1, 2, 2), (2, 2, 2)])
def test_every_optimiser_steps_on_a_mesh_as_on_one_device(
  alone, tmp_path, mesh
):
  found, moved = train_on(tmp_path / "moved.npz", int(np.prod(mesh)), *mesh)
  one, wanted = alone
  assert set(found) == set(OPTIMIZERS)
  for name, said in found.items():
    assert said["compiles"] == 1, name
    assert said["wrong"] == [], name
    assert said["told"] == said["on_device"] < one[name]["on_device"], name
  assert len(moved.files) == 12 * len(OPTIMIZERS)
  for leaf in moved.files:
    size = np.abs(wanted[leaf]).max()
    assert size > 1e-4, leaf
    np.testing.assert_allclose(
      moved[leaf], wanted[leaf], atol=1e-3 * size, err_msg=leaf
    )
  # Moments of all parameters; of adafactor what is not factored, and factors.
  assert found["adamw"]["owned"] == found["muon"]["owned"] == 12
  assert found["adafactor"]["owned"] == 3
  assert found["adafactor"]["lacking"] > 9


def test_a_state_by_names_and_shapes():
  mesh = make_mesh()

  def shape(sizes, *spec):
    sharding = NamedSharding(mesh, P(*spec))
    return jax.ShapeDtypeStruct(sizes, np.float32, sharding=sharding)

  params = {
    "a": {"kernel": shape((3, 8, 6), None, "fsdp", "tensor")},
    "b": {"a": {"kernel": shape((8, 6), "tensor")}},
    "scale": shape((3, 8), None, "fsdp"),
  }
  plain = jax.ShapeDtypeStruct
  state = {
    "mu": {
      "a": {"kernel": plain((3, 8, 6), np.float32)},
      "b": {"a": {"kernel": plain((8, 6), np.float32)}},
    },
    "row": [{"a": {"kernel": plain((3, 8), np.float32)}}],
    "column": {"a": {"kernel": plain((3, 6), np.float32)}},
    "layer": {"a": {"kernel": plain((8, 6), np.float32)}},
    "none": {"a": {"kernel": plain((1,), np.float32)}},
    "of_b": {"b": {"a": {"kernel": plain((8,), np.float32)}}},
    "a": {"count": plain((3, 8, 6), np.float32)},
    "rescale": plain((3, 8), np.float32),
  }
  found = state_shardings(state, params, mesh)
  assert jax.tree.map(lambda sharding: sharding.spec, found) == {
    "mu": {
      "a": {"kernel": P(None, "fsdp", "tensor")},
      "b": {"a": {"kernel": P("tensor")}},
    },
    "row": [{"a": {"kernel": P(None, "fsdp")}}],
    "column": {"a": {"kernel": P(None, "tensor")}},
    "layer": {"a": {"kernel": P("fsdp", "tensor")}},
    "none": {"a": {"kernel": P()}},
    "of_b": {"b": {"a": {"kernel": P("tensor")}}},
    "a": {"count": P()},
    "rescale": P(),
  }


def test_bytes_are_of_every_leaf():
  mesh = make_mesh()
  sharding = NamedSharding(mesh, P(None, "fsdp"))
  tree = {
    "a": jax.ShapeDtypeStruct((3, 8), np.float32, sharding=sharding),
    "b": jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(mesh, P())),
    "c": jax.ShapeDtypeStruct((5,), np.int8, sharding=NamedSharding(mesh, P())),
  }
  assert bytes_of(tree) == (3 * 8 * 4 + 4 + 5,) * 2
