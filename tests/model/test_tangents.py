"""Gradients and curvature by the weights of a merge, against float64."""

import dataclasses
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmerge.merging.average import grouped_average
from jaxmerge.merging.groups import Groups
from jaxmerge.model import head_curvature, tangents
from jaxmerge.model.curvature import classes_of, weight_curvature
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.model.execution import PLAIN, Execution
from jaxmerge.model.tangents import Merge
from jaxmerge.model.weight_gradients import weight_gradients
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import leaf_name, shardings
from tests.helpers import NEOX, decoder, random_params, with_devices

K, L = 3, 8
TOKENS = np.random.default_rng(0).integers(0, 50, (4, L + 1)).astype(np.int32)
MASK = np.arange(L) < np.array([[3], [8], [6], [7]])


def groups_of(tree, kind):
  """All; embedding, layers, rest; or by kind of parameter and layer."""

  def group(path, leaf):
    name = leaf_name(path)
    if kind == "one":
      return np.int32(0)
    if not name.startswith("layers/"):
      return np.int32(0 if name.startswith("embed/") else 1)
    if kind == "layer":
      return np.arange(2, 2 + len(leaf), dtype=np.int32)
    # Some leaves change groups from layer to layer, one as the embedding.
    return np.int32([2, 2] if "attention" in name else [0, 3])

  of_leaf = jax.tree_util.tree_map_with_path(group, tree)
  count = 1 + max(int(np.max(x)) for x in jax.tree.leaves(of_leaf))
  return Groups(tuple(map(str, range(count))), of_leaf, (1 / count,) * count)


CASES = {
  "grouped queries": (decoder(), "layer"),
  "tied, capped": (
    decoder(tie_word_embeddings=True, logit_softcap=2.0),
    "kinds",
  ),
  "biases": (NEOX, "one"),
  "norms after": (
    decoder(norm_after=True, unit_head=True, query_key_norm="projection"),
    "kinds",
  ),
}


def merge_of(config, kind):
  trees = tuple(random_params(config, s) for s in range(K))
  groups = groups_of(trees[0], kind)
  weights = np.full((len(groups.names_G), K), 1 / K)
  weights[0] = 0.7, -0.2, 0.5
  return Merge(
    grouped_average(trees, weights.tolist(), groups), trees, groups.of_leaf
  ), weights


def double(config, merge, weights_GxK):
  """Losses, d losses / d weights and d logits / d weights in float64."""
  exact = decoder()
  for field in dataclasses.fields(config):
    object.__setattr__(exact, field.name, getattr(config, field.name))
  object.__setattr__(exact, "dtype", "float64")
  graph, _ = abstract_decoder(exact)
  trees = jax.tree.map(lambda x: np.asarray(x, np.float64), merge.trees)
  start_GxJ = np.zeros((len(weights_GxK), K - 1))

  def logits(change_GxJ):
    last_G = -change_GxJ.sum(axis=1, keepdims=True)
    weights = weights_GxK + jnp.concatenate([change_GxJ, last_G], axis=1)

    def mean(group, *leaves):
      weights_K = jnp.moveaxis(weights[group], -1, 0)
      return sum(
        w.reshape(w.shape + (1,) * (x.ndim - w.ndim)) * x
        for w, x in zip(weights_K, leaves)
      )

    model = nnx.merge(graph, jax.tree.map(mean, merge.group_of_leaf, *trees))
    found = model(TOKENS[:, :-1])
    return found, found

  slopes, found = jax.jit(jax.jacfwd(logits, has_aux=True))(start_GxJ)
  return np.asarray(found, np.float64), np.asarray(slopes)


def by_numpy(logits, slopes):
  """Losses, their gradients and the Gauss-Newton matrix of their sum."""
  shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
  shares /= shares.sum(axis=-1, keepdims=True)
  of_targets = np.eye(logits.shape[-1])[TOKENS[:, 1:]]
  losses = -np.log((shares * of_targets).sum(axis=-1))
  of_losses = np.einsum("blv,blvgj->blgj", shares - of_targets, slopes)
  flat = slopes.reshape(*logits.shape, -1)
  second = np.einsum("blv,blvi,blvj->blij", shares, flat, flat)
  mean = np.einsum("blv,blvi->bli", shares, flat)
  matrix = second - mean[..., :, None] * mean[..., None, :]
  return (
    np.where(MASK, losses, 0).sum(axis=1),
    np.einsum("bl,blgj->bgj", MASK, of_losses),
    np.einsum("bl,blij->ij", MASK, matrix),
  )


def found(config, merge, num_groups, execution=PLAIN, shards=1):
  graph, _ = abstract_decoder(config)
  of_losses = partial(
    weight_gradients, graph, num_groups=num_groups, shards=shards
  )
  curvature = partial(
    weight_curvature,
    graph,
    num_groups=num_groups,
    classes=classes_of(merge.group_of_leaf),
  )
  batch = (merge, TOKENS, MASK)
  losses, gradients = jax.jit(partial(of_losses, execution=execution))(*batch)
  return (
    losses,
    gradients,
    jax.jit(partial(curvature, execution=execution))(*batch),
  )


def close(some, others, tolerance):
  for mine, right in zip(some, others, strict=True):
    scale = np.abs(right).max()
    np.testing.assert_allclose(mine, right, rtol=0, atol=tolerance * scale)


def in_parts(patch):
  """A direction through layers at a time, eight columns of the vocabulary."""
  patch.setattr(tangents, "AT_ONCE", 1)
  patch.setattr(head_curvature, "_SLOPES", 2**13)


@pytest.mark.parametrize(
  ("case", "parts"),
  [*((case, False) for case in CASES), ("tied, capped", True)],
)
def test_they_are_those_of_numpy_in_float64(case, parts, monkeypatch):
  if parts:
    in_parts(monkeypatch)
  config, kind = CASES[case]
  merge, weights = merge_of(config, kind)
  with jax.enable_x64(True):
    right = by_numpy(*double(config, merge, weights))
  close(found(config, merge, len(weights), shards=2), right, 1e-5)


def test_equal_checkpoints_have_no_derivatives():
  config = decoder()
  merge, weights = merge_of(config, "layer")
  same = merge._replace(trees=(merge.trees[0],) * K)
  _, gradients, curvature = found(config, same, len(weights))
  assert not np.any(gradients)
  assert not np.any(curvature)


def test_curvature_is_the_hessian_where_logits_are_linear():
  """Where checkpoints differ in the head alone, by second differences."""
  config = decoder()
  merge, _ = merge_of(config, "one")
  base = merge.trees[-1]
  trees = tuple({**base, "head": tree["head"]} for tree in merge.trees)
  merge = Merge(base, trees, merge.group_of_leaf)
  _, _, curvature = found(config, merge, 1)
  graph, _ = abstract_decoder(config)
  hidden = jax.jit(lambda base: nnx.merge(graph, base).hidden(TOKENS[:, :-1]))
  x = np.asarray(hidden(base), np.float64)
  heads = [np.asarray(t["head"]["kernel"], np.float64)[:, :50] for t in trees]

  def loss(a, b):
    kernel = heads[2] + a * (heads[0] - heads[2]) + b * (heads[1] - heads[2])
    logits = x @ kernel
    losses, _, _ = by_numpy(logits, np.zeros((*logits.shape, 1, 1)))
    return losses.sum()

  h = 1e-3
  cross = loss(h, h) - loss(h, -h) - loss(-h, h) + loss(-h, -h)
  hessian = np.array(
    [
      [loss(h, 0) - 2 * loss(0, 0) + loss(-h, 0), cross / 4],
      [cross / 4, loss(0, h) - 2 * loss(0, 0) + loss(0, -h)],
    ]
  )
  close([curvature], [hessian / h**2], 1e-5)


def check_devices():
  """On sequences, positions and parameters that are spread, and in parts."""
  config, kind = CASES["tied, capped"]
  merge, weights = merge_of(config, kind)
  alone = found(config, merge, len(weights))
  mesh = make_mesh(1, 1, 2, 2, 2)
  places = shardings(abstract_decoder(config)[1], mesh)
  spread = Merge(
    jax.device_put(merge.params, places),
    tuple(jax.device_put(tree, places) for tree in merge.trees),
    merge.group_of_leaf,
  )
  execution = Execution(mesh=mesh, loss_chunk=4)
  with pytest.MonkeyPatch.context() as patch:
    in_parts(patch)
    together = found(config, spread, len(weights), execution, 2)
  close(together, alone, 1e-5)


def test_eight_devices_give_what_one_does():
  check = "from tests.model import test_tangents; test_tangents.check_devices()"
  subprocess.run(
    [sys.executable, "-c", check],
    env=with_devices(8),
    check=True,
  )
