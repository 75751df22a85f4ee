"""Where the Gaussian process runs: in float64 on one CPU device and thread."""

import contextlib
import ctypes
import functools
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
import scipy
from jax.sharding import AxisType, Mesh


@functools.cache
def _blas() -> ctypes.CDLL | None:
  """SciPy's own OpenBLAS, that XLA calls for Cholesky; None if it has none."""
  package = pathlib.Path(scipy.__file__).parent
  for folder in (package.parent / "scipy.libs", package / ".dylibs"):
    for path in sorted(folder.glob("libscipy_openblas*")):
      library = ctypes.CDLL(str(path))
      if hasattr(library, "scipy_openblas_set_num_threads"):
        return library
  return None


@contextlib.contextmanager
def _one_blas_thread() -> Iterator[None]:
  # OpenBLAS splits a 32 x 32 matrix over its threads, which then wait for each
  # other: on a busy machine of two cores a suggestion took 0.8 s, not 0.05.
  library = _blas()
  if library is None:
    yield
    return
  threads = library.scipy_openblas_get_num_threads()
  library.scipy_openblas_set_num_threads(1)
  try:
    yield
  finally:
    library.scipy_openblas_set_num_threads(threads)


@contextlib.contextmanager
def float64_on_host() -> Iterator[jax.Device]:
  """Float64 on one CPU device, whatever mesh the caller is in.

  An ambient mesh wins over the devices of the arguments, so a mesh of the one
  device takes its place (always, or the two cases would compile twice). The
  rest of the program stays in 32 bits: leave with NumPy arrays only.
  """
  # Not jax.devices: in a job of several processes those may be another's.
  device = jax.local_devices(backend="cpu")[0]
  mesh = Mesh(np.array([device]), ("host",), axis_types=(AxisType.Auto,))
  with _one_blas_thread(), jax.set_mesh(mesh), jax.enable_x64(True):
    yield device
