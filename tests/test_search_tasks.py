"""Searches whose objective is tasks: seek, limit, report, and remember."""

import json

import numpy as np
import optuna
import pytest

from jaxmerge import evaluate, search
from jaxmerge.bayesopt.study.journal import open_journal
from jaxmerge.checkpoints.model_inputs import open_models
from jaxmerge.errors import InputError
from jaxmerge.evaluation import score_cache
from jaxmerge.evaluation.config import SearchConfig
from jaxmerge.evaluation.tasks.splits import split_items, split_tasks
from jaxmerge.evaluation.tasks.task import parse_task
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.formats.records.provenance import hashes_seen
from jaxmerge.huggingface.model_card import model_card
from tests.helpers import Telling, config_of, contents, quiet
from tests.test_evaluate_tasks import PAIRS, QUESTIONS, write_lines

REPORT = "search/tasks/report"


@pytest.fixture
def tasks(tmp_path, monkeypatch):
  monkeypatch.setattr(score_cache, "cache_root", lambda: tmp_path / "cache")
  pairs = write_lines(tmp_path / "pairs.jsonl", PAIRS)
  choice = write_lines(tmp_path / "choice.jsonl", QUESTIONS)
  return f"pairs:{pairs}", f"choice:{choice}"


def _config(tasks, **changes):
  config = config_of("search", study_name="tasks", tasks=tasks, seq_len=32)
  config.update({"num_trials": 4, "search_sequences": 8, "report_sequences": 8})
  config.update({"baselines": ("grid",), **changes})
  return config


def _swapped(items):
  found = split_tasks(items).items()
  return {n: s._replace(search=s.report, report=s.search) for n, s in found}


def _study(workdir):
  journal = open_journal(workdir / "search/tasks/study.journal")
  return optuna.load_study(study_name="tasks", storage=journal)


def _notes():
  notes = []
  return notes, Telling(lambda stage, done, total, note: notes.append(note))


def test_text_and_questions_together(workdir, tasks, capsys):
  both = ("heldout", *tasks)
  config = _config(
    both,
    task_weights=(1.0, 0.25, 0.0),
    task_tolerance=(0.5, 1.0, 1.0),
    metric="gold",
  )
  search.search(config, workdir, dry_run=True, progress=quiet)
  plan = capsys.readouterr().out
  objective = (
    f"minimize 1 x heldout_loss of heldout + 0.25 x gold of {tasks[0]} + 0 x "
    f"gold of {tasks[1]}"
  )
  assert f"objective: {objective}" in plan
  assert "constraint: no task worse than the best checkpoint by more" in plan
  assert "solver: gp_hedge: scores of tasks have no curvature" in plan
  assert not (workdir / "search").exists()
  notes, progress = _notes()
  path = search.search(config, workdir, progress=progress)
  assert objective in notes
  assert any(
    "the checkpoints are" in note and "apart" in note for note in notes
  )
  # The objective of a trial is the sum of what evaluate measures of its parts.
  study = _study(workdir)
  items = {task: split_items(parse_task(task).read()) for task in tasks}
  assert study.direction.name == "MINIMIZE"
  results = json.loads((workdir / REPORT / "results.json").read_text())
  assert results["objective"] == objective
  last, *_, merged = results["rows"]
  assert study.trials[0].value == pytest.approx(last["search_loss"])
  by_task = {row["name"]: row for row in results["tasks"]}
  assert list(by_task) == list(both)
  for name in ("last", "merged"):
    total = sum(row["factor"] * row[name] for row in results["tasks"])
    row = last if name == "last" else merged
    assert row["report_loss"] == pytest.approx(total)
  errors = [row["factor"] * row["stderr"] for row in results["tasks"]]
  assert merged["report_delta_stderr"] == pytest.approx(np.hypot(*errors[:2]))
  assert by_task["heldout"]["unit"] == "nats/token"
  assert by_task[tasks[0]]["unit"] == "bits/byte"
  trial = study.trials[0]
  assert trial.constraints.keys() == {"task_0", "task_1", "task_2"}
  assert (
    trial.user_attrs["constraint_stderrs"].keys() == trial.constraints.keys()
  )
  page = (workdir / REPORT / "report.html").read_text()
  assert "Task by task" in page
  assert objective in page
  # What it has seen goes with it.
  metadata = read_metadata(path)
  seen = {i.hash for task in tasks for i in items[task].search}
  assert hashes_seen(metadata) == seen
  assert metadata.provenance["search"]["seen"][0]["split"] == "search"
  assert f"It was to {objective}" in model_card(
    {"model_type": "llama"}, metadata, is_known=True
  ).replace("\\", "")
  own = config_of("evaluate", tasks=both, seq_len=32, split="search")
  inputs = [f"{workdir}@12", str(path)]
  with pytest.raises(InputError) as caught:
    evaluate.evaluate(own, inputs, progress=quiet)
  told = str(caught.value)
  for task in tasks:
    count = len(items[task].search)
    whole = len(parse_task(task).read())
    assert f"searched on {count} of the {whole} items of {task}" in told
  rows = evaluate.evaluate(own, inputs, allow_seen=True, progress=quiet)
  assert len(rows) == 6
  # The last checkpoint alone has seen nothing.
  evaluate.evaluate(own, inputs[:1], progress=quiet)
  # A search does not report on what has chosen one of its inputs.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(search, "split_tasks", _swapped)
    before = contents(workdir)
    with pytest.raises(InputError, match="would report on them"):
      search.search(
        config, workdir, inputs=[f"{workdir}@8", str(path)], progress=quiet
      )
    assert contents(workdir) == before
  # It goes on, but not as another search.
  search.search(config, workdir, progress=quiet)
  for changes, word in (
    ({"task_weights": (1.0, 0.5, 0.0)}, "task_weights"),
    ({"task_tolerance": (0.4, 1.0, 1.0)}, "task_tolerance"),
    ({"metric": "acc"}, "was made to minimize"),
    ({"tasks": ("heldout",)}, "evaluator"),
  ):
    other = _config(both)
    other.update(config)
    other.update(changes)
    if changes.get("tasks"):
      other = _config(("heldout",))
    with pytest.raises(InputError, match=word):
      search.search(other, workdir, progress=quiet)


def test_an_accuracy_is_maximised(workdir, tasks):
  config = _config(tasks, early_stop=True, num_trials=3)
  notes, progress = _notes()
  search.search(config, workdir, progress=progress)
  study = _study(workdir)
  assert study.direction.name == "MAXIMIZE"
  results = json.loads((workdir / REPORT / "results.json").read_text())
  last = results["rows"][0]
  assert 0 <= last["search_score"] <= 1
  accuracies = [row["last"] for row in results["tasks"]]
  assert last["report_score"] == pytest.approx(np.mean(accuracies))
  assert results["constraint"] == ""
  assert not study.trials[0].constraints
  page = (workdir / REPORT / "report.html").read_text()
  assert (
    "Scores in accuracy; delta on the report split, positive is better"
    in (page)
  )
  assert "nats/token" not in page
  assert any("config.metric='gold'" in note for note in notes)


def test_nothing_keeps_to_the_limits(workdir, tasks, monkeypatch):
  from jaxmerge.evaluation.checkpoint_scores import Limits

  monkeypatch.setattr(
    Limits,
    "excess",
    lambda self, score, excess=Limits.excess: [
      each._replace(mean=0.5) for each in excess(self, score)
    ],
  )
  config = _config(tasks, task_tolerance=(0.0,), num_trials=3, baselines=())
  notes, progress = _notes()
  path = search.search(config, workdir, progress=progress)
  assert any("the last checkpoint alone is taken" in note for note in notes)
  weights = [s["weight"] for s in read_metadata(path).provenance["sources"]]
  assert weights == [0.0, 1.0]
  page = (workdir / REPORT / "report.html").read_text()
  assert "no merge that it tried keeps to this: no task worse than" in page
  assert f"(too bad on {tasks[0]}, {tasks[1]})" in page


def test_bad_tasks_are_told_with_all_else(workdir, tmp_path):
  bad = write_lines(tmp_path / "bad.jsonl", [{"sentence_good": "a"}] * 3)
  few = write_lines(tmp_path / "few.jsonl", PAIRS[:2])
  config = _config((f"pairs:{bad}", f"pairs:{few}"), checkpoint_steps=(8,))
  with pytest.raises(InputError) as caught:
    search.search(config, workdir, progress=quiet)
  told = str(caught.value)
  assert "two checkpoints or more" in told
  assert f"{bad}, line 1: no 'sentence_bad'" in told
  assert not (workdir / "search").exists()


def test_a_search_of_text_is_what_it_was(workdir):
  """The identity of its study has no key of tasks: older ones go on."""
  search.search(
    _config(("heldout",), num_trials=2, baselines=(), seq_len=0),
    workdir,
    progress=quiet,
  )
  identity = _study(workdir).user_attrs["fingerprint"]
  assert sorted(identity) == sorted(
    [
      *("seed", "alpha", "beta", "groups", "acquisitions", "use_gradients"),
      *("initial_weights", "early_stop", "held_out", "search_sequences"),
      *("inputs", "corpus"),
    ]
  )
  assert SearchConfig().tasks == ("heldout",)
  results = json.loads((workdir / REPORT / "results.json").read_text())
  assert "objective" not in results
  [checkpoint] = open_models([f"{workdir}@12"])
  assert hashes_seen(checkpoint.metadata) == set()
