"""Finds, opens and runs the study of a search."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt.study.budget import Budget
from jaxmerge.bayesopt.study.study import FAILURE, find_study
from jaxmerge.checkpoints.merged import identity as identity_of
from jaxmerge.config_fields import identity as keys_of
from jaxmerge.data.heldout import WINDOWS
from jaxmerge.errors import InputError
from jaxmerge.evaluation import weight_search
from jaxmerge.evaluation.config import SearchConfig
from jaxmerge.evaluation.evaluator import Evaluator, Opened
from jaxmerge.evaluation.objective import WEIGHTS, MergedLoss
from jaxmerge.evaluation.score import noun
from jaxmerge.evaluation.search_plan import Prepared, study_address
from jaxmerge.evaluation.weight_search import Choice
from jaxmerge.merging.resident import open_trees
from jaxmerge.progress import Progress
from jaxmerge.simplex import labels


def _purpose(ready: Prepared) -> tuple[dict[str, Any], dict[str, str]]:
  """The identity of a search but for its corpus; what its hashes mean."""
  config, checkpoints = ready.config, ready.checkpoints
  evaluator = {}
  if config.evaluator != SearchConfig.evaluator:
    knobs = keys_of(config.evaluator_knobs).items()
    evaluator = {
      "evaluator": config.evaluator,
      **{f"evaluator.{name}": value for name, value in knobs},
    }
  found = {
    **ready.search.identity,
    **evaluator,
    "early_stop": config.early_stop,
    "held_out": WINDOWS,
    "search_sequences": config.search_sequences,
    **({"seq_len": config.seq_len} if config.seq_len else {}),
    "inputs": [identity_of(checkpoint) for checkpoint in checkpoints],
  }
  inputs = ", ".join(checkpoint.name for checkpoint in checkpoints)
  if {c.path.parent for c in checkpoints} == {ready.workdir / "checkpoints"}:
    inputs = "steps " + ", ".join(str(c.metadata.step) for c in checkpoints)
  return found, {"inputs": inputs}


def find(ready: Prepared) -> Study | None:
  """The study to go on with, if there is one; InputError for another's."""
  identity, described = _purpose(ready)
  study = find_study(
    study_address(ready.config, ready.workdir),
    ready.config.study_name,
    identity=identity,
    direction=ready.evaluator.direction,
    described=described,
    unknown=("corpus",),
  )
  if study is not None:
    weight_search.check_trials(study, ready.search.domain)
  return study


class Losses(NamedTuple):
  """The means to measure with.

  Attributes:
    items: that are scored.
    merged: scores merges on the search split, on which choices are made.
    report_split: which choices never see.
  """

  items: Opened
  merged: MergedLoss
  report_split: Evaluator


def open_losses(ready: Prepared, progress: Progress) -> Losses:
  """Prepares the items to score and loads the trees."""
  items = ready.evaluator.open(
    ready.setting, lambda text: progress.note("data", text)
  )
  search_split = items.on("search", ready.config.search_sequences)
  report_split = items.on("report", ready.config.report_sequences)
  domain = ready.search.domain
  trees = open_trees(ready.checkpoints, ready.where, ready.place.where)
  merged = MergedLoss(trees, search_split, domain.groups)
  if ready.search.use_gradients:
    merged.check_differentiable(domain.steps)
  return Losses(items, merged, report_split)


def open_own(ready: Prepared, items: Opened) -> Study:
  """Opens or goes on with the study; see weight_search.open_weight_study."""
  identity, described = _purpose(ready)
  corpus = f"{items.source}, {items.content[:12]}"
  return weight_search.open_weight_study(
    study_address(ready.config, ready.workdir),
    ready.config.study_name,
    ready.search,
    identity={**identity, "corpus": items.content},
    direction=ready.evaluator.direction,
    described={**described, "corpus": corpus},
  )


def run_trials(
  study: Study, ready: Prepared, losses: Losses, progress: Progress
) -> Choice:
  """Runs what is left of the budget; returns what the method recommends."""
  config, search = ready.config, ready.search
  word = noun(ready.evaluator.direction)

  def show(trial: FrozenTrial) -> None:
    found = search.findings(study)
    note = f"no trial has a {word} yet"
    if (best := found.best_observed) is not None:
      weights = {int(s): w for s, w in best.user_attrs[WEIGHTS].items()}
      note = f"best {best.value:.4f} at {labels.all_weights(weights)}"
    if trial.state == TrialState.FAIL:
      note = f"trial {trial.number} failed: {trial.user_attrs[FAILURE]}; {note}"
    progress.stage("search", len(found.trials), config.num_trials, note)

  ending = weight_search.run_weight_study(
    study,
    losses.merged,
    search,
    limits=Budget(config.max_seconds or None, config.max_tokens or None),
    early_stop=config.early_stop,
    on_trial=show,
  )
  left = config.num_trials - len(search.findings(study).trials)
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
      f"no trial of the search {config.study_name!r} has a {word}; each one's "
      "reason is its user attribute 'failure' in the study"
    )
  return best


@contextlib.contextmanager
def resumable(study: Study, num_trials: int) -> Iterator[None]:
  """Notes on an interrupt how far the study is."""
  try:
    yield
  except KeyboardInterrupt as error:
    done = len(weight_search.ended(study, num_trials))
    error.add_note(
      f"{done} of {num_trials} trials are finished; the same command goes on "
      "from there"
    )
    raise
