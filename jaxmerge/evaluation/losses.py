"""All that a search measures and saves, done by all processes of a job.

K checkpoints, G groups of parameters with weights of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxmerge.checkpoints.merged import save_merged
from jaxmerge.checkpoints.model_inputs import load_params
from jaxmerge.errors import check
from jaxmerge.evaluation.checkpoint_scores import Limits
from jaxmerge.evaluation.evaluator import Opened
from jaxmerge.evaluation.merged_loss import MergedLoss
from jaxmerge.evaluation.score import Score, WeightedSum
from jaxmerge.evaluation.search_plan import Prepared
from jaxmerge.evaluation.weighted_tasks import WeightedTasks
from jaxmerge.formats.records.provenance import Provenance
from jaxmerge.merging.groups import one_group
from jaxmerge.merging.resident import Trees, Weights
from jaxmerge.parallel.distributed import Team


class Scores(NamedTuple):
  """Scores of one model on both splits."""

  report: Score
  search: Score


class Losses:
  """The means to measure with; choices never see the report split.

  Each process of a job has one. What the first calls, within what `team` leads,
  all do: a model is a merge or a step of the trail.

  Args:
    ready: the search.
    items: to score.
    trees: of the checkpoints to merge.

  Attributes:
    items: as given.
    team: of the job's processes.
    merged: scores merges on the search split, for the trials.
    alone_K: of a search of tasks, by metric the scores of the checkpoints to
      merge on the search split; else empty.
    limits: that tasks must keep to; None: none.

  Raises:
    InputError: the last tree has no finite score, or one has no derivatives.
  """

  def __init__(self, ready: Prepared, items: Opened, trees: Trees):
    self.items = items
    self.team = Team()
    self._ready = ready
    self._trees = trees
    self._report = items.on("report", ready.report_sequences)
    groups = ready.search.domain.groups
    search = items.on("search", ready.search_sequences)
    self.merged = MergedLoss(trees, search, groups, self.team)
    if ready.search.use_gradients or ready.search.use_curvature:
      check(
        f"{problem}: leave it out, or search without derivatives "
        "(config.solver='gp_hedge', not config.use_gradients)"
        for problem in self._derivative_problems()
      )
    self.alone_K: Sequence[Mapping[str, WeightedSum]] = []
    if isinstance(search, WeightedTasks):
      self.alone_K = [search.by_metric(trees[k]) for k in range(len(trees))]
    self.limits: Limits | None = None
    if ready.goal is not None and ready.goal.tolerances:
      alone = [scores[ready.goal.metric] for scores in self.alone_K]
      self.limits = Limits.of(alone, ready.goal)
    self._one_group = one_group(ready.setting.shardings)
    self.team.add("merge", lambda w: self._scores(self._merge(w)))
    self.team.add("merge_on_search", lambda w: self._search(self._merge(w)))
    self.team.add("step", lambda step: self._scores(self._step(step)))
    self.team.add(
      "step_on_report", lambda step: self._report.score(self._step(step))
    )
    self.team.add("gram", trees.gram)
    self.team.add("derivative_problems", self._derivative_problems)
    self.team.add("save", self._save)

  def of_merge(self, weights_GxK: Weights) -> Scores:
    """The scores of a merge; a single row of weights is for all groups."""
    found: Scores = self.team.do("merge", weights_GxK)
    return found

  def of_merge_on_search(self, weights_GxK: Weights) -> Score:
    """The score of a merge on the search split alone."""
    found: Score = self.team.do("merge_on_search", weights_GxK)
    return found

  def of_step(self, step: int) -> Scores:
    """The scores of a checkpoint of the trail."""
    found: Scores = self.team.do("step", step)
    return found

  def of_step_on_report(self, step: int) -> Score:
    """The score of a checkpoint of the trail on the report split alone."""
    found: Score = self.team.do("step_on_report", step)
    return found

  def gram(self) -> np.ndarray:
    """Inner products of the differences of successive checkpoints.

    As resident.Trees.gram; each checkpoint is read once.
    """
    found: np.ndarray = self.team.do("gram")
    return found

  def derivative_problems(self) -> list[str]:
    """Says which checkpoints have no derivatives, as they are not finite."""
    found: list[str] = self.team.do("derivative_problems")
    return found

  def _derivative_problems(self) -> list[str]:
    steps = self._ready.search.domain.steps
    return [
      f"step {steps[k]} has parameters that are not finite"
      for k in self.merged.not_finite()
    ]

  def save(
    self, path: epath.PathLike, weights_GxK: Weights, provenance: Provenance
  ) -> None:
    """Saves a merge, as checkpoints.merged.save_merged; replaces another."""
    self.team.do("save", str(path), weights_GxK, provenance._asdict())

  def _save(
    self, path: str, weights_GxK: Weights, provenance: Mapping[str, Any]
  ) -> None:
    origin = Provenance(**provenance)
    sources = self._ready.checkpoints
    merged = self._merge(weights_GxK)
    save_merged(path, merged, sources, origin, overwrite=True)

  def _merge(self, weights_GxK: Weights) -> Any:
    groups = self._ready.search.domain.groups
    if len(weights_GxK) != len(groups.names_G):
      groups = self._one_group
    return self._trees.average(weights_GxK, groups)

  def _step(self, step: int) -> Any:
    steps = self._ready.search.domain.steps
    if step in steps:
      return self._trees[list(steps).index(step)]
    [found] = [c for c in self._ready.trail if c.metadata.step == step]
    return load_params(found, self._ready.setting.shardings)

  def _search(self, params: Any) -> Score:
    return self.merged.evaluator.score(params)

  def _scores(self, params: Any) -> Scores:
    return Scores(self._report.score(params), self._search(params))
