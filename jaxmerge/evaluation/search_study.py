"""Finds, opens and runs the study of a search."""

from collections.abc import Sequence
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt.study.scheduler import Budget
from jaxmerge.bayesopt.study.study import FAILURE, find_study
from jaxmerge.checkpoints.inputs import PARAMS
from jaxmerge.checkpoints.merged import identity as identity_of
from jaxmerge.config_fields import identity as keys_of
from jaxmerge.data.heldout import WINDOWS
from jaxmerge.errors import InputError
from jaxmerge.evaluation import weight_search
from jaxmerge.evaluation.evaluator import DEFAULT_EVALUATOR, Opened
from jaxmerge.evaluation.losses import Losses
from jaxmerge.evaluation.objective import WEIGHTS
from jaxmerge.evaluation.score import Score, noun
from jaxmerge.evaluation.search_plan import Prepared
from jaxmerge.evaluation.weight_search import Choice
from jaxmerge.merging.resident import open_trees
from jaxmerge.parallel.distributed import on_every_process
from jaxmerge.parallel.exchange import check_same
from jaxmerge.progress import Progress
from jaxmerge.simplex import labels

# Told where no trial keeps to the limits of its tasks.
NOTHING_KEPT = (
  "no merge that was tried keeps every task within config.task_tolerance of "
  "the best checkpoint"
)


def _asked(ready: Prepared, items: Opened | None = None) -> dict[str, Any]:
  """The study's place and identity; of its corpus where items are open."""
  name, setting = ready.evaluator.name, ready.setting
  knobs = {f"evaluator.{k}": v for k, v in keys_of(setting.knobs).items()}
  identity = {
    **ready.search.identity,
    **({"evaluator": name, **knobs} if name != DEFAULT_EVALUATOR else {}),
    **(ready.goal.identity if ready.goal else {}),
    "early_stop": ready.search.early_stop,
    "held_out": WINDOWS,
    **_sequences(ready),
    **({"seq_len": setting.seq_len} if setting.seq_len else {}),
    "inputs": [identity_of(checkpoint) for checkpoint in ready.checkpoints],
  }
  inputs = ", ".join(checkpoint.name for checkpoint in ready.checkpoints)
  own = ready.places.workdir / "checkpoints"
  if all(c.path.parent == own and c.item == PARAMS for c in ready.checkpoints):
    inputs = "steps " + ", ".join(map(str, ready.search.domain.steps))
  described = {"inputs": inputs}
  if items is not None:
    identity["corpus"] = items.content
    described["corpus"] = items.source
  return {
    "storage": ready.places.study,
    "name": ready.places.study_name,
    "identity": identity,
    "direction": ready.evaluator.direction,
    "described": described,
  }


def _sequences(ready: Prepared) -> dict[str, int]:
  """The number of sequences in a trial, of held-out text."""
  if ready.goal is not None and not ready.goal.held_out:
    return {}
  return {"search_sequences": ready.search_sequences}


def find(ready: Prepared) -> Study | None:
  """The study to go on with, if there is one; InputError for another's."""
  study = find_study(**_asked(ready), unknown=("corpus",))
  if study is not None:
    weight_search.check_trials(study, ready.search.domain)
  return study


def is_of(ready: Prepared) -> bool:
  """Says whether there is a study of this name, made by this very search."""
  try:
    return find(ready) is not None
  except InputError:  # told when it is opened
    return False


def open_losses(ready: Prepared, progress: Progress) -> Losses:
  """Prepares the items to score and loads the trees, in every process."""
  items = on_every_process(
    lambda: ready.evaluator.open(
      ready.setting, lambda text: progress.note("data", text)
    )
  )
  check_same(lambda: _asked(ready, items)["identity"])
  where = ready.setting.shardings
  return on_every_process(
    lambda: Losses(
      ready, items, open_trees(ready.checkpoints, where, ready.place.where)
    )
  )


def open_own(ready: Prepared, items: Opened) -> Study:
  """Opens or goes on with the study; see weight_search.open_weight_study."""
  asked = _asked(ready, items)
  return weight_search.open_weight_study(search=ready.search, **asked)


def forward_passes(trials: Sequence[FrozenTrial], whole: Score) -> int:
  """Forward passes over the search split that trials cost, rounded up.

  A trial that was stopped early counts as one.

  Args:
    trials: that have ended.
    whole: the score of a model on all of the split.
  """
  tokens = sum(int(trial.user_attrs.get("tokens", 0)) for trial in trials)
  return max(len(trials), -(-tokens // max(whole.tokens, 1)))


def run_trials(
  study: Study,
  ready: Prepared,
  losses: Losses,
  limits: Budget,
  progress: Progress,
) -> Choice:
  """Runs what is left of the budget; returns what the method recommends."""
  search, word = ready.search, noun(ready.evaluator.direction)

  def show(trial: FrozenTrial) -> None:
    found = search.findings(study)
    parts = [f"no trial has a {word} yet"]
    if (best := found.best_observed) is not None:
      weights = {int(s): w for s, w in best.user_attrs[WEIGHTS].items()}
      told = f"best {best.value:.4f} of trial {best.number}"
      parts = [told, labels.all_weights(weights)]
    if trial.state == TrialState.FAIL:
      failure = f"trial {trial.number} failed: {trial.user_attrs[FAILURE]}"
      parts.insert(1, failure)
    note = "; ".join(parts)
    progress.stage("search", len(found.trials), search.num_trials, note)

  ending = weight_search.run_weight_study(
    study,
    losses.merged,
    search,
    limits=limits,
    on_trial=show,
    task_limits=losses.limits,
  )
  left = search.num_trials - len(search.findings(study).trials)
  if ending == "converged":
    told = f"{search.method.title} has converged with {left} trials left"
    progress.note("search", told)
  elif ending != "done":
    progress.note(
      "search",
      f"config.max_{ending} is used up with {left} trials left; type the same "
      "command with a larger one to go on",
    )
  best = weight_search.choose(study, search)
  if best is None:
    raise InputError(
      f"no trial of the search {ready.places.study_name!r} has a {word}; each "
      "one's reason is its user attribute 'failure' in the study"
    )
  if not search.findings(study).has_feasible:
    progress.note(
      "search", f"{NOTHING_KEPT}: the last checkpoint alone is taken"
    )
  return best
