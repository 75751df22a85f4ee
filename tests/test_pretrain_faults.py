"""Runs that diverge, are interrupted, or are asked for what cannot be."""

import json
import os
import shutil

import numpy as np
import pytest

from jaxmerge import convert, locks, pretrain
from jaxmerge.cli import runner
from jaxmerge.errors import Diverged, InputError
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.training.loop import Plan, train
from jaxmerge.training.step import StepMetrics
from tests.helpers import (
  Telling,
  config_file,
  config_of,
  contents,
  no_corpus,
  quiet,
)

TINY = config_file("pretrain")


@pytest.fixture
def unfinished(workdir):
  """A run that ended at step 12, with lines up to there."""
  shutil.rmtree(workdir / "checkpoints/16")
  return workdir


def test_a_run_that_diverges_ends_with_exit_code_3(tmp_path, capsys):
  workdir = tmp_path / "run"
  argv = [
    f"--config={TINY}",
    f"--workdir={workdir}",
    "--config.optimizer.learning_rate=1e30",
    "--config.save_every=1",
    "--config.log_every=1",
  ]
  assert runner.run("pretrain", lambda: pretrain.main(argv)) == 3
  said = capsys.readouterr().err
  assert "the run has diverged: step" in said
  saved = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
  if saved:
    assert f"last good checkpoint is {workdir}@{saved[-1]}" in said
  else:
    assert "no checkpoint has been saved" in said
  for step in saved:
    leaves = read_metadata(workdir / f"checkpoints/{step}").leaves["params"]
    assert all(leaf["norm"] is not None for leaf in leaves.values())
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  for line in lines:
    record = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert np.isfinite(list(record.values())).all()
  # Told again, it ends in the same way.
  assert runner.run("pretrain", lambda: pretrain.main(argv)) == 3


@pytest.mark.parametrize("field", ["loss", "grad_norm", "validation_loss"])
def test_nothing_that_is_not_finite_is_written_or_saved(field, tmp_path):
  from jaxmerge.training.metrics import MetricsWriter

  bad_step = 8

  def step(state, tokens):
    values = {"loss": np.float32(1), "grad_norm": np.float32(2)}
    if state + 1 == bad_step and field in values:
      values[field] = np.float32(np.inf)
    numbers = StepMetrics(learning_rate=np.float32(0.1), **values)
    return state + 1, numbers

  saved = []
  metrics = MetricsWriter(tmp_path, 0)
  with pytest.raises(Diverged, match="step 8 has"):
    train(
      step,
      0,
      iter([np.zeros(1)] * 99),
      Plan(0, 20, tokens_per_step=1, log_every=3, save_every=4),
      save=lambda step, state: saved.append(step),
      evaluate=lambda s, state: {
        "validation_loss": np.nan
        if (field, s) == ("validation_loss", bad_step)
        else 1.0
      },
      metrics=metrics,
      progress=quiet,
    )
  metrics.close()
  assert saved == [4]
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == list(range(1, 8))


@pytest.mark.parametrize(
  ("moment", "note"),
  [
    (2, "no checkpoint has been saved: the run begins anew"),
    (6, "step 4 is saved, and the same command goes on from there"),
  ],
)
def test_an_interrupt_names_the_step_that_is_saved(
  tiny_run, tmp_path, moment, note
):
  workdir = tmp_path / "run"
  said = []

  def interrupt(stage, done, total, text):
    if stage == "pretrain" and total and done == moment:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt) as error:
    pretrain.train(config_of("pretrain"), workdir, progress=Telling(interrupt))
  assert error.value.__notes__ == [note]
  pretrain.train(
    config_of("pretrain"),
    workdir,
    progress=Telling(lambda *args: said.append(args[3])),
  )
  assert "metrics of 2 steps that were not saved are cut" in said
  for name in ("metrics.jsonl", "run.json"):
    assert (workdir / name).read_text() == (tiny_run / name).read_text()
  leaves = [
    read_metadata(run / "checkpoints/16").leaves for run in (tiny_run, workdir)
  ]
  assert leaves[0] == leaves[1]


def test_metrics_that_are_not_those_of_the_run_stop_it(unfinished, monkeypatch):
  metrics = unfinished / "metrics.jsonl"
  lines = metrics.read_text().splitlines(keepends=True)
  record = json.loads(lines[3])
  lines[3] = json.dumps({**record, "loss": record["loss"] - 0.01}) + "\n"
  metrics.write_text("".join(lines))
  before = contents(unfinished)
  monkeypatch.setattr(pretrain, "open_corpus", no_corpus)
  for dry_run in (True, False):
    with pytest.raises(InputError, match="does not hold exactly the steps"):
      pretrain.train(
        config_of("pretrain"), unfinished, dry_run=dry_run, progress=quiet
      )
  assert contents(unfinished) == before


def test_a_refused_parent_does_not_take_the_workdir(tiny_run, tmp_path):
  other = config_of("pretrain")
  other.model.num_hidden_layers = 3
  workdir = tmp_path / "run"
  damaged = tmp_path / "damaged"
  shutil.copytree(tiny_run, damaged)
  shutil.rmtree(damaged / "checkpoints/8/params")
  for config, parent in (
    (other, f"{tiny_run}@8"),
    (config_of("pretrain"), f"{damaged}@8"),
    (config_of("pretrain"), f"{tiny_run}@9"),
  ):
    with pytest.raises(InputError):
      pretrain.train(config, workdir, init_from=parent, progress=quiet)
    assert not workdir.exists()
  config = config_of("pretrain")
  config.num_steps = 4
  pretrain.train(config, workdir, init_from=f"{tiny_run}@8", progress=quiet)
  assert (workdir / "checkpoints/4").exists()


def test_a_run_starts_from_a_hugging_face_directory(tiny_run, tmp_path):
  convert.convert(f"{tiny_run}@8", tmp_path / "hf", "hf")
  config = config_of("pretrain")
  config.num_steps = 1
  first = []
  for name, parent in (("a", f"{tiny_run}@8"), ("b", str(tmp_path / "hf"))):
    pretrain.train(config, tmp_path / name, init_from=parent, progress=quiet)
    [line] = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    first.append(json.loads(line))
  assert first[0] == first[1]


def _run_of_files(tmp_path, **changed):
  """A config whose corpus is one file, and that file."""
  text = tmp_path / "corpus/text.txt"
  text.parent.mkdir(exist_ok=True)
  if not text.exists():
    words = np.random.default_rng(0).integers(0, 99, 20_000)
    text.write_text("".join(f"word{w}\n" for w in words))
  config = config_of("pretrain")
  config.data.source = "text_files"
  config.data.globs = (f"{text.parent}/*.txt",)
  config.data.max_documents = 0
  config.num_steps = 4
  for key, value in changed.items():
    config[key] = value
  return config, text


def test_what_is_not_the_run_is_refused_before_a_text_is_tokenized(
  tmp_path, monkeypatch
):
  config, text = _run_of_files(tmp_path)
  workdir = tmp_path / "run"
  said = []
  config.data.vocab_size = 5_000
  pretrain.train(
    config, workdir, progress=Telling(lambda *args: said.append(args[3]))
  )
  run = json.loads((workdir / "run.json").read_text())
  assert run["vocabulary"] < 5_000
  assert (
    f"the text gives {run['vocabulary']} tokens, not the "
    "config.data.vocab_size 5000"
  ) in said
  assert read_metadata(workdir / "checkpoints/4").data["content"]
  before = contents(workdir)
  monkeypatch.setattr(pretrain, "open_corpus", no_corpus)
  for change, words in (
    (lambda c: setattr(c.data, "vocab_size", 4_000), "vocab_size was 5000"),
    (lambda c: setattr(c, "seed", 1), "config.seed was 0, is now 1"),
    (lambda c: text.write_text("other\n" * 9_000), "its corpus has changed"),
    (lambda c: text.unlink(), "no file matches"),
  ):
    now, _ = _run_of_files(tmp_path)
    now.data.vocab_size = 5_000
    change(now)
    for dry_run in (True, False):
      with pytest.raises(InputError, match=words):
        pretrain.train(now, workdir, dry_run=dry_run, progress=quiet)
  assert contents(workdir) == before


def test_a_dry_run_writes_nothing_in_a_workdir(unfinished, capsys):
  before = contents(unfinished), sorted(os.listdir(unfinished.parent))
  pretrain.train(
    config_of("pretrain"), unfinished, dry_run=True, progress=quiet
  )
  assert "vocabulary: 300 tokens\n" in capsys.readouterr().out
  new = unfinished.parent / "new"
  pretrain.train(config_of("pretrain"), new, dry_run=True, progress=quiet)
  after = contents(unfinished), sorted(os.listdir(unfinished.parent))
  assert after == before


def test_a_run_and_its_dry_run_say_what_they_read(tmp_path, capsys):
  config, text = _run_of_files(tmp_path)
  text.with_name("latin.txt").write_bytes(b"caf\xe9")
  config.data.globs = str(text.parent)
  said = []
  telling = Telling(lambda *args: said.append(args[3]))
  new = tmp_path / "new"
  pretrain.train(config, new, dry_run=True, progress=telling)
  [line] = [words for words in said if "train tokens" in words]
  assert "1 skipped: 1 not UTF-8 (first: latin.txt); " in line
  assert line.endswith("validation")
  assert not new.exists()
  # A glob that is a text, and the run itself: the same corpus.
  config.data.globs = f"{text.parent}/*.txt"
  said.clear()
  pretrain.train(config, new, progress=telling)
  assert line in said
  config.seed = 1
  with pytest.raises(InputError, match="config.seed was 0"):
    pretrain.train(config, new, dry_run=True, progress=telling)


def test_a_dry_run_leaves_a_catalogue_alone(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(pretrain, "open_corpus", no_corpus)
  config = config_of("pretrain")
  config.data.source = "lm1b"
  config.data.data_dir = str(tmp_path)
  pretrain.train(config, tmp_path / "new", dry_run=True)
  assert "300 tokens, or what the text gives" in capsys.readouterr().out


def test_one_process_at_a_time_trains_in_a_workdir(unfinished):
  before = contents(unfinished)
  with (
    locks.exclusive(unfinished / "run.json", "the workdir"),
    pytest.raises(InputError, match="is in use by process .* since"),
  ):
    pretrain.train(config_of("pretrain"), unfinished, progress=quiet)
  assert contents(unfinished) == before
  inside = unfinished / "checkpoints/20"
  with pytest.raises(InputError, match="among the checkpoints of a run"):
    pretrain.train(config_of("pretrain"), inside, progress=quiet)
  assert contents(unfinished) == before
  pretrain.train(config_of("pretrain"), unfinished, progress=quiet)
  assert (unfinished / "checkpoints/16").exists()


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("seq_len", 10**12),
    ("batch_size", 10**12),
    ("eval_batch_size", 10**15),
    ("model.hidden_size", 10**9),
    ("model.intermediate_size", 10**13),
    ("model.num_hidden_layers", 10**12),
    ("data.vocab_size", 10**13),
  ],
)
def test_absurd_sizes_are_a_message(tmp_path, capsys, key, value):
  argv = [
    f"--config={TINY}",
    f"--workdir={tmp_path / 'run'}",
    f"--config.{key}={value}",
    "--config.num_steps=1",
  ]
  code = runner.run("pretrain", lambda: pretrain.main(argv))
  said = capsys.readouterr().err
  assert code == 2, said
  assert not (tmp_path / "run").exists()
