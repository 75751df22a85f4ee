"""Text of an evaluation: a table a task, and what its numbers show."""

import math
from collections.abc import Sequence

from jaxmerge.evaluation.task_config import ACC, ACC_NORM, GOLD
from jaxmerge.evaluation.task_tables import Evaluation, Table
from jaxmerge.evaluation.tasks.config import HELD_OUT
from jaxmerge.evaluation.trajectory import (
  Noise,
  Trajectory,
  lowered,
  noises,
)

_MARK = "*"
_SEVERAL = 3  # checkpoints, from which on noise is spoken of
# A cell of a table: what stands above it, and its own text.
_Cell = tuple[str, str]


def tables_text(tables: Sequence[Table], split: str) -> str:
  """All tables, with an empty line between them."""
  return "\n\n".join(_table_text(t, split, len(tables)) for t in tables)


def _table_text(table: Table, split: str, count: int) -> str:
  is_text = table.name.partition("/")[0] == HELD_OUT
  title = f"{split} split" if is_text else table.name
  if is_text and count > 1:
    title = f"{table.name}, {title}"
  rows = [_cells(row, count > 1) for row in table.rows]
  names = [name for name, _ in rows[0]]
  lines = [(title, *names)]
  lines += [
    (row.name, *(text for _, text in cells))
    for row, cells in zip(table.rows, rows, strict=True)
  ]
  return "\n".join([*_aligned(lines), *_said(table, count)])


def _cells(row: Evaluation, has_more: bool) -> list[_Cell]:
  cells = [
    _number(row.score.unit, row.score.mean),
    _number("stderr", row.stderr),
  ]
  cells += [_number(unit, value) for unit, value in row.score.extras.items()]
  cells += _against(row)
  if has_more:
    mark = _MARK if row.is_significant else " "
    cells.append(("p (Holm)", _p(row.adjusted) + mark))
  else:
    name, text = cells[-1]
    cells[-1] = name, text + (_MARK if row.is_significant else " ")
  if row.metric == ACC:
    test = row.mcnemar
    cells.append(("McNemar p", _p(test.p_value) if test else ""))
    norm, gold = row.by(ACC_NORM), row.by(GOLD)
    cells.append(_number(ACC_NORM, norm.score.mean))
    cells.append(_number(gold.score.unit, gold.score.mean))
    cells += _against(gold)
  return cells


def _number(name: str, value: float) -> _Cell:
  return name, f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"


def _against(row: Evaluation) -> list[_Cell]:
  return [
    ("vs first", f"{row.delta:+.4f}"),
    ("paired stderr", f"{row.delta_stderr:.4f}"),
    ("p", _p(row.p_value)),
  ]


def _p(value: float) -> str:
  if math.isnan(value):
    return ""
  return f"{value:.3f}" if value >= 0.0005 else "<.001"


def _said(table: Table, count: int) -> list[str]:
  """Lines below a table."""
  told = f"{table.num_items:,} items in {table.num_clusters:,} clusters"
  if math.isfinite(table.detectable):
    unit = table.scores.first.unit
    told += (
      f"; a true difference of {table.detectable:.4f} {unit} is found four "
      "times in five"
    )
  lines = [told]
  if any(row.is_significant for row in table.rows):
    over = f" by Holm over {count} tables" if count > 1 else ""
    test = "Student's t on clusters"
    if table.rows[-1].mcnemar and table.num_items == table.num_clusters:
      test = "the larger p of Student's t and McNemar"
    lines.append(f"{_MARK} p < .05{over} ({test})")
  return [*lines, *table.scores.notes]


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
  """Columns: the first to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return [
    "  ".join(
      [
        first.ljust(widths[0]),
        *(c.rjust(max(w, 6)) for c, w in zip(cells, widths[1:], strict=True)),
      ]
    ).rstrip()
    for first, *cells in lines
  ]


def trajectories_text(
  found: Sequence[Trajectory], tables: Sequence[Table]
) -> str:
  """Says how noisy each score is along each run, and which to search on."""
  parts = [_noise_text(each, noises(each, tables)) for each in found]
  less = [
    f"{name}: the noise of {_metric(noise)} is {ratio:.2f} of that of the run"
    for name, noise, ratio in lowered(found, tables)
  ]
  return "\n\n".join(filter(None, [*parts, "\n".join(less)]))


def _noise_text(trajectory: Trajectory, found: Sequence[Noise]) -> str:
  count = len(trajectory.steps)
  if not found and count < _SEVERAL:
    return ""  # two steps are compared, not followed
  if not found:
    return (
      f"{trajectory.name}: {count} checkpoints are too few to tell which tasks "
      "are noisy"
    )
  lines: list[Sequence[str]] = [
    (
      f"{trajectory.name}, {count} checkpoints",
      f"noise (last {found[0].last})",
      "signal",
      "signal / noise",
    )
  ]
  for each in found:
    clear = "  worth searching on" if each.is_clear else ""
    lines.append(
      (
        _metric(each),
        f"{each.noise:.2%}",
        f"{each.signal:.2%}",
        f"{each.ratio:.1f}",
        clear,
      )
    )
  lines[0] = [*lines[0], ""]
  return "\n".join(_aligned(lines))


def _metric(noise: Noise) -> str:
  named = () if noise.metric == noise.unit else (noise.metric,)
  return " ".join([noise.task, *named, f"({noise.unit})"])
