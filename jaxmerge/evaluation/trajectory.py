"""Trajectories: the checkpoints of one run, and the noise of its scores.

P checkpoints of a trajectory, oldest first.
"""

from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.checkpoints.inputs import PARAMS, Checkpoint, each_step
from jaxmerge.checkpoints.model_inputs import open_models
from jaxmerge.errors import InputError, Problems
from jaxmerge.evaluation.score import Score
from jaxmerge.evaluation.task_tables import Table
from jaxmerge.progress import Progress

# The last checkpoints that noise is of (arXiv 2508.13144), though no more than
# half of all, and the fewest of a trajectory whose half says something.
_LAST, _FEWEST = 5, 6
# A task is worth searching on where its score moves this many times the noise.
_CLEAR = 2.0


def open_inputs(inputs: Sequence[str], progress: Progress) -> list[Checkpoint]:
  """Opens inputs; a workdir without a step is all its checkpoints.

  Damaged ones of a workdir are named and left out, as far as they show it
  before their parameters are read, and so are those that only a stop has made.

  Raises:
    InputError: lists what is wrong with those that are named, or no
      checkpoint of a workdir is whole.
  """
  problems = Problems()
  kept: list[str] = []
  for name in inputs:
    steps = each_step(name)
    if steps == [name]:
      kept.append(name)
      continue
    whole = [step for step in steps if _is_whole(step, progress)]
    if not whole:
      problems.add(f"{name}: none of its {len(steps)} checkpoints is whole")
    kept += whole
  opened = problems(lambda: open_models(kept)) if kept or not problems else []
  problems.check()
  return opened or []


def _is_whole(name: str, progress: Progress) -> bool:
  try:
    [checkpoint] = open_models([name])
  except InputError as damage:
    progress.note("evaluate", f"left out: {damage.problems[0]}")
    return False
  return not checkpoint.metadata.temporary


class Trajectory(NamedTuple):
  """Inputs that are checkpoints of one run.

  Attributes:
    name: for people.
    run_id: of the run.
    is_plain: they are the run's own parameters, no averages.
    numbers: of the inputs, by step.
    steps, tokens: of training.
  """

  name: str
  run_id: str
  is_plain: bool
  numbers: tuple[int, ...]
  steps: tuple[int, ...]
  tokens: tuple[int, ...]

  def at(self, steps: Container[int]) -> "Trajectory":
    """Some of its checkpoints."""
    kept = [n for n, step in enumerate(self.steps) if step in steps]
    parts = (self.numbers, self.steps, self.tokens)
    rest = (tuple(part[n] for n in kept) for part in parts)
    return Trajectory(self.name, self.run_id, self.is_plain, *rest)

  @property
  def places(self) -> tuple[int, ...]:
    """Tokens, where they are known, else steps."""
    return self.tokens if self.tokens[-1] else self.steps


def trajectories(checkpoints: Sequence[Checkpoint]) -> list[Trajectory]:
  """Two or more steps of one run each; merges of a run are another one."""
  found: dict[tuple[str, str, str], dict[int, int]] = {}
  for number, checkpoint in enumerate(checkpoints):
    known = checkpoint.metadata
    if known.run_id:
      of_run = known.run_id, known.kind, checkpoint.item
      found.setdefault(of_run, {}).setdefault(known.step, number)
  return [
    _trajectory(checkpoints, [by_step[step] for step in sorted(by_step)])
    for by_step in found.values()
    if len(by_step) > 1
  ]


def _trajectory(
  checkpoints: Sequence[Checkpoint], numbers: Sequence[int]
) -> Trajectory:
  known = [checkpoints[number].metadata for number in numbers]
  first = checkpoints[numbers[0]]
  name = first.name.rpartition("@")[0] or f"run {known[0].run_id[:8]}"
  name += f":{first.item}" * (first.item != PARAMS)
  name += ", merged" * (known[0].kind == "merged")
  return Trajectory(
    name,
    known[0].run_id,
    first.item == PARAMS and known[0].kind != "merged",
    tuple(numbers),
    tuple(each.step for each in known),
    tuple(each.tokens for each in known),
  )


class Noise(NamedTuple):
  """Says how far a score tells the checkpoints of a trajectory apart.

  Attributes:
    task, metric, unit: of the score.
    noise: its standard deviation over the last checkpoints, by its mean.
    signal: its change over the second half of training, by that mean.
    last: how many checkpoints the noise is of.
  """

  task: str
  metric: str
  unit: str
  noise: float
  signal: float
  last: int

  @property
  def ratio(self) -> float:
    """Signal over noise; infinite without noise."""
    if self.noise:
      return self.signal / self.noise
    return np.inf if self.signal else 0.0

  @property
  def is_clear(self) -> bool:
    """Says whether the task is worth searching on."""
    return self.ratio >= _CLEAR


def noises(trajectory: Trajectory, tables: Sequence[Table]) -> list[Noise]:
  """The noise of every score, the clearest first; none of few checkpoints.

  The relative standard deviation over the last five checkpoints (Heineman et
  al. 2025, arXiv 2508.13144), and beside it the change of the score over the
  second half of training, where the learning rate is stable as a rule.
  """
  if len(trajectory.numbers) < _FEWEST:
    return []
  found = [
    _noise(
      trajectory, table.name, metric, [scores[n] for n in trajectory.numbers]
    )
    for table in tables
    for metric, scores in table.scores.metrics.items()
  ]
  return sorted(found, key=lambda each: -each.ratio)


def _noise(
  trajectory: Trajectory, task: str, metric: str, scores: Sequence[Score]
) -> Noise:
  values_P = np.array([score.mean for score in scores])
  last = values_P[-min(_LAST, len(values_P) // 2) :]
  mean = float(np.mean(last))
  places = trajectory.places
  start = next(n for n, at in enumerate(places) if at >= places[-1] / 2)
  by = abs(mean) or 1.0
  return Noise(
    task,
    metric,
    scores[0].unit,
    float(np.std(last, ddof=1)) / by,
    abs(float(values_P[-1] - values_P[start])) / by,
    len(last),
  )


def lowered(
  found: Sequence[Trajectory], tables: Sequence[Table]
) -> list[tuple[str, Noise, float]]:
  """By how much averages lower the noise of a run, at the steps of both.

  Returns:
    The name of a trajectory of averages or merges, the noise of one of its
    scores, and that over the noise of the run's own checkpoints.
  """
  plain = {t.run_id: t for t in found if t.is_plain}
  compared = []
  for averages in (t for t in found if not t.is_plain and t.run_id in plain):
    run = plain[averages.run_id]
    steps = {*run.steps} & {*averages.steps}
    known = {(n.task, n.metric): n.noise for n in noises(run.at(steps), tables)}
    compared += [
      (averages.name, n, n.noise / own)
      for n in noises(averages.at(steps), tables)
      if (own := known[n.task, n.metric])
    ]
  return compared


def as_json(trajectory: Trajectory, tables: Sequence[Table]) -> dict[str, Any]:
  """The curve of every score over tokens, and its noise."""
  curves: dict[str, Any] = {}
  for table in tables:
    rows = [table.rows[number] for number in trajectory.numbers]
    curves[table.name] = {
      metric: {
        "unit": scores[0].unit,
        "values": [row.by(metric).score.mean for row in rows],
        "stderr": [row.by(metric).stderr for row in rows],
      }
      for metric, scores in table.scores.metrics.items()
    }
  return {
    "name": trajectory.name,
    "steps": list(trajectory.steps),
    "tokens": list(trajectory.tokens),
    "curves": curves,
    "noise": [
      {**each._asdict(), "is_clear": each.is_clear}
      for each in noises(trajectory, tables)
    ],
  }
