"""Causal attention, in the form that an execution asks for.

B batch, L positions, H query heads, G key/value heads, S head size.
"""

from typing import NamedTuple

import jax

from jaxmerge.model.execution import Execution
from jaxmerge.model.on_cpu import blocked_attention

# The name of what Splash keeps for its backward pass.
SPLASH = "splash_attention"


class Branches(NamedTuple):
  """Rows that have a text once and behind it what may follow it, each apart.

  Attributes:
    branch_BxL: int32, 0 for the text, others for what follows it. A position
      is seen from its own branch and, one of branch 0, from all behind it.
    position_BxL: int32, of each token in a text of its own.
  """

  branch_BxL: jax.Array
  position_BxL: jax.Array


# int32[B, L], the document of each position: positions attend only to those of
# their own. None: all are one.
Segments = jax.Array | Branches | None


def attend(
  query_BxLxHxS: jax.Array,
  key_BxLxGxS: jax.Array,
  value_BxLxGxS: jax.Array,
  segments: Segments,
  execution: Execution,
) -> jax.Array:
  """softmax(q k^T / sqrt(S)) v over the positions up to each one's own.

  Branches take the plain form, whatever the execution says.

  Returns:
    B x L x H x S, of the query's dtype.
  """
  qkv = (query_BxLxHxS, key_BxLxGxS, value_BxLxGxS)
  if isinstance(segments, Branches):
    query_Bx1xLx1 = segments.branch_BxL[:, None, :, None]
    key_Bx1x1xL = segments.branch_BxL[:, None, None, :]
    sees_Bx1xLxL = (key_Bx1x1xL == 0) | (key_Bx1x1xL == query_Bx1xLx1)
    return jax.nn.dot_product_attention(
      *qkv, mask=sees_Bx1xLxL, is_causal=True, implementation="xla"
    )
  if execution.attention == "splash":
    from jaxmerge.model.splash import splash_attention  # a second of imports

    assert execution.mesh is not None, "splash attention is for a mesh"
    return splash_attention(*qkv, segments, execution.mesh)
  if execution.attention == "blocked":
    return blocked_attention(*qkv, segments)
  mask_Bx1xLxL = None
  if segments is not None:
    mask_Bx1xLxL = segments[:, None, :, None] == segments[:, None, None, :]
  fused = execution.attention == "cudnn"
  return jax.nn.dot_product_attention(
    *qkv,
    mask=mask_Bx1xLxL,
    is_causal=True,
    implementation="cudnn" if fused else "xla",
  )
