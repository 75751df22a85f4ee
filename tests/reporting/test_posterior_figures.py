"""Lines, triangles and slices: every trial in its place, nothing ignored."""

import dataclasses

import numpy as np
import pytest

from jaxmerge.reporting.posterior_figures import (
  Posterior,
  pair,
  slices,
  ternary,
)
from jaxmerge.reporting.results import Results
from jaxmerge.simplex import points
from jaxmerge.simplex.bounds import Bounds

ALPHA = 0.2
FREE, BOUND = Bounds(), Bounds(ALPHA)
WEIGHTS_Mx3 = 0.8 * points.grid(3, 66) + np.array([0.0, 0.0, ALPHA])
MEAN_M = 1.2 + ((WEIGHTS_Mx3 - [0.1, 0.3, 0.6]) ** 2).sum(axis=1)
STD_M = 0.001 + 0.01 * WEIGHTS_Mx3[:, 0]
SHARE_M = np.linspace(0, 1, 21)
GRID = Posterior(WEIGHTS_Mx3, MEAN_M, STD_M)
LAMBDA_M = np.linspace(0.0, 1.0, 51)
LINE = Posterior(
  np.stack([1 - LAMBDA_M, LAMBDA_M], axis=1),
  1.198 + 0.23 * (LAMBDA_M - 0.65) ** 2,
  0.002 + 0.004 * LAMBDA_M,
)


@pytest.fixture
def draw_pair(results):
  def draw(posterior=LINE, bounds=FREE, **changes) -> bytes:
    return pair(posterior, dataclasses.replace(results, **changes), bounds)

  return draw


@pytest.fixture
def draw_ternary(of_three):
  def draw(posterior=GRID, bounds=BOUND, **changes) -> bytes:
    return ternary(posterior, dataclasses.replace(of_three, **changes), bounds)

  return draw


def _slice(count: int, chosen: float) -> Posterior:
  """The same for each checkpoint."""
  weights_MxK = np.repeat(SHARE_M[:, None], count, axis=1)
  return Posterior(weights_MxK, 1.2 + (SHARE_M - chosen) ** 2, 0.01 * SHARE_M)


def test_every_argument_of_the_pair_shows(draw_pair, trials):
  def changed(**changes) -> bytes:
    return draw_pair(trials=[*trials[:-1], trials[-1]._replace(**changes)])

  images = [
    draw_pair(),
    draw_pair(LINE._replace(weights_MxK=LINE.weights_MxK**2)),
    draw_pair(LINE._replace(mean_M=LINE.mean_M + 0.001)),
    draw_pair(LINE._replace(std_M=2 * LINE.std_M)),
    draw_pair(bounds=Bounds(0.2)),
    draw_pair(bounds=Bounds(0.0, 0.3)),
    draw_pair(best=3),
    draw_pair(unit="u"),
    changed(asked_by="ei"),
    changed(stderr=0.01),
    changed(number=9),
    changed(failure="out of memory"),
  ]
  assert len(set(images)) == len(images)


def test_the_band_covers_95_percent_on_both_sides(draw_pair, drawn):
  draw_pair()
  edge = drawn[-1].axes[0].collections[0].get_paths()[0].vertices
  middle = edge[edge[:, 0] == LAMBDA_M[25]][:, 1]
  np.testing.assert_allclose(
    sorted(middle), LINE.mean_M[25] + LINE.std_M[25] * np.array([-1.96, 1.96])
  )


def test_of_a_crowd_the_best_so_far_are_numbered(draw_pair, trials, drawn):
  crowd = [trials[4]._replace(number=n) for n in range(6, 66)]
  draw_pair(trials=[*trials, *crowd])
  numbers = {text.get_text() for text in drawn[-1].axes[0].texts}
  assert "0" in numbers
  assert "5" not in numbers


def test_every_argument_of_the_triangle_shows(draw_ternary, three):
  def changed(index, **changes) -> bytes:
    trials = [*three]
    trials[index] = three[index]._replace(**changes)
    return draw_ternary(trials=trials)

  images = [
    draw_ternary(),
    draw_ternary(GRID._replace(weights_MxK=WEIGHTS_Mx3[:, [1, 0, 2]])),
    draw_ternary(GRID._replace(mean_M=MEAN_M**2)),
    draw_ternary(GRID._replace(std_M=2 * STD_M)),
    draw_ternary(bounds=Bounds(0.1)),
    draw_ternary(best=4),
    draw_ternary(unit="u"),
    changed(3, weights={450: 0.3, 600: 0.1, 750: 0.6}),
    changed(4, asked_by="ei"),
    changed(7, number=12),
  ]
  assert len(set(images)) == len(images)


def test_corners_are_the_checkpoints_at_their_largest_weight(
  draw_ternary, drawn
):
  draw_ternary()
  axes = drawn[-1].axes[0]
  lines = {line.get_label(): line.get_xydata() for line in axes.lines}
  corners = [[0.5, np.sqrt(0.75)], [1.0, 0.0], [0.0, 0.0]]
  np.testing.assert_allclose(lines["start"], corners, atol=1e-12)
  # (0.1, 0.3, 0.6) is (1, 3, 4) / 8 of the way into the triangle.
  chosen = lines["chosen (trial 3)"]
  np.testing.assert_allclose(
    chosen, [[3 / 8 + 0.5 * 4 / 8, np.sqrt(0.75) * 4 / 8]]
  )
  names = {text.get_text() for text in axes.texts}
  assert {"0.8 of 450,\n0.2 of 750", "step 750"} <= names


def test_of_negative_weights_the_corners_are_those_drawn(draw_ternary, drawn):
  weights_Mx3 = -0.2 + 1.6 * points.grid(3, 66)
  draw_ternary(GRID._replace(weights_MxK=weights_Mx3), Bounds(negative=True))
  axes = drawn[-1].axes[0]
  names = {text.get_text() for text in axes.texts}
  assert "1.4 of 450,\n-0.2 of 600,\n-0.2 of 750" in names
  assert "-0.2 of 450, -0.2 of 600, 1.4 of 750" in names
  # Each checkpoint alone, and the triangle between them.
  unit_3x3 = (np.eye(3) + 0.2) / 1.6
  corners_3x2 = np.array([[0, 0], [1, 0], [0.5, np.sqrt(0.75)]])
  lines = [line.get_xydata() for line in axes.lines]
  dotted = (unit_3x3 @ corners_3x2)[[0, 1, 2, 0]]
  assert any(
    line.shape == dotted.shape and np.allclose(line, dotted) for line in lines
  )


def test_a_band_far_from_all_trials_does_not_flatten_a_pair(draw_pair, drawn):
  lambda_M = np.linspace(-1, 2, 61)
  weights_MxK = np.stack([1 - lambda_M, lambda_M], axis=1)
  mean_M = 1.198 + 0.23 * (lambda_M - 0.65) ** 2
  line = Posterior(weights_MxK, mean_M, 0 * mean_M)
  draw_pair(line, Bounds(negative=True))
  axes = drawn[-1].axes[0]
  assert axes.get_xlim()[0] < -1
  assert axes.get_xlim()[1] > 2
  assert axes.get_ylim()[1] < mean_M.max() - 0.3


def test_trials_without_a_loss_are_not_in_the_triangle(draw_ternary, drawn):
  draw_ternary()
  numbers = {text.get_text() for text in drawn[-1].axes[0].texts}
  assert {"0", "1", "2", "3", "4", "7"} <= numbers
  assert not {"5", "6"} & numbers


def test_a_crowd_of_trials_has_no_numbers(draw_ternary, three, drawn):
  crowd = [three[3]._replace(number=n) for n in range(10, 30)]
  draw_ternary(trials=[*three, *crowd])
  assert "10" not in {text.get_text() for text in drawn[-1].axes[0].texts}


def test_trials_in_one_place_and_a_flat_posterior_are_drawn(
  draw_ternary, three
):
  flat_M = np.full_like(MEAN_M, 1.2)
  assert draw_ternary(Posterior(WEIGHTS_Mx3, flat_M, 0 * STD_M))
  assert draw_ternary(trials=[three[3], three[3]._replace(number=4)])


def test_every_argument_of_the_slices_shows(of_three, three):
  first, *others = (_slice(3, weight) for weight in (0.1, 0.3, 0.6))

  def image(lines=(first, *others), unit="u", **changes) -> bytes:
    chosen = three[3]._replace(**changes)
    row = dataclasses.replace(of_three.merged, weights=chosen.weights)
    rest = chosen.number, 0, None, unit, "minimize", "pair"
    return slices(lines, Results([row], [chosen], *rest))

  images = [
    image(),
    image(others, weights={600: 0.3, 750: 0.6}),
    image(weights={300: 0.1, 600: 0.3, 750: 0.6}),
    image([first._replace(weights_MxK=first.weights_MxK**2), *others]),
    image([first._replace(mean_M=first.mean_M + 0.02), *others]),
    image([first._replace(std_M=0.02 * SHARE_M), *others]),
    image(weights={450: 0.2, 600: 0.2, 750: 0.6}),
    image(loss=1.21),
    image(number=8),
    image(unit="v"),
  ]
  assert len(set(images)) == len(images)


def test_slices_share_the_losses_and_keep_the_heaviest_eight(results, drawn):
  weights = [0.01, 0.2, 0.1, 0.1, 0.1, 0.12, 0.02, 0.13, 0.11, 0.11]
  named = dict(enumerate(weights))
  row = dataclasses.replace(results.merged, weights=named)
  chosen = results.chosen._replace(weights=named, loss=1.2)
  lines = [_slice(10, weight) for weight in weights]
  slices(lines, dataclasses.replace(results, rows=[row], trials=[chosen]))
  panels = drawn[-1].axes
  assert [axes.get_title(loc="left") for axes in panels] == [
    f"step {n}" for n in (1, 2, 3, 4, 5, 7, 8, 9)
  ]
  assert len({axes.get_ylim() for axes in panels}) == 1
  rings = [axes.lines[-1].get_xydata().tolist() for axes in panels]
  assert rings[0] == [[0.2, 1.2]]
  # What is far worse than the rest leaves the axes.
  assert panels[0].get_ylim()[1] < 1.9


def test_of_scores_the_panels_are_upside_down(of_three, mirror, drawn):
  lines = [_slice(3, weight) for weight in (0.1, 0.3, 0.6)]
  slices(lines, of_three)
  upside_down = [line._replace(mean_M=-line.mean_M) for line in lines]
  slices(upside_down, mirror(of_three))
  one, other = (figure.axes[0].get_ylim() for figure in drawn)
  np.testing.assert_allclose(other, [-one[1], -one[0]])


def test_of_scores_the_highest_are_the_darkest(of_three, mirror, drawn):
  ternary(GRID, of_three, BOUND)
  ternary(GRID._replace(mean_M=-GRID.mean_M), mirror(of_three), BOUND)
  one, other = (figure.axes[0].collections[0] for figure in drawn)
  np.testing.assert_allclose(other.levels, -one.levels[::-1])
  np.testing.assert_allclose(other.get_facecolor(), one.get_facecolor()[::-1])
