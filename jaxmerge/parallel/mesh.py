"""The device mesh: axes data, fsdp and tensor."""

import math

import jax
import psutil
from jax.sharding import AxisType, Mesh

from jaxmerge.errors import InputError

AXES = ("data", "fsdp", "tensor")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
  """A mesh over all devices; one axis may be -1 and takes what is left.

  Axes are Auto: the compiler propagates the shardings given for parameters
  and batches (`jax.make_mesh` alone would make them Explicit).

  Raises:
    InputError: the sizes do not multiply to the number of devices.
  """
  sizes = [data, fsdp, tensor]
  devices = jax.device_count()
  given = math.prod(size for size in sizes if size != -1)
  if sizes.count(-1) == 1 and given > 0 and devices % given == 0:
    sizes[sizes.index(-1)] = devices // given
  if min(sizes) < 1 or math.prod(sizes) != devices:
    asked = ", ".join(f"{axis}={n}" for axis, n in zip(AXES, sizes))
    raise InputError(
      f"mesh {asked} does not fit {devices} device(s); sizes must multiply to "
      "the number of devices, and one of them may be -1"
    )
  return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_bytes() -> float:
  """Memory of a device of this process; inf where it does not say.

  Devices of a CPU share the host's.
  """
  devices = jax.local_devices()
  if devices[0].platform == "cpu":
    return psutil.virtual_memory().total / len(devices)
  stats = devices[0].memory_stats() or {}
  return stats.get("bytes_limit") or math.inf
