"""Running averages: what they are, that they survive, and as inputs."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest

from jaxmerge import merge, pretrain
from jaxmerge.checkpoints.inputs import open_inputs, saved_steps
from jaxmerge.checkpoints.model_inputs import load_params, open_models
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.data.batch import Batch
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.huggingface.model_card import model_card
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.training.averages import AveragesConfig, moved, steps_before
from jaxmerge.training.sources import sources_of
from jaxmerge.training.trainer import Trainer
from tests.helpers import Telling, config_of, decoder, quiet

BATCH = Batch(np.random.default_rng(0).integers(0, 50, (4, 9)).astype(np.int32))
# Saved at 3, 6, 9, 10.
RUN = {"num_steps": 10, "save_every": 3, "validation_sequences": 1}


def averaging(**changes):
  config = config_of("pretrain", **RUN | changes)
  config.averages.update(ema_decay=0.75, lawa=3)
  return config


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
  """A run that keeps both averages."""
  workdir = tmp_path_factory.mktemp("averaged") / "run"
  pretrain.train(averaging(), workdir, progress=quiet)
  return workdir


def records(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def tree(name):
  [checkpoint] = open_models([name])
  return jax.tree.leaves(jax.device_get(load_params(checkpoint)))


def assert_close(ones, twos, **close):
  for one, two in zip(ones, twos, strict=True):
    np.testing.assert_allclose(one, two, **close)


def test_the_moving_average_is_the_recurrence():
  parts = (decoder(), make_mesh(), optax.sgd(0.5), lambda count: 0.5)
  trainer = Trainer.build(*parts, averages=AveragesConfig(ema_decay=0.9))
  assert trainer.shardings.averages["ema"] == trainer.shardings.params
  step, state = trainer.train_step(), trainer.random_start(0)
  expected = jax.tree.leaves(jax.device_get(state.params))
  for _ in range(5):
    before = state.averages["ema"]["final_norm"]["scale"]
    state, _ = step(state, BATCH)
    params = jax.tree.leaves(jax.device_get(state.params))
    expected = [
      0.9 * np.float64(e) + 0.1 * p
      for e, p in zip(expected, params, strict=True)
    ]
    assert before.is_deleted()
  assert_close(jax.tree.leaves(state.averages["ema"]), expected, atol=1e-6)
  assert step._cache_size() == 1


def test_a_skipped_step_moves_no_average():
  ema, params = {"w": np.float32([1, 3])}, {"w": np.float32([5, 3])}
  assert_close(moved(ema, params, 0.75, True)["w"], [1, 3], rtol=0)
  assert_close(moved(ema, params, 0.75, False)["w"], [2, 3], rtol=0)


def test_a_mean_is_of_checkpoints_that_every_run_has():
  """Not of one that an end or a signal made, nor of a parent's."""
  assert steps_before(3, 3, save_every=3, start=0) == []
  assert steps_before(9, 3, save_every=3, start=0) == [3, 6]
  assert steps_before(12, 3, save_every=3, start=0) == [6, 9]
  assert steps_before(10, 3, save_every=3, start=0) == [6, 9]
  assert steps_before(12, 4, save_every=3, start=4) == [6, 9]
  assert steps_before(12, 4, save_every=3, start=6) == [9]


def test_lawa_is_the_mean_of_the_last_checkpoints(averaged):
  for step, steps in ((3, [3]), (6, [3, 6]), (9, [3, 6, 9]), (10, [6, 9, 10])):
    saved = [tree(f"{averaged}@{s}") for s in steps]
    mean = [np.mean(np.float64(leaves), axis=0) for leaves in zip(*saved)]
    assert_close(tree(f"{averaged}@{step}:lawa"), mean, atol=1e-7)


def test_losses_of_averages_are_logged_where_checkpoints_are(
  averaged, tiny_run
):
  logged = {r["step"]: r for r in records(averaged) if "validation_loss" in r}
  assert [*logged] == [3, 6, 9, 10]
  for record in logged.values():
    assert record["ema_loss"] > record["validation_loss"]
  assert logged[3]["lawa_loss"] == logged[3]["validation_loss"]
  assert logged[9]["lawa_loss"] > logged[9]["validation_loss"]
  # The run itself is that without them, bit for bit.
  ones, twos = ([r["loss"] for r in records(w)] for w in (averaged, tiny_run))
  assert ones == twos[:10]


def test_a_run_that_is_killed_ends_as_one_that_is_not(averaged, tmp_path):
  """Rules delete nothing that the next mean is made of."""
  said = []

  def interrupt(stage, done, total, text):
    if stage == "pretrain" and total and done == 8:
      raise KeyboardInterrupt

  def train(workdir, progress):
    config = averaging()
    config.keep.latest = 1
    pretrain.train(config, workdir, progress=progress)

  with pytest.raises(KeyboardInterrupt):
    train(tmp_path / "run", Telling(interrupt))
  assert saved_steps(tmp_path / "run") == [3, 6]
  train(tmp_path / "run", Telling(lambda *args: said.append(args[3])))
  assert "going on from step 6" in said
  assert records(tmp_path / "run") == records(averaged)
  assert saved_steps(tmp_path / "run") == [6, 9, 10]
  for step in (9, 10):
    ones, twos = (
      read_metadata(workdir / f"checkpoints/{step}").leaves
      for workdir in (averaged, tmp_path / "run")
    )
    assert [*ones] == ["params", "opt_state", "ema", "lawa"]
    assert ones == twos


def test_an_average_that_begins_later_begins_at_the_parameters(tiny_run):
  """As in a branch of a run that has none."""
  metadata = read_metadata(tiny_run / "checkpoints/8")
  config = averaging()
  _, trainer = pretrain.check_config(config)
  trainer = trainer.with_tokenizer(metadata.model["vocab_size"], 0)
  state = trainer.resume(tiny_run / "checkpoints/8", 8)
  ones, twos = map(jax.tree.leaves, (state.params, state.averages["ema"]))
  assert_close(ones, twos, rtol=0)
  assert all(a is not b for a, b in zip(ones, twos, strict=True))
  with pytest.raises(InputError) as error:
    pretrain.train(
      averaging(num_steps=16, save_every=4, validation_sequences=16),
      tiny_run,
      progress=quiet,
    )
  assert [p.partition(": ")[2] for p in error.value.problems] == [
    "config.averages.ema_decay was 0.0, is now 0.75",
    "config.averages.lawa was 0, is now 3",
  ]


def test_a_mean_without_one_of_its_checkpoints_is_left_out(averaged, tmp_path):
  """The run is not: it is told, and saved."""
  workdir, said = tmp_path / "run", []
  shutil.copytree(averaged, workdir)
  shutil.rmtree(workdir / "checkpoints/9/params")
  config = averaging(num_steps=12)
  pretrain.train(
    config, workdir, progress=Telling(lambda *args: said.append(args[3]))
  )
  [text] = [text for text in said if "no lawa at step 12" in text]
  assert "its params cannot be read" in text
  assert "lawa" not in read_metadata(workdir / "checkpoints/12").leaves
  assert "lawa_loss" not in records(workdir)[-1]
  assert "ema_loss" in records(workdir)[-1]


def test_averages_are_inputs(averaged, tmp_path):
  """By workdir@step or by path; a merge says which were its sources."""
  inputs = [f"{averaged}@6:ema", f"{averaged}/checkpoints/9:ema"]
  emas = [
    restore_params(averaged / f"checkpoints/{step}", item="ema")
    for step in (6, 9)
  ]
  assert_close(tree(inputs[1]), jax.tree.leaves(emas[1]), rtol=0)
  output = tmp_path / "merged"
  config = config_of("merge", "uniform")
  merge.merge(config, inputs, output, progress=quiet)
  halves = jax.tree.map(lambda a, b: (a + b) / 2, *emas)
  assert_close(tree(str(output)), jax.tree.leaves(halves), atol=1e-7)
  sources = read_metadata(output).provenance["sources"]
  assert [s["item"] for s in sources] == ["ema", "ema"]
  assert sources[0]["name"] == inputs[0]
  # A branch of the merge has the optimiser's state of its newest step.
  [parent] = open_models([str(output)])
  [newest] = sources_of(parent, "newest").checkpoints
  assert newest.metadata.leaves == read_metadata(newest.path).leaves
  [opened] = open_models(inputs[1:])
  card = model_card({}, opened.metadata, is_known=True)
  assert "parameters: the run's average ema" in card
  assert "Sources" not in card
  # A run may start from one, and not branch off from it.
  start = {"num_steps": 1, "validation_sequences": 1}
  pretrain.train(
    config_of("pretrain", **start),
    tmp_path / "run",
    init_from=inputs[0],
    progress=quiet,
  )
  assert read_metadata(tmp_path / "run/checkpoints/1").parent == inputs[0]
  with pytest.raises(InputError, match="no optimiser state"):
    pretrain.train(
      config_of("pretrain", branch=True, **start),
      tmp_path / "branch",
      init_from=inputs[0],
      progress=quiet,
    )


def test_items_that_there_are_not(averaged, tiny_run, tmp_path):
  named = tmp_path / "run:ema"  # a colon of its own
  shutil.copytree(tiny_run / "checkpoints/8", named)
  with pytest.raises(InputError) as error:
    open_inputs(
      [
        f"{averaged}@6:emma",
        f"{averaged}@6:opt_state",
        f"{tiny_run}@8:ema",
        f"{tiny_run}@7:ema",
        f"{averaged}:ema",
        f"{named}:ema",
        "gs:ema",
      ]
    )
  assert [p.rpartition("run")[2] for p in error.value.problems[:4]] == [
    "@6:emma: there is no emma, it has params, ema, lawa",
    "@6:opt_state: there is no opt_state, it has params, ema, lawa",
    "@8:ema: there is no ema, it has params",
    " has no step 7; it has 4, 8, 12, 16",
  ]
  assert "is a workdir; name a step" in error.value.problems[4]
  assert "there is no ema, it has params" in error.value.problems[5]
  assert error.value.problems[6] == "input gs does not exist"
  [plain] = open_inputs([str(named)])
  assert plain.item == "params"
