"""glibc's allocator, told to keep the memory that a program gives back.

XLA:CPU takes the temporaries of each call from malloc and frees them after it.
glibc then returns their pages to the system, and the next call has each of
them mapped and zeroed anew: a fifth of the time of a small model's step.
"""

import ctypes
import os
import re
import sys
from collections.abc import Iterable

FLAG = "return_memory"
HELP = (
  "on a CPU: give freed memory back to the system at once, which is slower "
  "and has a lower peak"
)
_FLAG = re.compile(rf"--?{FLAG}(=(t|true|y|yes|1))?", re.IGNORECASE)
# Of glibc's malloc.h. Each alone changes nothing.
_M_ARENA_MAX, _M_MMAP_MAX, _M_TRIM_THRESHOLD = -8, -4, -1
_OPTIONS = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))
# Of NVIDIA, of TPUs and of AMD: the CPU has little to compute beside them.
_ACCELERATORS = ("/dev/nvidiactl", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")
_ADVICE = (
  "training on this CPU is slower than it can be: call jaxmerge.allocator."
  "keep_memory() before jax is imported, or use the command line"
)

_is_decided = False


def keep_memory(argv: Iterable[str] = ()) -> bool:
  """Lets malloc keep what is freed, in this process from now on.

  To be called before jax is imported: threads and arrays that are there have
  their memory by other rules. Up to 2 GiB of free memory stay, and a peak is
  about 1.5 times as high.

  Args:
    argv: words of a command line; --return_memory among them says no.

  Returns:
    Whether it does; it cannot with another C library, has no need to beside
    an accelerator, and comes too late after jax.
  """
  global _is_decided
  is_unwanted = any(_FLAG.fullmatch(word) for word in argv)
  _is_decided = is_unwanted or _is_decided
  if is_unwanted or not _is_of_use() or "jaxlib" in sys.modules:
    return False
  _is_decided = True
  mallopt = ctypes.CDLL(None).mallopt
  return all(mallopt(option, value) for option, value in _OPTIONS)


def advice() -> str:
  """Says what makes training on this CPU faster; empty if nothing does."""
  return "" if _is_decided or not _is_of_use() else _ADVICE


def _is_of_use() -> bool:
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms != "cpu" and any(map(os.path.exists, _ACCELERATORS)):
    return False
  try:
    return bool(os.confstr("CS_GNU_LIBC_VERSION"))
  except (AttributeError, ValueError):  # Windows; another C library
    return False
