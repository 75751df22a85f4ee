import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge.checkpoints.inputs import step_path
from jaxmerge.config_reading import read
from jaxmerge.data.batch import Batch
from jaxmerge.data.config import CorpusConfig
from jaxmerge.data.corpora import content_hash, load_corpus
from jaxmerge.data.tokenizers.hugging_face import train_tokenizer
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.training import run
from jaxmerge.training.loop import Plan, train
from jaxmerge.training.metrics import MetricsWriter, check_saved
from jaxmerge.training.optimizer import OptimizerConfig, build
from jaxmerge.training.trainer import Trainer
from tests.helpers import decoder, quiet


def built(learning_rate, warmup_steps, **knobs):
  """The optimiser of a config, and its schedule."""
  given = {"learning_rate": learning_rate, "warmup_steps": warmup_steps}
  return build(read(OptimizerConfig, {**given, **knobs}), num_steps=100)


TOKENIZER = train_tokenizer(["a text"], vocab_size=257)


def test_the_rate_warms_up_and_stays():
  _, schedule = built(0.4, 4)
  rates = [float(schedule(step)) for step in (0, 1, 2, 4, 5, 10_000)]
  np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.4, 0.4, 0.4], rtol=1e-6)
  _, schedule = built(0.4, 0)
  assert float(schedule(0)) == pytest.approx(0.4)


def test_one_step_of_adamw_by_hand():
  """First step: m/sqrt(v) is the sign, plus decay on matrices only."""
  optimizer, _ = built(0.1, 0, b1=0.9, b2=0.99, weight_decay=0.5, clip_norm=1e9)
  params = {n: jnp.full((2, 2), 2.0) for n in ("kernel", "scale", "bias")}
  grads = {n: jnp.full((2, 2), -3.0) for n in ("scale", "bias")}
  grads["kernel"] = jnp.full((2, 2), 3.0)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  np.testing.assert_allclose(updates["kernel"], -0.1 * (1 + 0.5 * 2), rtol=1e-4)
  np.testing.assert_allclose(updates["scale"], 0.1, rtol=1e-4)
  np.testing.assert_allclose(updates["bias"], 0.1, rtol=1e-4)


def test_gradients_are_clipped_by_their_global_norm():
  def first_moment(clip_norm):
    optimizer, _ = built(
      0.1, 0, b1=0, b2=0, weight_decay=0, clip_norm=clip_norm
    )
    params = {"kernel": jnp.zeros(4)}
    grads = {"kernel": jnp.full(4, 3.0)}
    _, state = optimizer.update(grads, optimizer.init(params), params)
    return state[1][0].mu["kernel"]

  np.testing.assert_allclose(first_moment(3.0), 1.5, rtol=1e-5)
  np.testing.assert_allclose(first_moment(100.0), 3.0, rtol=1e-5)


def test_bad_knobs_are_all_listed():
  with pytest.raises(InputError) as error:
    built(0.1, 0, b1=1.0, b2=-1, weight_decay=-1, clip_norm=0.0)
  assert len(error.value.problems) == 4


def test_when_to_log_and_to_save():
  plan = Plan(0, 10, tokens_per_step=8, log_every=2, save_every=5)
  steps = range(1, 11)
  assert [s for s in steps if plan.saves_at(s)] == [5, 10]
  assert [s for s in steps if plan.logs_at(s)] == [2, 4, 5, 6, 8, 10]


def records(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_cut_back_to_the_restored_step(tmp_path):
  rows = [{"step": s, "tokens": 8 * s, "loss": 1.0 / s} for s in range(1, 7)]
  writer = MetricsWriter(tmp_path, restored_step=0)
  writer.write(rows[:4], {"tokens_per_second": 1.0})
  writer.write(rows[4:], {})
  writer.close()
  file = tmp_path / "metrics.jsonl"
  whole = file.read_text()
  file.write_text(whole + '{"step": 7, "tok')
  MetricsWriter(tmp_path, restored_step=4).close()
  assert records(file) == rows[:4]
  again = MetricsWriter(tmp_path, restored_step=4)
  again.write(rows[4:], {})
  again.close()
  assert file.read_text() == whole


def _edited(lines, how):
  lines = list(lines)
  match how:
    case "missing":
      del lines[1]
    case "doubled":
      lines.insert(2, lines[2])
    case "changed":
      lines[1] = lines[1].replace("0.5", "0.25")
    case "out of order":
      lines[0], lines[1] = lines[1], lines[0]
    case "not JSON":
      lines[0] = "{\n"
    case "NaN":
      lines[0] = lines[0].replace("1.0", "NaN")
    case "nested":
      lines[0] = "[" * 100_000 + "\n"
    case "text":
      lines[0] = lines[0].replace("1.0", '"1.0"')
    case "empty":
      lines = []
  return "".join(lines)


@pytest.mark.parametrize(
  ("how", "words"),
  [
    ("missing", "no line for step 2"),
    ("doubled", "two lines or more for step 3"),
    ("changed", "not those that step 4 was saved with"),
    ("out of order", "out of order"),
    ("not JSON", "line 1 is not a record"),
    ("NaN", "line 1 is not a record"),
    ("nested", "line 1 is not a record"),
    ("text", "line 1 is not a record"),
    ("empty", "no line for step 1, 2, 3, 4"),
  ],
)
def test_a_run_goes_on_only_behind_the_lines_it_was_saved_with(
  tmp_path, how, words
):
  rows = [{"step": s, "tokens": 8 * s, "loss": 1.0 / s} for s in range(1, 7)]
  writer = MetricsWriter(tmp_path, restored_step=0)
  writer.write(rows[:4], {})
  digest = writer.sync()
  writer.write(rows[4:], {})
  writer.close()
  file = tmp_path / "metrics.jsonl"
  whole = file.read_text()
  file.write_text(_edited(whole.splitlines(keepends=True), how))
  before = file.read_text()
  for attempt in (check_saved, MetricsWriter):
    with pytest.raises(InputError, match=words):
      attempt(tmp_path, 4, digest)
  assert file.read_text() == before
  file.write_text(whole)
  check_saved(tmp_path, 4, digest)
  again = MetricsWriter(tmp_path, 4, digest)
  assert again.cut == 2
  again.write(rows[4:], {})
  again.close()
  assert file.read_text() == whole


def identity_of(config, *, content="text", corpus="corpus", parent=""):
  parts = run.known_parts(config, content=content, parent=parent)
  return run.identity(parts, corpus=corpus, vocabulary=300)


def test_a_workdir_belongs_to_one_run(tmp_path):
  config = {"num_steps": 5, "seed": 0, "data": {"source": "a", "globs": ()}}
  first = identity_of(config)
  run.claim(tmp_path, first, TOKENIZER)
  longer = identity_of({**config, "num_steps": 9})
  assert longer["run_id"] == first["run_id"]
  run.claim(tmp_path, longer, TOKENIZER)
  other = identity_of(
    {**config, "seed": 1}, corpus="other corpus", parent="parent"
  )
  assert other["run_id"] != first["run_id"]
  with pytest.raises(InputError) as error:
    run.claim(tmp_path, other, TOKENIZER)
  assert len(error.value.problems) == 3
  assert "config.seed was 0, is now 1" in str(error.value)
  with pytest.raises(InputError, match="the text of its corpus has changed"):
    run.check_workdir(
      tmp_path, run.known_parts(config, content="new", parent="")
    )
  for damaged in ("{", "[]", "[" * 100_000):
    (tmp_path / "run.json").write_text(damaged)
    with pytest.raises(InputError, match="damaged"):
      run.claim(tmp_path, first, TOKENIZER)


def test_changed_files_are_named(tmp_path):
  (tmp_path / "a.txt").write_text("one")
  data = CorpusConfig(
    source="text_files",
    data_dir=str(tmp_path / "data"),
    globs=(f"{tmp_path}/*.txt",),
  )
  load_corpus(data)
  first = identity_of({}, content=content_hash(data))
  run.claim(tmp_path / "run", first, TOKENIZER)
  (tmp_path / "a.txt").write_text("two")
  (tmp_path / "b.txt").write_text("new")
  now = run.known_parts({}, content=content_hash(data), parent="")
  told = r"has changed since \(changed: a.txt; new: b.txt\)$"
  with pytest.raises(InputError, match=told):
    run.check_workdir(tmp_path / "run", now, data)


def test_a_step_of_another_run_is_refused_by_what_differs(tiny_run):
  path = step_path(tiny_run, 8)
  metadata = read_metadata(path)
  there = json.loads((tiny_run / "run.json").read_text())
  run.check_resumable(path, metadata, there)
  assert run.differences(metadata, there) == []
  config = {**there["config"], "model.hidden_size": 64, "seq_len": 7}
  other = run.identity(
    {**there, "config": config, "content": "new", "parent": "p"},
    corpus="tokens",
    vocabulary=300,
  )
  with pytest.raises(InputError) as error:
    run.check_resumable(path, metadata, other)
  said = str(error.value)
  assert "config.model.hidden_size was 32, is now 64" in said
  assert "config.seq_len was 32, is now 7" in said
  assert "the text of its corpus has changed since" in said
  assert "the tokens of its corpus are others now" in said
  assert "it started from random parameters" in said
  assert metadata.run_id not in said
  config = {**there["config"], "seed": 77}
  other = run.identity(
    {**there, "config": config}, corpus=there["corpus"], vocabulary=300
  )
  with pytest.raises(InputError, match=r"another of the keys in run\.json"):
    run.check_resumable(path, metadata, other)


def test_a_run_of_before_goes_on(tmp_path):
  """Its run.json says nothing of the text; its id is kept."""
  config = {"seed": 0, "data": {"source": "a"}}
  now = identity_of(config)
  assert now["run_id"] == "b454c75ad26cf87f"
  before = {k: now[k] for k in ("config", "corpus", "parent", "run_id")}
  (tmp_path / "run.json").write_text(json.dumps(before))
  run.claim(tmp_path, now, TOKENIZER)
  assert json.loads((tmp_path / "run.json").read_text()) == before


@pytest.mark.parametrize(
  "name", ["metrics.jsonl", "tokenizer.json", "tokenizer.model"]
)
def test_files_of_others_are_not_taken_for_a_run(tmp_path, name):
  (tmp_path / name).write_text("mine")
  with pytest.raises(InputError, match="not the workdir of a run"):
    run.claim(tmp_path, identity_of({}), TOKENIZER)
  assert [p.name for p in tmp_path.iterdir()] == [name]
  assert (tmp_path / name).read_text() == "mine"


TOKENS_BxL1 = np.arange(20, dtype=np.int32).reshape(2, 10)


def small_trainer(rate, warmup, decay):
  config = decoder(
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    intermediate_size=8,
    vocab_multiple=4,
    tie_word_embeddings=True,
  )
  optimizer, schedule = built(
    rate, warmup, b1=decay, b2=decay, weight_decay=0.0
  )
  return Trainer.build(config, make_mesh(), optimizer, schedule), schedule


def test_the_rate_in_the_metrics_is_that_of_the_steps_own_update(tmp_path):
  """Without memory, AdamW moves a parameter by the rate, up or down."""
  trainer, schedule = small_trainer(0.01, 4, decay=0.0)
  state = trainer.random_start(0)
  seen = [jax.device_get(state.params)]
  writer = MetricsWriter(tmp_path, restored_step=0)
  train(
    trainer.train_step(),
    state,
    itertools.repeat(Batch(TOKENS_BxL1)),
    Plan(0, 6, tokens_per_step=18, log_every=3, save_every=1),
    save=lambda step, state: seen.append(jax.device_get(state.params)),
    evaluate=lambda step, state: {"validation_loss": 0.0},
    metrics=writer,
    progress=quiet,
  )
  writer.close()
  rates = [r["learning_rate"] for r in records(tmp_path / "metrics.jsonl")]
  expected = [float(schedule(step)) for step in range(6)]
  np.testing.assert_allclose(rates, expected, rtol=1e-6)
  moved = [
    max(jax.tree.leaves(jax.tree.map(lambda a, b: abs(b - a).max(), *pair)))
    for pair in itertools.pairwise(seen)
  ]
  np.testing.assert_allclose(moved, rates, rtol=1e-3)


def test_the_state_is_donated_and_the_step_compiles_once():
  trainer, _ = small_trainer(0.05, 1, decay=0.9)
  state = trainer.random_start(0)
  step = trainer.train_step()
  batch = jax.device_put(Batch(TOKENS_BxL1))
  losses = []
  for _ in range(20):
    before = state.params["final_norm"]["scale"]
    state, metrics = step(state, batch)
    losses.append(metrics.loss)
  assert before.is_deleted()
  assert int(state.step) == 20
  assert losses[-1] < losses[0] / 2
  assert step._cache_size() == 1
