"""Causal attention, in the form that an execution asks for.

B batch, L positions, H query heads, G key/value heads, S head size.
"""

import jax

from jaxmerge.model.execution import Execution
from jaxmerge.model.on_cpu import blocked_attention

# The name of what Splash keeps for its backward pass.
SPLASH = "splash_attention"


def attend(
  query_BxLxHxS: jax.Array,
  key_BxLxGxS: jax.Array,
  value_BxLxGxS: jax.Array,
  segments_BxL: jax.Array | None,
  execution: Execution,
) -> jax.Array:
  """softmax(q k^T / sqrt(S)) v over the positions up to each one's own.

  Args:
    segments_BxL: int32, the document of each position; positions attend only
      to those of their own. None: to all before them.

  Returns:
    B x L x H x S, of the query's dtype.
  """
  qkv = (query_BxLxHxS, key_BxLxGxS, value_BxLxGxS)
  if execution.attention == "splash":
    from jaxmerge.model.splash import splash_attention  # a second of imports

    assert execution.mesh is not None, "splash attention is for a mesh"
    return splash_attention(*qkv, segments_BxL, execution.mesh)
  if execution.attention == "blocked":
    return blocked_attention(*qkv, segments_BxL)
  mask_Bx1xLxL = None
  if segments_BxL is not None:
    mask_Bx1xLxL = (
      segments_BxL[:, None, :, None] == segments_BxL[:, None, None, :]
    )
  fused = execution.attention == "cudnn"
  return jax.nn.dot_product_attention(
    *qkv,
    mask=mask_Bx1xLxL,
    is_causal=True,
    implementation="cudnn" if fused else "xla",
  )
