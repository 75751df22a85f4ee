"""The device mesh: axes data, fsdp and tensor."""

import dataclasses
import math

import jax
import psutil
from jax.sharding import AxisType, Mesh

from jaxmerge.config_fields import key
from jaxmerge.errors import InputError

AXES = ("data", "fsdp", "tensor")
# The share of the free memory to use where no budget is given.
_SHARE = 0.7
# Help of a verb's key `memory_budget_gb`.
MEMORY_BUDGET = (
  "GiB of memory on all devices together; 0: seven tenths of what is free"
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the mesh's axes; -1 for one takes the devices that are left."""

  data: int = key(
    -1, "devices that take each their part of a batch", changes_numbers=False
  )
  fsdp: int = key(
    1, "devices that share parameters and a batch", changes_numbers=False
  )
  tensor: int = key(
    1, "devices that share each matrix product", changes_numbers=False
  )

  def problems(self, prefix: str) -> list[str]:
    return [
      f"{prefix}{axis} must be positive, or -1, got {size}"
      for axis, size in dataclasses.asdict(self).items()
      if size < 1 and size != -1
    ]


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
  """A mesh over all devices; one axis may be -1 and takes what is left.

  Axes are Auto: the compiler propagates the shardings given for parameters
  and batches (`jax.make_mesh` alone would make them Explicit).
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


def device_budget(memory_budget_gb: float = 0.0) -> float:
  """Bytes that may be used on each device, of MEMORY_BUDGET.

  Devices of a CPU share the host's memory; a device that does not say what it
  has is taken to have enough.
  """
  if memory_budget_gb:
    return memory_budget_gb * 2**30 / jax.device_count()
  devices = jax.local_devices()
  if devices[0].platform == "cpu":
    return _SHARE * psutil.virtual_memory().available / len(devices)
  stats = devices[0].memory_stats() or {}
  limit = stats.get("bytes_limit", math.inf)
  return _SHARE * (limit - stats.get("bytes_in_use", 0))


def host_budget(memory_budget_gb: float = 0.0) -> float:
  """Bytes that may be used in the host's memory, as device_budget."""
  free = psutil.virtual_memory().available
  return memory_budget_gb * 2**30 or _SHARE * free
