"""How much is tried, and what must hold of each input.

Each lane tries 25 inputs, always the same ones; FUZZ=2000 tries as many, others
at each run (`make fuzz`).
"""

import contextlib
import os
import time

from hypothesis import HealthCheck, settings

from jaxmerge.errors import InputError
from tests.helpers import bounded_memory

_SECONDS = 10

lane = settings(
  max_examples=int(os.environ.get("FUZZ", "25")),
  derandomize="FUZZ" not in os.environ,
  deadline=None,
  database=None,
  suppress_health_check=list(HealthCheck),
)


@contextlib.contextmanager
def judged(size: int):
  """A block may refuse its input, in bounded time and memory.

  Args:
    size: bytes of the file that it reads.
  """
  began = time.process_time()
  with bounded_memory(size), contextlib.suppress(InputError):
    yield
  assert time.process_time() - began < _SECONDS
