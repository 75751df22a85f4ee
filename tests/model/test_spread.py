"""Kernels that are gathered before they are used, on eight devices."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.model.execution import PLAIN, Execution
from jaxmerge.model.loss import token_losses
from jaxmerge.model.spread import gather
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import shardings
from tests.helpers import NEOX, decoder, random_params, with_devices


def in_eight_devices(check: str) -> None:
  subprocess.run(
    [
      sys.executable,
      "-c",
      f"from tests.model import test_spread; test_spread.{check}()",
    ],
    env=with_devices(8),
    check=True,
  )


def check_gather():
  """Whole in bfloat16 but for the tensor axis; its gradient as it lies."""
  mesh = make_mesh(1, 1, 4, 2)
  spec = PartitionSpec("fsdp", "tensor")
  kernel = jnp.arange(32.0).reshape(8, 4) / 7
  place = jax.sharding.NamedSharding(mesh, spec)

  def total(kernel):
    whole = gather(kernel, spec, mesh, jnp.bfloat16)
    return jnp.sum(whole.astype(jnp.float32) ** 2), whole

  gradient, whole = jax.jit(jax.grad(total, has_aux=True))(
    jax.device_put(kernel, place)
  )
  assert whole.dtype == jnp.bfloat16
  assert gradient.dtype == jnp.float32
  assert whole.sharding.shard_shape(whole.shape) == (8, 2)
  assert gradient.sharding.shard_shape(gradient.shape) == (2, 2)
  np.testing.assert_allclose(gradient, 2 * kernel, rtol=1e-2)


def check_gradients():
  tokens = np.random.default_rng(0).integers(0, 50, (4, 9)).astype(np.int32)
  neox = dataclasses.replace(
    NEOX, unit_head=True, tie_word_embeddings=False, logit_softcap=2.0
  )
  for config, sizes in ((decoder(), (1, 1, 2, 2, 2)), (neox, (2, 1, 2, 2, 1))):
    mesh = make_mesh(*sizes)
    graph, abstract = abstract_decoder(config)
    params = random_params(config)
    places = shardings(abstract, mesh)

    def losses_and_gradient(params, execution, graph=graph):
      def total(params):
        losses = token_losses(graph, params, tokens, execution=execution)
        return (losses * losses).sum(), losses

      (_, losses), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(
        params
      )
      return losses, gradient

    spread = Execution(own_backward=True, loss_chunk=4, remat="dots", mesh=mesh)
    found = losses_and_gradient(jax.device_put(params, places), spread)
    for mine, plain in zip(
      jax.tree.leaves(found),
      jax.tree.leaves(losses_and_gradient(params, PLAIN)),
    ):
      np.testing.assert_allclose(mine, plain, rtol=1e-5, atol=1e-4)


def test_a_kernel_is_gathered_and_its_gradient_shared_out():
  in_eight_devices("check_gather")


def test_eight_devices_give_the_plain_loss_and_gradient():
  in_eight_devices("check_gradients")
