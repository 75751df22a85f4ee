"""Figures: valid PNGs of a sane size, same data same bytes, nothing ignored."""

import dataclasses
import io
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from jaxmerge.bayesopt import simplex
from jaxmerge.bayesopt.reach import Reach
from jaxmerge.errors import InputError
from jaxmerge.reporting import (
  figures,
  hedge_figures,
  search_figures,
  simplex_figures,
  style,
)
from jaxmerge.reporting.figures import Merged, Point

LAMBDA_M = np.linspace(0.0, 1.0, 51)
MEAN_M = 1.198 + 0.23 * (LAMBDA_M - 0.65) ** 2
STD_M = 0.002 + 0.004 * LAMBDA_M
GRID_Mx3 = 0.8 * simplex.grid(3, 66) + np.array([0.0, 0.0, 0.2])
MERGED = Merged(7500, 1.1954, "merged 600 + 750")
CHECKPOINTS = [
  Point(600, 6000, 1.2431),
  Point(750, 7500, 1.2225),
  Point(900, 9000, 1.1887),
]
TRAINING = [
  Point(step, step * 10, 1.1 + 4 * float(np.exp(-step / 60)))
  for step in range(10, 901, 10)
]

Draw = Callable[[Path], None]


@pytest.fixture
def draw(trials, three, results) -> dict[str, Draw]:
  return {
    "training_curve": lambda path: figures.training_curve(
      path, TRAINING, CHECKPOINTS, MERGED, 1203
    ),
    "posterior": lambda path: search_figures.posterior(
      path, LAMBDA_M, MEAN_M, STD_M, trials, Reach(), 4
    ),
    "convergence": lambda path: search_figures.convergence(
      path, trials, {"last": 1.2247, "uniform": 1.2027}
    ),
    "baselines": lambda path: figures.baselines(path, results.rows),
    "ternary": lambda path: simplex_figures.ternary(
      path, GRID_Mx3, 1.2 + GRID_Mx3[:, 0], GRID_Mx3[:, 1], three, Reach(0.2), 3
    ),
    "slices": lambda path: simplex_figures.slices(
      path,
      [
        simplex_figures.Slice(step, LAMBDA_M, MEAN_M, STD_M, 0.1 * step)
        for step in range(1, 7)
      ],
      1.2,
      3,
    ),
    "hedge": lambda path: hedge_figures.hedge(path, three),
    "calibration": lambda path: hedge_figures.calibration(path, three),
  }


def _bytes(draw_it: Draw, folder: Path) -> bytes:
  draw_it(folder / "figure.png")
  return (folder / "figure.png").read_bytes()


NAMES = [
  "training_curve",
  "posterior",
  "convergence",
  "baselines",
  "ternary",
  "slices",
  "hedge",
  "calibration",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_valid_png_of_a_sane_size(tmp_path, draw, name):
  image = _bytes(draw[name], tmp_path)
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


@pytest.mark.parametrize("name", NAMES)
def test_same_data_same_bytes_whatever_the_settings(tmp_path, draw, name):
  before = dict(matplotlib.rcParams)
  first = _bytes(draw[name], tmp_path)
  with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):
    second = _bytes(draw[name], tmp_path)
  assert first == second
  assert b"Software" not in first
  assert b"tIME" not in first
  assert dict(matplotlib.rcParams) == before


def test_pyplot_and_jax_are_not_imported():
  code = (
    "import sys\n"
    "import jaxmerge.reporting.figures, jaxmerge.reporting.search_figures\n"
    "import jaxmerge.reporting.report, jaxmerge.reporting.metrics\n"
    "import jaxmerge.reporting.simplex_figures\n"
    "import jaxmerge.reporting.hedge_figures\n"
    "heavy = {'matplotlib.pyplot', 'jax', 'optuna', 'orbax', 'gpjax'}\n"
    "print(sorted(heavy & set(sys.modules)))\n"
  )
  run = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert run.stdout == "[]\n"


def test_every_argument_of_the_training_curve_shows(tmp_path):
  def image(**changes: object) -> bytes:
    arguments = {
      "training": TRAINING,
      "checkpoints": CHECKPOINTS,
      "merged": MERGED,
      "tokens_saved": 1203,
    }
    return _bytes(
      lambda path: figures.training_curve(path, **{**arguments, **changes}),
      tmp_path,
    )

  images = [
    image(),
    image(training=TRAINING[:-20]),
    image(checkpoints=CHECKPOINTS[1:]),
    image(merged=MERGED._replace(loss=1.21)),
    image(merged=MERGED._replace(label="other")),
    image(tokens_saved=None),
  ]
  assert len(set(images)) == len(images)


def test_every_argument_of_the_posterior_shows(tmp_path, trials):
  def image(**changes: object) -> bytes:
    arguments = {
      "lambda_M": LAMBDA_M,
      "mean_M": MEAN_M,
      "std_M": STD_M,
      "trials": trials,
      "reach": Reach(),
      "best": 4,
    }
    return _bytes(
      lambda path: search_figures.posterior(path, **{**arguments, **changes}),
      tmp_path,
    )

  images = [
    image(),
    image(lambda_M=LAMBDA_M**2),
    image(mean_M=MEAN_M + 0.001),
    image(std_M=2 * STD_M),
    image(reach=Reach(0.2)),
    image(reach=Reach(0.0, 0.3)),
    image(best=3),
    image(trials=[*trials[:-1], trials[-1]._replace(asked_by="ei")]),
    image(trials=[*trials[:-1], trials[-1]._replace(stderr=0.01)]),
    image(trials=[*trials[:-1], trials[-1]._replace(number=9)]),
  ]
  assert len(set(images)) == len(images)


def test_the_band_covers_95_percent_on_both_sides(tmp_path, trials, drawn):
  search_figures.posterior(
    tmp_path / "p.png", LAMBDA_M, MEAN_M, STD_M, trials, Reach(), 4
  )
  edge = drawn[-1].axes[0].collections[0].get_paths()[0].vertices
  middle = edge[edge[:, 0] == LAMBDA_M[25]][:, 1]
  np.testing.assert_allclose(
    sorted(middle), MEAN_M[25] + STD_M[25] * np.array([-1.96, 1.96])
  )


def test_the_arrow_ends_where_the_run_is_as_good(tmp_path, drawn):
  figures.training_curve(
    tmp_path / "t.png", TRAINING, CHECKPOINTS, MERGED, 1203
  )
  texts = {text.get_text(): text for text in drawn[-1].axes[1].texts}
  assert texts[""].xy == (8.703, 1.1954)
  assert texts[""].get_position() == (7.5, 1.1954)
  assert {"1,203 tokens saved", "step 750", "step 900"} <= set(texts)


def test_far_values_do_not_flatten_the_rest(tmp_path, trials, results, drawn):
  far = [*trials, trials[-1]._replace(number=6, loss=50.0)]
  search_figures.convergence(tmp_path / "c.png", far, {"last": 1.2247})
  assert drawn[-1].axes[0].get_ylim()[1] < 1.3
  rows = [*results.rows]
  rows[1] = dataclasses.replace(rows[1], report_delta_vs_last=3.0)
  figures.baselines(tmp_path / "b.png", rows)
  assert drawn[-1].axes[0].get_xlim()[1] < 0.1
  # The fall from the initial loss stays out of the training curve.
  figures.training_curve(
    tmp_path / "t.png", TRAINING, CHECKPOINTS, MERGED, None
  )
  low, high = drawn[-1].axes[0].get_ylim()
  assert low < 1.1
  assert high < TRAINING[0].loss


def test_bad_arguments(tmp_path, trials):
  path = tmp_path / "f.png"
  with pytest.raises(InputError, match="no training loss"):
    figures.training_curve(path, [], CHECKPOINTS, MERGED, None)
  with pytest.raises(InputError, match="no checkpoint"):
    figures.training_curve(path, TRAINING, [], MERGED, None)
  with pytest.raises(InputError, match="no row"):
    figures.baselines(path, [])
  with pytest.raises(InputError, match="no trial"):
    search_figures.convergence(path, [], {})
  stray = [trials[0]._replace(asked_by="chance")]
  with pytest.raises(InputError, match='trial 0 was asked by "chance"'):
    search_figures.convergence(path, stray, {})
  with pytest.raises(InputError, match="the chosen trial"):
    search_figures.posterior(path, LAMBDA_M, MEAN_M, STD_M, trials, Reach(), 17)
  three = [trials[0]._replace(weights={1: 0.2, 2: 0.3, 3: 0.5})]
  with pytest.raises(InputError, match="two steps"):
    search_figures.posterior(path, LAMBDA_M, MEAN_M, STD_M, three, Reach(), 0)
  with pytest.raises(InputError, match="cannot write"):
    search_figures.convergence(tmp_path / "no" / "f.png", trials, {})
  assert list(tmp_path.iterdir()) == []


def test_many_trials_in_one_place_and_three_checkpoints(tmp_path, trials):
  crowd = [trials[4]._replace(number=n) for n in range(60)]
  search_figures.posterior(
    tmp_path / "p.png", LAMBDA_M, MEAN_M, STD_M, [*trials, *crowd], Reach(), 4
  )
  three = [trial._replace(weights={1: 0.2, 2: 0.3, 3: 0.5}) for trial in trials]
  search_figures.convergence(tmp_path / "c.png", three, {"last": 1.2})
  assert len(list(tmp_path.iterdir())) == 2


def test_a_label_is_in_the_legend_once_and_many_take_two_rows(drawn, tmp_path):
  heights = []
  for count in (8, 9):
    with style.figure(tmp_path / "f.png", 7.2, 3.0) as figure:
      for axes in figure.subplots(1, 2):
        for n in range(count):
          axes.plot([0, 1], [n, n], label=f"name {n}")
      style.legend_above(figure)
    (legend,) = drawn[-1].legends
    assert len(legend.get_texts()) == count
    heights.append(legend.get_window_extent().height)
    assert legend.get_window_extent().width < figure.bbox.width
  assert heights[1] > 1.5 * heights[0]


def test_labels_are_spread_by_least_squares():
  wanted_N = np.array([0.5, 0.5, 0.1, 0.52])
  placed_N = style.spread(wanted_N, 0.1, 0.0, 1.0)
  np.testing.assert_allclose(placed_N, [0.40667, 0.50667, 0.1, 0.60667], 1e-4)
  # Too many for the gap: they fill the room and keep their order.
  full_N = style.spread(np.full(11, 0.5), 0.5, 0.0, 1.0)
  np.testing.assert_allclose(full_N, np.linspace(0, 1, 11), atol=1e-12)


def test_smoothing_keeps_length_and_straight_lines():
  line_N = np.linspace(3.0, 1.0, 500)
  np.testing.assert_allclose(style.smooth(line_N), line_N, rtol=1e-12)
  noise_N = np.random.default_rng(0).standard_normal(500)
  assert style.smooth(noise_N).std() < 0.5 * noise_N.std()
  assert len(style.smooth(np.array([1.0]))) == 1
