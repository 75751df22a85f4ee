"""Random trees for the laws of merging, and what float32 may add to them.

K trees; E entries of a leaf. Structures and shapes come from a fixed pool, so
that few programs are compiled; values and weights are drawn by hypothesis.
"""

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import ml_dtypes
import numpy as np
from hypothesis import strategies as st

laws = hypothesis.settings(derandomize=True, deadline=None, max_examples=30)

SHAPES = ((), (1,), (3,), (2, 1), (1, 4), (2, 1, 3), (0, 2))
DTYPES = tuple(map(np.dtype, (np.float32, ml_dtypes.bfloat16, np.float16)))
# Half of a unit in the last place of 1.
UNIT = dict(zip(DTYPES, (2.0**-24, 2.0**-8, 2.0**-11)))
# XLA flushes what is below the normal numbers of float32.
FLOOR = 2.0**-124


def _layout(seed):
  """A random nest of dicts, its leaves the shapes and dtypes of arrays."""
  rng = np.random.default_rng(seed)

  def branch(depth):
    if not depth or rng.random() < 0.3:
      shape = SHAPES[rng.integers(len(SHAPES))]
      return jax.ShapeDtypeStruct(shape, DTYPES[rng.integers(len(DTYPES))])
    return {name: branch(depth - 1) for name in "ab"[: rng.integers(1, 3)]}

  return {name: branch(2) for name in "xy"[: rng.integers(1, 3)]}


LAYOUTS = tuple(_layout(seed) for seed in range(8))
# Nothing of which a product with a weight is below the normal numbers.
VALUES = st.floats(-1e3, 1e3, width=32).map(lambda v: v * (abs(v) > 1e-20))
WHOLE = st.integers(-999, 999)


@st.composite
def trees(draw, count, layout=None, values=VALUES):
  """`count` equal trees of NumPy arrays."""
  if layout is None:
    layout = draw(st.sampled_from(LAYOUTS))

  def leaf(like):
    array = hnp.arrays(np.float32, like.shape, elements=values)
    return np.asarray(draw(array), like.dtype)

  return [jax.tree.map(leaf, layout) for _ in range(count)]


def shares(count):
  """Weights >= 0, of which one is not zero."""
  weight = st.just(0.0) | st.floats(1e-3, 10)
  return st.lists(weight, min_size=count, max_size=count).filter(any)


@st.composite
def trees_and_shares(draw, least=2, values=VALUES):
  count = draw(st.integers(least, 4))
  return draw(trees(count, values=values)), draw(shares(count))


def entries(same):
  """(leaf of each tree, flattened to float64) for each leaf: K x E."""
  leaves = zip(*map(jax.tree.leaves, same))
  return [np.stack([np.float64(x).ravel() for x in each]) for each in leaves]


def float32_error(values_KxE, weights_K):
  """What weights, products and sums in float32 may be off by, an entry."""
  size_E = np.abs(weights_K) @ np.abs(values_KxE)
  return (len(weights_K) + 2) * UNIT[DTYPES[0]] * size_E


def assert_near(got, exact_E, error_E):
  """What is off by `error_E` and then rounded once to the dtype of `got`."""
  off_E = np.abs(np.float64(got).ravel() - exact_E)
  limit_E = error_E + FLOOR
  if got.dtype != np.float32:
    once_E = np.float64(exact_E.astype(got.dtype))
    limit_E = np.abs(once_E - exact_E) + 2 * limit_E
  assert (off_E <= limit_E).all(), (got, exact_E, off_E, limit_E)


def bits(tree):
  """The bytes of every leaf, with its dtype and shape."""
  return jax.tree.map(
    lambda x: (str(x.dtype), np.shape(x), np.asarray(x).tobytes()), tree
  )


def assert_close(found, expected, tolerance=2e-6):
  """Leaves equal to a share of the largest entry of each."""

  def check(a, b):
    a, b = np.float64(a), np.float64(b)
    size = np.abs(b).max(initial=1e-30)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size)

  jax.tree.map(check, found, expected)


def normal(rng, shape, dtype=np.float32):
  """Standard normal numbers, far from what is degenerate."""
  return np.asarray(rng.normal(size=shape), dtype)


SEEDS = st.integers(0, 2**32 - 1)
