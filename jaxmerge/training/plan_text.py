"""The plan of a run in words: its devices, memory, steps and disk."""

import math

import jax

from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.files import human_bytes
from jaxmerge.parallel.chips import chip_of
from jaxmerge.parallel.mesh import mesh_text
from jaxmerge.training.loop import Plan
from jaxmerge.training.state_shardings import bytes_of
from jaxmerge.training.trainer import Trainer


def bytes_of_state(trainer: Trainer) -> int:
  """On each device, of parameters, gradients and the optimiser's state."""
  state = trainer.abstract_state()
  params, opt_state = bytes_of(state.params), bytes_of(state.opt_state)
  return 2 * params.on_device + opt_state.on_device


def devices_text(trainer: Trainer) -> str:
  """Devices, attention and memory of a run, told at its start."""
  mesh, execution = trainer.mesh, trainer.execution
  chip = chip_of(mesh.devices.flat[0].device_kind)
  limit = f" of {chip.hbm_gib:g} GiB" if chip else ""
  return (
    f"{mesh_text(mesh)}; {execution.attention} attention ({execution.why}); "
    f"{human_bytes(bytes_of_state(trainer))}{limit} on each device for params, "
    "gradients, optimizer"
  )


def plan_text(
  trainer: Trainer, plan: Plan, starts_from: str, trains_tokenizer: bool
) -> str:
  """Parameters, memory and disk of a run, for --dry_run."""
  model, mesh, state = trainer.config, trainer.mesh, trainer.abstract_state()
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
  saved = bytes_of((state.params, state.opt_state)).in_total
  fewer = ", or what the text gives" if trains_tokenizer else ""
  saves = -(-plan.num_steps // plan.save_every) - plan.start // plan.save_every
  steps = plan.num_steps - plan.start
  device = human_bytes(bytes_of_state(trainer))
  rows = {
    "parameters": f"{count:,}",
    "vocabulary": f"{model.vocab_size:,} tokens{fewer}",
    "starts from": starts_from,
    "steps to train": f"{steps:,} ({steps * plan.tokens_per_step:,} tokens)",
    "state per device": f"{device} (params, gradients, optimizer)",
    "checkpoints to save": f"{saves}, {human_bytes(saved)} each",
    "devices": mesh_text(mesh),
    "attention": f"{trainer.execution.attention}: {trainer.execution.why}",
  }
  return "\n".join(f"{name:>20}: {value}" for name, value in rows.items())


def starts_from(parent: Checkpoint | None, start: int, seed: int) -> str:
  """Says where a run begins, for --dry_run."""
  if parent is None:
    return f"random parameters of config.seed {seed}"
  if start:
    return (
      f"step {start} of {parent.name}, with its optimiser state and its place "
      "in the data"
    )
  return f"the parameters of {parent.name}"
