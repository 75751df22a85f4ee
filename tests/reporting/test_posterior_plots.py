"""What the process is asked for the figures, and what it is told."""

import dataclasses

import numpy as np
import pytest

from jaxmerge.bayesopt.gp import surrogate
from jaxmerge.bayesopt.gp.padding import Observations
from jaxmerge.reporting import posterior_figures, posterior_plots
from jaxmerge.simplex.bounds import Bounds, unit_from_weights

STEPS = (450, 600, 750)


@pytest.fixture
def asked(monkeypatch) -> list[tuple[np.ndarray, ...]]:
  """Arguments of each question, answered without a process."""
  questions = []

  def answer(told, queries_MxD):
    questions.append((*told[:3], queries_MxD))
    return -1.2 - queries_MxD[:, 0] ** 2, 0.01 + 0.01 * queries_MxD[:, -1]

  monkeypatch.setattr(surrogate, "posterior", answer)
  return questions


def _told(trials, steps, bounds):
  """The trials as the process knows them, in maximisation sign."""
  scored = [trial for trial in trials if not trial.failure]
  return Observations(
    np.array(
      [
        unit_from_weights([t.weights.get(s, 0.0) for s in steps], bounds)
        for t in scored
      ]
    ),
    -np.array([trial.loss for trial in scored]),
    np.array([trial.stderr for trial in scored]),
  )


@pytest.fixture
def draw(results):
  """Draws what is asked of trials; names of the figures."""

  def draw(trials, steps, bounds, best) -> list[str]:
    weights = {step: trials[best].weights.get(step, 0.0) for step in steps}
    row = dataclasses.replace(results.merged, weights=weights)
    found = posterior_plots.posterior_plots(
      _told(trials, steps, bounds),
      dataclasses.replace(results, rows=[row], trials=trials, best=best),
      bounds,
    )
    return sorted(found)

  return draw


def test_two_checkpoints(draw, trials, asked):
  assert draw(trials, (600, 750), Bounds(), 4) == ["posterior"]
  ((points_NxK, losses_N, stderrs_N, queries_MxK),) = asked
  assert points_NxK[3].tolist() == pytest.approx([0.29, 0.71])
  assert losses_N.tolist() == [-trial.loss for trial in trials]
  assert stderrs_N.tolist() == [trial.stderr for trial in trials]
  assert queries_MxK[[0, -1]].tolist() == [[1, 0], [0, 1]]


def test_three_checkpoints_are_one_question(draw, three, asked):
  assert draw(three, STEPS, Bounds(0.2), 3) == ["slices", "ternary"]
  ((points_NxK, losses_N, _, queries_MxK),) = asked
  # Trials 5 and 6 have no loss; the rest are told as points of the simplex.
  assert len(losses_N) == len(three) - 2
  np.testing.assert_allclose(points_NxK[1], [0, 1, 0], atol=1e-12)
  np.testing.assert_allclose(points_NxK[3], [1 / 8, 3 / 8, 4 / 8])
  np.testing.assert_allclose(queries_MxK.sum(axis=1), 1)
  assert len(queries_MxK) <= 1024


def test_of_negative_weights_the_process_is_asked_by_weight(draw, three, asked):
  bounds = Bounds(negative=True)
  three = list(three)
  three[3] = three[3]._replace(weights={450: -0.3, 600: 0.4, 750: 0.9})
  assert draw(three, STEPS, bounds, 3) == ["slices", "ternary"]
  ((_, _, _, queries_MxK),) = asked
  np.testing.assert_allclose(queries_MxK.sum(axis=1), 1)
  assert queries_MxK.min() >= -1 - 1e-9
  assert queries_MxK.max() <= 2 + 1e-9
  # Three slices, each over all that its weight may be beside the others.
  slices = queries_MxK[: 3 * 64].reshape(3, 64, 3)
  for k, line_MxK in enumerate(slices):
    assert line_MxK[-1, k] == pytest.approx(2)
  assert slices[0, 0, 0] == pytest.approx(-1)
  # The triangle: what was tried, and a little more.
  assert queries_MxK[3 * 64 :].min() == pytest.approx(-0.4)


def test_more_checkpoints_have_slices_alone(draw, three, asked):
  four = [
    trial._replace(weights={300: 0.0, **trial.weights}) for trial in three
  ]
  assert draw(four, (300, *STEPS), Bounds(0.2), 3) == ["slices"]


def test_a_line_goes_through_the_chosen_point_to_the_vertex():
  chosen_K = np.array([0.2, 0.3, 0.5])
  points_MxK = posterior_plots.line(chosen_K, 1)
  np.testing.assert_allclose(points_MxK[0], np.array([2, 0, 5]) / 7)
  np.testing.assert_allclose(points_MxK[-1], [0, 1, 0], atol=1e-12)
  np.testing.assert_allclose(points_MxK.sum(axis=1), 1)
  at_chosen = [
    np.interp(0.3, points_MxK[:, 1], column) for column in points_MxK.T
  ]
  np.testing.assert_allclose(at_chosen, chosen_K)


def test_a_line_to_the_chosen_vertex_treats_the_others_alike():
  points_MxK = posterior_plots.line(np.array([0.0, 0.0, 1.0]), 2)
  np.testing.assert_allclose(points_MxK[0], [0.5, 0.5, 0])
  np.testing.assert_allclose(points_MxK[-1], [0, 0, 1])


def test_the_process_agrees_with_the_chosen_trial(draw, three, monkeypatch):
  taken = []
  monkeypatch.setattr(
    posterior_figures, "slices", lambda *arguments: taken.append(arguments)
  )
  draw(three, STEPS, Bounds(0.2), 3)
  ((posteriors, results),) = taken
  chosen = results.chosen
  assert (results.steps, chosen) == ([*STEPS], three[3])
  for k, (step, posterior) in enumerate(zip(STEPS, posteriors)):
    weight_M, weight = posterior.weights_MxK[:, k], chosen.weights[step]
    # A weight runs as far as alpha lets it: the last from 0.2, others to 0.8.
    ends = (0.2, 1.0) if step == 750 else (0.0, 0.8)
    assert weight_M[[0, -1]].tolist() == pytest.approx(ends)
    believed = np.interp(weight, weight_M, posterior.mean_M)
    assert believed == pytest.approx(chosen.loss, abs=2e-3)
    # Sure where it has looked, less so elsewhere.
    known = np.interp(weight, weight_M, posterior.std_M)
    assert known < 0.5 * posterior.std_M.max()


def test_of_scores_the_mean_is_as_told(results, trials, mirror, monkeypatch):
  """The process works in the sign of maximisation, which is a score's own."""
  seen = []
  monkeypatch.setattr(
    posterior_figures, "pair", lambda posterior, *_: seen.append(posterior)
  )
  monkeypatch.setattr(
    surrogate, "posterior", lambda told, queries: (queries[:, 0], queries[:, 0])
  )
  told = _told(trials, (600, 750), Bounds())
  for search in (results, mirror(results)):
    posterior_plots.posterior_plots(told, search, Bounds())
  losses, scores = seen
  np.testing.assert_array_equal(scores.mean_M, scores.std_M)
  np.testing.assert_array_equal(losses.mean_M, -losses.std_M)
