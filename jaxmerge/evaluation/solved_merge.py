"""The weights of a merge by Newton's method, in a study that is not kept.

K checkpoints, G groups of parameters with weights of their own.
"""

from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial

from jaxmerge.bayesopt.study.scheduler import Budget
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.errors import check
from jaxmerge.evaluation.domain import Domain, groups_of_models
from jaxmerge.evaluation.evaluator import Evaluator
from jaxmerge.evaluation.merged_loss import MergedLoss
from jaxmerge.evaluation.search_method import SEARCH_METHODS, Expense, Task
from jaxmerge.evaluation.weight_search import (
  WeightSearch,
  choose,
  open_weight_study,
  run_weight_study,
)
from jaxmerge.merging.resident import Trees
from jaxmerge.parallel.distributed import Team
from jaxmerge.progress import Progress
from jaxmerge.simplex.bounds import Bounds

_METHOD = "newton"
# More than all moves and their halves.
_TRIALS = 16


def expense(
  sources: Sequence[Checkpoint],
  text: str,
  *,
  sequences: int,
  on_devices: bool,
) -> Expense:
  """The expected price of a SolvedMerge.

  Args:
    sources, text: as SolvedMerge.
    sequences: that a merge is scored on.
    on_devices: the trees are there.
  """
  groups = groups_of_models(sources, text)[0].names_G
  method = SEARCH_METHODS[_METHOD]
  task = Task(len(sources), len(groups), sequences, _TRIALS, on_devices)
  return method.expense(task, method.knobs())


class SolvedMerge:
  """Finds weights of groups by the loss of their merges.

  Each process of a job has one; the first calls `weights` within what `team`
  leads.

  Args:
    sources: the K checkpoints, oldest first, of one decoder.
    trees: theirs.
    evaluator: scores merges and has derivatives by their weights.
    text: of the groups, as groups_of takes it.
    negative: weights are from -1 to 2.
    team: of the job's processes.

  Raises:
    InputError: the model has no such groups, or a source holds Inf or NaN.
  """

  def __init__(
    self,
    sources: Sequence[Checkpoint],
    trees: Trees,
    evaluator: Evaluator,
    text: str,
    negative: bool,
    team: Team,
  ):
    groups, coarser = groups_of_models(sources, text)
    self._merged = MergedLoss(trees, evaluator, groups, team)
    steps = range(1, len(sources) + 1)  # those of the inputs may be equal
    check(
      f"{sources[k].name} has parameters that are not finite: leave it out"
      for k in self._merged.not_finite()
    )
    bounds = Bounds(negative=negative)
    domain = Domain(steps, groups, bounds, coarser)
    method = SEARCH_METHODS[_METHOD]
    self._search = WeightSearch(domain, method, method.knobs(), 0, _TRIALS)

  def weights(self, progress: Progress) -> dict[str, list[float]]:
    """The weights of each group, of the best merge that was scored."""

    def show(trial: FrozenTrial) -> None:
      done = trial.number + 1
      loss = f"loss {trial.value:.4f}" if trial.value is not None else ""
      progress.stage(_METHOD, done, _TRIALS, f"trial {trial.number} {loss}")

    search = self._search
    # In memory: a process that is killed leaves nothing behind.
    study = open_weight_study(None, _METHOD, search, identity={})
    run_weight_study(
      study, self._merged, search, limits=Budget(), on_trial=show
    )
    best, found = choose(study, search), search.findings(study)
    assert best is not None, "the last checkpoint alone has a finite loss"
    assert found.best_observed is not None
    progress.note(
      _METHOD,
      f"loss {found.best_observed.value:.4f} on the search split after "
      f"{len(found.trials)} trials, {self._merged.last.mean:.4f} of the latest "
      "input alone",
    )
    domain = search.domain
    rows: Any = domain.weights(best.params)
    return dict(zip(domain.groups.names_G, rows, strict=True))
