import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxmerge.errors import InputError
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.parallel import rules
from jaxmerge.parallel.mesh import AXES, make_mesh
from tests.helpers import Device, with_devices

EIGHT = """
import json, sys
import jax, numpy as np
from jaxmerge.formats.integrity.digest import digests
from jaxmerge.model.config import DecoderConfig
from jaxmerge.data.batch import Batch
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.config_reading import read
from jaxmerge.training.optimizer import OptimizerConfig, build
from jaxmerge.training.trainer import Trainer
from jaxmerge.parallel.rules import batch_sharding

config = DecoderConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2,
                       num_attention_heads=4, num_key_value_heads=2,
                       intermediate_size=64)
mesh = make_mesh(**json.loads(sys.argv[1]))
chosen = read(OptimizerConfig, {"learning_rate": 1e-2, "warmup_steps": 2})
optimizer, schedule = build(chosen, num_steps=4)
trainer = Trainer.build(config, mesh, optimizer, schedule)
state = trainer.random_start(0)
digest = digests(state.params)
step = trainer.train_step()
losses = []
for i in range(4):
  tokens = np.random.default_rng(i).integers(0, 300, (8, 33)).astype(np.int32)
  batch = jax.device_put(Batch(tokens), batch_sharding(mesh))
  state, metrics = step(state, batch)
  losses.append(float(metrics.loss))
kernel = state.params["layers"]["mlp"]["up"]["kernel"]
moment = state.opt_state[1][0].mu["layers"]["mlp"]["up"]["kernel"]
print(json.dumps({
  "losses": losses, "compiles": step._cache_size(), "digest": digest,
  "shard": kernel.addressable_shards[0].data.shape,
  "moment": moment.addressable_shards[0].data.shape,
}))
"""


# The loss and gradient on each mesh of eight devices, and on one device.
GRADIENTS = """
import functools, json, sys
import jax, numpy as np
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.data.batch import Batch
from jaxmerge.model.execution import PLAIN, choose
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import place_batch, shardings
from jaxmerge.training.step import Objective
from tests.helpers import decoder, random_params

config = decoder()
graph, abstract = abstract_decoder(config)
params = jax.device_get(random_params(config))
tokens = np.random.default_rng(0).integers(0, 50, (16, 17)).astype(np.int32)

def measured(mesh, execution, accumulate):
  placed = jax.device_put(params, shardings(abstract, mesh))
  objective = Objective(
    graph, execution, accumulate, end_of_text=0, document_mask=True
  )
  run = jax.jit(functools.partial(
    objective.gradient, shardings=shardings(abstract, mesh)
  ))
  batch = place_batch(mesh, Batch(tokens))
  program = run.lower(placed, batch=batch).compile()
  found = program(placed, batch=batch)
  return jax.device_get(found), program.as_text()

one, _ = measured(make_mesh(devices=jax.devices()[:1]), PLAIN, 1)
far, programs = [], []
for sizes in json.loads(sys.argv[1]):
  mesh = make_mesh(**sizes)
  execution = choose(config, mesh, length=16, batch=16, loss_chunk=8)
  found, program = measured(mesh, execution, 2)
  programs.append(program)
  far.append(jax.tree.map(
    lambda a, b: np.abs(a - b).max() / np.abs(a).max(), one, found
  ))
print(json.dumps({
  "far": [float(max(jax.tree.leaves(x))) for x in far],
  "programs": programs,
}))
"""
MESHES = (
  {"replica": 2, "data": 2, "fsdp": 2},
  {"data": 1, "fsdp": 2, "tensor": 2, "context": 2},
  {"data": 2, "context": 4},
)


def run_on(devices: int, program: str, value: Any) -> Any:
  result = subprocess.run(
    [sys.executable, "-c", program, json.dumps(value)],
    env=with_devices(devices),
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(result.stdout)


def test_a_mesh_changes_no_loss_and_no_gradient():
  found = run_on(8, GRADIENTS, MESHES)
  assert max(found["far"]) < 1e-5
  # A device computes its own sequences and positions alone: of 8 x 16 x 16.
  for part, program in zip(("1,16,16", "4,8,16", "4,4,16"), found["programs"]):
    assert f"f32[{part}]" in program


def test_eight_devices_train_as_one_does():
  one = run_on(1, EIGHT, {})
  eight = run_on(8, EIGHT, {"data": 2, "fsdp": 2, "tensor": 2})
  np.testing.assert_allclose(eight["losses"], one["losses"], atol=1e-4)
  assert one["losses"][-1] < one["losses"][0]
  assert one["shard"] == [2, 32, 64]
  assert eight["shard"] == [2, 16, 32]
  assert eight["moment"] == [2, 16, 32]
  assert one["compiles"] == eight["compiles"] == 1
  assert one["digest"] == eight["digest"]


def test_every_parameter_of_the_decoder_has_a_rule():
  config = DecoderConfig(
    vocab_size=300,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    tie_word_embeddings=False,
  )
  _, abstract = abstract_decoder(config)
  specs = jax.tree.map(lambda s: s.spec, rules.shardings(abstract, make_mesh()))
  assert specs["head"]["kernel"] == PartitionSpec("fsdp", "tensor")
  assert specs["layers"]["mlp"]["down"]["kernel"] == PartitionSpec(
    None, "tensor", "fsdp"
  )


def test_a_parameter_without_a_rule_is_an_error():
  tree = {"embed": {"embedding": np.zeros((2, 2))}, "new": np.zeros(3)}
  with pytest.raises(InputError, match="'new'"):
    rules.shardings(tree, make_mesh())


def test_the_first_rule_that_matches_decides(monkeypatch):
  table = (("a/.*", PartitionSpec("data")), ("a/b", PartitionSpec("fsdp")))
  monkeypatch.setattr(rules, "DECODER_RULES", table)
  placed = rules.shardings({"a": {"b": np.zeros(4)}}, make_mesh())
  assert placed["a"]["b"].spec == PartitionSpec("data")


@pytest.mark.parametrize(
  "sizes",
  [
    {"data": 2},
    {"data": -1, "fsdp": -1},
    {"fsdp": 3},
    {"data": 0},
    {"context": 2},
  ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
  with pytest.raises(InputError, match="does not fit 1 device"):
    make_mesh(**sizes)


def slices(number: int, size: int) -> list[Device]:
  return [Device(i, i // size, platform="tpu") for i in range(number * size)]


@pytest.mark.parametrize(
  ("sizes", "axis"),
  [
    ({"replica": 2, "data": 1, "fsdp": 4}, "replica"),
    ({"replica": 4, "data": 1, "tensor": 2}, "replica"),
    ({"fsdp": 4}, "data"),
    ({"data": 1, "fsdp": -1}, "fsdp"),
  ],
)
def test_slices_are_the_outermost_axis(sizes, axis):
  """In an order of devices that does not show them."""
  devices = slices(2, 4)
  mesh = make_mesh(**sizes, devices=devices[::2] + devices[1::2])
  place = mesh.axis_names.index(axis)
  for half, part in enumerate(np.split(mesh.devices, 2, axis=place)):
    assert {device.slice_index for device in part.flat} == {half}


def test_slices_that_two_axes_tell_apart():
  mesh = make_mesh(replica=2, devices=slices(4, 2))
  found = [{d.slice_index for d in part.flat} for part in mesh.devices[0]]
  assert found == [{0}, {0}, {1}, {1}]


@pytest.mark.parametrize(
  "sizes", [{"data": 1, "tensor": -1}, {"replica": 3, "fsdp": 2}]
)
def test_axes_that_do_not_tell_slices_apart_are_refused(sizes):
  devices = slices(4, 3) if "replica" in sizes else slices(2, 4)
  with pytest.raises(InputError, match=r"does not fit \d slices: replica must"):
    make_mesh(**sizes, devices=devices)


def test_the_devices_of_a_process_follow_each_other():
  devices = [Device(i) for i in range(8)]
  mesh = make_mesh(fsdp=2, context=2, devices=devices[::2] + devices[1::2])
  processes = [device.process_index for device in mesh.devices.flat]
  assert processes == [0, 0, 1, 1, 2, 2, 3, 3]


def share_of(*shape: int, order: Sequence[int] = range(8)) -> tuple[int, int]:
  """Of process 0, of four."""
  devices = np.array([Device(i) for i in order]).reshape(shape)
  return rules.batch_share(Mesh(devices, AXES))


def test_each_process_feeds_its_own_share_of_a_batch():
  assert share_of(1, 8, 1, 1, 1) == (0, 4)
  assert share_of(2, 2, 2, 1, 1) == (0, 4)
  # As on a torus, where the chips of a host do not follow each other.
  assert share_of(1, 8, 1, 1, 1, order=(2, 0, 4, 6, 1, 3, 5, 7)) == (1, 4)


def test_processes_that_share_sequences_feed_the_same():
  assert share_of(1, 2, 1, 4, 1) == share_of(1, 2, 1, 1, 4) == (0, 2)
  assert share_of(1, 1, 1, 2, 4) == (0, 1)


def test_shares_of_a_batch_that_overlap_are_refused():
  with pytest.raises(InputError, match="overlap"):
    share_of(1, 4, 1, 2, 1, order=(0, 2, 1, 4, 3, 5, 6, 7))
