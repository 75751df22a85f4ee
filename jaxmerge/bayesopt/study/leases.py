"""Leases: which process is at work on which trial of a shared study.

A lease is a system attribute of the trial, under a key of its owner's own. It
is the flag of a mutual exclusion that needs nothing of the storage but that a
write, once made, is seen by every later read: an owner writes its lease, then
reads the trial, and is at work on it only if no other lease is live. Of two
owners, one reads after both have written and sees the other's, so never do
both go ahead; both may step back, and try again after a random pause. The
order of the attributes, which PostgreSQL does not promise, plays no part.

- A waiting trial: the lease, then WAITING -> RUNNING, which succeeds for one
  caller only. The lease comes first, so that a running trial always says whose
  it is; who loses withdraws.
- A running trial whose owners are all dead (RUNNING -> RUNNING would succeed
  for all): the lease, then the read, as above.

An owner wrongly taken for dead, one that stood still for EXPIRY_SECONDS, may
evaluate beside the one that took over. It sees the higher turn before it
finishes, and drops its result; if it stands still again right there, finishing
itself succeeds for one caller only.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from jaxmerge import process_liveness
from jaxmerge.bayesopt.study.optuna_adapter import id_of, storage_of

# One attribute an owner: two that claim at once do not overwrite each other.
LEASE_PREFIX = "lease:"
# A lease on another host is dead when it was not renewed for EXPIRY_SECONDS by
# the clocks of the two hosts; on this host the process is looked up.
HEARTBEAT_SECONDS = 30.0
EXPIRY_SECONDS = 180.0


def _leases(trial: FrozenTrial) -> list[dict[str, Any]]:
  attrs = trial.system_attrs.items()
  return [value for key, value in attrs if key.startswith(LEASE_PREFIX)]


def _other_turns(trial: FrozenTrial) -> list[int]:
  """Turns of other processes' live leases; one's own is free to it again."""

  def is_live(lease: dict[str, Any]) -> bool:
    owner = process_liveness.Owner(*lease["owner"])
    if lease["withdrawn"] or owner == process_liveness.this_process():
      return False
    if process_liveness.is_here(owner):
      return process_liveness.is_alive(owner)
    return time.time() - lease["renewed_at"] < EXPIRY_SECONDS

  return [lease["turn"] for lease in _leases(trial) if is_live(lease)]


def is_held_by_another(trial: FrozenTrial) -> bool:
  """Says whether another living process has a lease on a trial."""
  return bool(_other_turns(trial))


class Held(NamedTuple):
  """This process's lease on one trial; its turn is above all earlier ones."""

  study: Study
  trial_id: int
  turn: int

  def renew(self) -> None:
    """Writes the present time; UpdateFinishedTrialError on a finished trial."""
    self._write(withdrawn=False)

  def withdraw(self) -> None:
    """Leaves the trial to others."""
    with contextlib.suppress(UpdateFinishedTrialError):
      self._write(withdrawn=True)

  def is_taken_over(self) -> bool:
    """Says whether a living process took the trial after this one."""
    return any(turn > self.turn for turn in _other_turns(self.trial()))

  def trial(self) -> FrozenTrial:
    """The trial as the storage has it."""
    return storage_of(self.study).get_trial(self.trial_id)

  def _write(self, *, withdrawn: bool) -> None:
    me = process_liveness.this_process()
    storage_of(self.study).set_trial_system_attr(
      self.trial_id,
      LEASE_PREFIX + ":".join(map(str, me)),
      {
        "owner": list(me),
        "turn": self.turn,
        "renewed_at": time.time(),
        "withdrawn": withdrawn,
      },
    )


def take(study: Study, trial: FrozenTrial) -> Held | None:
  """Writes a lease, which is not yet a claim; None if the trial is finished."""
  turn = 1 + max((lease["turn"] for lease in _leases(trial)), default=0)
  held = Held(study, id_of(trial), turn)
  try:
    held.renew()
  except UpdateFinishedTrialError:
    return None
  return held


def start(held: Held) -> bool:
  """Makes a waiting trial running; if another did, withdraws: False."""
  with contextlib.suppress(UpdateFinishedTrialError):
    storage = storage_of(held.study)
    if storage.set_trial_state_values(held.trial_id, TrialState.RUNNING):
      return True
  held.withdraw()
  return False


def take_over(study: Study, slots: Sequence[FrozenTrial]) -> Held | None:
  """Claims the first running trial that nobody living is at work on."""
  for trial in slots:
    if trial.state != TrialState.RUNNING or is_held_by_another(trial):
      continue
    held = take(study, trial)
    if held is not None:
      now = held.trial()
      if now.state == TrialState.RUNNING and not is_held_by_another(now):
        return held
      held.withdraw()
  return None


@contextlib.contextmanager
def heartbeat(held: Held) -> Iterator[list[str]]:
  """Renews a lease from a thread while the block runs; gives its errors.

  A write that fails must not cost an evaluation of minutes, and the next one
  may succeed. A storage that is gone for good raises when the trial ends.
  """
  errors: list[str] = []
  ended = threading.Event()

  def beat() -> None:
    while not ended.wait(HEARTBEAT_SECONDS):
      try:
        held.renew()
      except UpdateFinishedTrialError:
        return
      except Exception as error:  # noqa: BLE001  (storages raise anything)
        errors.append(f"{type(error).__name__}: {error}")

  thread = threading.Thread(target=beat, name="lease-heartbeat", daemon=True)
  thread.start()
  try:
    yield errors
  finally:
    ended.set()
    thread.join()
