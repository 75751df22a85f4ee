"""The study of a search: what it is for, where it lies, running it."""

from collections.abc import Sequence
from typing import Any

from etils import epath
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from jaxmerge.bayesopt.limits import Limits
from jaxmerge.bayesopt.study import FAILURE, find_study
from jaxmerge.checkpoints.merged import identity
from jaxmerge.checkpoints.trajectory import Checkpoint
from jaxmerge.data.heldout import WINDOWS
from jaxmerge.errors import InputError
from jaxmerge.evaluation import weight_search
from jaxmerge.evaluation.config import SearchConfig
from jaxmerge.evaluation.held_out_splits import Scorer
from jaxmerge.evaluation.objective import Domain, MergedLoss, weights_of
from jaxmerge.reporting import table
from jaxmerge.training.loop import Progress


def _fingerprint(
  config: SearchConfig, checkpoints: Sequence[Checkpoint]
) -> dict[str, Any]:
  """What tells a search from others, but for its weights and its corpus."""
  return {
    "early_stop": config.early_stop,
    "held_out": WINDOWS,
    "search_sequences": config.search_sequences,
    **({"seq_len": config.seq_len} if config.seq_len else {}),
    "inputs": [identity(checkpoint) for checkpoint in checkpoints],
  }


def find_own_study(
  config: SearchConfig,
  workdir: epath.Path,
  checkpoints: Sequence[Checkpoint],
  domain: Domain,
) -> Study | None:
  """The study to go on with, if there is one; InputError for another's."""
  weights = weight_search.fingerprint_of(
    domain,
    seed=config.seed,
    acquisitions=tuple(config.acquisitions),
    use_gradients=config.use_gradients,
    starts=tuple(config.initial_weights),
  )
  study = find_study(
    study_address(config, workdir),
    config.study_name,
    fingerprint={**weights, **_fingerprint(config, checkpoints)},
    described=_described(workdir, checkpoints),
    unknown=("corpus",),
  )
  if study is not None:
    weight_search.check_trials(study, domain)
  return study


def open_own_study(
  config: SearchConfig,
  workdir: epath.Path,
  checkpoints: Sequence[Checkpoint],
  domain: Domain,
  scorer: Scorer,
) -> Study:
  """Opens or goes on with the study; see weight_search.open_weight_study."""
  source = config.data.source or checkpoints[-1].metadata.data["source"]
  corpus = scorer.corpus.fingerprint
  return weight_search.open_weight_study(
    study_address(config, workdir),
    config.study_name,
    domain,
    seed=config.seed,
    acquisitions=tuple(config.acquisitions),
    use_gradients=config.use_gradients,
    starts=tuple(config.initial_weights),
    num_trials=config.num_trials,
    fingerprint={**_fingerprint(config, checkpoints), "corpus": corpus},
    described={
      **_described(workdir, checkpoints),
      "corpus": f"{source}, {corpus[:12]}",
    },
  )


def _described(
  workdir: epath.Path, checkpoints: Sequence[Checkpoint]
) -> dict[str, str]:
  """What the hashes of the inputs stand for."""
  inputs = ", ".join(checkpoint.name for checkpoint in checkpoints)
  if {c.path.parent for c in checkpoints} == {workdir / "checkpoints"}:
    inputs = "steps " + ", ".join(str(c.metadata.step) for c in checkpoints)
  return {"inputs": inputs}


def study_address(config: SearchConfig, workdir: epath.Path) -> str:
  own = workdir / "search" / config.study_name / "study.journal"
  return config.storage or str(own)


def run_trials(
  study: Study,
  config: SearchConfig,
  merged: MergedLoss,
  domain: Domain,
  progress: Progress,
) -> FrozenTrial:
  """Runs what is left of the study's budget; the trial that was chosen."""

  def show(trial: FrozenTrial) -> None:
    done = len(weight_search.ended(study, config.num_trials))
    best = weight_search.lowest(study, config.num_trials)
    note = "no trial has a loss yet"
    if best is not None:
      weights = weights_of(best)
      note = f"best {best.value:.4f} at {table.all_weights(weights)}"
    if trial.state == TrialState.FAIL:
      note = f"trial {trial.number} failed: {trial.user_attrs[FAILURE]}; {note}"
    progress("search", done, config.num_trials, note)

  ending = weight_search.run_weight_study(
    study,
    merged,
    domain,
    num_trials=config.num_trials,
    limits=Limits(config.max_seconds or None, config.max_tokens or None),
    use_gradients=config.use_gradients,
    early_stop=config.early_stop,
    on_trial=show,
  )
  if ending != "done":
    left = config.num_trials - len(
      weight_search.ended(study, config.num_trials)
    )
    progress(
      "search",
      0,
      0,
      f"config.max_{ending} is used up with {left} trials left; type the same "
      "command with a larger one to go on",
    )
  best = weight_search.choose(
    study, domain, config.num_trials, config.use_gradients
  )
  if best is None:
    raise InputError(
      f"no trial of the search {config.study_name!r} has a loss; each one's "
      "reason is its user attribute 'failure' in the study"
    )
  return best
