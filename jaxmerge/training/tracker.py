"""Trackers show a run while it trains: their records, and those of a run.

What is logged here is for the eye: numbers that a run must repeat are in
metrics.jsonl, and no tracker can end a run.
"""

import contextlib
import dataclasses
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from etils import epath

from jaxmerge.config_fields import nested
from jaxmerge.registry import Registry

# Names in trackers of what has another one in metrics.jsonl and in speeds.
_NAMES = {
  "validation_loss": "eval/loss",
  "tokens_per_second": "speed/tokens_per_second",
  "mfu": "speed/mfu",
  "data_wait": "speed/data_wait",
  "device_memory": "memory/device_gib",
  "device_memory_limit": "memory/device_limit_gib",
  "host_memory": "memory/host_gib",
}


def tracked_name(name: str) -> str:
  """The name in trackers, which show names by the group before the "/"."""
  if name in _NAMES:
    return _NAMES[name]
  if "|" in name:  # a task's, see metrics.SCORED
    return f"tasks/{name.replace('|', ' ')}"
  if name.startswith("merged_"):
    return f"merged/{name.removeprefix('merged_')}"
  return f"{'eval' if name.endswith('_loss') else 'train'}/{name}"


class TrackedRun(NamedTuple):
  """Describes a run to a tracker.

  Attributes:
    id: of letters, digits, ".", "_" and "-"; the same when the run goes on.
    name: for people: that of its workdir.
    config: all keys, in sections.
    step: the last one behind which it goes on. What was logged of later ones
      before it was stopped will be logged again.
  """

  id: str
  name: str
  config: Mapping[str, Any]
  workdir: epath.Path
  step: int


class Tracker(Protocol):
  """Takes the numbers of a run, in the order of its steps."""

  def log(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    """Logs values by their tracked_name, with their step.

    What can be kept from being lost when the process is killed is by then.
    """

  def close(self) -> None:
    """Ends the tracker's part of the run, however that has ended."""


@dataclasses.dataclass(frozen=True)
class TrackerRecord:
  """Describes a tracker to a run.

  Attributes:
    name: in config.trackers.
    summary: one line.
    open: begins, or goes on with, what the tracker has of a run.
    package: that `open` imports, and jaxmerge has an extra of that name for.
  """

  name: str
  summary: str
  open: Callable[[TrackedRun], Tracker]
  package: str = ""


TRACKERS: Registry[TrackerRecord] = Registry(
  "config.trackers", "jaxmerge.training.trackers"
)


def tracker_problems(names: Iterable[str], prefix: str) -> list[str]:
  """Names the packages that trackers need and that are not installed."""
  packages = {n: TRACKERS[n].package for n in names if n in TRACKERS}
  return [
    f"{prefix}trackers: {name} needs the package {package} (jaxmerge's extra "
    f"{package!r}): pip install {package}"
    for name, package in packages.items()
    if package and not _is_installed(package)
  ]


def _is_installed(package: str) -> bool:
  # A folder of that name, as wandb leaves where it runs, is no package.
  spec = importlib.util.find_spec(package)
  return spec is not None and spec.origin is not None


class Trackers:
  """The trackers of a run; one that fails is told of once and left out.

  Args:
    names: of TRACKERS.
    run_id: of run.json.
    config: all its keys, flat.
    step: as TrackedRun's.
    tell: told of a failure.
  """

  def __init__(
    self,
    names: Iterable[str],
    *,
    run_id: str,
    config: Mapping[str, Any],
    workdir: epath.Path,
    step: int,
    tell: Callable[[str], None],
  ):
    self._tell = tell
    self._open: dict[str, Tracker] = {}
    name = workdir.name
    run = TrackedRun(
      # The workdir's name too: runs that differ in speed alone have one run_id.
      id="-".join([*re.findall(r"[\w.-]+", name, re.ASCII), run_id]),
      name=name,
      config=nested(config),
      workdir=workdir,
      step=step,
    )
    for name in names:
      with self._left_out_if_it_fails(name):
        self._open[name] = TRACKERS[name].open(run)

  def log(
    self,
    records: Sequence[Mapping[str, float]],
    speeds: Mapping[str, float],
  ) -> None:
    """Logs records of metrics.jsonl, and speeds with the last of them."""
    values = [*map(dict, records)]
    values[-1] |= speeds
    rows = [
      (int(v.pop("step")), {tracked_name(n): x for n, x in v.items()})
      for v in values
    ]
    for name, tracker in [*self._open.items()]:
      with self._left_out_if_it_fails(name):
        tracker.log(rows)

  def close(self) -> None:
    for name, tracker in [*self._open.items()]:
      with self._left_out_if_it_fails(name):
        tracker.close()
    self._open = {}

  @contextlib.contextmanager
  def _left_out_if_it_fails(self, name: str) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # noqa: BLE001  (a service may raise anything)
      self._open.pop(name, None)
      why = " ".join(str(error).split()) or type(error).__name__
      self._tell(f"tracker {name} has failed, the run goes on without: {why}")
