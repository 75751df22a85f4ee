"""The step of a run as the TPU compiler makes it, for --dry_run --topology."""

import jax
import jax.numpy as jnp

from jaxmerge.data.batch import Batch
from jaxmerge.errors import InputError
from jaxmerge.parallel.chips import Chip, chip_of
from jaxmerge.parallel.rules import batch_sharding, batch_shards
from jaxmerge.parallel.topology import Compiled, DoesNotFit, compiled
from jaxmerge.training.config import PretrainConfig
from jaxmerge.training.trainer import Trainer


def compile_step(
  trainer: Trainer, batch_size: int, seq_len: int, has_segments: bool = False
) -> Compiled:
  """Compiles a trainer's step; DoesNotFit where it is too large."""
  tokens_BxL1 = jax.ShapeDtypeStruct(
    (batch_size, seq_len + 1),
    jnp.int32,
    sharding=batch_sharding(trainer.mesh),
  )
  batch = Batch(tokens_BxL1, tokens_BxL1 if has_segments else None)
  step: jax.stages.Wrapped = trainer.train_step()  # type: ignore[assignment]
  return compiled(step.lower(trainer.abstract_state(), batch))


def compiled_text(config: PretrainConfig, trainer: Trainer) -> str:
  """Memory and traffic of a step on the trainer's devices, for --dry_run.

  Raises:
    InputError: a device has less memory; says what needs less.
  """
  chip = chip_of(trainer.mesh.devices.flat[0].device_kind)
  assert chip is not None, "a TPU that the table of chips lacks"
  try:
    step = compile_step(
      trainer, config.batch_size, config.seq_len, config.data.packs_documents
    )
  except DoesNotFit as error:
    raise InputError(_too_large(error.gib, chip, config, trainer)) from error
  if step.gib > chip.hbm_gib:
    raise InputError(_too_large(step.gib, chip, config, trainer))
  temporaries = step.temporaries / 2**30
  rows = {
    "compiled in": f"{step.seconds:.0f} s",
    "memory per device": (
      f"{step.gib:.2f} GiB of {chip.hbm_gib:g} GiB of a {chip.name} "
      f"({temporaries:.2f} GiB of it are temporaries)"
    ),
    "kernels": f"{step.kernels()} calls of kernels, as of Splash",
    "collectives": step.collectives_text(),
  }
  return "\n".join(f"{name:>20}: {value}" for name, value in rows.items())


def _too_large(
  gib: float | None, chip: Chip, config: PretrainConfig, trainer: Trainer
) -> str:
  """The message with the ways out that the config still has."""
  mesh, remat = trainer.mesh, config.step.remat
  shards = batch_shards(mesh)
  sequences = config.batch_size // config.step.accumulate // shards
  ways = []
  if remat != "full":
    less = "dots or full" if remat == "none" else "full"
    ways.append(f"config.step.remat={less}, not {remat}")
  if sequences > 1:
    ways.append(
      f"a smaller microbatch by config.step.accumulate of up to "
      f"{config.batch_size // shards}, not {config.step.accumulate}"
    )
  if mesh.shape["fsdp"] < mesh.size:
    ways.append(
      f"config.mesh.fsdp of up to {mesh.size}, not {mesh.shape['fsdp']}"
    )
  ways.append("more or larger chips")
  needed = f"{gib:.1f} GiB" if gib else "more"
  return (
    f"a step needs {needed} of each device, and a {chip.name} has "
    f"{chip.hbm_gib:g} GiB; it needs less with {'; '.join(ways)}"
  )
