"""The loss that training minimises and evaluation reports: one definition.

B batch, L targets per sequence.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmerge.model.decoder import Decoder, Params

UNIT = "nats/token"


def token_losses(
  graph: nnx.GraphDef, params: Params, tokens_BxL1: jax.Array
) -> jax.Array:
  """Cross-entropy of each next token in nats.

  Args:
    graph, params: the decoder's structure and its parameters.
    tokens_BxL1: int32[B, L + 1]; token i is predicted from those before it.

  Returns:
    float32[B, L]: -log p(tokens[:, i + 1] | tokens[:, : i + 1]).
  """
  model: Decoder = nnx.merge(graph, params)
  logits_BxLxP = model.padded_logits(tokens_BxL1[:, :-1])
  target_BxLx1 = tokens_BxL1[:, 1:, None]
  chosen_BxLx1 = jnp.take_along_axis(logits_BxLxP, target_BxLx1, axis=-1)
  normaliser_BxL = jax.nn.logsumexp(logits_BxLxP, axis=-1)
  return normaliser_BxL - chosen_BxLx1[..., 0]
