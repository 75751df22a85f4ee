"""Checks of a run's config: what its mesh asks of it."""

from jaxmerge.config_fields import identity
from jaxmerge.config_reading import read
from jaxmerge.errors import InputError
from jaxmerge.training.config import PretrainConfig
from jaxmerge.training.config_checks import check_config
from tests.helpers import Device, config_of

# Of three processes, on which nothing runs.
TWELVE = [Device(i, per_process=4) for i in range(12)]


def problems_of(mesh, devices=TWELVE, **changes):
  config = config_of("pretrain", **changes)
  config.mesh = mesh
  try:
    check_config(config, devices)
  except InputError as error:
    return error.problems
  return []


def test_every_size_that_the_mesh_does_not_divide():
  mesh = {"fsdp": 3, "tensor": 2, "context": 2, "data": -1}
  sizes = {"seq_len": 33, "batch_size": 9, "eval_batch_size": 6}
  assert problems_of(mesh, **sizes, step={"accumulate": 2}) == [
    "config.seq_len 33 is not a multiple of config.mesh.context 2",
    "config.model.num_key_value_heads 1 is not a multiple of "
    "config.mesh.tensor 2",
    "config.batch_size 9 is not a multiple of 6: replica * data * fsdp of "
    "the mesh * config.step.accumulate",
    "embed/embedding: size 32 is not a multiple of mesh axis fsdp=3 (8 of this "
    "kind)",
  ]


def test_each_size_that_fits():
  sizes = {"seq_len": 36, "batch_size": 12, "eval_batch_size": 24}
  assert not problems_of({"replica": 3, "fsdp": 4}, **sizes)
  assert not problems_of({"data": 3, "context": 4}, **sizes)


def test_processes_that_do_not_share_a_batch_evenly():
  [problem] = problems_of({"data": 2, "context": 6}, seq_len=36)
  assert "shares of a batch that overlap" in problem


def test_sizes_are_checked_where_the_mesh_does_not_fit():
  mesh = {"data": -1, "tensor": 4, "context": 3}
  fits, length, heads, kv_heads = problems_of(mesh, devices=None)
  assert "tensor=4, context=3 does not fit 1 device" in fits
  assert length == (
    "config.seq_len 32 is not a multiple of config.mesh.context 3"
  )
  assert "num_attention_heads 2 is not a multiple" in heads
  assert "num_key_value_heads 1 is not a multiple" in kv_heads


def test_what_is_wrong_with_the_step_beside_the_optimiser():
  step = {"attention": "splash", "loss_chunk": 7}
  optimizer = {"schedule": "wsd", "decay_steps": 30}
  schedule, chunk, attention = problems_of(
    {}, devices=None, step=step, optimizer=optimizer
  )
  assert "config.optimizer.decay_steps 30 are together more" in schedule
  assert chunk == (
    "config.seq_len 32 is not a multiple of config.step.loss_chunk 7, or that "
    "not of config.mesh.context 1"
  )
  assert "splash attention cannot run here: it needs a TPU" in attention


def test_the_step_is_computed_as_the_config_says():
  step = {
    "remat": "full",
    "attention": "xla",
    "loss_chunk": 8,
    "logits": "bfloat16",
  }
  config, trainer = check_config(
    config_of("pretrain", step={**step, "z_loss": 0.1, "accumulate": 2})
  )
  assert {key: getattr(trainer.execution, key) for key in step} == step
  assert trainer.step == config.step


def test_steps_and_spikes_that_there_cannot_be():
  assert problems_of(
    {}, devices=None, profile_steps=(17, 18), step={"spike": 0.5}
  ) == [
    "config.profile_steps (17, 18) begin after the last of config.num_steps 16",
    "config.step.spike must be more than 1, or 0, got 0.5: every other step "
    "would be one",
    "config.step.spike 0.5 needs a config.step.max_skipped of 1 or more",
  ]
  assert not problems_of(
    {},
    devices=None,
    profile_steps=(16, 20),
    step={"spike": 1.5, "max_skipped": 1},
  )


def test_a_run_may_go_on_with_axes_that_it_did_not_know():
  names = identity(read(PretrainConfig, config_of("pretrain")))
  assert not [name for name in names if name.startswith("mesh.")]
