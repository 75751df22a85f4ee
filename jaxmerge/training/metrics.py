"""metrics.jsonl, the numbers of a run.

It holds only what a second run repeats bit for bit; trackers get speeds too. A
run goes on only behind exactly the lines of the steps that it has saved.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence

from etils import epath

from jaxmerge.errors import InputError
from jaxmerge.files import write_text
from jaxmerge.reading import read_file, read_json
from jaxmerge.training.tracker import Trackers

NAME = "metrics.jsonl"
# Of a saved step.
VALIDATION = "validation_loss"
# Between a task and what it measures: "heldout|nats/token".
SCORED = "|"
_MOST_NAMED = 5


class MetricsWriter:
  """Appends records to `<workdir>/metrics.jsonl`, and shows them to trackers.

  Records after `restored_step` are cut, `cut` of them: they will be written
  again. `digest` is what `sync` gave when that step was saved, "" if not known.
  `start` is the step before the first line. InputError as check_saved.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    restored_step: int,
    digest: str = "",
    start: int = 0,
  ):
    workdir = epath.Path(workdir)
    self._path = workdir / NAME
    kept, rest = check_saved(workdir, restored_step, digest, start)
    self.cut = sum(line.endswith(b"\n") for line in rest)
    if rest:
      write_text(self._path, b"".join(kept).decode())
    self._hash = hashlib.sha256(b"".join(kept))
    self._trackers: Trackers | None = None

  def track(self, trackers: Trackers) -> None:
    """Shows the records to come to trackers, until it is closed."""
    self._trackers = trackers

  def write(
    self,
    records: Sequence[Mapping[str, float]],
    speeds: Mapping[str, float],
  ) -> None:
    """Adds records, each with an integer `step`, in step order.

    Trackers alone are told of `speeds`, those since the last records.
    """
    lines = "".join(
      json.dumps(dict(record), allow_nan=False) + "\n" for record in records
    )
    with self._path.open("a") as file:
      file.write(lines)
    self._hash.update(lines.encode())
    if self._trackers is not None:
      self._trackers.log(records, speeds)

  def sync(self) -> str:
    """Brings the lines to the disk, for a checkpoint; returns their sha256."""
    if "://" not in str(self._path) and self._path.exists():
      with self._path.open("rb") as file:
        os.fsync(file.fileno())
    return self._hash.hexdigest()

  def close(self) -> None:
    if self._trackers is not None:
      self._trackers.close()


def check_saved(
  workdir: epath.PathLike, step: int, digest: str, start: int = 0
) -> tuple[list[bytes], list[bytes]]:
  """The lines of the steps after `start`, up to `step`, and what follows them.

  InputError if they are not all there, or others than those of the digest.
  """
  path = epath.Path(workdir) / NAME
  content = read_file(path, math.inf) if path.exists() else b""
  lines = content.splitlines(keepends=True)
  steps = [_step_of(line) for line in lines]
  wanted = range(start + 1, step + 1)
  problems = [
    f"line {number} is not a record of a step"
    for number, found in enumerate(steps[: len(wanted)], start=1)
    if found is None
  ]
  times = Counter(found for found in steps if found and found <= step)
  missing = [str(i) for i in wanted if not times[i]]
  doubled = [str(i) for i, count in sorted(times.items()) if count > 1]
  if missing:
    problems.append(f"it has no line for {_named(missing)}")
  if doubled:
    problems.append(f"it has two lines or more for {_named(doubled)}")
  if not problems and steps[: len(wanted)] != [*wanted]:
    problems.append("its steps are out of order")
  kept, rest = lines[: len(wanted)], lines[len(wanted) :]
  found = hashlib.sha256(b"".join(kept)).hexdigest()
  if not problems and digest not in ("", found):
    problems.append(f"its lines are not those that step {step} was saved with")
  if problems:
    raise InputError(
      f"{path} does not hold exactly the steps up to {step}, which is saved: "
      f"{'; '.join(problems[:_MOST_NAMED])}; restore it, or begin a new run "
      f"from the parameters with --init_from={path.parent}@{step}"
    )
  return kept, rest


def validation_losses(workdir: epath.PathLike) -> dict[int, float]:
  """Those of metrics.jsonl in nats/token, by the steps that were saved."""
  path = epath.Path(workdir) / NAME
  content = read_file(path, math.inf) if path.exists() else b""
  found = (
    read_json(line)
    for line in content.splitlines()
    if VALIDATION.encode() in line
  )
  return {record["step"]: record[VALIDATION] for record in found}


def _step_of(line: bytes) -> int | None:
  """The step that a whole line is a record of, None where it is none."""
  try:
    record = read_json(line) if line.endswith(b"\n") else None
  except ValueError:
    return None
  if not isinstance(record, dict) or type(record.get("step")) is not int:
    return None
  numbers = [v for v in record.values() if type(v) in (int, float)]
  whole = len(numbers) == len(record) and all(map(math.isfinite, numbers))
  return record["step"] if whole else None


def _named(steps: Sequence[str]) -> str:
  shown = ", ".join(steps[:_MOST_NAMED])
  more = f" and {len(steps) - _MOST_NAMED} more" * (len(steps) > _MOST_NAMED)
  return f"step {shown}{more}"
