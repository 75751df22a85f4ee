"""Running averages of a run's parameters, which are saved beside them.

Each is a tree like the parameters, an item of a checkpoint by its own name, and
an input of every verb as that: `runs/a@600:ema`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from jaxmerge.checkpoints.inputs import step_path
from jaxmerge.config_fields import key
from jaxmerge.errors import InputError
from jaxmerge.merging.average import weighted_average
from jaxmerge.merging.trail import mean_of

EMA, LAWA = "ema", "lawa"


@dataclasses.dataclass(frozen=True)
class AveragesConfig:
  """The `averages` section of a run's config."""

  ema_decay: float = key(
    0.0,
    "what the exponential moving average of the parameters keeps of itself at "
    "each step, such as 0.999; 0: there is none",
    at_least=0,
    below=1,
  )
  lawa: int = key(
    0,
    "newest checkpoints whose uniform mean each checkpoint holds beside its "
    "parameters, itself included (LAWA, arXiv 2209.14981); 0: none",
    at_least=0,
  )

  @property
  def names(self) -> list[str]:
    """The items that a checkpoint has of it."""
    return [EMA] * (self.ema_decay > 0) + [LAWA] * (self.lawa > 0)

  def problems(self, prefix: str) -> list[str]:
    """A mean of a single checkpoint."""
    if self.lawa != 1:
      return []
    return [f"{prefix}lawa must be 2 or more, or 0, got 1"]


def moved(
  ema: Any, params: Any, decay: float, is_skipped: jax.Array | bool
) -> Any:
  """The moving average one step on, in float32, leaf by leaf.

  e_t = e_{t-1} + (1 - d) (theta_t - e_{t-1}), which is d e_{t-1} + (1 - d)
  theta_t, d the decay and e_0 = theta_0 (arXiv 2411.18704). In this form
  parameters that rest are their own average, bit for bit.

  Args:
    params: after the step.
    is_skipped: bool[]; the step was not taken, and the average stays.
  """
  rate = jnp.where(is_skipped, 0.0, 1 - decay).astype(jnp.float32)
  return jax.tree.map(
    lambda e, p: e + rate * (p.astype(jnp.float32) - e), ema, params
  )


def steps_before(
  step: int, count: int, save_every: int, start: int
) -> list[int]:
  """The earlier checkpoints that a mean of `count` at a step is made of.

  Only those that a run saves whether it is stopped or not: at multiples of
  `save_every`, after the step `start` that it begins at. Oldest first.
  """
  last = (step - 1) // save_every
  first = max(last - count + 2, start // save_every + 1)
  return [number * save_every for number in range(first, last + 1)]


@dataclasses.dataclass(frozen=True)
class Lawa:
  """The mean of a run's last checkpoints, made at each of them.

  Attributes:
    workdir: of the run.
    count, save_every, start: as steps_before.
    tell: told why there is no mean at a step.
  """

  workdir: epath.Path
  count: int
  save_every: int
  start: int
  tell: Callable[[str], None]

  def __call__(self, step: int, params: Any) -> dict[str, Any]:
    """The mean under its name; nothing where it is off, or cannot be made.

    The checkpoints before are read one after another, and must be whole on the
    disk. One that is damaged does not end a run: this mean is left out.
    """
    if not self.count:
      return {}
    steps = steps_before(step, self.count, self.save_every, self.start)
    if not steps:
      return {LAWA: params}
    target = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      params,
    )
    paths = [step_path(self.workdir, earlier) for earlier in steps]
    try:
      mean = mean_of(paths, "params", target)
    except InputError as error:
      self.tell(f"no {LAWA} at step {step}: {error.problems[0]}")
      return {}
    return {LAWA: weighted_average([mean, params], [len(steps), 1])}
