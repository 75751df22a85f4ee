"""Runs a shared study with Optuna: all private names of it in use.

Optuna's public calls run a study alone: `optimize`, or `ask` and `tell`. Here
many processes share one, and each finishes a dead one's trial under its own
number, which `ask` never gives out again. That takes the storage's methods,
which are public (BaseStorage), but not the way to them:

- `Study._storage`. `create_study` may wrap the storage that it is given, and
  `optuna.storages.get_storage` is documented as internal. A sampler, which
  notes what it has proposed, is given nothing but the study.
- `FrozenTrial._trial_id`, which those methods take. The public way by the
  trial's number asks the storage twice for each.
- `Study._thread_local`. `ask` forgets the trials that samplers read before;
  a trial of our own choice does not pass through `ask`.
"""

from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial


def storage_of(study: Study) -> BaseStorage:
  """The storage that a study reads and writes."""
  return study._storage


def id_of(trial: FrozenTrial) -> int:
  """The number of a trial in its storage, not that in its study."""
  return trial._trial_id


def read_trials(study: Study) -> list[FrozenTrial]:
  """All trials as the storage has them; samplers read them anew, too."""
  study._thread_local.cached_all_trials = None
  return study.get_trials(deepcopy=False)
