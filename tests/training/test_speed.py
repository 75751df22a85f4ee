import math

import jax
import jax.numpy as jnp
import pytest

from jaxmerge.data.batch import Batch
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.model.execution import Execution
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.training.speed import flops_per_token, peak_speed
from jaxmerge.training.step import Objective
from tests.helpers import Device, decoder

LENGTH = 256


@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_those_of_the_program(tied):
  """Which computes the other half of attention too, and masks it."""
  config = decoder(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=384,
    tie_word_embeddings=tied,
  )
  graph, params = abstract_decoder(config)
  objective = Objective(graph, Execution(unroll=True))
  gradient = jax.grad(lambda params, batch: objective.loss(params, batch)[0])
  tokens = jax.ShapeDtypeStruct((2, LENGTH + 1), jnp.int32)
  counted = (
    jax.jit(gradient).lower(params, Batch(tokens)).cost_analysis()["flops"]
  )
  masked = 6 * config.num_hidden_layers * config.hidden_size * LENGTH
  expected = flops_per_token(config, LENGTH) + masked
  assert counted / (2 * LENGTH) == pytest.approx(expected, rel=0.05)


def test_the_peak_is_that_of_all_chips():
  config = decoder()
  devices = [Device(i, device_kind="TPU v5 lite") for i in range(4)]
  speed = peak_speed(config, LENGTH, make_mesh(devices=devices))
  assert speed * flops_per_token(config, LENGTH) == pytest.approx(4 * 197e12)


def test_a_chip_that_is_not_known_has_no_peak():
  assert peak_speed(decoder(), LENGTH, make_mesh()) == math.inf
