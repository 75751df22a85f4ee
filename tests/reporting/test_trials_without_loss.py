"""Trials that failed or were stopped are shown, and never as a loss."""

import numpy as np
import pytest

from jaxmerge.errors import InputError
from jaxmerge.reporting import search_figures


def test_trials_without_a_loss_stand_at_the_edge(tmp_path, three, drawn):
  first = three[0]._replace(loss=float("nan"), failure="out of memory")
  search_figures.convergence(tmp_path / "c.png", [first, *three[1:]], {})
  (axes,) = drawn[-1].axes
  lines = {line.get_label(): line for line in axes.lines}
  assert lines["failed"].get_xdata().tolist() == [1, 6]
  assert lines["stopped early"].get_xdata().tolist() == [7]
  low, high = axes.get_ylim()
  for name in ("failed", "stopped early"):
    assert (lines[name].get_ydata() > low + 0.9 * (high - low)).all()
  # The stopped trial's part of a loss is no best, nor is a nan.
  best_N = lines["lowest so far"].get_ydata()
  expected = [np.nan, *(trial.loss for trial in three[1:5])]
  np.testing.assert_array_equal(best_N[:5], np.fmin.accumulate(expected))
  np.testing.assert_array_equal(best_N[5:], [three[3].loss] * 3)


def test_a_loss_is_missing_only_with_a_reason(tmp_path, trials, three):
  lost = trials[1]._replace(loss=float("nan"))
  with pytest.raises(InputError, match="trial 1 has neither a finite loss"):
    search_figures.convergence(tmp_path / "c.png", [trials[0], lost], {})
  with pytest.raises(InputError, match="no trial to draw"):
    search_figures.convergence(tmp_path / "c.png", three[5:7], {})
