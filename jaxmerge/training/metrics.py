"""metrics.jsonl and TensorBoard events of a run.

metrics.jsonl holds only what a second run repeats bit for bit; speeds go to
TensorBoard.
"""

import json
from collections.abc import Mapping, Sequence

from etils import epath
from tensorboardX import SummaryWriter

from jaxmerge.errors import InputError
from jaxmerge.files import write_text


class MetricsWriter:
  """Appends records to `<workdir>/metrics.jsonl` and TensorBoard.

  Args:
    workdir: the run's directory.
    restored_step: records after it are cut: they will be written again.

  Only the first process of a job makes one.
  """

  def __init__(self, workdir: epath.PathLike, restored_step: int):
    workdir = epath.Path(workdir)
    self._path = workdir / "metrics.jsonl"
    _cut_back(self._path, restored_step)
    self._events = SummaryWriter(
      logdir=str(workdir / "tensorboard"), purge_step=restored_step + 1
    )

  def write(
    self,
    records: Sequence[Mapping[str, float]],
    speeds: Mapping[str, float],
  ) -> None:
    """Adds records, each with an integer `step`, in step order."""
    with self._path.open("a") as file:
      file.write("".join(json.dumps(dict(r)) + "\n" for r in records))
    for record in records:
      for name, value in record.items():
        if name != "step":
          self._events.add_scalar(name, value, int(record["step"]))
    for name, value in speeds.items():
      self._events.add_scalar(name, value, int(records[-1]["step"]))
    self._events.flush()

  def close(self) -> None:
    self._events.close()


def _cut_back(path: epath.Path, step: int) -> None:
  """Keeps the whole lines of steps up to `step`."""
  if not path.exists():
    return
  lines = path.read_text().splitlines(keepends=True)
  whole = [line for line in lines if line.endswith("\n")]
  try:
    kept = [line for line in whole if json.loads(line)["step"] <= step]
  except (ValueError, LookupError, TypeError) as error:
    raise InputError(f"{path} is damaged: {error}") from error
  if kept != lines:
    write_text(path, "".join(kept))
