"""The device mesh: axes replica, data, fsdp, tensor and context."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import psutil
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxmerge.config_fields import key
from jaxmerge.errors import InputError

# From the axis that needs the least of the network to those that need most.
AXES = ("replica", "data", "fsdp", "tensor", "context")
# Those that may reach across TPU slices, whose network is slow.
_ACROSS_SLICES = 3
# The share of the free memory to use where no budget is given.
_SHARE = 0.7
# Help of a verb's key `memory_budget_gb`.
MEMORY_BUDGET = (
  "GiB of memory on all devices together; 0: seven tenths of what is free"
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the mesh's axes; -1 for one takes the devices that are left."""

  replica: int = key(
    1,
    "groups of devices that hold all parameters each: slices of a TPU",
    changes_numbers=False,
  )
  data: int = key(
    -1, "devices that take each their part of a batch", changes_numbers=False
  )
  fsdp: int = key(
    1, "devices that share parameters and a batch", changes_numbers=False
  )
  tensor: int = key(
    1, "devices that share each matrix product", changes_numbers=False
  )
  context: int = key(
    1, "devices that share each sequence", changes_numbers=False
  )

  def problems(self, prefix: str) -> list[str]:
    return [
      f"{prefix}{axis} must be positive, or -1, got {size}"
      for axis, size in dataclasses.asdict(self).items()
      if size < 1 and size != -1
    ]


def make_mesh(
  replica: int = 1,
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  context: int = 1,
  *,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh over all devices; one axis may be -1 and takes what is left.

  Of several TPU slices, or processes of other devices, the outermost axes
  are spread over these first: what lies in one needs no slow network. Axes are
  Auto: the compiler propagates the shardings given for parameters and batches.

  Args:
    replica, data, fsdp, tensor, context: sizes of the axes.
    devices: to use; those of a topology need not be there.

  Raises:
    InputError: the sizes do not fit the devices or their slices.
  """
  sizes = [replica, data, fsdp, tensor, context]
  devices = jax.devices() if devices is None else devices
  given = math.prod(size for size in sizes if size != -1)
  if sizes.count(-1) == 1 and given > 0 and len(devices) % given == 0:
    sizes[sizes.index(-1)] = len(devices) // given
  asked = ", ".join(f"{axis}={n}" for axis, n in zip(AXES, sizes))
  if min(sizes) < 1 or math.prod(sizes) != len(devices):
    raise InputError(
      f"mesh {asked} does not fit {len(devices)} device(s); sizes must "
      "multiply to the number of devices, and one of them may be -1"
    )
  is_tpu = devices[0].platform == "tpu"
  groups = len(
    {
      getattr(device, "slice_index", 0) if is_tpu else device.process_index
      for device in devices
    }
  )
  across = _across(sizes, groups)
  if is_tpu and math.prod(across[:_ACROSS_SLICES]) != groups:
    raise InputError(
      f"mesh {asked} does not fit {groups} slices: replica must be their "
      "number or a multiple of it, or divide it and leave the rest to data, "
      "and that to fsdp"
    )
  if groups > 1 and math.prod(across) == groups:
    placed = mesh_utils.create_hybrid_device_mesh(
      [size // outer for size, outer in zip(sizes, across)],
      across,
      devices,
      process_is_granule=not is_tpu,
      allow_split_physical_axes=True,
    )
  else:
    placed = mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _across(sizes: Sequence[int], groups: int) -> list[int]:
  """Parts of the axes across groups of devices, outermost axes first.

  An axis that lies partly in a group ends it, so that what a group holds of
  the axes before is one index of each: their product may fall short of groups.
  """
  found = []
  for size in sizes:
    outer = math.gcd(size, groups)
    groups = groups // outer if outer == size else 1
    found.append(outer)
  return found


def mesh_text(mesh: Mesh) -> str:
  """Devices and the axes that have more than one, as "2 x cpu (fsdp=2)"."""
  axes = ", ".join(f"{a}={size}" for a, size in mesh.shape.items() if size > 1)
  kind = mesh.devices.flat[0].device_kind
  return f"{mesh.size} x {kind}" + (f" ({axes})" if axes else "")


def memory_used() -> dict[str, float]:
  """GiB of memory that this process uses, and the most that a device has used.

  `host_memory`; where a device tells, `device_memory`, and of how much
  (`device_memory_limit`). Nothing waits for the device.
  """
  used = {"host_memory": psutil.Process().memory_info().rss / 2**30}
  stats = jax.local_devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    used["device_memory"] = stats["peak_bytes_in_use"] / 2**30
    if stats.get("bytes_limit"):
      used["device_memory_limit"] = stats["bytes_limit"] / 2**30
  return used


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
