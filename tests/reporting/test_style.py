"""Figures: valid PNGs of a sane size, same data same bytes, nothing ignored."""

import dataclasses
import io
import struct
import subprocess
import sys
from collections.abc import Callable

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from jaxmerge.reporting import (
  figures,
  posterior_figures,
  search_figures,
  style,
)
from jaxmerge.reporting.posterior_figures import Posterior
from jaxmerge.reporting.results import Point
from jaxmerge.simplex import points
from jaxmerge.simplex.bounds import Bounds

LAMBDA_M = np.linspace(0.0, 1.0, 51)
LINE = Posterior(
  np.stack([1 - LAMBDA_M, LAMBDA_M], axis=1),
  1.198 + 0.23 * (LAMBDA_M - 0.65) ** 2,
  0.002 + 0.004 * LAMBDA_M,
)
GRID_Mx3 = 0.8 * points.grid(3, 66) + np.array([0.0, 0.0, 0.2])
POINTS = [Point(750, 3_072_000, 1.2225), Point(900, 3_686_400, 1.1887)]

Draw = Callable[..., bytes]
# Each figure of a search over two checkpoints and one over three.
DRAW: dict[str, Draw] = {
  "training_curve": lambda two, three: figures.training_curve(
    POINTS, POINTS, two
  ),
  "posterior": lambda two, three: posterior_figures.pair(LINE, two, Bounds()),
  "convergence": lambda two, three: search_figures.convergence(two),
  "baselines": lambda two, three: figures.baselines(two),
  "ternary": lambda two, three: posterior_figures.ternary(
    Posterior(GRID_Mx3, 1.2 + GRID_Mx3[:, 0], GRID_Mx3[:, 1]),
    three,
    Bounds(0.2),
  ),
  "slices": lambda two, three: posterior_figures.slices([LINE, LINE], two),
  "hedge": lambda two, three: search_figures.hedge(three),
  "calibration": lambda two, three: search_figures.calibration(three),
}
WITH_TRIALS = ["posterior", "convergence", "ternary", "hedge", "calibration"]


@pytest.mark.parametrize("name", DRAW)
def test_a_valid_png_of_a_sane_size(results, of_three, name):
  image = DRAW[name](results, of_three)
  width, height = struct.unpack(">II", image[16:24])
  assert width == 1152
  assert 300 <= height <= 1400
  pixels = matplotlib.image.imread(io.BytesIO(image))
  assert pixels.shape[:2] == (height, width)
  # Something is drawn, and paper stays white: most of it but under bars.
  assert (
    (0.3 if name == "hedge" else 0.5)
    < (pixels[:, :, :3] > 0.99).all(axis=2).mean()
    < 0.99
  )


@pytest.mark.parametrize("name", DRAW)
def test_same_data_same_bytes_whatever_the_settings(results, of_three, name):
  before = dict(matplotlib.rcParams)
  first = DRAW[name](results, of_three)
  with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):
    second = DRAW[name](results, of_three)
  assert first == second
  assert b"Software" not in first
  assert b"tIME" not in first
  assert dict(matplotlib.rcParams) == before


def test_pyplot_and_jax_are_not_imported():
  code = (
    "import sys\n"
    "import jaxmerge.reporting.figures, jaxmerge.reporting.search_figures\n"
    "import jaxmerge.reporting.page, jaxmerge.reporting.posterior_figures\n"
    "heavy = {'matplotlib.pyplot', 'jax', 'optuna', 'orbax', 'gpjax'}\n"
    "print(sorted(heavy & set(sys.modules)))\n"
  )
  run = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert run.stdout == "[]\n"


def _of_newcomers(trials):
  """EI and PI under names that nobody here knows."""
  names = {"ei": "kg", "pi": "entropy"}
  return [
    trial._replace(
      asked_by=names.get(trial.asked_by, trial.asked_by),
      odds={names.get(name, name): odds for name, odds in trial.odds.items()},
    )
    for trial in trials
  ]


@pytest.mark.parametrize("name", WITH_TRIALS)
def test_an_acquisition_that_is_new_here_is_drawn_and_named(
  drawn, results, of_three, name
):
  both = [
    dataclasses.replace(found, trials=_of_newcomers(found.trials))
    for found in (results, of_three)
  ]
  DRAW[name](*both)
  (legend,) = drawn[-1].legends
  names = {text.get_text() for text in legend.get_texts()}
  assert {"kg", "entropy"} <= names
  assert not {"EI", "PI"} & names
  markers = {
    line.get_label(): line.get_marker()
    for axes in drawn[-1].axes
    for line in axes.lines
  }
  # In the order of their names.
  assert (markers["entropy"], markers["kg"]) == ("X", "p")


def test_marks_are_in_one_order_and_no_two_are_alike(three):
  known = style.marks(three)
  assert list(known) == ["start", "ei", "pi", "ucb", "thompson", "explore"]
  marks = style.marks([*three, *_of_newcomers(three)])
  assert list(marks) == [*known, "entropy", "kg"]
  assert len({mark[:2] for mark in marks.values()}) == 8
  # What only has odds is named too.
  assert "kg" in style.marks(_of_newcomers(three[4:5]))


def test_a_label_is_in_the_legend_once_and_many_take_two_rows(drawn):
  heights = []
  for count in (8, 9):
    with style.figure(7.2, 3.0) as figure:
      for axes in figure.subplots(1, 2):
        for n in range(count):
          axes.plot([0, 1], [n, n], label=f"name {n}")
      style.legend_above(figure)
      style.png(figure)
    (legend,) = drawn[-1].legends
    assert len(legend.get_texts()) == count
    heights.append(legend.get_window_extent().height)
    assert legend.get_window_extent().width < figure.bbox.width
  assert heights[1] > 1.5 * heights[0]


def test_labels_are_spread_by_least_squares():
  wanted_N = np.array([0.5, 0.5, 0.1, 0.52])
  placed_N = style.spread(wanted_N, 0.1, 0.0, 1.0)
  np.testing.assert_allclose(placed_N, [0.40667, 0.50667, 0.1, 0.60667], 1e-4)
  assert len(style.spread(np.array([]), 0.1, 0.0, 1.0)) == 0
  # Too many for the gap: they fill the room and keep their order.
  full_N = style.spread(np.full(11, 0.5), 0.5, 0.0, 1.0)
  np.testing.assert_allclose(full_N, np.linspace(0, 1, 11), atol=1e-12)
