"""The run's curve and the rows: every argument shows, far values do not."""

import dataclasses

import numpy as np

from jaxmerge.reporting import figures
from jaxmerge.reporting.results import Point

CHECKPOINTS = [
  Point(600, 6000, 1.2431),
  Point(750, 7500, 1.2225),
  Point(900, 9000, 1.1887),
]
TRAINING = [
  Point(step, step * 10, 1.1 + 4 * float(np.exp(-step / 60)))
  for step in range(10, 901, 10)
]


def _results(results, tokens_saved=1203, unit="nats/token", **merged):
  row = dataclasses.replace(results.rows[-1], **merged)
  return dataclasses.replace(
    results,
    rows=(*results.rows[:-1], row),
    tokens_trained=7500,
    tokens_saved=tokens_saved,
    unit=unit,
  )


def test_every_argument_of_the_training_curve_shows(results):
  def image(training=TRAINING, checkpoints=CHECKPOINTS, **changes) -> bytes:
    changed = _results(results, **changes)
    return figures.training_curve(training, checkpoints, changed)

  images = [
    image(),
    image(training=TRAINING[:-20]),
    image(checkpoints=CHECKPOINTS[1:]),
    image(report_loss=1.21),
    image(weights={600: 0.5, 750: 0.25, 900: 0.25}),
    image(tokens_saved=None),
    image(unit="bits/byte"),
  ]
  assert len(set(images)) == len(images)


def test_the_arrow_ends_where_the_run_is_as_good(results, drawn):
  figures.training_curve(TRAINING, CHECKPOINTS, _results(results))
  texts = {text.get_text(): text for text in drawn[-1].axes[1].texts}
  assert texts[""].xy == (8.703, 1.1954)
  assert texts[""].get_position() == (7.5, 1.1954)
  assert {"1,203 tokens saved", "step 750", "step 900"} <= set(texts)


def test_the_neighbourhood_of_the_merge_is_without_training_losses(
  results, drawn
):
  """They leave its axes and come back: spikes."""
  figures.training_curve(TRAINING, CHECKPOINTS, _results(results))
  whole, near = (
    {line.get_label() for line in axes.lines} for axes in drawn[-1].axes
  )
  assert "training loss, running mean" in whole
  assert near == whole - {"training loss, running mean", "_child0"}


def test_tokens_are_told_in_a_unit_that_fits(results, drawn):
  for tokens, label in (
    (7, "training tokens"),
    (7_500, "training tokens (thousands)"),
    (7_500_000, "training tokens (millions)"),
  ):
    points = [Point(1, tokens, 1.2)]
    figures.training_curve(points, points, _results(results))
    assert drawn[-1].axes[1].get_xlabel() == label


def test_far_values_do_not_flatten_the_rest(results, drawn):
  rows = [*results.rows]
  rows[1] = dataclasses.replace(rows[1], report_delta_vs_last=3.0)
  figures.baselines(dataclasses.replace(results, rows=rows))
  assert drawn[-1].axes[0].get_xlim()[1] < 0.1
  # The fall from the initial loss stays out of the training curve.
  figures.training_curve(TRAINING, CHECKPOINTS, _results(results, None))
  low, high = drawn[-1].axes[0].get_ylim()
  assert low < 1.1
  assert high < TRAINING[0].loss


def test_smoothing_keeps_length_and_straight_lines():
  line_N = np.linspace(3.0, 1.0, 500)
  np.testing.assert_allclose(figures.smooth(line_N), line_N, rtol=1e-12)
  noise_N = np.random.default_rng(0).standard_normal(500)
  assert figures.smooth(noise_N).std() < 0.5 * noise_N.std()
  assert len(figures.smooth(np.array([1.0]))) == 1


def test_the_better_side_is_that_of_larger_scores(results, mirror, drawn):
  figures.baselines(results)
  figures.baselines(mirror(results))
  one, other = (figure.axes[0] for figure in drawn)
  assert one.get_xlabel().endswith("\u2190 better          worse \u2192")
  assert other.get_xlabel().endswith("\u2190 worse          better \u2192")
  assert "report score" in other.get_xlabel()
  colours = [
    [line.get_color() for line in axes.lines if line.get_marker() != "None"]
    for axes in (one, other)
  ]
  assert colours[0] == colours[1]
