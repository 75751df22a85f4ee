"""Triangles and slices: every trial in its place, nothing ignored."""

import numpy as np
import pytest

from jaxmerge.bayesopt import simplex
from jaxmerge.bayesopt.reach import Reach
from jaxmerge.errors import InputError
from jaxmerge.reporting.simplex_figures import Slice, slices, ternary

ALPHA = 0.2
WEIGHTS_Mx3 = 0.8 * simplex.grid(3, 66) + np.array([0.0, 0.0, ALPHA])
MEAN_M = 1.2 + ((WEIGHTS_Mx3 - [0.1, 0.3, 0.6]) ** 2).sum(axis=1)
STD_M = 0.001 + 0.01 * WEIGHTS_Mx3[:, 0]
SHARE_M = np.linspace(0, 1, 21)


def _ternary(path, trials, **changes) -> bytes:
  arguments = {
    "weights_Mx3": WEIGHTS_Mx3,
    "mean_M": MEAN_M,
    "std_M": STD_M,
    "trials": trials,
    "reach": Reach(ALPHA),
    "best": 3,
  }
  ternary(path, **{**arguments, **changes})
  return path.read_bytes()


def _slice(step: int, chosen: float) -> Slice:
  return Slice(
    step, SHARE_M, 1.2 + (SHARE_M - chosen) ** 2, 0.01 * SHARE_M, chosen
  )


def test_every_argument_of_the_triangle_shows(tmp_path, three):
  path = tmp_path / "t.png"
  moved = three[3]._replace(weights={450: 0.3, 600: 0.1, 750: 0.6})
  images = [
    _ternary(path, three),
    _ternary(path, three, weights_Mx3=WEIGHTS_Mx3[:, [1, 0, 2]]),
    _ternary(path, three, mean_M=MEAN_M**2),
    _ternary(path, three, std_M=2 * STD_M),
    _ternary(path, three, reach=Reach(0.1)),
    _ternary(path, three, best=4),
    _ternary(path, [*three[:3], moved, *three[4:]]),
    _ternary(path, [*three[:4], three[4]._replace(asked_by="ei"), *three[5:]]),
    _ternary(path, [*three[:7], three[7]._replace(number=12)]),
  ]
  assert len(set(images)) == len(images)


def test_corners_are_the_checkpoints_at_their_largest_weight(
  tmp_path, three, drawn
):
  _ternary(tmp_path / "t.png", three)
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


def test_trials_without_a_loss_are_not_in_the_triangle(tmp_path, three, drawn):
  _ternary(tmp_path / "t.png", three)
  numbers = {text.get_text() for text in drawn[-1].axes[0].texts}
  assert {"0", "1", "2", "3", "4", "7"} <= numbers
  assert not {"5", "6"} & numbers


def test_a_crowd_of_trials_has_no_numbers(tmp_path, three, drawn):
  crowd = [three[3]._replace(number=n) for n in range(10, 30)]
  _ternary(tmp_path / "t.png", [*three, *crowd])
  assert "10" not in {text.get_text() for text in drawn[-1].axes[0].texts}


def test_a_flat_belief_is_drawn_too(tmp_path, three):
  flat_M = np.full_like(MEAN_M, 1.2)
  assert _ternary(tmp_path / "t.png", three, mean_M=flat_M, std_M=0 * STD_M)


def test_bad_triangles(tmp_path, trials, three):
  with pytest.raises(InputError, match="needs three steps, not \\[600, 750\\]"):
    _ternary(tmp_path / "t.png", trials)
  with pytest.raises(InputError, match=r"the chosen trial \(5\) among"):
    _ternary(tmp_path / "t.png", three, best=5)
  assert list(tmp_path.iterdir()) == []


def test_every_argument_of_the_slices_shows(tmp_path):
  def image(lines, loss=1.2, best=7) -> bytes:
    slices(tmp_path / "s.png", lines, loss, best)
    return (tmp_path / "s.png").read_bytes()

  first, *others = (_slice(450, 0.1), _slice(600, 0.3), _slice(750, 0.6))
  images = [
    image([first, *others]),
    image(others),
    image([first._replace(step=300), *others]),
    image([first._replace(weight_M=SHARE_M**2), *others]),
    image([first._replace(mean_M=first.mean_M + 0.02), *others]),
    image([first._replace(std_M=0.02 * SHARE_M), *others]),
    image([first._replace(chosen=0.2), *others]),
    image([first, *others], loss=1.21),
    image([first, *others], best=8),
  ]
  assert len(set(images)) == len(images)
  with pytest.raises(InputError, match="no slice"):
    image([])


def test_slices_share_the_losses_and_keep_the_heaviest_eight(tmp_path, drawn):
  weights = [0.01, 0.2, 0.1, 0.1, 0.1, 0.12, 0.02, 0.13, 0.11, 0.11]
  slices(
    tmp_path / "s.png",
    [_slice(step, weight) for step, weight in enumerate(weights)],
    1.2,
    7,
  )
  panels = drawn[-1].axes
  assert [axes.get_title(loc="left") for axes in panels] == [
    f"step {n}" for n in (1, 2, 3, 4, 5, 7, 8, 9)
  ]
  assert len({axes.get_ylim() for axes in panels}) == 1
  rings = [axes.lines[-1].get_xydata().tolist() for axes in panels]
  assert rings[0] == [[0.2, 1.2]]
  # What is far worse than the rest leaves the axes.
  assert panels[0].get_ylim()[1] < 1.9
