"""Says when a program is compiled, and keeps it for the next process."""

import contextlib
import logging
from collections.abc import Hashable, Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxmerge.files import cache_root

# Below Optuna's, whose handler and verbosity it shares.
_LOGGER = logging.getLogger("optuna.jaxmerge")
_BEGUN: set[Hashable] = set()
_DIRECTORY = "jax_compilation_cache_dir"


@contextlib.contextmanager
def compiling(
  program: str, shape: tuple[int, ...], key: Hashable
) -> Iterator[None]:
  """Surrounds a call of a program, of which the first with a key compiles.

  That takes seconds, and a line of the log says so. Where the caller keeps no
  compiled programs (JAX's persistent cache), this one is kept in jaxmerge's
  cache; the caller's other programs are left alone.
  """
  if (program, shape, key) in _BEGUN:
    yield
    return
  _BEGUN.add((program, shape, key))
  _LOGGER.info(
    "Compiling the Gaussian process's %s for up to %d rows: seconds, once in a "
    "process.",
    program,
    shape[0],
  )
  if getattr(jax.config, _DIRECTORY) is not None:
    yield
    return
  jax.config.update(_DIRECTORY, str(cache_root() / "jax"))
  compilation_cache.reset_cache()  # JAX looks at the directory once
  try:
    yield
  finally:
    jax.config.update(_DIRECTORY, None)
    compilation_cache.reset_cache()
