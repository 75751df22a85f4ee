"""Start-up of a job of several processes, and what they tell each other.

Process 0 alone talks to studies and writes outputs; programs of JAX and saves
of Orbax are called by all. Whatever a process raises reaches the others as a
status, before anything that they would wait for.
"""

import contextlib
import functools
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from jaxmerge.errors import Damaged, Diverged, InputError, Problems
from jaxmerge.parallel import clusters
from jaxmerge.parallel.exchange import (
  alone,
  broadcast_text,
  gather_texts,
  is_job,
)
from jaxmerge.redaction import presentable

_T = TypeVar("_T")
# What the environment may say instead of these seconds.
_JOIN = "JAXMERGE_JOIN_SECONDS"
_HEARTBEAT = "JAXMERGE_HEARTBEAT_SECONDS"
_SHUTDOWN = "JAXMERGE_SHUTDOWN_SECONDS"
_SECONDS: Mapping[str, int] = {_JOIN: 300, _HEARTBEAT: 100, _SHUTDOWN: 300}
# JAX's own timeout would end the process with a stack trace.
_LATER = 3600
# While process 0 merges, others on a CPU wait; XLA gives up after 30 minutes.
_PATIENCE = "--xla_cpu_collective_timeout_seconds"
_PATIENT = 30 * 24 * 3600
# The others of a job that has failed come as soon, or never.
_TOGETHER = 20
_ELSEWHERE = "process 0 of the job has ended and says why"


def init_distributed(flags: Mapping[str, str] | None = None) -> None:
  """Joins the job's other processes, when there are any to join.

  To be called before anything touches a backend. Cloud TPU, Slurm, Open MPI and
  Kubernetes are recognised; elsewhere flags or the environment say where
  process 0 is: see clusters.find_job. Where not all have come in time, this
  process ends with one message and exit code 2.

  Args:
    flags: as typed, of clusters.FLAGS.

  Raises:
    InputError: lists what is wrong with the flags and the environment.
  """
  if jax.distributed.is_initialized():
    return
  problems = Problems()
  job = problems(lambda: clusters.find_job(flags or {}, os.environ))
  for name in _SECONDS:
    problems(functools.partial(_seconds, name))
  problems.check()
  if job is None:
    return
  _be_patient()
  # On CPUs programs that run at once would mix up what they tell each other.
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  print(f"waiting for {job}", file=sys.stderr, flush=True)
  wait = _seconds(_JOIN)
  late = (
    f"{job}: not all came within {wait} s ({_JOIN}); start each with "
    "a number of its own, where it can reach the address of process 0"
  )
  with _at_most(wait, [late]):
    try:
      jax.distributed.initialize(
        **job.arguments,
        initialization_timeout=wait + _LATER,
        heartbeat_timeout_seconds=_seconds(_HEARTBEAT),
        shutdown_timeout_seconds=_seconds(_SHUTDOWN),
      )
    except (RuntimeError, ValueError, OSError) as error:
      reason = str(error).partition("\n")[0]
      raise InputError(f"{job} cannot be joined: {reason}") from error
    # Connects all, while none has anything else to do.
    multihost_utils.sync_global_devices("joined")


def _be_patient() -> None:
  """Lets programs of CPUs wait for the first process as long as it takes.

  The TPU's library reads the flags too, and may not know this one.
  """
  on_tpu = "TPU_ML_PLATFORM" in os.environ
  if on_tpu and jax.config.read("jax_platforms") != "cpu":
    return
  given = os.environ.get("XLA_FLAGS", "")
  if _PATIENCE not in given:
    os.environ["XLA_FLAGS"] = f"{given} {_PATIENCE}={_PATIENT}".strip()


def _seconds(name: str) -> int:
  given = os.environ.get(name, str(_SECONDS[name]))
  if not given.isdecimal() or not int(given):
    raise InputError(f"{name} must be a whole number above 0, not {given!r}")
  return int(given)


@contextlib.contextmanager
def _at_most(seconds: float, problems: Sequence[str]) -> Iterator[None]:
  """Ends the process where a block that may hang takes longer; exit code 2."""

  def end() -> None:
    text = "".join(f"\n  {presentable(problem)}" for problem in problems)
    print(f"jaxmerge: error:{text}", file=sys.stderr, flush=True)
    os._exit(2)

  timer = threading.Timer(seconds, end)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def leave(exit_code: int, error: Exception | None = None) -> None:
  """Ends a job that has failed, in seconds.

  Where the others end too this returns, else the process ends at once: they
  hear of it by the lost connection, and a traceback tells the error.
  """
  if not jax.distributed.is_initialized():
    return
  sys.stdout.flush()
  ending = threading.Thread(target=jax.distributed.shutdown, daemon=True)
  ending.start()
  ending.join(_TOGETHER)
  if ending.is_alive():
    if error is not None:
      traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(exit_code)


def is_first_process() -> bool:
  return jax.process_index() == 0


# Exceptions that are the same in all processes; of others they get a text.
_TOLD: Mapping[str, type[Exception]] = {
  kind.__name__: kind for kind in (InputError, Damaged, Diverged)
}


def _said(error: BaseException, why: str = "") -> str:
  """Tells the other processes of an error, or `why` instead of its text."""
  name, [first, *_] = type(error).__name__, [*str(error).splitlines(), ""]
  if name not in _TOLD:
    first = f"process {jax.process_index()}: {name}: {first}"
    name = InputError.__name__
  problems = [why] if why else getattr(error, "problems", [first])
  return json.dumps({"kind": name, "problems": problems})


def _raise_said(text: str) -> None:
  """Raises what `_said` says; "" is no error."""
  if not text:
    return
  said = json.loads(text)
  kind, problems = _TOLD[said["kind"]], said["problems"]
  if issubclass(kind, InputError):
    raise kind(problems)
  raise kind(problems[0].removeprefix("the run has diverged: "))


def on_first_process(action: Callable[[], _T]) -> _T | None:
  """Acts in the first process; every process goes on after it.

  Returns the action's value, None in the other processes. What the action
  raises, the first process raises, and the others InputError or Diverged.
  """
  return Team().lead(action)


def on_every_process(action: Callable[[], _T]) -> _T:
  """Acts in each process; all of them go on after it, or none does.

  Raises:
    InputError: in all, with the problems of the first process that failed, and
      Damaged or Diverged where its is. What is none of these its own process
      raises.
  """
  if not is_job():
    return action()
  raised: Exception | None = None
  try:
    found = action()
  except Exception as error:  # noqa: BLE001  (the others must hear of any)
    raised = error
  mine = "" if raised is None else _said(raised)
  late = json.loads(mine)["problems"] if mine else ()
  with contextlib.ExitStack() as stack:
    if mine:  # others may wait in a program that this process has left
      stack.enter_context(_at_most(_seconds(_HEARTBEAT), late))
    said = gather_texts(mine)
  if raised is not None and not isinstance(raised, InputError):
    raise raised
  for text in said:
    _raise_said(text)
  return found


class Team:
  """Work of all processes, at the word of the first.

  In a job of one process it is plain calls.
  """

  def __init__(self) -> None:
    self._actions: dict[str, Callable[..., Any]] = {}
    self._has_failed = False  # and all know it

  def add(self, name: str, action: Callable[..., Any]) -> None:
    """Registers what `do` calls, in every process."""
    self._actions[name] = action

  def do(self, name: str, *values: Any) -> Any:
    """Calls an action in all processes; returns what it gives in this one.

    To be called by the first process, in what it leads.

    Args:
      name: of the action.
      values: its arguments, of JSON; numbers arrive with all of their bits.
    """
    if jax.process_count() == 1:
      return self._actions[name](*values)
    with alone(False):
      return self._act(broadcast_text(json.dumps([name, *values])))

  def _act(self, told: str) -> Any:
    name, *values = json.loads(told)
    try:
      return on_every_process(lambda: self._actions[name](*values))
    except BaseException:
      self._has_failed = True
      raise

  def lead(self, work: Callable[[], _T]) -> _T | None:
    """Works in the first process, while the others do what it says.

    Returns what the work gives, None in the other processes. What it raises,
    the first process raises, and the others InputError or Diverged. In the
    work all else here and in `exchange` is as in a job of one process.
    """
    if not is_job():
      return work()
    if not is_first_process():
      while (told := broadcast_text()).startswith("["):
        self._act(told)
      _raise_said(told)
      return None
    try:
      with alone(True):
        found = work()
    except BaseException as error:
      if not self._has_failed:
        broadcast_text(_said(error, _ELSEWHERE))
      raise
    broadcast_text()
    return found


def check_single_process(verb: str) -> None:
  """Refuses a job of several processes for a verb that works in one."""
  if is_job():
    raise InputError(
      f"{verb} runs in one process, not in {jax.process_count()}: in a job run "
      "pretrain, search and evaluate, one after the other"
    )


@contextlib.contextmanager
def held_by_first(
  held: contextlib.AbstractContextManager[Any],
) -> Iterator[str]:
  """A context that the first process is in, while all work.

  Yields, in all, the text of what it yields. All go on when it has ended.
  """
  with contextlib.ExitStack() as stack:
    found = on_first_process(lambda: stack.enter_context(held))
    yield broadcast_text(str(found))
    on_first_process(stack.close)
