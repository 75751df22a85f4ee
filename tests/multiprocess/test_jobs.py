"""Every verb in a job of two processes gives what one process gives."""

import json
import pathlib
import shutil
import time

import numpy as np
import pytest

from jaxmerge import convert, evaluate, merge, pretrain, search
from jaxmerge.bayesopt.study import study as studies
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.cli import runner
from jaxmerge.errors import Diverged, InputError
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.parallel import distributed, exchange
from jaxmerge.parallel.rules import named_leaves
from tests.helpers import config_of, quiet
from tests.multiprocess import jobs
from tests.test_evaluate_tasks import PAIRS, write_lines

MERGES = {
  "uniform": {},
  "greedy": {},
  "newton": {"layer_groups": "2", "negative": True},
}
STUDIES = ("pair", "solved", "tasks")
PAIRS_FILE = "pairs.jsonl"
ODD = [0.1, 1 / 3, 1e-300, 2**53 + 1.0, -0.0]


def all_verbs(run: pathlib.Path, folder: pathlib.Path, fsdp: int) -> None:
  """Done by a job as by one process."""
  config = config_of("search", checkpoint_steps=(4, 8, 12), baselines=())
  config.update(use_gradients=True, early_stop=True)
  config.mesh.fsdp = fsdp
  search.search(config, run, progress=quiet)
  config = config_of("search", checkpoint_steps=(4, 8, 12), num_trials=7)
  config.update(study_name="solved", solver="newton", baselines=())
  config.update(layer_groups="2", negative=True)
  config.mesh.fsdp = fsdp
  search.search(config, run, progress=quiet)
  tasks = ("heldout", f"pairs:{folder / PAIRS_FILE}")
  config = config_of("search", checkpoint_steps=(4, 8, 12), num_trials=2)
  config.update(study_name="tasks", tasks=tasks, task_weights=(1.0, 0.5))
  config.update(metric="gold", task_tolerance=(1.0,), baselines=())
  config.mesh.fsdp = fsdp
  search.search(config, run, progress=quiet)
  inputs = [f"{run}@8", f"{run}@12"]
  for method, knobs in MERGES.items():
    config = config_of("merge", "uniform", method=method, search_sequences=16)
    config.update(knobs)
    config.mesh.fsdp = fsdp
    merge.merge(config, inputs, folder / method, progress=quiet)
  convert.convert(str(folder / "uniform"), folder / "hf", "hf")
  config = config_of("evaluate")
  config.mesh.fsdp = fsdp
  inputs = [f"{run}@12", *(str(folder / m) for m in MERGES), f"{folder}/hf"]
  evaluate.evaluate(config, inputs, output=folder / "scores", progress=quiet)


def in_a_job(run: pathlib.Path, folder: pathlib.Path) -> None:
  """The same in each process of a job, and what goes wrong in one."""
  runner.set_up_jax()
  all_verbs(run, folder, fsdp=2)
  index = int(not distributed.is_first_process())

  def fail(what: str, action) -> None:
    try:
      action()
    except Exception as error:  # noqa: BLE001
      told = str(error)
      print(json.dumps([what, type(error).__name__, told]), flush=True)

  def odd(kind: type[Exception]):
    if index:
      raise kind("of process 1")

  def on_fire(*args):
    raise OSError("the disk is on fire")

  team = distributed.Team()
  team.add("same", lambda *values: values)
  found = team.lead(lambda: team.do("same", *ODD))
  assert index or found == tuple(ODD)
  team.add("odd", lambda: odd(InputError))
  fail("led", lambda: team.lead(lambda: team.do("odd")))
  fail("key", lambda: exchange.check_same(lambda: {"a": 1, "config.b": index}))
  fail("every", lambda: distributed.on_every_process(lambda: odd(RuntimeError)))
  fail("diverged", lambda: distributed.on_every_process(lambda: odd(Diverged)))
  config = config_of("pretrain", batch_size=6)
  fail("batch", lambda: pretrain.train(config, folder / "none", progress=quiet))
  # In the middle of a search.
  studies.storage_of = on_fire
  config = config_of("search", study_name="burnt")
  fail("burnt", lambda: search.search(config, run, progress=quiet))
  print(json.dumps(["ended", "", time.time()]), flush=True)


@pytest.fixture(scope="module")
def worked(tiny_run, tmp_path_factory):
  """The folders of one process and of a job, and what the job's print."""
  folder = tmp_path_factory.mktemp("job")
  alone, together = folder / "alone", folder / "together"
  for each in (alone, together):
    shutil.copytree(tiny_run, each / "run")
    write_lines(each / PAIRS_FILE, PAIRS)
  ended = jobs.run_work(folder, in_a_job, together / "run", together)
  assert [code for code, _ in ended] == [0, 0], "\n".join(t for _, t in ended)
  all_verbs(alone / "run", alone, fsdp=1)
  return alone, together, [output for _, output in ended]


def test_a_search_tries_and_finds_the_same(worked, trials_of):
  alone, together, outputs = worked
  for study in STUDIES:
    pairs = zip(
      *(trials_of(f / "run", study) for f in (alone, together)), strict=True
    )
    for one, other in pairs:
      assert one[:2] == other[:2]  # number and state
      for name, weight in one[2].items():
        assert other[2][name] == pytest.approx(weight, abs=1e-4)
      if one[3] is not None:
        assert other[3] == pytest.approx(one[3], abs=1e-5)
    rows = [
      json.loads((f / f"run/search/{study}/report/results.json").read_text())[
        "rows"
      ]
      for f in (alone, together)
    ]
    for one, other in zip(*rows, strict=True):
      assert one["name"] == other["name"]
      for loss in ("report_loss", "search_loss"):
        assert other[loss] == pytest.approx(one[loss], abs=1e-5)
      if one["name"] == "rna":
        assert other["weights"] == pytest.approx(one["weights"], abs=1e-5)
    assert "rna" in [one["name"] for one in rows[0]]
  # The second search measured derivatives, and took a step by them.
  assert any("measured" in t[4] for t in trials_of(alone / "run", "solved"))
  assert "delta on the report split" in outputs[0]
  assert "delta on the report split" not in outputs[1]


def test_merges_and_scores_are_the_same(worked):
  alone, together, _ = worked
  searched = [f"run/search/{study}/merged/12" for study in STUDIES]
  for place in [*MERGES, *searched]:
    first, again = (
      named_leaves(restore_params(f / place)) for f in (alone, together)
    )
    for name, leaf in first.items():
      np.testing.assert_allclose(
        leaf,
        again[name],
        atol=1e-6 if place in ("uniform", "greedy") else 1e-5,
        err_msg=place,
      )
    assert read_metadata(together / place).kind == "merged"
  scores = [
    json.loads((f / "scores/evaluation.json").read_text())["rows"]
    for f in (alone, together)
  ]
  assert len(scores[0]) == len(MERGES) + 2
  for one, other in zip(*scores, strict=True):
    loss = "nats_per_token"
    assert other[loss] == pytest.approx(one[loss], abs=1e-5)


def test_what_one_process_raises_ends_what_all_do(worked):
  told = [
    {
      what: (kind, text)
      for what, kind, text in map(
        json.loads, (t for t in output.splitlines() if t.startswith('["'))
      )
    }
    for output in worked[2]
  ]
  of_one = ("InputError", "of process 1")
  assert [t["led"] for t in told] == [of_one, of_one]
  differ = "the processes differ: config.b is 0 in process 0, 1 in process 1"
  assert [t["key"] for t in told] == [("InputError", differ)] * 2
  assert told[0]["every"] == (
    "InputError",
    "process 1: RuntimeError: of process 1",
  )
  assert told[1]["every"] == ("RuntimeError", "of process 1")
  assert [t["diverged"][0] for t in told] == ["Diverged"] * 2
  assert told[0]["diverged"] == told[1]["diverged"]
  batch = "config.batch_size 6 is not a multiple of 4"
  assert all(batch in t["batch"][1] for t in told)
  assert told[0]["burnt"] == ("OSError", "the disk is on fire")
  why = "process 0 of the job has ended and says why"
  assert told[1]["burnt"] == ("InputError", why)
  assert abs(told[0]["ended"][1] - told[1]["ended"][1]) < 10
