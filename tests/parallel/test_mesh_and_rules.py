import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxmerge.errors import InputError
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.parallel import rules
from jaxmerge.parallel.mesh import make_mesh

EIGHT = """
import json, sys
import jax, numpy as np
from jaxmerge.formats.integrity.digest import digests
from jaxmerge.model.config import DecoderConfig
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.config_reading import read
from jaxmerge.training.optimizer import OptimizerConfig, build
from jaxmerge.training.trainer import Trainer
from jaxmerge.parallel.rules import batch_sharding

config = DecoderConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2,
                       num_attention_heads=4, num_key_value_heads=2,
                       intermediate_size=64)
mesh = make_mesh(*map(int, sys.argv[1:]))
chosen = read(OptimizerConfig, {"learning_rate": 1e-2, "warmup_steps": 2})
optimizer, schedule = build(chosen, num_steps=4)
trainer = Trainer.build(config, mesh, optimizer, schedule)
state = trainer.random_start(0)
digest = digests(state.params)
step = trainer.train_step()
losses = []
for i in range(4):
  tokens = np.random.default_rng(i).integers(0, 300, (8, 33)).astype(np.int32)
  tokens = jax.device_put(tokens, batch_sharding(mesh))
  state, metrics = step(state, tokens)
  losses.append(float(metrics.loss))
kernel = state.params["layers"]["mlp"]["up"]["kernel"]
moment = state.opt_state[1][0].mu["layers"]["mlp"]["up"]["kernel"]
print(json.dumps({
  "losses": losses, "compiles": step._cache_size(), "digest": digest,
  "shard": kernel.addressable_shards[0].data.shape,
  "moment": moment.addressable_shards[0].data.shape,
}))
"""


def train_on(devices: int, *mesh: int) -> dict:
  flags = f"--xla_force_host_platform_device_count={devices}"
  result = subprocess.run(
    [sys.executable, "-c", EIGHT, *map(str, mesh)],
    env={**os.environ, "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(result.stdout)


def test_eight_devices_train_as_one_does():
  one = train_on(1, 1, 1, 1)
  eight = train_on(8, 2, 2, 2)
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
  "sizes", [(2, 1, 1), (-1, -1, 1), (-1, 3, 1), (0, 1, 1)]
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
  with pytest.raises(InputError, match="does not fit 1 device"):
    make_mesh(*sizes)
