"""What a search will do and how long it may take, for --dry_run."""

import math
from collections.abc import Sequence
from typing import Any

from etils import epath
from optuna.study import Study

from jaxmerge.bayesopt.surrogate import expected_seconds
from jaxmerge.checkpoints.metadata import abstract_params
from jaxmerge.checkpoints.trajectory import Checkpoint
from jaxmerge.evaluation import weight_search
from jaxmerge.evaluation.config import SearchConfig
from jaxmerge.evaluation.cost import trial_seconds
from jaxmerge.evaluation.objective import Domain
from jaxmerge.files import human_bytes
from jaxmerge.merging.resident import Placement
from jaxmerge.parallel.rules import named_leaves


def merged_path(
  config: SearchConfig,
  workdir: epath.Path,
  checkpoints: Sequence[Checkpoint],
) -> epath.Path:
  step = checkpoints[-1].metadata.step
  return workdir / "search" / config.study_name / "merged" / str(step)


def _num_starts(config: SearchConfig, domain: Domain) -> int:
  points = weight_search.unit_starts(
    config.initial_weights, domain, config.num_trials, config.use_gradients
  )
  return len(points)


def seconds_a_trial(
  config: SearchConfig,
  abstract: Any,
  domain: Domain,
  place: Placement,
  tokens: int,
) -> float:
  """Expected seconds of a trial: to merge, to score and to suggest."""
  leaves = named_leaves(abstract).values()
  count, groups = len(domain.steps), len(domain.groups.names_G)
  scoring = trial_seconds(
    parameters=sum(math.prod(leaf.shape) for leaf in leaves),
    tree_bytes=_tree_bytes(abstract),
    count=count,
    tokens=tokens,
    use_gradients=config.use_gradients,
    where=place.where,
  )
  return scoring + expected_seconds(
    groups * count, groups, config.num_trials, config.use_gradients
  )


def _rounded(seconds: float) -> str:
  return f"{seconds:.2f}" if seconds < 10 else f"{seconds:,.0f}"


def _tree_bytes(abstract: Any) -> int:
  leaves = named_leaves(abstract).values()
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def plan(
  config: SearchConfig,
  workdir: epath.Path,
  checkpoints: Sequence[Checkpoint],
  domain: Domain,
  place: Placement,
  seconds: float,
  before: Study | None,
) -> str:
  """What a search will do, a line a fact."""
  size = _tree_bytes(abstract_params(checkpoints[0].metadata))
  count = len(checkpoints)
  done = 0
  if before is not None:
    done = len(weight_search.ended(before, config.num_trials))
  left = config.num_trials - done
  rows = (
    ("merge", ", ".join(c.name for c in checkpoints)),
    (
      "weights",
      f"{len(domain.groups.names_G)} x {count}, the last from "
      f"{config.alpha:g} to {1 + config.beta:g}",
    ),
    (
      "evaluations",
      f"{config.num_trials} by GP-Hedge, the first "
      f"{_num_starts(config, domain)} given"
      + "".join(
        f"; {config.num_trials} by {name}" for name in config.baselines
      ),
    ),
    ("study", f"{done} of {config.num_trials} trials are finished"),
    (
      "time",
      f"about {_rounded(seconds)} s a trial x {left} = "
      f"{_rounded(seconds * left)} s, compiling and baselines apart",
    ),
    ("read", human_bytes(size * count)),
    ("trees", place.where),
    ("memory", f"{human_bytes(place.needed)} for parameters"),
    ("write", f"{merged_path(config, workdir, checkpoints)}"),
    ("report", f"{workdir / config.report_dir}"),
  )
  return "\n".join(f"{name:>16}: {value}" for name, value in rows)
