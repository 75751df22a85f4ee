"""GP-Hedge's choices and the process's predictions, as they were recorded."""

import pytest

from jaxmerge.errors import InputError
from jaxmerge.reporting.hedge_figures import calibration, hedge


def test_every_field_of_a_choice_shows(tmp_path, three):
  def image(**changes) -> bytes:
    changed = [*three[:4], three[4]._replace(**changes), *three[5:]]
    hedge(tmp_path / "h.png", changed)
    return (tmp_path / "h.png").read_bytes()

  images = [
    image(),
    image(odds={"ei": 0.9, "pi": 0.1}),
    image(asked_by="ucb"),
    image(number=19),
  ]
  assert len(set(images)) == len(images)


def test_bars_add_up_and_markers_say_who_was_followed(tmp_path, three, drawn):
  hedge(tmp_path / "h.png", three)
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
  tmp_path, three, drawn
):
  hedge(tmp_path / "h.png", three[:5])
  (legend,) = drawn[-1].legends
  names = [text.get_text() for text in legend.get_texts()]
  assert sorted(names) == ["EI", "PI", "Thompson", "UCB"]


def test_choices_need_known_odds(tmp_path, trials, three):
  with pytest.raises(InputError, match="no trial has odds"):
    hedge(tmp_path / "h.png", trials)
  stray = three[3]._replace(odds={"luck": 1.0})
  with pytest.raises(InputError, match='odds for "luck"'):
    hedge(tmp_path / "h.png", [stray])


def test_every_field_of_a_prediction_shows(tmp_path, three):
  def image(**changes) -> bytes:
    changed = [*three[:4], three[4]._replace(**changes), *three[5:]]
    calibration(tmp_path / "c.png", changed)
    return (tmp_path / "c.png").read_bytes()

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


def test_the_title_counts_what_lies_in_the_band(tmp_path, three, drawn):
  calibration(tmp_path / "c.png", three)
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
  calibration(tmp_path / "c.png", [*three[:7], far])
  axes = drawn[-1].axes[1]
  assert axes.get_ylim() == (-5, 5)
  caret = axes.lines[-1]
  assert (caret.get_xdata(), -5 < caret.get_ydata() < -4) == ([7], [True])


def test_one_trial_has_a_whole_number(tmp_path, three, drawn):
  calibration(tmp_path / "c.png", three[:4])
  hedge(tmp_path / "h.png", three[:4])
  for axes in (drawn[0].axes[1], drawn[1].axes[0]):
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks == [3]


def test_a_calibration_needs_a_prediction(tmp_path, trials):
  with pytest.raises(InputError, match="no trial has a prediction"):
    calibration(tmp_path / "c.png", trials)
  assert list(tmp_path.iterdir()) == []
