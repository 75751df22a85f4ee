"""Progress, GP-Hedge's choices and predictions, as they were recorded."""

import dataclasses

import numpy as np
import pytest

from jaxmerge.reporting.search_figures import calibration, convergence, hedge


def test_the_baselines_are_the_rows_that_are_no_single_checkpoint(
  results, drawn
):
  convergence(results)
  (axes,) = drawn[-1].axes
  texts = [text.get_text() for text in axes.texts]
  assert texts == ["last", "uniform", "grid"]
  levels = [line.get_ydata()[0] for line in axes.lines[:3]]
  assert levels == [1.2247, 1.2027, 1.1985]
  assert axes.get_ylabel() == "search loss (nats/token)"


def test_a_bad_trial_does_not_flatten_the_rest(results, trials, drawn):
  far = [*trials, trials[-1]._replace(number=6, loss=50.0)]
  convergence(dataclasses.replace(results, trials=far))
  assert drawn[-1].axes[0].get_ylim()[1] < 1.3


def test_trials_without_a_loss_stand_at_the_edge(of_three, three, drawn):
  first = three[0]._replace(loss=float("nan"), failure="out of memory")
  convergence(dataclasses.replace(of_three, trials=[first, *three[1:]]))
  (axes,) = drawn[-1].axes
  lines = {line.get_label(): line for line in axes.lines}
  # The numbers that the list of trials has, and the other figures.
  assert lines["failed"].get_xdata().tolist() == [0, 5]
  assert lines["stopped early"].get_xdata().tolist() == [6]
  low, high = axes.get_ylim()
  for name in ("failed", "stopped early"):
    assert (lines[name].get_ydata() > low + 0.9 * (high - low)).all()
  # The stopped trial's part of a loss is no best, nor is a nan.
  best_N = lines["lowest so far"].get_ydata()
  expected = [np.nan, *(trial.loss for trial in three[1:5])]
  np.testing.assert_array_equal(best_N[:5], np.fmin.accumulate(expected))
  np.testing.assert_array_equal(best_N[5:], [three[3].loss] * 3)


def test_of_scores_the_picture_is_upside_down(of_three, three, mirror, drawn):
  bad = three[7]._replace(loss=50.0)
  losses = dataclasses.replace(of_three, trials=[*three[:7], bad])
  convergence(losses)
  convergence(mirror(losses))
  (one,), (other,) = (figure.axes for figure in drawn)
  assert other.get_ylabel() == "search score (nats/token)"
  assert other.get_ylim() == tuple(-y for y in one.get_ylim()[::-1])
  lines, mirrored = (
    {line.get_label(): line.get_ydata() for line in axes.lines if line}
    for axes in (one, other)
  )
  for name, other_name in (
    ("lowest so far", "highest so far"),
    ("above the axis", "below the axis"),
    ("failed", "failed"),
  ):
    np.testing.assert_array_equal(lines[name], -mirrored[other_name])


def test_every_field_of_a_choice_shows(of_three, three):
  def image(**changes) -> bytes:
    changed = [*three[:4], three[4]._replace(**changes), *three[5:]]
    return hedge(dataclasses.replace(of_three, trials=changed))

  images = [
    image(),
    image(odds={"ei": 0.9, "pi": 0.1}),
    image(asked_by="ucb"),
    image(number=19),
  ]
  assert len(set(images)) == len(images)


def test_bars_add_up_and_markers_say_who_was_followed(of_three, three, drawn):
  hedge(of_three)
  (axes,) = drawn[-1].axes
  bars = [bar for bar in axes.patches if bar.get_x() == 2.5]
  assert [bar.get_height() for bar in bars] == pytest.approx(
    [0.5, 0.3, 0.15, 0.05]
  )
  assert bars[-1].get_y() + bars[-1].get_height() == pytest.approx(1.0)
  followed = {
    line.get_label(): line.get_xydata().ravel().tolist() for line in axes.lines
  }
  assert followed["EI"] == pytest.approx([3, 0.25])
  assert followed["PI"] == pytest.approx([4, 0.65])
  assert followed["UCB"] == pytest.approx([5, 0.875])
  assert followed["Thompson"] == pytest.approx([6, 0.975])
  assert followed["explore"][1] > 1
  assert "start" not in followed


def test_an_acquisition_that_was_never_followed_is_named(
  of_three, three, drawn
):
  hedge(dataclasses.replace(of_three, trials=three[:5]))
  (legend,) = drawn[-1].legends
  names = [text.get_text() for text in legend.get_texts()]
  assert sorted(names) == ["EI", "PI", "Thompson", "UCB"]


def test_every_field_of_a_prediction_shows(of_three, three):
  def image(**changes) -> bytes:
    changed = [*three[:4], three[4]._replace(**changes), *three[5:]]
    return calibration(dataclasses.replace(of_three, trials=changed))

  images = [
    image(),
    image(predicted_mean=1.21),
    image(predicted_std=0.004),
    image(predicted_mean=None),
    image(loss=1.23),
    image(asked_by="ucb"),
    image(number=19),
    image(failure="out of memory"),
  ]
  # Without a prediction and without a loss are the same.
  assert images[3] == images[7]
  assert len(set(images)) == len(images) - 1


def test_the_title_counts_what_lies_in_the_band(of_three, three, drawn):
  calibration(of_three)
  left, right = drawn[-1].axes
  # Of trials 3, 4 and 7 the last is predicted 3 standard deviations too high.
  assert right.get_title(loc="left") == "2 of 3 within 2 std"
  points = {
    line.get_label(): line.get_xydata()[0].tolist() for line in right.lines
  }
  assert points["explore"] == pytest.approx([7, -3])
  assert points["EI"] == pytest.approx([3, 1])
  measured = {line.get_label(): line.get_xdata()[0] for line in left.lines}
  assert measured["EI"] == three[3].loss
  far = three[7]._replace(predicted_mean=1.25)
  calibration(dataclasses.replace(of_three, trials=[*three[:7], far]))
  axes = drawn[-1].axes[1]
  assert axes.get_ylim() == (-5, 5)
  caret = axes.lines[-1]
  assert (caret.get_xdata(), -5 < caret.get_ydata() < -4) == ([7], [True])


def test_one_trial_has_a_whole_number(of_three, three, drawn):
  calibration(dataclasses.replace(of_three, trials=three[:4]))
  hedge(dataclasses.replace(of_three, trials=three[:4]))
  for axes in (drawn[0].axes[1], drawn[1].axes[0]):
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks == [3]
