"""The place of the Gaussian process: float64 on one CPU device."""

import contextlib
import functools
from collections.abc import Iterator

import jax
import numpy as np
import threadpoolctl
from jax.sharding import AxisType, Mesh

from jaxmerge.bayesopt.gp import model


@functools.cache
def _libraries() -> threadpoolctl.ThreadpoolController:
  """Found once: it reads the list of all loaded libraries, for 2 ms."""
  import scipy.linalg  # noqa: F401  (loads the BLAS that XLA's Cholesky calls)

  return threadpoolctl.ThreadpoolController()


@contextlib.contextmanager
def float64_on_host() -> Iterator[jax.Device]:
  """Float64 on one CPU device, whatever mesh the caller is in.

  An ambient mesh wins over the devices of the arguments, so a mesh of the one
  device takes its place (always, or the two cases would compile twice). The
  rest of the program stays in 32 bits: leave with NumPy arrays only.
  """
  model.gpjax()  # never imported inside of the float64 block
  # Not jax.devices: in a job of several processes those may be another's.
  device = jax.local_devices(backend="cpu")[0]
  mesh = Mesh(np.array([device]), ("host",), axis_types=(AxisType.Auto,))
  # OpenBLAS splits a 32 x 32 matrix over its threads, which then wait for each
  # other: on a busy machine of two cores a suggestion took 0.8 s, not 0.05.
  one_thread = _libraries().limit(limits=1, user_api="blas")
  with one_thread, jax.set_mesh(mesh), jax.enable_x64(True):
    yield device
