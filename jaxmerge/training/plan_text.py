"""The plan of a run in words: its devices, memory, steps and disk."""

import math
from collections.abc import Mapping, Sequence

import jax

from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.data.pipeline import Part, epochs
from jaxmerge.files import human_bytes
from jaxmerge.parallel.chips import chip_of
from jaxmerge.parallel.mesh import mesh_text
from jaxmerge.training.config import PretrainConfig
from jaxmerge.training.keep import kept_text
from jaxmerge.training.loop import Plan
from jaxmerge.training.sources import MEAN, MERGED, NEWEST, ZERO
from jaxmerge.training.state_shardings import bytes_of
from jaxmerge.training.trainer import Trainer


def bytes_of_state(trainer: Trainer) -> int:
  """On each device, of parameters, gradients, averages, optimiser's state."""
  items = trainer.abstract_items()
  gradients = items["params"]
  return sum(bytes_of(x).on_device for x in [gradients, *items.values()])


def _state(trainer: Trainer) -> str:
  return ", ".join(
    ["params", "gradients", "optimizer", *trainer.averages.names]
  )


def devices_text(trainer: Trainer) -> str:
  """Devices, attention and memory of a run, told at its start."""
  mesh, execution = trainer.mesh, trainer.execution
  chip = chip_of(mesh.devices.flat[0].device_kind)
  limit = f" of {chip.hbm_gib:g} GiB" if chip else ""
  return (
    f"{mesh_text(mesh)}; {execution.attention} attention ({execution.why}); "
    f"{human_bytes(bytes_of_state(trainer))}{limit} on each device for "
    f"{_state(trainer)}"
  )


def data_rows(config: PretrainConfig, parts: Sequence[Part]) -> dict[str, str]:
  """Says what a run reads of its corpora, where they are open."""
  if not parts:
    return {}
  each = epochs(parts, config.num_steps * config.batch_size)
  told = [f"{n:.2g} of {name}" for name, n in each.items()]
  rows = {"epochs": ", ".join(told) if "" not in each else f"{each['']:.2g}"}
  if config.data.packs_documents:
    targets = sum(part.windows.targets for part in parts)
    positions = sum(len(part.windows) for part in parts) * config.seq_len
    share = targets / max(positions, 1)
    rows["packing"] = f"{share:.1%} of positions are targets"
  return rows


def plan_text(
  trainer: Trainer,
  plan: Plan,
  config: PretrainConfig,
  starts_from: str,
  trains_tokenizer: bool,
  of_data: Mapping[str, str],
) -> str:
  """Parameters, memory and disk of a run, for --dry_run.

  Args:
    of_data: from data_rows.
  """
  model, mesh, state = trainer.config, trainer.mesh, trainer.abstract_state()
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
  saved = bytes_of(trainer.abstract_items()).in_total
  fewer = ", or what the text gives" if trains_tokenizer else ""
  span, rules = config.span(plan.start), config.keep_rules(plan.start)
  steps = plan.num_steps - plan.start
  device = human_bytes(bytes_of_state(trainer))
  rows = {
    "parameters": f"{count:,}",
    "vocabulary": f"{model.vocab_size:,} tokens{fewer}",
    "starts from": starts_from,
    "steps to train": f"{steps:,} ({steps * plan.tokens_per_step:,} tokens)",
    **of_data,
    "state per device": f"{device} ({_state(trainer)})",
    "checkpoints to save": f"{span.saves}, {human_bytes(saved)} each",
    "checkpoints kept": kept_text(config.keep, rules, span, saved),
    "devices": mesh_text(mesh),
    "attention": f"{trainer.execution.attention}: {trainer.execution.why}",
  }
  return "\n".join(f"{name:>20}: {value}" for name, value in rows.items())


# The optimiser's state of a branch, where it is not that of one step.
_STATES = {
  NEWEST: "the optimiser state of the newest step in it",
  MEAN: "the mean of the optimiser states of the steps in it",
  ZERO: "a new optimiser state",
}


def starts_from(
  parent: Checkpoint | None, start: int, config: PretrainConfig
) -> str:
  """Says where a run begins, for --dry_run."""
  if parent is None:
    return f"random parameters of config.seed {config.seed}"
  if not start:
    return f"the parameters of {parent.name}"
  place = f"step {start} of {parent.name}"
  told = "its optimiser state"
  if parent.metadata.kind == MERGED:
    place = f"the merge {parent.name} at step {start}"
    told = _STATES[config.branch_state]
  elif config.branch_state == ZERO:
    told = _STATES[ZERO]
  return f"{place}, with {told} and its place in the data"
