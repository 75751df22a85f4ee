"""Scores while a job trains, and the cache that its processes share."""

import json
import pathlib

import jax
import pytest

from jaxmerge import evaluate, pretrain
from jaxmerge.evaluation import ready_tasks, score_cache
from tests.helpers import config_of, quiet
from tests.multiprocess import jobs

TASKS = 2


def tasks_in(folder: pathlib.Path) -> tuple[str, ...]:
  return "heldout", f"pairs:{folder}/pairs.jsonl"


def evaluated(folder: pathlib.Path, **changes) -> dict[str, float]:
  config = config_of("evaluate", tasks=tasks_in(folder), **changes)
  inputs = [f"{folder}/run@{step}" for step in (2, 4)]
  rows = evaluate.evaluate(config, inputs, progress=quiet)
  return {f"{row.name} {row.task}": row.score.mean for row in rows}


def in_a_job(folder: pathlib.Path) -> None:
  """Trains and evaluates, with a cache that the other does not see."""
  from jaxmerge.cli import runner

  runner.set_up_jax()
  index = jax.process_index()
  own = folder / f"cache{index}"
  written, measured = [], []
  write = score_cache.write_bytes
  score_cache.cache_root = lambda: own
  score_cache.write_bytes = lambda path, content: (
    written.append(path.name),
    write(path, content),
  )
  measure = ready_tasks.ChoiceTask.measure
  ready_tasks.ChoiceTask.measure = lambda self, kind, params: (
    measured.append(self.name) or measure(self, kind, params)
  )
  config = config_of("pretrain", num_steps=4, save_every=2)
  config.mesh.fsdp = 2
  config.scoring = {"tasks": tasks_in(folder), "sequences": 16}
  pretrain.train(config, folder / "run", progress=quiet)
  mesh = {"fsdp": 2}
  rows = evaluated(folder, use_cache=True, mesh=mesh)
  told = {"rows": rows, "written": written, "measured": measured}
  (folder / f"{index}.json").write_text(json.dumps(told))
  jax.distributed.shutdown()  # waits for the other


def test_each_score_is_kept_once_and_found_by_all(tmp_path):
  words = ("def", "class", "import", "return", "None")
  text = "".join(
    json.dumps({"sentence_good": f"{a} {b}", "sentence_bad": f"{b} {a} {b}"})
    + "\n"
    for a, b in zip(words, words[1:])
  )
  (tmp_path / "pairs.jsonl").write_text(text)
  ended = jobs.run_work(tmp_path, in_a_job, tmp_path, devices=1)
  assert [code for code, _ in ended] == [0, 0], "\n".join(t for _, t in ended)
  first, other = (
    json.loads((tmp_path / f"{index}.json").read_text()) for index in range(2)
  )
  assert len(first["written"]) == len({*first["written"]}) == 2 * TASKS
  assert other["written"] == []
  assert not (tmp_path / "cache1").exists()
  # While it trains alone; evaluate finds all in the first one's cache.
  assert len(first["measured"]) == len(other["measured"]) == 2
  assert first["rows"] == other["rows"]
  alone = evaluated(tmp_path)
  assert alone == pytest.approx(first["rows"], rel=1e-5)
  lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
  record = json.loads(lines[-1])
  [found] = [v for k, v in first["rows"].items() if k.endswith("@4 heldout")]
  assert record["heldout|nats/token"] == found
