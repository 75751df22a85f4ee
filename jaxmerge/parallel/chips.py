"""Accelerators by the name that JAX gives a device: memory and peak speed."""

import dataclasses
import re
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device of JAX: a chip, or half of one where a chip has two.

  hbm_gib: what a program may use. Of TPUs the limit of the TPU compiler, of
    GPUs what the driver reports.
  peak_tflops: of dense products in bfloat16 by the maker's datasheet, in 10^12
    operations a second; on T4, which has no bfloat16, in float16.
  """

  name: str
  hbm_gib: float
  peak_tflops: float


# The first pattern that matches the whole of a `device_kind` decides.
_CHIPS: Sequence[tuple[str, Chip]] = (
  (r"TPU v4", Chip("TPU v4", 30.75, 275)),
  (r"TPU v5 lite|TPU v5e", Chip("TPU v5e", 15.75, 197)),
  (r"TPU v5p?", Chip("TPU v5p", 95.74, 459)),
  (r"TPU v6 lite|TPU v6e", Chip("TPU v6e", 31.25, 918)),
  (r"TPU ?v?7x", Chip("half a TPU v7x", 94.75, 1153.5)),
  (r"NVIDIA B200.*", Chip("B200", 179.0, 2250)),
  (r"NVIDIA H200 NVL.*", Chip("H200 NVL", 140.4, 835.5)),
  (r"NVIDIA H200.*", Chip("H200", 140.4, 989.5)),
  (r"NVIDIA H100 PCIe.*", Chip("H100 PCIe", 79.6, 756)),
  (r"NVIDIA H100 NVL.*", Chip("H100 NVL", 93.6, 835.5)),
  (r"NVIDIA H100.*", Chip("H100", 79.6, 989.5)),
  (r"NVIDIA A100.*80GB.*", Chip("A100 80GB", 80.0, 312)),
  (r"NVIDIA A100.*", Chip("A100 40GB", 40.0, 312)),
  (r"NVIDIA L4", Chip("L4", 22.5, 121)),
  (r"(NVIDIA |Tesla )T4", Chip("T4", 15.0, 65)),
)


def chip_of(device_kind: str) -> Chip | None:
  """The chip of `jax.Device.device_kind`; None if the table has none."""
  for pattern, chip in _CHIPS:
    if re.fullmatch(pattern, device_kind):
      return chip
  return None
