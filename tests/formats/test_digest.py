import ml_dtypes
import numpy as np
import pytest

from jaxmerge.formats.integrity.digest import digests


def one(array) -> str:
  return digests({"x": array})["x"]


@pytest.mark.parametrize(
  "dtype", [np.float32, ml_dtypes.bfloat16, np.int32, np.uint8, np.bool_]
)
def test_each_bit_changes_the_digest(dtype):
  array = np.arange(24).reshape(4, 6).astype(dtype)
  seen = {one(array)}
  for position in range(array.size):
    for bit in range(1 if dtype is np.bool_ else 8 * array.itemsize):
      raw = bytearray(array.tobytes())
      raw[position * array.itemsize + bit // 8] ^= 1 << bit % 8
      changed = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
      seen.add(one(changed))
  bits = 1 if dtype is np.bool_ else 8 * array.itemsize
  assert len(seen) == 1 + array.size * bits


def test_order_and_shape_count():
  array = np.arange(6, dtype=np.float32)
  swapped = array[[1, 0, 2, 3, 4, 5]]
  assert one(array) != one(swapped)
  assert one(array.reshape(2, 3)) != one(array.reshape(2, 3).T.copy())


def test_zeros_and_scalars_have_digests():
  assert one(np.zeros(3, np.float32)) != one(np.zeros(4, np.float32))
  assert one(np.float32(-0.0)) != one(np.float32(0.0))
  assert digests({}) == {}
