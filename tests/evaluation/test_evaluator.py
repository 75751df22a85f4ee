"""Evaluators other than the held-out loss, and the direction of scores."""

import dataclasses
import importlib
import json

import optuna
import pytest

from jaxmerge import evaluate, search
from jaxmerge.bayesopt.study.journal import open_journal
from jaxmerge.bayesopt.study.scheduler import Budget
from jaxmerge.errors import InputError
from jaxmerge.evaluation import task_scores, weight_search
from jaxmerge.evaluation.evaluator import EVALUATORS
from jaxmerge.evaluation.merged_loss import MergedLoss
from jaxmerge.evaluation.search_method import SEARCH_METHODS
from jaxmerge.evaluation.weight_search import WeightSearch
from jaxmerge.merging.resident import Trees
from tests.evaluation.test_comparison import LLAMA, random_model
from tests.evaluation.test_objective import _heldout, _setting, _trees
from tests.helpers import REPORT, Telling, config_of, no_corpus, quiet
from tests.test_extending import write_files


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory):
  """The evaluator of docs/extending.md."""
  folder = tmp_path_factory.mktemp("mine")
  write_files("An evaluator", folder)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)  # as loading a config file there does
    yield importlib.import_module("my_evaluator")
  del EVALUATORS._records["matches"]


def _config(**changes):
  return config_of(
    "search",
    **{"evaluator": "matches", "num_trials": 3, "baselines": ("grid",)}
    | changes,
  )


def test_a_search_of_scores_to_maximise(workdir):
  notes = []
  progress = Telling(lambda stage, done, total, note: notes.append(note))
  search.search(_config(), workdir, progress=progress)
  journal = open_journal(workdir / "search/pair/study.journal")
  study = optuna.load_study(study_name="pair", storage=journal)
  assert study.direction.name == "MAXIMIZE"
  identity = study.user_attrs["fingerprint"]
  assert identity["evaluator"] == "matches"
  assert identity["evaluator.top"] == 1
  values = [trial.value for trial in study.trials]
  assert all(0 < value < 1 for value in values)
  assert any(note.startswith(f"best {max(values):.4f}") for note in notes)
  results = json.loads((workdir / f"{REPORT}/results.json").read_text())
  rows = {row["name"]: row for row in results["rows"]}
  assert rows["last"]["search_score"] == values[0]
  assert rows["gp_hedge"]["search_score"] >= values[0]
  report = {row["name"]: row["report_score"] for row in results["rows"]}
  delta = rows["step_8"]["report_delta_vs_last"]
  assert delta == pytest.approx(report["step_8"] - report["last"])
  page = (workdir / f"{REPORT}/report.html").read_text()
  assert "match/token" in page
  assert "nats" not in page
  assert not (workdir / f"{REPORT}/training_curve.png").exists()
  for changes in ({"evaluator": "heldout_loss"}, {"top": 2}):
    with pytest.raises(InputError, match="the study 'pair' was made"):
      search.search(_config(**changes), workdir, dry_run=True, progress=quiet)


def test_an_evaluation_is_in_the_unit_of_its_scores(workdir, tmp_path, capsys):
  config = config_of("evaluate", evaluator="matches")
  inputs = [f"{workdir}@{step}" for step in (4, 12)]
  evaluate.evaluate(config, inputs, output=tmp_path / "out", progress=quiet)
  value = json.loads((tmp_path / "out/evaluation.json").read_text())
  first, second = value["rows"]
  assert list(first) == [
    "name",
    "match_per_token",
    "stderr",
    "delta",
    "delta_stderr",
  ]
  gain = second["match_per_token"] - first["match_per_token"]
  assert second["delta"] == pytest.approx(gain)
  assert "match/token  stderr  vs first" in capsys.readouterr().out


def test_another_evaluator_takes_one_tokenizer(tiny_run, tmp_path, monkeypatch):
  monkeypatch.setattr(task_scores, "scores", no_corpus)
  inputs = [f"{tiny_run}@8", random_model(tmp_path / "other", LLAMA)]
  config = config_of("evaluate", evaluator="matches")
  with pytest.raises(InputError, match="config.evaluator=heldout_loss comp"):
    evaluate.evaluate(config, inputs, progress=quiet)


def test_derivatives_are_refused_where_there_are_none(workdir):
  config = _config(use_gradients=True)
  with pytest.raises(InputError, match="'matches' has no derivatives"):
    search.search(config, workdir, dry_run=True, progress=quiet)


class _Negated:
  """Minus the held-out loss, to be maximised; scores nothing twice cheaper."""

  def __init__(self):
    self._heldout = _heldout(batch_size=1)

  def score(self, params, upto=None):
    score = self._heldout.score(params, upto)
    return dataclasses.replace(
      score, values_N=-score.values_N, direction="maximize"
    )


def _trials(folder, direction):
  folder.mkdir()
  merged, domain = _setting(3, batch_size=1)
  if direction == "maximize":
    trees = Trees(_trees(3))
    merged = MergedLoss(trees, _Negated(), domain.groups)
  method = SEARCH_METHODS["gp_hedge"]
  knobs = method.knobs(acquisitions=("ei", "ucb"))
  searched = WeightSearch(domain, method, knobs, 0, 8, True)
  study = weight_search.open_weight_study(
    folder / "study.journal",
    "search",
    searched,
    identity={},
    direction=direction,
  )
  weight_search.run_weight_study(
    study,
    merged,
    searched,
    limits=Budget(),
    on_trial=lambda trial: None,
  )
  best = weight_search.choose(study, searched)
  sign = 1 if direction == "minimize" else -1
  return best.number, [
    (t.state, t.params, t.value and sign * t.value, t.user_attrs["stderr"])
    for t in study.trials
  ]


def test_what_is_asked_does_not_depend_on_the_direction(tmp_path):
  minimised = _trials(tmp_path / "min", "minimize")
  assert {state.name for state, *_ in minimised[1]} == {"COMPLETE", "PRUNED"}
  assert _trials(tmp_path / "max", "maximize") == minimised


def test_a_study_of_the_other_direction_is_not_run(tmp_path, monkeypatch):
  monkeypatch.setattr(weight_search, "direction_of", lambda study: "maximize")
  with pytest.raises(InputError, match="the evaluator's scores say minimize"):
    _trials(tmp_path / "min", "minimize")
