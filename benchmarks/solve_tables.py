"""Tables of the cells that solve.py keeps.

C documents.
"""

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.evaluation.score import Score
from jaxmerge.evaluation.statistics import Estimate, difference
from jaxmerge.model.loss import UNIT

OPTIMUM = "shared optimum on the simplex"


class Case(NamedTuple):
  """The last `count` checkpoints of a run and a size of its search split."""

  run: str
  count: int
  sequences: int


Cell = Mapping[str, Any]


def by_document(score: Score) -> dict[str, list[float]]:
  """Sums of each document: all that a clustered error needs."""
  _, cluster_N = np.unique(score.clusters_N, return_inverse=True)
  return {
    "values": np.bincount(cluster_N, score.values_N).tolist(),
    "weights": np.bincount(cluster_N, score.weights_N).tolist(),
  }


def _score_of(cell: Cell) -> Score:
  """The report split's score, a document an item."""
  values_C, weights_C = map(np.array, cell["report"].values())
  every_C = np.arange(len(values_C))
  return Score(values_C, weights_C, every_C, UNIT, "minimize", 0)


class Tables(NamedTuple):
  """Prints what is there of each case and method."""

  cells: Mapping[tuple[Case, str], Cell]
  runs: Sequence[str]
  methods: Sequence[str]

  def gap(self, case: Case, method: str) -> Estimate | None:
    """Millinats/token above the shared optimum; None where one is missing."""
    if not {(case, method), (case, OPTIMUM)} <= self.cells.keys():
      return None
    pair = (_score_of(self.cells[case, name]) for name in (method, OPTIMUM))
    found = difference(*pair)
    return found._replace(mean=1e3 * found.mean, stderr=1e3 * found.stderr)

  def print_runs(self, count: int, sequences: int) -> None:
    """A row a method, a column a run."""
    cases = [Case(run, count, sequences) for run in self.runs]
    rows = []
    for method in self.methods:
      there = [cell for case in cases if (cell := self._cell(case, method))]
      if not there:
        continue
      gaps = [self.gap(case, method) for case in cases]
      texts = [f"{g.mean:+.1f} ± {g.stderr:.1f}" if g else "" for g in gaps]
      if method == OPTIMUM:
        known = [self._cell(case, method) for case in cases]
        texts = [f"{x['report_loss']:.4f}" if x else "" for x in known]
      passes = [round(cell["passes"]) for cell in there]
      least, most = min(passes), max(passes)
      spent = f"{least}" if least == most else f"{least} to {most}"
      rows.append([method, *texts, spent])
    title = f"{count} checkpoints, {sequences} search sequences"
    _print(title, ["", *self.runs, "passes"], rows)

  def print_means(self, counts: Sequence[int], sequences: int) -> None:
    """Means over the runs, where all are there."""
    rows = []
    for method in self.methods:
      texts = []
      for count in counts:
        cases = [Case(run, count, sequences) for run in self.runs]
        gaps = [self.gap(case, method) for case in cases]
        means = [gap.mean for gap in gaps if gap]
        is_whole = len(means) == len(gaps)
        texts.append(f"{statistics.mean(means):+.1f}" if is_whole else "")
      if any(texts) and method != OPTIMUM:
        rows.append([method, *texts])
    title = f"Mean of the runs, {sequences} search sequences"
    _print(title, ["", *(f"{count} checkpoints" for count in counts)], rows)

  def print_goals(
    self, goal: Collection[str], solved: Collection[str], sequences: int
  ) -> None:
    """Says whether the goals are reached, on 6 checkpoints and more.

    Args:
      goal: methods that are to be so good.
      solved: methods that are never to be worse than the shared optimum.
      sequences: of the search split.
    """
    found = {
      (case, method): gap
      for case, method in self.cells
      if case.sequences == sequences and (gap := self.gap(case, method))
    }
    for name in goal:
      many = [key for key in found if key[1] == name and key[0].count >= 6]
      means = [found[key].mean for key in many]
      if not means:
        continue
      passes = max(self.cells[key]["passes"] for key in many)
      print(
        f"- {name}, {sequences} search sequences: {statistics.mean(means):+.1f}"
        f" on average (goal: -8), {max(means):+.1f} at worst (-4), "
        f"{passes:.0f} passes at most (25), {len(means)} cases of 6 or 9"
      )
    worse = [
      f"{method}, {case.count} checkpoints of {case.run}, "
      f"{gap.mean:+.1f} ± {gap.stderr:.1f}"
      for (case, method), gap in found.items()
      if method in solved and gap.mean > gap.stderr + self._unsure(case)
    ]
    several = [key for key in found if key[1] in solved]
    print(
      f"- worse than the shared optimum by more than a standard error and what "
      f"the optimum itself may lack, {sequences} search sequences, of "
      f"{len(several)} cases: {'; '.join(worse) or 'none'}"
    )

  def _unsure(self, case: Case) -> float:
    """Millinats/token that the shared optimum may lack on the search split."""
    return 1e3 * float(self.cells[case, OPTIMUM]["gap"])

  def _cell(self, case: Case, method: str) -> Cell | None:
    return self.cells.get((case, method))


def _print(title: str, head: list[str], rows: list[list[str]]) -> None:
  if not rows:
    return
  print(f"\n### {title}\n")
  print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
  for row in rows:
    print("| " + " | ".join(row) + " |")
