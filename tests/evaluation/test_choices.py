"""Log-likelihoods of choices, against one text at a time."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from jaxmerge.errors import InputError
from jaxmerge.evaluation import choice_rows
from jaxmerge.evaluation.choice_scores import encode
from jaxmerge.evaluation.evaluator import Resumable
from jaxmerge.evaluation.evaluators.choices import (
  Choices,
  batch_nats,
  batch_rows,
)
from jaxmerge.evaluation.task_config import METRICS
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.model.rope import RopeScaling
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import shardings
from tests.evaluation.letters import (
  CONTEXT,
  ITEMS,
  Letters,
  check_same,
  item,
)
from tests.helpers import DECODER, NEOX, decoder, random_params, with_devices


def choices(
  config: DecoderConfig = DECODER,
  mesh: Mesh | None = None,
  context: int = CONTEXT,
  batch_size: int = 4,
  items=ITEMS,
  **options,
) -> Choices:
  return Choices(
    config,
    mesh or make_mesh(),
    items,
    Letters(),
    context=context,
    batch_size=batch_size,
    **options,
  )


def params(config: DecoderConfig = DECODER):
  """Of which every token matters: up to 9 nats each."""
  return random_params(config, 1)


def one_at_a_time(config: DecoderConfig, tree, items):
  """log softmax in NumPy of the logits of each text alone."""
  graph, _ = abstract_decoder(config)
  logits_of = jax.jit(lambda tree, tokens: nnx.merge(graph, tree)(tokens))
  is_dynamic = config.rope_scaling and config.rope_scaling.kind == "dynamic"
  logs_NxC = np.full((len(items), max(len(i.choices) for i in items)), -np.inf)
  for number, found in enumerate(encode(items, Letters(), CONTEXT)):
    for choice, ids in enumerate(found.choices):
      text = np.concatenate([found.prompt, ids])[:-1]
      width = len(text) if is_dynamic else 64  # what follows is not seen
      padded = np.pad(text, (0, width - len(text)))
      logits_LxV = np.asarray(logits_of(tree, padded[None]), np.float64)[0]
      start = len(found.prompt) - 1
      targets = logits_LxV[start : start + len(ids)]
      chosen = targets[np.arange(len(ids)), ids]
      logs = chosen - np.log(np.exp(targets).sum(axis=1))
      logs_NxC[number, choice] = logs.sum()
  return logs_NxC


def scaled(kind: str, **changes) -> DecoderConfig:
  scaling = RopeScaling(kind, 4.0, original_length=16)
  return decoder(rope_scaling=scaling, rope_theta=500.0, **changes)


CONFIGS = {
  "llama": DECODER,
  "neox": NEOX,
  "dynamic": scaled("dynamic"),
  "dynamic_neox": scaled("dynamic", rotary_fraction=1.0, norm="layer"),
  "llama3": scaled("llama3"),
  "yarn": scaled("yarn"),
  "softcap": decoder(logit_softcap=3.0, query_key_norm="head"),
  "deep": decoder(num_hidden_layers=9),  # a scan
}


@pytest.mark.parametrize("name", CONFIGS)
def test_log_likelihoods_are_those_of_each_text_alone(name):
  config = CONFIGS[name]
  tree = params(config)
  items = ITEMS if name == "llama" else ITEMS[:2]
  expected = one_at_a_time(config, tree, items)
  for shares in (True, False):
    task = choices(config, items=items, shares=shares)
    found = task.log_likelihoods(tree)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_branches_and_positions_matter():
  """What the other choices say does not, and what a choice says does."""
  tree = params()
  before = choices().log_likelihoods(tree)
  other = [*ITEMS]
  other[0] = item(0, "a short question", " yes", " ????????", " no, never")
  after = choices(items=other).log_likelihoods(tree)
  assert abs(after[0, 1] - before[0, 1]) > 0.1
  after[0, 1] = before[0, 1]
  np.testing.assert_allclose(after, before, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_the_batch_size_changes_nothing(batch_size):
  tree = params()
  whole = choices(batch_size=7).log_likelihoods(tree)
  found = choices(batch_size=batch_size).log_likelihoods(tree)
  check_same(found, whole, ITEMS)


@pytest.mark.parametrize("metric", METRICS)
def test_a_score_goes_on_from_an_earlier_one(metric):
  tree = params()
  task = choices(metric=metric)
  whole, part = task.score(tree), task.score(tree, 2)
  some = task.extend(tree, part, 3)
  rest = task.extend(tree, some, 99)
  for count, found in ((2, part), (3, some), (len(ITEMS), rest)):
    assert len(found.values_N) == count < 99
    expected = whole.first(count)
    np.testing.assert_allclose(found.values_N, expected.values_N, rtol=1e-5)
    np.testing.assert_array_equal(found.weights_N, expected.weights_N)
    np.testing.assert_array_equal(found.clusters_N, expected.clusters_N)
  assert part.tokens + some.tokens + rest.tokens == whole.tokens
  assert task.extend(tree, rest, 99).tokens == 0
  assert isinstance(task, Resumable)


def test_neither_the_length_of_rows_nor_their_sharing_changes_anything(
  monkeypatch,
):
  """Rows may be padded to a longer one, and choices may have their own."""
  tree = params()
  joined = choices()
  monkeypatch.setattr(choice_rows, "_CHEAP", -1)
  lengths, apart = choices(), choices(shares=False)
  programs = [len(task._rows) for task in (joined, lengths, apart)]
  assert programs == [2, 6, 6]
  expected = joined.log_likelihoods(tree)
  for task in (lengths, apart):
    check_same(task.log_likelihoods(tree), expected, ITEMS)


def check_devices():
  tree, items = params(), ITEMS[:3]
  one = make_mesh(devices=jax.devices()[:1])
  alone = choices(mesh=one, items=items).log_likelihoods(tree)
  for axes in ({}, {"fsdp": 2, "tensor": 2, "context": 2}):
    mesh = make_mesh(**axes)
    spread = jax.device_put(tree, shardings(tree, mesh))
    task = choices(mesh=mesh, items=items, batch_size=8)
    found = task.log_likelihoods(spread)
    check_same(found, alone, items)


def test_eight_devices_give_what_one_does():
  check = "from tests.evaluation import test_choices as t; t.check_devices()"
  subprocess.run(
    [sys.executable, "-c", check],
    env=with_devices(8),
    check=True,
  )


def test_padding_of_the_vocabulary_is_never_chosen():
  """Nor does it take a part of the softmax."""
  narrow = decoder(vocab_multiple=1)
  tree = params(narrow)
  wide = dict(tree)
  for name, leaf, axis in (("embed", "embedding", 0), ("head", "kernel", 1)):
    widths = [(0, 0), (0, 0)]
    widths[axis] = (0, DECODER.padded_vocab_size - narrow.vocab_size)
    wide[name] = {leaf: np.pad(tree[name][leaf], widths, constant_values=9.0)}
  np.testing.assert_allclose(
    choices(items=ITEMS[:2]).log_likelihoods(wide),
    choices(narrow, items=ITEMS[:2]).log_likelihoods(tree),
    rtol=1e-6,
  )


def test_scores_by_each_metric():
  tree = params()
  task = choices()
  logs_NxC = task.log_likelihoods(tree)
  right = [one.answer for one in ITEMS] == logs_NxC.argmax(axis=1)
  found = task.scores(tree)
  assert found["acc"].values_N.tolist() == right.astype(float).tolist()
  assert found["acc"].clusters_N.tolist() == [0, 0, 1, 1, 2, 2, 3]
  gold = found["gold"]
  first = -logs_NxC[0, 0] / np.log(2) / len(" yes")
  assert gold.values_N[0] / gold.weights_N[0] == pytest.approx(first)
  for metric in ("acc", "acc_norm", "gold"):
    score = choices(metric=metric).score(tree)
    assert score.mean == found[metric].mean
    assert score.unit == found[metric].unit
  assert task.num_cut == 1


def test_the_first_items_alone():
  tree = params()
  whole, part = choices(), choices(metric="gold").score(tree, 3)
  np.testing.assert_allclose(
    part.values_N, whole.scores(tree)["gold"].values_N[:3], rtol=1e-6
  )
  everything = whole.score(tree).tokens
  assert 0 < part.tokens < everything == whole.score(tree, 99).tokens
  apart = choices(shares=False)
  inputs = [
    len(found.prompt) + len(ids) - 1
    for found in encode(ITEMS, Letters(), CONTEXT)
    for ids in found.choices
  ]
  assert apart.score(tree).tokens == sum(inputs) > everything


def test_a_compile_for_each_length():
  config = decoder(intermediate_size=40)  # of no other test
  before = batch_nats._cache_size()
  letters = [item(number, "ask", "A", "B") for number in range(12)]
  items = [*letters, item(12, "question" * 7, "A", "B"), *ITEMS[:1], ITEMS[3]]
  task = choices(config, batch_size=1, items=items)
  for tree in (params(config), params(config)):
    task.score(tree)
  # Of 16 and 64 inputs without branches, of 64 with them.
  assert batch_nats._cache_size() - before == 3


@pytest.mark.parametrize("shards", [1, 2, 8])
def test_batches_are_few_and_have_little_padding(shards):
  sizes = set()
  for rows in range(1, 200):
    size, batches = batch_rows(rows, 64, shards), -(-rows // 64)
    assert size % shards == 0
    assert rows <= batches * size <= batches * 64
    padding = size - rows / batches
    assert padding < max(shards, 8)
    assert padding < max(shards, rows / batches)
    sizes.add(size)
  assert len(sizes) <= 11


def test_what_does_not_fit_is_refused():
  with pytest.raises(InputError, match="knows 30 tokens"):
    choices(decoder(vocab_size=30))
  with pytest.raises(InputError, match="the model 20 positions"):
    choices(context=20)
  with pytest.raises(InputError, match="batch_size 0"):
    choices(batch_size=0)
  with pytest.raises(InputError, match="metric"):
    choices(metric="f1")
