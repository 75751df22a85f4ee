"""The search verb with everything on, and where it ends early."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import optuna
import pytest

from jaxmerge import search
from jaxmerge.bayesopt.study.study import FAILURE
from jaxmerge.checkpoints.store import restore_params, save_params
from jaxmerge.errors import InputError
from jaxmerge.evaluation.merged_loss import MergedLoss
from jaxmerge.evaluation.search_method import SEARCH_METHODS
from jaxmerge.formats.records.metadata import describe_leaves, read_metadata
from jaxmerge.merging.average import grouped_average, weighted_average
from jaxmerge.merging.differences import gram_of_trees, gram_weights
from jaxmerge.merging.groups import groups_of
from jaxmerge.merging.method import METHODS
from jaxmerge.redaction import without_secrets
from tests.helpers import REPORT, config_of, contents


def _config(**changes):
  return config_of("search", **{"checkpoint_steps": (4, 8, 12), **changes})


class _Notes:
  """Progress that remembers its notes."""

  def __init__(self):
    self.notes: list[str] = []

  def stage(self, name, done, of, note=""):
    self.note(name, note)

  def note(self, name, text):
    self.notes.append(f"{name}: {text}")


def _study(workdir, name="pair"):
  from jaxmerge.bayesopt.study.journal import open_journal

  journal = open_journal(workdir / f"search/{name}/study.journal")
  return optuna.load_study(study_name=name, storage=journal)


def test_everything_on(workdir):
  baselines = ("grid", "random", "quadratic", "cma_es")
  config = _config(
    num_trials=5,
    beta=0.3,
    layer_groups="1",
    use_gradients=True,
    early_stop=True,
    batch_size=4,
    acquisitions=("ei", "thompson"),
    initial_weights=("uniform",),
    baselines=baselines,
  )
  path = search.search(config, workdir, progress=_Notes())
  rows = json.loads((workdir / f"{REPORT}/results.json").read_text())["rows"]
  named = {row["name"]: row for row in rows}
  assert {"last", "uniform", "rna", "gp_hedge", *baselines} <= named.keys()
  # Passes, of which a gradient takes six; a stopped trial takes fewer.
  trials = _study(workdir).trials
  spent = sum(t.user_attrs["tokens"] for t in trials)
  passes = named["gp_hedge"]["evaluations"]
  whole = spent / passes
  assert 5 < passes <= 5 * 6 + 3
  assert whole <= 16 * 64 < spent
  assert named["random"]["evaluations"] == passes
  lowest = min(row["search_loss"] for row in rows)
  assert named["gp_hedge"]["search_loss"] < lowest + 0.05
  results = json.loads((workdir / f"{REPORT}/results.json").read_text())
  precision = results["precision"]
  assert list(precision["stderr"]) == ["embeddings", "band_0", "head"]
  assert precision["excess"] >= 0
  assert precision["passes"] > 7
  provenance = read_metadata(path).provenance
  weights_GxK = list(provenance["groups"].values())
  assert list(provenance["groups"]) == ["embeddings", "band_0", "head"]
  trees = [restore_params(workdir / f"checkpoints/{s}") for s in (4, 8, 12)]
  groups = groups_of(trees[0], "1")
  rna = METHODS["rna"]
  accelerated = gram_weights(rna, gram_of_trees(trees), rna.knobs())
  assert list(named["rna"]["weights"].values()) == pytest.approx(accelerated)
  assert named["rna"]["evaluations"] == 1
  by_hand = grouped_average(trees, weights_GxK, groups)
  merged = restore_params(path)
  jax.tree.map(np.testing.assert_array_equal, by_hand, merged)
  page = (workdir / f"{REPORT}/report.html").read_text()
  assert "weights of band_0" in page
  assert not (workdir / f"{REPORT}/slices.png").exists()
  trials = _study(workdir).trials
  assert [len(t.params) for t in trials] == [9] * 5
  assert all("gradient" in t.user_attrs for t in trials if t.value is not None)
  assert trials[0].value == pytest.approx(named["last"]["search_loss"])


def test_what_trials_measure_tells_how_sure_the_weights_are(
  workdir, monkeypatch, capsys
):
  config = _config(
    num_trials=5, beta=1.0, baselines=(), solver="newton", batch_size=4
  )
  search.search(config, workdir, dry_run=True)
  plan = capsys.readouterr().out
  assert "precision: from what the trials measure" in plan
  search.search(config, workdir, progress=_Notes())
  results = workdir / f"{REPORT}/results.json"
  found = json.loads(results.read_text())["precision"]
  assert found["passes"] == 0
  [stderr] = found["stderr"].values()
  assert list(stderr) == ["4", "8", "12"]
  assert all(error > 0 for error in stderr.values())
  assert found["excess"] > 0
  # The run is young: beyond the last checkpoint all is better.
  assert "other weights may be about" in found["advice"]
  page = (workdir / f"{REPORT}/report.html").read_text()
  assert "How sure the weights are" in page
  shutil.rmtree(workdir / REPORT)
  monkeypatch.setattr(MergedLoss, "measured", None)
  search.search(config, workdir, progress=_Notes())
  assert json.loads(results.read_text())["precision"] == found


@pytest.mark.parametrize("steps", [(8, 12), (4, 8, 12)])
def test_negative_weights(workdir, capsys, steps):
  config = _config(
    num_trials=7,
    negative=True,
    checkpoint_steps=steps,
    baselines=("grid", "random"),
    study_name="n",
  )
  search.search(config, workdir, dry_run=True, progress=_Notes())
  plan = capsys.readouterr().out
  assert f"1 x {len(steps)}, each from -1 to 2" in plan
  assert "baselines keep to weights from 0 to 1" in plan
  path = search.search(config, workdir, progress=_Notes())
  report = workdir / "search/n/report"
  results = json.loads((report / "results.json").read_text())
  weights_NxK = np.array(
    [
      list(trial.user_attrs["weights"].values())
      for trial in _study(workdir, "n").trials
    ]
  )
  assert weights_NxK[0].tolist() == [0.0] * (len(steps) - 1) + [1.0]
  np.testing.assert_allclose(weights_NxK.sum(axis=1), 1, atol=1e-12)
  assert weights_NxK.min() < 0
  assert weights_NxK.min() >= -1 - 1e-9
  assert weights_NxK.max() <= 2 + 1e-9
  named = {row["name"]: row for row in results["rows"]}
  for name in ("grid", "random"):
    assert min(named[name]["weights"].values()) >= 0
  provenance = read_metadata(path).provenance
  assert provenance["recipe"] == {"negative": True}
  applied = [source["weight"] for source in provenance["sources"]]
  trees = [restore_params(workdir / f"checkpoints/{s}") for s in steps]
  by_hand = weighted_average(trees, applied)
  jax.tree.map(np.testing.assert_array_equal, by_hand, restore_params(path))
  page = (report / "report.html").read_text()
  assert "each from -1 to 2" in page
  figures = ["posterior"] if len(steps) == 2 else ["slices", "ternary"]
  assert all((report / f"{name}.png").exists() for name in figures)
  with pytest.raises(InputError, match=r"leave config\.alpha and config\.beta"):
    search.search(_config(negative=True, beta=0.1), workdir, progress=_Notes())


def test_a_used_up_limit_says_how_to_go_on(workdir):
  notes = _Notes()
  tokens = 16 * 64  # at most a trial's
  config = _config(num_trials=5, max_tokens=2 * tokens)
  search.search(config, workdir, progress=notes)
  assert any("config.max_tokens is used up with" in n for n in notes.notes)
  done = [t for t in _study(workdir).trials if t.state.is_finished()]
  assert 2 <= len(done) < 5
  spent = sum(t.user_attrs["tokens"] for t in done)
  assert spent <= config.max_tokens
  rows = json.loads((workdir / f"{REPORT}/results.json").read_text())["rows"]
  assert rows[-1]["evaluations"] == len(done)
  search.search(_config(num_trials=5), workdir, progress=_Notes())
  assert all(t.state.is_finished() for t in _study(workdir).trials)


def test_a_failed_trial_is_shown_and_not_chosen(workdir, monkeypatch):
  score = MergedLoss.score

  def failing(self, weights_GxK, best=None, **how):
    found = score(self, weights_GxK, best, **how)
    if 0.1 < weights_GxK[0][-1] < 0.9:
      found.values_N[0] = math.nan
    return found

  monkeypatch.setattr(MergedLoss, "score", failing)
  notes = _Notes()
  search.search(_config(num_trials=5), workdir, progress=notes)
  failed = [t for t in _study(workdir).trials if FAILURE in t.user_attrs]
  assert failed
  assert any("failed: the score is not finite (nan)" in n for n in notes.notes)
  page = (workdir / f"{REPORT}/report.html").read_text()
  assert "the score is not finite (nan)" in page


def test_every_problem_of_a_config_at_once(workdir):
  config = _config(
    alpha=1.0,
    beta=-0.5,
    layer_groups="-1",
    num_trials=1,
    max_tokens=-1,
    initial_weights=("latest",),
    baselines=("bayes",),
    acquisitions=("eii",),
  )
  with pytest.raises(InputError) as caught:
    search.search(config, workdir, progress=_Notes())
  text = "\n".join(caught.value.problems)
  for word in (
    "config.alpha",
    "config.beta",
    "config.layer_groups",
    "config.num_trials",
    "config.max_tokens",
    "config.initial_weights",
    "config.baselines",
    "config.acquisitions",
  ):
    assert word in text
  for wrong in (
    {"baselines": ("grid", "grid")},
    {"acquisitions": ("ei", "ei")},
    {"acquisitions": (["ei"],)},
    {"checkpoint_steps": (4.0, 8)},
    {"seed": 2**32},
    {"max_seconds": math.nan},
    {"checkpoint_steps": (8, 12), "baselines": ("cma_es",)},
    {"report_dir": "metrics.jsonl"},
  ):
    with pytest.raises(InputError):
      search.search(_config(**wrong), workdir, dry_run=True, progress=_Notes())
  with pytest.raises(InputError, match="from 1 to"):
    search.search(_config(layer_groups="99"), workdir, progress=_Notes())


def test_a_larger_budget_goes_on_with_the_same_first_trials(workdir):
  search.search(_config(num_trials=5), workdir, progress=_Notes())
  before = [t.params for t in _study(workdir).trials]
  search.search(_config(num_trials=9), workdir, progress=_Notes())
  trials = _study(workdir).trials
  assert [t.params for t in trials[:5]] == before
  assert len(trials) == 9
  assert all(t.state.is_finished() for t in trials)


def test_a_diverged_checkpoint_costs_trials_and_not_the_search(workdir):
  steps = [workdir / f"checkpoints/{step}" for step in (4, 8, 12)]
  params = restore_params(steps[0])
  metadata = read_metadata(steps[0])
  broken = jax.tree.map(lambda x: x * np.nan, params)
  leaves = {**metadata.leaves, "params": describe_leaves(broken)}
  shutil.rmtree(steps[0])
  save_params(
    tmp := workdir / "broken",
    broken,
    dataclasses.replace(metadata, leaves=leaves),
  )
  tmp.rename(steps[0])
  search.search(_config(num_trials=7), workdir, progress=_Notes())
  rows = json.loads((workdir / f"{REPORT}/results.json").read_text())["rows"]
  names = [row["name"] for row in rows]
  assert not {"uniform", "rna"} & {*names}
  results = (workdir / f"{REPORT}/results.json").read_text()
  wrong = "not known: step 4 has parameters that are not finite"
  assert json.loads(results)["precision"]["advice"] == wrong
  assert names[-1] == "gp_hedge"
  with pytest.raises(InputError, match="step 4 has parameters"):
    search.search(
      _config(study_name="g", use_gradients=True), workdir, progress=_Notes()
    )


def test_no_password_in_a_report():
  text = "--config.storage=postgresql+pg8000://me:p@ss@host/db --x=1"
  shown = without_secrets(text)
  assert shown == "--config.storage=postgresql+pg8000://me:***@host/db --x=1"


def test_a_method_that_converges_and_recommends_what_it_has_not_tried(
  workdir, monkeypatch
):
  def recommend(found, knobs):
    rows = [list(trial.params.values()) for trial in found.trials]
    mean_K = np.mean(rows, axis=0)
    return dict(zip(found.space.names, (mean_K / mean_K.sum()).tolist()))

  plain = SEARCH_METHODS["gp_hedge"]
  three = plain._replace(
    name="three",
    title="Three",
    has_converged=lambda found, knobs: len(found.trials) >= 3,
    recommend=recommend,
    figures=lambda search, results: {"own": b"a figure"},
  )
  monkeypatch.setitem(SEARCH_METHODS._records, "three", three)
  notes = _Notes()
  config = _config(num_trials=5, solver="three")
  path = search.search(config, workdir, progress=notes)
  assert "search: Three has converged with 2 trials left" in notes.notes
  trials = _study(workdir).trials
  assert [t.state.name for t in trials] == ["COMPLETE"] * 3 + ["WAITING"] * 2
  mean_K = np.mean([list(t.params.values()) for t in trials[:3]], axis=0)
  assert read_metadata(path).provenance["method"] == "three"
  rows = json.loads((workdir / f"{REPORT}/results.json").read_text())["rows"]
  assert rows[-1]["name"] == "three"
  assert rows[-1]["evaluations"] == 3
  assert list(rows[-1]["weights"].values()) == pytest.approx(list(mean_K))
  figures = {file.stem for file in (workdir / REPORT).glob("*.png")}
  assert {"slices", "ternary", "own"} <= figures
  page = (workdir / f"{REPORT}/report.html").read_text()
  assert "own.png" in page
  assert "(chosen)" not in page
  before = contents(workdir / REPORT)
  search.search(config, workdir, progress=notes)
  assert (
    notes.notes.count("search: Three has converged with 2 trials left") == 2
  )
  assert [t.params for t in _study(workdir).trials] == [
    t.params for t in trials
  ]
  assert contents(workdir / REPORT) == before
  with pytest.raises(InputError, match="with solver 'three'"):
    search.search(_config(num_trials=5), workdir, progress=notes)
