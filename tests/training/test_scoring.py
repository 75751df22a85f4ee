"""Tasks that are scored while a run trains, and the cache that all share."""

import json
import math
import shutil

import numpy as np
import pytest

from jaxmerge import evaluate, pretrain
from jaxmerge.cli import runner
from jaxmerge.errors import InputError
from jaxmerge.evaluation import ready_tasks, score_cache
from jaxmerge.evaluation.ready_tasks import TaskScores
from jaxmerge.evaluation.score import Score
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.training import scoring
from jaxmerge.training.loop import Plan
from jaxmerge.training.scoring import TaskScoringConfig
from jaxmerge.training.tracker import tracked_name
from tests.helpers import Telling, config_file, config_of, contents, quiet

WORDS = ("def", "class", "import", "return", "None", "self", "for", "while")


@pytest.fixture
def tasks(tmp_path, monkeypatch):
  """The held-out text and two tasks, and a cache of the test's own."""
  use_cache_at(tmp_path / "cache", monkeypatch)
  rows = {
    "pairs": [
      {"sentence_good": f"{a} {b} {a}", "sentence_bad": f"{b} {b} {a}"}
      for a, b in zip(WORDS, WORDS[1:])
    ],
    "choice": [
      {"question": a, "choices": [b, f"{a} {b}"], "answer": number % 2}
      for number, (a, b) in enumerate(zip(WORDS, WORDS[1:]))
    ],
  }
  for name, lines in rows.items():
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / f"{name}.jsonl").write_text(text)
  return ("heldout", *(f"{name}:{tmp_path / name}.jsonl" for name in rows))


def use_cache_at(path, monkeypatch):
  monkeypatch.setattr(score_cache, "cache_root", lambda: path)


@pytest.fixture
def measured(monkeypatch):
  """The names of the tasks that are measured, not found in the cache."""
  found = []
  for kind in (ready_tasks.HeldOutTask, ready_tasks.ChoiceTask):

    def measure(self, number, params, original=kind.measure):
      found.append(self.name)
      return original(self, number, params)

    monkeypatch.setattr(kind, "measure", measure)
  return found


def train(workdir, progress=quiet, num_steps=16, **scoring):
  config = config_of("pretrain", num_steps=num_steps)
  config.scoring = {"sequences": 16, **scoring}
  pretrain.train(config, workdir, progress=progress)


def evaluated(inputs, tasks, **changes):
  config = config_of("evaluate", tasks=tasks, use_cache=True, **changes)
  return evaluate.evaluate(config, inputs, progress=quiet)


def records(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return {record["step"]: record for record in map(json.loads, lines)}


def scores_of(record):
  return {name: v for name, v in record.items() if "|" in name}


def of_rows(rows):
  """The names and values of metrics.jsonl that rows of evaluate make."""
  found = {}
  for row in rows:
    for metric, each in {row.metric: row, **row.others}.items():
      for name, value in {metric: each.score.mean, **each.score.extras}.items():
        found[f"{row.task}|{name}"] = value
  return found


def test_a_run_is_the_same_with_scores_and_without(
  tiny_run, tmp_path, tasks, measured
):
  workdir, notes = tmp_path / "run", []
  progress = Telling(lambda name, done, of, text: notes.append((name, text)))
  train(workdir, progress, tasks=tasks, every=8)
  plain, scored = records(tiny_run), records(workdir)
  assert [*scored] == [*plain]
  for step, record in scored.items():
    found = scores_of(record)
    assert {k: v for k, v in record.items() if k not in found} == plain[step]
    assert bool(found) == (step in (8, 16))
  for step in (8, 16):
    leaves = [
      read_metadata(run / f"checkpoints/{step}").leaves
      for run in (tiny_run, workdir)
    ]
    assert leaves[0] == leaves[1]
  told = scored[16][f"{tasks[1]}|acc"]
  assert any(
    name == "pretrain"
    and text.startswith("step 16: heldout ")
    and text.count(f"{tasks[1]} {told:.4f} accuracy") == 1
    for name, text in notes
  )
  # What evaluate gives of the same parameters, which it takes from the cache.
  assert measured == [*tasks] * 2
  rows = evaluated([f"{workdir}@16"], tasks)
  assert of_rows(rows) == scores_of(scored[16])
  assert len(measured) == 6
  # And what it measures itself.
  config = config_of("evaluate", tasks=tasks, batch_size=4)
  rows = evaluate.evaluate(config, [f"{tiny_run}@8"], progress=quiet)
  assert len(measured) == 9
  assert of_rows(rows) == pytest.approx(scores_of(scored[8]), rel=1e-5)


def test_a_run_that_is_killed_scores_the_same(tmp_path, tasks, monkeypatch):
  workdir = tmp_path / "whole/run"
  train(workdir, tasks=tasks, num_steps=12)
  whole = (workdir / "metrics.jsonl").read_bytes()
  assert [bool(scores_of(r)) for r in records(workdir).values()] == [
    step in (4, 8, 12) for step in range(1, 13)
  ]

  def interrupt(stage, done, total, text):
    if stage == "pretrain" and total and done == 10:
      raise KeyboardInterrupt

  for cache in ("cache", "another"):  # found, or measured again
    use_cache_at(tmp_path / cache, monkeypatch)
    shutil.rmtree(workdir)
    with pytest.raises(KeyboardInterrupt):
      train(workdir, Telling(interrupt), tasks=tasks, num_steps=12)
    shutil.rmtree(workdir / "checkpoints/8")  # its line is cut
    train(workdir, tasks=tasks, num_steps=12)
    assert (workdir / "metrics.jsonl").read_bytes() == whole


def test_what_evaluate_has_scored_is_not_scored_again(
  tiny_run, tmp_path, tasks, measured
):
  rows = evaluated([f"{tiny_run}@12", f"{tiny_run}@16"], tasks)
  assert len(measured) == 6
  workdir = tmp_path / "run"
  train(workdir, num_steps=8)
  # A run goes on with tasks, other tasks or none.
  train(workdir, tasks=tasks, num_steps=12)
  assert len(measured) == 6
  train(workdir, tasks=tasks[:1], every=16)
  assert len(measured) == 6
  scored = records(workdir)
  assert of_rows(rows[::2]) == scores_of(scored[12])
  assert of_rows([rows[1]]) == scores_of(scored[16])
  train(workdir, num_steps=20, tasks=tasks[1:], every=8, use_cache=False)
  assert measured[6:] == [*tasks[1:]]
  assert len(scores_of(records(workdir)[20])) == 6


def test_bad_tasks_are_refused_before_anything_is_done(tmp_path, capsys):
  (tmp_path / "bad.jsonl").write_text('{"question": "a", "answer": 7}\n')
  tasks = (f"choice:{tmp_path}/bad.jsonl", f"pairs:{tmp_path}/none.jsonl")
  before = contents(tmp_path)
  code = runner.run(
    "pretrain",
    lambda: pretrain.main(
      [
        f"--config={config_file('pretrain')}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.scoring.tasks={(*tasks, 'mlu:here')!r}",
        "--config.mesh.fsdp=64",
      ]
    ),
  )
  told = capsys.readouterr().err
  assert code == 2
  for says in (
    f"{tmp_path}/bad.jsonl, line 1",
    f"{tmp_path}/none.jsonl",
    "unknown task 'mlu', did you mean 'mmlu'",
    "fsdp=64",
  ):
    assert says in told
  assert contents(tmp_path) == before


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"every": 8}, "config.scoring.every means nothing without"),
    ({"tasks": ("heldout",), "every": 6}, "every 6 is not a multiple of"),
    ({"tasks": ("heldout",), "shots": 2}, "config.scoring.shots: "),
    ({"tasks": ("heldout",) * 2}, "config.scoring.tasks names 'heldout' twice"),
  ],
)
def test_keys_that_do_not_go_together(tmp_path, changes, says):
  with pytest.raises(InputError, match=says):
    train(tmp_path / "run", **changes)
  assert not (tmp_path / "run").exists()


def test_items_that_do_not_fit_are_refused_before_the_run(tmp_path, tasks):
  lines = [
    {"question": word, "choices": ["def " * 40, "b"], "answer": 0}
    for word in WORDS
  ]
  text = "".join(f"{json.dumps(line)}\n" for line in lines)
  (tmp_path / "long.jsonl").write_text(text)
  config = config_of("pretrain")
  config.scoring = {"tasks": (tasks[1], f"choice:{tmp_path}/long.jsonl")}
  for dry_run in (True, False):
    with pytest.raises(InputError, match="long.jsonl: item"):
      pretrain.train(config, tmp_path / "run", dry_run=dry_run, progress=quiet)
  assert not (tmp_path / "run").exists()


def test_a_plan_says_what_is_scored(tmp_path, tasks, capsys):
  config = config_of("pretrain", num_steps=14)
  config.scoring = {"tasks": tasks, "every": 8, "sequences": 16}
  pretrain.train(config, tmp_path / "run", dry_run=True, progress=quiet)
  told = capsys.readouterr().out
  assert "scores: at 2 of 4 checkpoints, about " in told
  assert "heldout: 16 sequences at most, 512 tokens" in told
  assert f"{tasks[1]}: 7 items, " in told
  assert not (tmp_path / "run").exists()
  # Of a corpus that is not here no token is known.
  config.data.source = "lm1b"
  pretrain.train(config, tmp_path / "run", dry_run=True, progress=quiet)
  told = capsys.readouterr().out
  assert "scores: at 2 of 4 checkpoints\n" in told
  assert f"{tasks[1]}: 7 items\n" in told


def test_when_a_run_is_scored():
  plan = Plan(4, 22, 1, 1, 4)

  def due(every):
    config = TaskScoringConfig(tasks=("heldout",), every=every)
    return [
      s for s in range(5, 23) if plan.saves_at(s) and config.is_due(s, plan)
    ]

  assert due(0) == [8, 12, 16, 20, 22]
  assert due(8) == [8, 16, 22]


def test_what_is_not_finite_is_not_written():
  one = np.ones(2)
  score = Score(one, one, one, "nats/token", "minimize", 2, {"x": math.inf})
  table = TaskScores("heldout", {"nats/token": [score]})
  assert scoring._numbers([table]) == {"heldout|nats/token": 1.0}
  assert tracked_name("pairs:a/b|acc") == "tasks/pairs:a/b acc"
