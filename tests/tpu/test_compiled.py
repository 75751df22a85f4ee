"""What the TPU compiler makes of our programs; `make test-tpu` has it.

B sequences on a device, L positions, D width, V vocabulary, N layers.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxmerge import pretrain
from jaxmerge.cli import runner
from jaxmerge.errors import InputError
from jaxmerge.evaluation.evaluators.heldout_loss import batch_losses
from jaxmerge.evaluation.weight_derivatives import planned_bytes
from jaxmerge.merging.average import weighted_average
from jaxmerge.merging.groups import groups_of
from jaxmerge.parallel.rules import batch_sharding
from jaxmerge.parallel.topology import compiled, topology_devices
from jaxmerge.training.compiled_step import compile_step
from jaxmerge.training.config_checks import check_config
from tests.helpers import config_of, quiet

pytestmark = pytest.mark.tpu

B, L, D, V, N = 16, 512, 384, 2560, 3
MESHES = {
  "v5e:2x2": {"data": 1, "fsdp": 4, "tensor": 1, "context": 1},
  "v5p:2x2x1": {"data": 1, "fsdp": 2, "tensor": 1, "context": 2},
}


def config_for(topology):
  axes = MESHES[topology]
  config = config_of("pretrain", "llama_125m")
  config.update_from_flattened_dict(
    {
      "batch_size": B * axes["data"] * axes["fsdp"],
      "seq_len": L,
      "eval_batch_size": B * axes["data"] * axes["fsdp"],
      "data.vocab_size": V,
      "model.hidden_size": D,
      "model.num_hidden_layers": N,
      "model.num_attention_heads": 6,
      "model.num_key_value_heads": 2,
      "model.head_dim": 128,
      "model.intermediate_size": 640,
      "step.accumulate": 1,
      "step.loss_chunk": 64,
      "step.document_mask": True,
      **{f"mesh.{axis}": size for axis, size in axes.items()},
    }
  )
  return config


@pytest.fixture(scope="module", params=MESHES)
def trained(request):
  config, trainer = check_config(
    config_for(request.param), topology_devices(request.param)
  )
  return trainer, compile_step(trainer, config.batch_size, L)


def arrays(text, dtype):
  """Shapes of a dtype in a program."""
  found = re.findall(rf"\b{dtype}\[([\d,]+)\]", text)
  return {tuple(map(int, axes.split(","))) for axes in found}


def test_attention_is_the_kernel_and_its_gradient_too(trained):
  trainer, step = trained
  assert trainer.execution.attention == "splash"
  assert step.kernels() == 2  # what the forward one gives is kept


def test_the_step_stores_no_scores_and_no_logits_of_a_sequence(trained):
  trainer, step = trained
  columns = V // trainer.mesh.shape["tensor"]
  shapes = arrays(step.text, "f32") | arrays(step.text, "bf16")
  assert not [s for s in shapes if s[-2:] == (L, L)]
  assert not [s for s in shapes if s[-1:] == (columns,) and L in s[:-1]]
  chunk = 64 // trainer.mesh.shape["context"]
  assert any(s[-2:] == (chunk, columns) for s in shapes)
  # Kept of a layer: its input, products, what attention gives; then twice
  # that for the one at work, the chunk's logits, the gradients.
  heads, hidden = 2 * (6 + 2) * 128, 2 * 640
  kept = 2 * B * L * (2 * D + heads + hidden) * N
  params = 4 * sum(
    x.size for x in jax.tree.leaves(trainer.abstract_state().params)
  )
  assert step.temporaries < 2 * kept + 3 * 4 * B * 64 * V + 1.5 * params


def test_parameters_travel_in_bfloat16_layer_by_layer(trained):
  _, step = trained
  gathered = [
    shape for kind, shape in step.collectives() if kind == "all-gather"
  ]
  assert any(shape.startswith("bf16") for shape in gathered)
  assert not [shape for shape in gathered if shape.startswith("f32")]
  stacked = re.compile(rf"\w+\[{N},\d+,\d+\]")
  assert not [shape for shape in gathered if stacked.match(shape)]


def test_no_device_holds_the_head_in_float32(trained):
  trainer, step = trained
  columns = V // trainer.mesh.shape["tensor"]
  shapes = {tuple(x for x in s if x > 1) for s in arrays(step.text, "f32")}
  assert (D, columns) not in shapes
  assert (columns, D) not in shapes
  assert (V, D) not in shapes


@pytest.mark.parametrize("topology", MESHES)
def test_a_merge_moves_nothing(topology):
  _, trainer = check_config(config_for(topology), topology_devices(topology))
  trees = [trainer.abstract_state().params] * 3
  merge = jax.jit(lambda *trees: weighted_average(trees, [0.2, 0.3, 0.5]))
  found = compiled(merge.lower(*trees))
  assert found.collectives() == []
  assert found.temporaries < 2**24


@pytest.mark.parametrize("topology", MESHES)
def test_scoring_gathers_no_more_than_a_layer(topology):
  config, trainer = check_config(
    config_for(topology), topology_devices(topology)
  )
  data = [
    jax.ShapeDtypeStruct(
      (config.eval_batch_size, length),
      dtype,
      sharding=batch_sharding(trainer.mesh),
    )
    for length, dtype in ((L + 1, jnp.int32), (L, jnp.bool_))
  ]
  params = trainer.abstract_state().params
  found = compiled(
    batch_losses.lower(trainer.graph, trainer.mesh, False, params, *data)
  )
  assert found.kernels() == 1
  gathered = [
    shape for kind, shape in found.collectives() if kind == "all-gather"
  ]
  assert gathered
  assert not [s for s in gathered if re.match(rf"\w+\[{N},\d+,\d+\]", s)]


def test_derivatives_of_nine_checkpoints_fit_a_chip():
  """By the weights of six groups: 1.7 trees beside the ten, not 7."""
  chip = topology_devices("v5e:2x2")[:1]
  config, trainer = check_config(config_of("pretrain", "llama_125m"), chip)
  params = trainer.abstract_state().params
  temporaries = planned_bytes(
    trainer.graph,
    trainer.mesh,
    params,
    count=9,
    groups=groups_of(params, "4"),
    length=config.seq_len,
    sequences=64,
  )
  tree = sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)
  )
  assert config.seq_len == 1024
  assert temporaries < 1.8 * tree
  assert temporaries + 10 * tree < 16 * 2**30


def test_a_run_that_does_not_fit_ends_with_the_ways_out(tmp_path, capsys):
  """Adam's state of 8 billion parameters is 96 GB, and four chips have 63."""
  config = config_for("v5e:2x2")
  config.data.vocab_size = 1_000_000
  config.model.hidden_size = 8192
  config.batch_size = 4 * 16

  def dry_run():
    pretrain.train(
      config, tmp_path / "run", dry_run=True, topology="v5e:2x2", progress=quiet
    )

  assert runner.run("pretrain", dry_run) == 2
  said = capsys.readouterr().err
  assert "of each device, and a TPU v5e has 15.75 GiB" in said
  assert "config.step.remat=full, not dots" in said
  assert "config.step.accumulate of up to 16, not 1" in said
  assert not (tmp_path / "run").exists()


def test_an_unknown_topology_is_one_message():
  with pytest.raises(InputError, match="knows no topology 'v5e:3x3x3'"):
    topology_devices("v5e:3x3x3")
