import dataclasses
import itertools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmerge.config_reading import read
from jaxmerge.data.batch import Batch
from jaxmerge.errors import Diverged, InputError
from jaxmerge.model.execution import choose
from jaxmerge.model.loss import losses_and_normalisers, token_losses
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.training.guard import guarded
from jaxmerge.training.loop import Plan, train
from jaxmerge.training.metrics import MetricsWriter
from jaxmerge.training.step import StepConfig
from jaxmerge.training.trainer import Trainer
from tests.helpers import decoder, quiet

CONFIG = decoder(tie_word_embeddings=True)
TOKENS = np.random.default_rng(0).integers(0, 50, (4, 9)).astype(np.int32)
BATCH = Batch(TOKENS)
SGD = optax.sgd(1.0)


def trainer_of(step=None, optimizer=SGD, end_of_text=0):
  return Trainer.build(
    CONFIG,
    make_mesh(),
    optimizer,
    lambda count: 1.0,
    StepConfig(**(step or {})),
    end_of_text=end_of_text,
  )


def one_step(trainer, batch=BATCH):
  state, metrics = trainer.train_step()(trainer.random_start(0), batch)
  return jax.device_get((state.params, metrics.loss, metrics.grad_norm))


def assert_close(a, b, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_takes_the_same_step(parts):
  whole = one_step(trainer_of())
  assert_close(one_step(trainer_of({"accumulate": parts})), whole)


def test_every_sequence_is_in_one_part():
  """Each has another loss; a part seen twice would change the mean."""
  trainer = trainer_of({"accumulate": 4})
  params = trainer.random_start(0).params
  losses = token_losses(trainer.graph, params, TOKENS).mean(axis=1)
  assert len({round(float(loss), 4) for loss in losses}) == 4
  _, metrics = trainer.train_step()(trainer.random_start(0), BATCH)
  np.testing.assert_allclose(metrics.loss, losses.mean(), rtol=1e-6)


def test_the_z_loss_is_minimised_but_not_reported():
  trainer = trainer_of({"z_loss": 0.5})
  params = trainer.random_start(0).params

  def objective(params):
    losses, normalisers = losses_and_normalisers(trainer.graph, params, TOKENS)
    return losses.mean() + 0.5 * (normalisers**2).mean()

  gradient = jax.device_get(jax.jit(jax.grad(objective))(params))
  before = jax.device_get(params)
  after, loss, _ = one_step(trainer)
  assert_close(after, jax.tree.map(jnp.subtract, before, gradient), 1e-5)
  assert loss == pytest.approx(one_step(trainer_of())[1], abs=1e-6)


def test_normalisers_are_those_of_the_logits():
  trainer = trainer_of()
  params = trainer.random_start(0).params
  losses, normalisers = losses_and_normalisers(trainer.graph, params, TOKENS)
  model = jax.tree.map(np.asarray, params)
  assert model["embed"]["embedding"].shape == (64, 16)  # 50 and padding
  plain = token_losses(trainer.graph, params, TOKENS)
  np.testing.assert_allclose(losses, plain, atol=1e-6)
  # An untrained model's logits are near 0: Z is near the 50 that count.
  assert np.abs(normalisers - np.log(50)).max() < 1


def test_documents_are_told_by_the_token_that_begins_them():
  masked = trainer_of({"document_mask": True}, end_of_text=7)
  tokens = TOKENS.copy()
  tokens[tokens == 7] = 8
  tokens[:, 5] = 7
  segments = np.zeros_like(tokens)
  segments[:, 5:] = 1
  params = masked.random_start(0).params
  expected = token_losses(masked.graph, params, tokens, segments).mean()
  _, metrics = masked.train_step()(masked.random_start(0), Batch(tokens))
  np.testing.assert_allclose(metrics.loss, expected, rtol=1e-6)
  _, plain = trainer_of().train_step()(masked.random_start(0), Batch(tokens))
  assert abs(float(plain.loss) - float(expected)) > 1e-4


def test_one_document_a_sequence_is_the_plain_step():
  masked = one_step(trainer_of({"document_mask": True}, end_of_text=99))
  assert_close(masked, one_step(trainer_of()))


def packed(lengths_by_row, end=7):
  """Pieces of such lengths, each with its end of text; the rest is padding."""
  rng = np.random.default_rng(1)
  tokens = np.full((len(lengths_by_row), 9), end, np.int32)
  segments = np.zeros_like(tokens)
  for row, lengths in enumerate(lengths_by_row):
    place = 0
    for number, length in enumerate(lengths, 1):
      stop = place + length
      tokens[row, place + 1 : stop] = rng.integers(8, 50, length - 1)
      segments[row, place:stop] = number
      place = stop
  segments[:, -1] = segments[:, -2]
  return Batch(tokens, segments)


def test_a_document_that_fills_its_window_is_the_plain_step():
  batch = Batch(TOKENS, np.ones_like(TOKENS))
  assert_close(one_step(trainer_of(), batch), one_step(trainer_of()))


def test_packed_documents_are_learnt_as_if_alone():
  """Each with its end, at the mean over all targets of the batch."""
  lengths = [[8], [3, 5], [2, 2, 3], [1]]
  batch = packed(lengths)
  trainer = trainer_of(end_of_text=7)
  params = trainer.random_start(0).params

  def alone(params):
    losses = [
      token_losses(trainer.graph, params, tokens[None, start : stop + 1]).sum()
      for tokens, row in zip(batch.tokens_BxL1, lengths)
      for start, stop in itertools.pairwise([0, *itertools.accumulate(row)])
    ]
    return sum(losses) / sum(map(sum, lengths))

  loss, gradient = jax.device_get(jax.jit(jax.value_and_grad(alone))(params))
  before = jax.device_get(params)
  after, found, _ = one_step(trainer, batch)
  assert found == pytest.approx(loss, rel=1e-6)
  assert_close(after, jax.tree.map(jnp.subtract, before, gradient))


@pytest.mark.parametrize("z_loss", [0.0, 0.5])
def test_parts_of_a_packed_batch_weigh_what_their_targets_do(z_loss):
  batch = packed([[8], [3, 5], [2], [1]])
  step = {"z_loss": z_loss}
  whole = one_step(trainer_of(step, end_of_text=7), batch)
  for parts in (2, 4):
    found = one_step(
      trainer_of(step | {"accumulate": parts}, end_of_text=7), batch
    )
    assert_close(found, whole)


def test_bfloat16_takes_nearly_the_same_step():
  """Its numbers have 8 bits: 1 part in 256 of each product."""
  config = dataclasses.replace(CONFIG, dtype="bfloat16")
  rounded = Trainer.build(config, make_mesh(), SGD, lambda count: 1.0)
  start = jax.device_get(rounded.random_start(0).params)
  (exact, loss, norm), (found, near, near_norm) = map(
    one_step, (trainer_of(), rounded)
  )
  assert near == pytest.approx(loss, rel=2e-3)
  assert near_norm == pytest.approx(norm, rel=2e-2)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found))
  moved = [
    np.concatenate([(a - b).ravel() for a, b in zip(*map(leaves, (x, start)))])
    for x in (exact, found)
  ]
  assert np.linalg.norm(moved[0] - moved[1]) < 0.03 * np.linalg.norm(moved[0])
  assert near != loss


def test_logits_may_be_kept_in_bfloat16():
  trainers = [
    dataclasses.replace(
      trainer_of(),
      execution=choose(CONFIG, make_mesh(), length=8, batch=4, logits=dtype),
    )
    for dtype in ("float32", "bfloat16")
  ]
  (exact, loss, norm), (found, near, near_norm) = map(one_step, trainers)
  assert 0 < abs(near - loss) < 1e-2
  assert 0 < abs(near_norm - norm) < 2e-2 * norm
  assert_close(exact, found, 2e-2)


def leaves(tree):
  return jax.tree.leaves(tree)


class TestGuard:
  params = {"kernel": jnp.ones(4)}  # noqa: RUF012

  def run(self, norms, spike=0.0):
    """The state after gradients of these norms, under SGD with momentum."""
    optimizer = guarded(optax.sgd(1.0, momentum=0.9), spike)
    state, params = optimizer.init(self.params), self.params
    for norm in norms:
      grads = {"kernel": jnp.array([norm, 0, 0, 0], jnp.float32)}
      updates, state = optimizer.update(grads, state, params)
      params = optax.apply_updates(params, updates)
    return params, state

  def test_a_gradient_that_is_not_finite_changes_nothing(self):
    params, state = self.run([1.0, np.nan, np.inf, 0.5])
    expected, without = self.run([1.0, 0.5])
    assert_close((params, state.inner), (expected, without.inner), 0)
    assert (int(state.skipped), int(state.in_a_row)) == (2, 0)
    assert int(state.taken) == 2

  def test_those_in_a_row_are_counted(self):
    _, state = self.run([1.0, np.nan, 1.0, np.nan, np.nan])
    assert (int(state.skipped), int(state.in_a_row)) == (3, 2)

  def test_a_spike_is_skipped_once_the_mean_is_settled(self):
    calm = [1.0] * 100
    assert int(self.run([*calm, 5.1], spike=5)[1].skipped) == 1
    assert int(self.run([*calm, 4.9], spike=5)[1].skipped) == 0
    assert int(self.run([*calm[:99], 5.1], spike=5)[1].skipped) == 0
    assert int(self.run([*calm, 5.1])[1].skipped) == 0

  def test_the_mean_is_of_the_steps_that_were_taken(self):
    _, state = self.run([1.0, 3.0, np.nan, 5.0])
    assert float(state.mean_norm) == pytest.approx(3.0)


def test_a_run_skips_steps_counts_them_and_ends_after_too_many(tmp_path):
  """Gradients are NaN at the steps given, by an optimiser's own doing."""
  guard = guarded(SGD, 0.0)

  def update(grads, state, params=None):
    is_bad = jnp.isin(state.taken + state.skipped + 1, jnp.array([2, 5, 6, 7]))
    spoilt = jax.tree.map(lambda g: jnp.where(is_bad, jnp.nan, g), grads)
    return guard.update(spoilt, state, params)

  def train_with(max_skipped, workdir):
    trainer = trainer_of(
      {"max_skipped": max_skipped},
      optax.GradientTransformation(guard.init, update),
    )
    writer = MetricsWriter(workdir, restored_step=0)
    plan = Plan(0, 9, 32, log_every=3, save_every=9, max_skipped=max_skipped)
    try:
      train(
        trainer.train_step(),
        trainer.random_start(0),
        itertools.repeat(BATCH),
        plan,
        save=lambda step, state: None,
        evaluate=lambda step, state: {"validation_loss": 0.0},
        metrics=writer,
        progress=quiet,
      )
    finally:
      writer.close()

  train_with(3, tmp_path)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert [r["skipped"] for r in records] == [0, 1, 1, 1, 2, 3, 4, 4, 4]
  assert [r["skipped_in_a_row"] for r in records] == [0, 1, 0, 0, 1, 2, 3, 0, 0]
  (tmp_path / "again").mkdir()
  with pytest.raises(
    Diverged, match="step 7 is the last of 3 skipped in a row"
  ):
    train_with(2, tmp_path / "again")


def test_a_spike_needs_a_number_of_steps_that_may_be_skipped():
  with pytest.raises(InputError, match="spike 3 needs a .*max_skipped"):
    read(StepConfig, {"spike": 3.0})


def test_one_cpu_takes_the_fast_form_several_the_plain_one():
  mesh = make_mesh()
  found = choose(CONFIG, mesh, length=8, batch=4)
  assert (found.attention, found.rows, found.unroll) == ("blocked", True, True)
  assert "fused" in found.why
  deep = decoder(num_hidden_layers=9)
  assert not choose(deep, mesh, length=8, batch=4).unroll


def test_an_attention_that_cannot_run_is_refused():
  with pytest.raises(InputError, match="cudnn attention cannot run here"):
    choose(CONFIG, make_mesh(), length=8, batch=4, attention="cudnn")


def test_logits_are_cut_to_a_quarter_of_a_gibibyte():
  big = decoder(vocab_size=2**17, vocab_multiple=128)
  found = choose(big, make_mesh(), length=1024, batch=8)
  assert found.loss_chunk == 64  # 64 x 8 x 2**17 x 4 bytes = 2**28


def test_logits_may_take_an_eighth_of_a_gpu():
  config = decoder(
    vocab_size=50_304, dtype="bfloat16", hidden_size=128, head_dim=64
  )
  device = SimpleNamespace(
    platform="gpu",
    device_kind="NVIDIA H100 80GB HBM3",
    compute_capability="9.0",
  )
  mesh = SimpleNamespace(
    devices=np.array([device]), shape=make_mesh().shape, size=1
  )
  found = choose(config, mesh, length=1024, batch=32)
  assert found.loss_chunk == 1024  # 6.1 GiB of 79.6
  assert choose(config, mesh, length=1024, batch=64).loss_chunk == 512
