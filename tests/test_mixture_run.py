"""A run on a mixture: what the verbs make of it, and what it refuses."""

import json
import math

import pytest

from jaxmerge import evaluate, pretrain, search
from jaxmerge.cli import runner
from jaxmerge.errors import InputError
from jaxmerge.evaluation import held_out_splits
from tests.data.conftest import write_texts
from tests.helpers import config_file, config_of, quiet


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  config = config_of("pretrain", "mixture")
  texts = write_texts(tmp_path_factory.mktemp("texts"))
  config.data.mixture.prose.globs = (str(texts),)
  config.data.packing = "documents"
  config.num_steps = 8
  return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("mixture") / "run"
  pretrain.train(config, workdir, progress=quiet)
  return workdir


def _changed(config, **mixture):
  copy = runner.load_config(config_file("pretrain", "mixture"))
  copy.update(config.to_dict())
  for name, part in mixture.items():
    copy.data.mixture[name].update(part)
  return copy


def _code(words):
  return runner.run("pretrain", lambda: pretrain.main(words))


def test_the_plan_tells_epochs_and_packing(config, tmp_path, capsys):
  pretrain.train(config, tmp_path / "x", dry_run=True, progress=quiet)
  told = capsys.readouterr().out
  assert " of code, " in told
  assert " of prose\n" in told
  assert "of positions are targets" in told


def test_its_checkpoints_are_scored_on_text_of_all_parts(
  run, monkeypatch, capsys
):
  opened = []
  real = held_out_splits.open_corpus

  def keep(*args, **kwargs):
    opened.append(real(*args, **kwargs))
    return opened[-1]

  monkeypatch.setattr(held_out_splits, "open_corpus", keep)
  inputs = [f"{run}@4", f"{run}@8"]
  rows = evaluate.evaluate(config_of("evaluate"), inputs, progress=quiet)
  assert "report split" in capsys.readouterr().out
  parts = ["heldout", "heldout/code", "heldout/prose"]
  assert [row.task for row in rows[::2]] == parts
  for whole, *of_parts in zip(rows[:2], rows[2:4], rows[4:]):
    summed = sum(row.score.values_N.sum() for row in of_parts)
    assert summed == pytest.approx(whole.score.values_N.sum())
    bits = [
      (row.score.values_N.sum(), row.score.extras["bits/byte"])
      for row in of_parts
    ]
    num_bytes = sum(nats / math.log(2) / rate for nats, rate in bits)
    rate = whole.score.extras["bits/byte"]
    assert summed / math.log(2) / num_bytes == pytest.approx(rate)
  [corpus] = opened
  assert corpus.weights == {"code": 0.7, "prose": 0.3}
  said = json.loads((run / "run.json").read_text())
  assert corpus.identity == said["corpus"]
  config = config_of("search", num_trials=2, baselines=())
  config.checkpoint_steps = (4, 8)
  search.search(config, run, dry_run=True, progress=quiet)


@pytest.mark.parametrize("key", ["weight", "max_documents"])
def test_another_share_or_another_text_is_another_run(config, run, key):
  value = {"weight": 0.6, "max_documents": 130}[key]
  other = _changed(config, code={key: value})
  with pytest.raises(InputError, match=f"mixture.code.{key} was .* is now"):
    pretrain.train(other, run, progress=quiet)


def test_a_branch_has_its_parents_shares(config, run, tmp_path):
  other = _changed(config, code={"weight": 0.6})
  other.branch, other.num_steps = True, 12
  with pytest.raises(InputError) as error:
    pretrain.train(other, tmp_path / "b", init_from=f"{run}@8", progress=quiet)
  [problem] = error.value.problems
  assert "config.data.mixture.code.weight was 0.7, is now 0.6" in problem


def test_shares_are_typed_and_bad_ones_refused(tmp_path, capsys):
  file = config_file("pretrain", "mixture")
  words = [f"--config={file}", f"--workdir={tmp_path / 'w'}", "--dry_run"]
  words += [
    "--config.data.mixture.code.weight=0",
    "--config.data.mixture.prose.source=python_source",
    "--config.data.source=sotu",
  ]
  assert _code(words) == 2
  lines = capsys.readouterr().err
  assert "mixture.code.weight must be positive, got 0.0" in lines
  assert "are both given" in lines
  words = [*words[:3], "--config.data.mixture.cod.weight=1"]
  assert _code(words) == 2
  assert "unknown config key config.data.mixture.cod.weight" in (
    capsys.readouterr().err
  )
