"""The files of an evaluation: its tables, its items and its curves.

N items, K inputs.
"""

import io
import math
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxmerge.evaluation import trajectory as trails
from jaxmerge.evaluation.evaluators.heldout_loss import BITS
from jaxmerge.evaluation.score import Score
from jaxmerge.evaluation.score_cache import npz
from jaxmerge.evaluation.task_tables import Table
from jaxmerge.evaluation.tasks.config import HELD_OUT
from jaxmerge.evaluation.trajectory import Trajectory
from jaxmerge.files import make_directory, write_bytes, write_json
from jaxmerge.reading import read_file, read_json
from jaxmerge.reporting.trajectory_figure import curves

FILE, ITEMS, FIGURE = "evaluation.json", "evaluation.npz", "evaluation.png"
# Keys of a table of held-out text alone, which has no name in the file.
_COUNTED = {"sequences", "tokens"}, {"documents", "bytes"}
_TRAJECTORIES = "trajectories"


def place_problems(folder: epath.Path) -> list[str]:
  """Names files of an evaluation's names that are something else."""
  there = [folder / n for n in (FILE, ITEMS, FIGURE) if (folder / n).exists()]
  if _is_evaluation(folder / FILE) or _is_begun(folder):
    there = [file for file in there if not file.is_file()]
  return [
    f"{file} is not an earlier evaluation; it is left as it is"
    for file in there
  ]


def _is_evaluation(file: epath.Path) -> bool:
  try:
    value = read_json(read_file(file))
  except (OSError, ValueError):
    return False
  if not isinstance(value, dict):
    return False
  keys = value.keys() - {_TRAJECTORIES}
  forms = [{"split", "rows", *counted} for counted in _COUNTED]
  return keys in [*forms, {"split", "tasks"}]


def _is_begun(folder: epath.Path) -> bool:
  """Says whether `write` was killed before the file that is its last."""
  if (folder / FILE).exists():
    return False
  try:
    with zipfile.ZipFile(io.BytesIO(read_file(folder / ITEMS))) as arrays:
      ends = {name.rpartition("|")[2] for name in arrays.namelist()}
  except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
    return False
  ours = ("inputs", "clusters", "hashes", "values", "weights")
  return {f"{name}.npy" for name in ours} <= ends


def write(
  output: epath.PathLike,
  split: str,
  tables: Sequence[Table],
  found: Sequence[Trajectory],
) -> None:
  """Writes all files of an evaluation; those of an earlier one are gone."""
  files = {ITEMS: npz(_items(tables))}
  if found:
    files[FIGURE] = curves(found, tables)
  value: dict[str, Any] = {"split": split}
  if [table.name for table in tables] == [HELD_OUT]:
    value |= _counts(tables[0].scores.first)
    value["rows"] = [row.as_json() for row in tables[0].rows]
  else:
    value["tasks"] = {table.name: _as_json(table) for table in tables}
  if found:
    value[_TRAJECTORIES] = [trails.as_json(each, tables) for each in found]
  folder = make_directory(output)
  for name, content in files.items():
    write_bytes(folder / name, content)
  if not found:
    (folder / FIGURE).unlink(missing_ok=True)
  write_json(folder / FILE, _finite(value))


def _finite(value: Any) -> Any:
  """The value with null for what is no number in JSON: NaN and infinity."""
  if isinstance(value, dict):
    return {key: _finite(each) for key, each in value.items()}
  if isinstance(value, list):
    return [_finite(each) for each in value]
  is_number = not isinstance(value, float) or math.isfinite(value)
  return value if is_number else None


def _as_json(table: Table) -> dict[str, Any]:
  is_text = table.scores.logs_KxNxC is None
  return {
    **(_counts(table.scores.first) if is_text else {}),
    "items": table.num_items,
    "clusters": table.num_clusters,
    "metric": table.rows[0].metric,
    "detectable": table.detectable,
    "notes": list(table.scores.notes),
    "rows": [row.as_json() for row in table.rows],
  }


def _counts(score: Score) -> dict[str, int]:
  """The size of what all inputs are scored on."""
  items = len(score.values_N)
  if score.unit == BITS:
    return {"documents": items, "bytes": int(score.weights_N.sum())}
  return {"sequences": items, "tokens": score.tokens}


def _items(tables: Sequence[Table]) -> dict[str, np.ndarray]:
  """Arrays by "table|what": values of each metric KxN, logs KxNxC, hashes."""
  found = {"inputs": np.array([row.name for row in tables[0].rows])}
  for known in (table.scores for table in tables):
    arrays = {
      "clusters": known.first.clusters_N,
      "hashes": np.array(known.hashes_N),
    }
    for metric, scores in known.metrics.items():
      arrays[f"{metric}|values"] = np.stack([s.values_N for s in scores])
      arrays[f"{metric}|weights"] = scores[0].weights_N
    if known.logs_KxNxC is not None:
      arrays["log_likelihoods"] = known.logs_KxNxC
    found |= {f"{known.name}|{what}": array for what, array in arrays.items()}
  return found
