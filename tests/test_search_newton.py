"""The search verb by Newton's method, and what `auto` takes."""

import json

import pytest

from jaxmerge import search
from jaxmerge.bayesopt.trials import asked_by
from jaxmerge.errors import InputError
from jaxmerge.evaluation.evaluator import EVALUATORS
from jaxmerge.evaluation.measurements import MEASURED
from tests.helpers import REPORT, config_of, quiet
from tests.test_search import _Notes, _study


def _config(**changes):
  changes = {"checkpoint_steps": (4, 8, 12, 16), "num_trials": 8} | changes
  return config_of("search", **changes)


def test_a_search_of_groups_by_auto(workdir):
  notes = _Notes()
  config = _config(layer_groups="2", baselines=("random",), negative=True)
  search.search(config, workdir, progress=notes)
  [told] = [n for n in notes.notes if "config.solver" in n]
  assert told == (
    "search: config.solver='auto' takes newton: a group of parameters has "
    "weights of its own"
  )
  assert any("Newton's method has converged with" in n for n in notes.notes)
  trials = [t for t in _study(workdir).trials if t.state.is_finished()]
  asked = [asked_by(t) for t in trials]
  assert asked[:2] == ["start", "lawa"]
  step = trials[asked.index("step")]
  [measured] = [t for t in trials[: step.number] if MEASURED in t.user_attrs]
  assert measured.number == step.number - 1
  named = {
    row["name"]: row
    for row in json.loads((workdir / f"{REPORT}/results.json").read_text())[
      "rows"
    ]
  }
  # Baselines get what the derivatives have cost as well.
  tokens = [t.user_attrs["tokens"] for t in trials]
  passes = -(-sum(tokens) // tokens[0])
  assert passes > len(trials)
  assert named["newton"]["evaluations"] == passes
  assert named["random"]["evaluations"] == passes
  best = min(t.value for t in trials)
  assert named["newton"]["search_loss"] == pytest.approx(best, rel=1e-6)
  assert best == step.value < min(t.value for t in trials[: step.number]) - 0.1
  figures = {file.stem for file in (workdir / REPORT).glob("*.png")}
  assert "convergence" in figures
  assert not figures & {
    "posterior",
    "slices",
    "ternary",
    "hedge",
    "calibration",
  }
  page = (workdir / f"{REPORT}/report.html").read_text()
  assert "newton" in page


def test_the_plan_says_who_solves_what_it_costs_and_why(
  tiny_run, monkeypatch, capsys
):
  # Nothing need be compiled for it.
  quick = EVALUATORS["heldout_loss"]._replace(derivative_bytes=None)
  monkeypatch.setitem(EVALUATORS._records, "heldout_loss", quick)
  config = _config(layer_groups="2", search_sequences=64, num_trials=9)
  search.search(config, tiny_run, dry_run=True, progress=quiet)
  plan = capsys.readouterr().out
  assert "solver: newton: a group of parameters has weights of its own" in plan
  assert (
    "9 by Newton's method, the first 1 given, trial 1: 1 forward pass + 5 "
    "(gradients) + 6.0 (curvature of 16 of 64 sequences, 12 directions); a "
    "step: 1, and 5 where another follows; about 14 until it has converged, "
    "20 with all steps"
  ) in plan
  for changes, words in (
    ({"checkpoint_steps": (8, 12)}, "gp_hedge: 2 checkpoints are fewer than 6"),
    ({"use_gradients": True}, "gp_hedge: config.use_gradients is its own"),
    (
      {"checkpoint_steps": (8, 12), "max_steps": 1},
      "newton: config.max_steps is its own",
    ),
    ({"solver": "newton"}, "newton\n"),
  ):
    search.search(_config(**changes), tiny_run, dry_run=True, progress=quiet)
    assert f"solver: {words}" in capsys.readouterr().out


def test_knobs_of_both_and_scores_without_curvature_are_refused(
  tiny_run, monkeypatch
):
  def refused(words, **changes):
    with pytest.raises(InputError, match=words):
      search.search(_config(**changes), tiny_run, dry_run=True, progress=quiet)

  refused("is now config.solver", search_method="gp_hedge")
  refused(
    "use_gradients is of the solver 'gp_hedge' and config.max_steps of",
    use_gradients=True,
    max_steps=1,
  )
  refused("does not use config.max_steps", solver="gp_hedge", max_steps=1)
  plain = EVALUATORS["heldout_loss"]._replace(has_curvature=False)
  monkeypatch.setitem(EVALUATORS._records, "heldout_loss", plain)
  for changes in ({"solver": "newton"}, {"max_steps": 1}):
    refused("solver 'newton': the evaluator .* has no curvature", **changes)
  other = plain._replace(has_curvature=True, direction="maximize")
  monkeypatch.setitem(EVALUATORS._records, "heldout_loss", other)
  refused("a curvature is of a loss, and its scores are to be maximised")


def test_a_study_of_gp_hedge_goes_on_by_auto(workdir):
  config = _config(layer_groups="1", num_trials=3, solver="gp_hedge")
  search.search(config, workdir, progress=quiet)
  before = [t.params for t in _study(workdir).trials]
  notes = _Notes()
  search.search(
    _config(layer_groups="1", num_trials=5), workdir, progress=notes
  )
  assert (
    "search: config.solver='auto' takes gp_hedge: the study of this name was "
    "made by it"
  ) in notes.notes
  trials = _study(workdir).trials
  assert [t.params for t in trials[:3]] == before
  assert all(t.state.is_finished() for t in trials)
  assert not any(MEASURED in t.user_attrs for t in trials)
  config = _config(layer_groups="1", solver="newton")
  with pytest.raises(InputError, match="solver"):
    search.search(config, workdir, progress=quiet)
