"""Merges of a run's newest checkpoints, scored while it trains.

The run takes nothing from them: with and without them it is the same, bit for
bit. K checkpoints, oldest first.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from jaxmerge.checkpoints.inputs import (
  Checkpoint,
  open_steps,
  step_path,
  steps_in,
)
from jaxmerge.checkpoints.merged import save_merged
from jaxmerge.checkpoints.outputs import why_not_a_checkpoint
from jaxmerge.checkpoints.store import restore_item
from jaxmerge.config_fields import key
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import (
  Metadata,
  describe_leaves,
  read_metadata,
)
from jaxmerge.formats.records.provenance import Provenance
from jaxmerge.merging.average import weighted_average
from jaxmerge.merging.trail import mean_of
from jaxmerge.parallel.distributed import on_first_process
from jaxmerge.parallel.exchange import of_first_process
from jaxmerge.redaction import presentable
from jaxmerge.training.averages import steps_before

_FREE: Any = {"changes_numbers": False}  # of the run itself
NAME = "merged"
# Behind the name of a merge that is being removed.
_GOING = ".removed"
# Told of weights whose merge has no finite loss: nats/token that no model has.
_USELESS = 1e3


@dataclasses.dataclass(frozen=True)
class MergingConfig:
  """The `merging` section of a run's config."""

  every: int = key(
    0,
    "checkpoints between merges of the newest ones, scored as the run is; 0: "
    "none is made",
    at_least=0,
    **_FREE,
  )
  window: int = key(6, "checkpoints to merge, at most", at_least=2, **_FREE)
  how: str = key(
    "uniform",
    "their plain mean, or weights that a few parabolas find on the validation "
    "split",
    choices=("uniform", "search"),
    **_FREE,
  )
  trials: int = key(
    16, "merges that a search scores", at_least=2, at_most=10_000, **_FREE
  )
  save: str = key(
    "none",
    "which merges are kept as <workdir>/merged/<step>",
    choices=("none", "last", "all"),
    **_FREE,
  )

  def problems(self, prefix: str) -> list[str]:
    """Lists a search too short to try the mean, which it is to beat."""
    least = 2 * (self.window + 1)
    if not self.every or self.how != "search" or self.trials >= least:
      return []
    return [
      f"{prefix}trials {self.trials} must be {least} or more with a "
      f"{prefix}window of {self.window}: half of them are each checkpoint "
      "alone and their mean"
    ]

  @property
  def trees(self) -> int:
    """Trees of parameters on the devices for a merge, beside the run's own."""
    if not self.every:
      return 0
    return 2 if self.how == "uniform" else self.window


def merging_problems(config: Any, prefix: str) -> list[str]:
  """Says why a run of a PretrainConfig would never merge what it is to."""
  first = max(config.merging.every, 2) * config.save_every
  if not config.merging.every or first <= config.num_steps:
    return []
  return [
    f"{prefix}merging.every {config.merging.every} merges for the first time "
    f"at step {first}, after the last of {prefix}num_steps {config.num_steps}"
  ]


@dataclasses.dataclass(frozen=True)
class Merging:
  """Merges of one run.

  Attributes:
    save_every: steps between its checkpoints.
    start: the step that it began with.
    target: ShapeDtypeStructs of its parameters, with shardings.
    score: the validation loss of parameters in nats/token.
  """

  config: MergingConfig
  workdir: epath.Path
  save_every: int
  start: int
  target: Any
  score: Callable[[Any], float]

  def is_due(self, step: int) -> bool:
    """Says whether checkpoints are merged at a step that is to be saved.

    By its number alone, so that a run that was stopped merges at the same.
    """
    if not self.config.every or step % self.save_every:
      return False
    count = step // self.save_every - self.start // self.save_every
    return count % self.config.every == 0

  def measure(
    self, step: int, params: Any, describe: Callable[..., Metadata]
  ) -> dict[str, float]:
    """Merges the newest checkpoints, of which this step is to be the next.

    In a job of several processes all of them call it, when the saves before
    are whole.

    Args:
      params: of the step; they are left as they are.
      describe: gives its metadata from `step` and `leaves`.

    Returns:
      `merged_loss` in nats/token; of a search `merged_weight_0` of this step,
      `merged_weight_1` of the checkpoint before and so on. Nothing where there
      is none before, or the merge has no finite loss.

    Raises:
      InputError: a checkpoint is damaged, or the merge cannot be saved.
    """
    before = steps_before(step, self.config.window, self.save_every, self.start)
    there = {*steps_in(self.workdir)}
    steps = [earlier for earlier in before if earlier in there]
    if not steps:
      return {}
    paths = [step_path(self.workdir, s) for s in steps]
    weights_K: Sequence[float]
    if self.config.how == "uniform":
      merged = mean_of(paths, "params", self.target, last=params)
      loss = self.score(merged)
      weights_K = [1.0 / (len(paths) + 1)] * (len(paths) + 1)
      found = {"merged_loss": loss}
    else:
      loss, weights_K, merged = self._search(paths, params)
      names = (f"merged_weight_{age}" for age in range(len(weights_K)))
      found = {"merged_loss": loss, **dict(zip(names, weights_K[::-1]))}
    if not math.isfinite(loss):
      return {}
    if self.config.save != "none":
      self._save(steps, step, params, weights_K, merged, describe)
    return found

  def _search(
    self, paths: Sequence[epath.Path], params: Any
  ) -> tuple[float, Sequence[float], Any]:
    """The lowest loss that was found, its weights and its merge."""
    # Optuna comes with it, a second that other runs need not wait for.
    from jaxmerge.bayesopt.baselines import quadratic

    trees = [restore_item(path, "params", self.target) for path in paths]
    trees.append(params)
    tried: list[tuple[float, Sequence[float]]] = []

    def loss(unit_K: Sequence[float]) -> float:
      # Hosts may round otherwise; each merges with the weights of the first.
      weights_K = of_first_process(unit_K)
      found = self.score(weighted_average(trees, weights_K))
      tried.append((found if math.isfinite(found) else _USELESS, weights_K))
      return tried[-1][0]

    quadratic(loss, len(trees), self.config.trials, seed=0)
    best, weights_K = min(tried, key=lambda found: found[0])
    return best, weights_K, weighted_average(trees, weights_K)

  def _save(
    self,
    steps: Sequence[int],
    step: int,
    params: Any,
    weights_K: Sequence[float],
    merged: Any,
    describe: Callable[..., Metadata],
  ) -> None:
    """Saves a merge before its newest source is.

    Killed in between, the run saves the same again.
    """
    leaves = {"params": describe_leaves(params)}
    newest = Checkpoint(
      step_path(self.workdir, step),
      presentable(f"{self.workdir}@{step}"),
      describe(step=step, leaves=leaves),
    )
    sources = [*open_steps(self.workdir, steps), newest]
    method, known = "uniform", {}
    if self.config.how == "search":
      method, known = "quadratic", {"trials": self.config.trials}
    provenance = Provenance(method, weights_K, parameters=known)
    folder = self.workdir / NAME
    save_merged(folder / str(step), merged, sources, provenance, overwrite=True)
    if self.config.save == "last":
      run_id = newest.metadata.run_id
      on_first_process(lambda: _remove_others(folder, str(step), run_id))


def _remove_others(folder: epath.Path, kept: str, run_id: str) -> None:
  """Removes the run's merges at other steps, and nothing else."""
  for path in folder.iterdir():
    name, going = path.name.removesuffix(_GOING), path.name.endswith(_GOING)
    if not name.isdecimal() or path.name == kept:
      continue
    if not going and _is_of(path, run_id) and not why_not_a_checkpoint(path):
      path = path.rename(path.with_name(f"{name}{_GOING}"))
      going = True
    if going:  # perhaps since this was killed
      path.rmtree()


def _is_of(path: epath.Path, run_id: str) -> bool:
  """Says whether a run has saved this merge at the step that it is named by."""
  try:
    metadata = read_metadata(path)
  except InputError:
    return False
  return (metadata.run_id, str(metadata.step)) == (run_id, path.name)
