import pytest

from jaxmerge.parallel.chips import chip_of


@pytest.mark.parametrize(
  ("device_kind", "name", "peak"),
  [
    # TPUs as libtpu names them.
    ("TPU v4", "TPU v4", 275),
    ("TPU v5 lite", "TPU v5e", 197),
    ("TPU v5", "TPU v5p", 459),
    ("TPU v6 lite", "TPU v6e", 918),
    ("TPU7x", "half a TPU v7x", 1153.5),
    ("NVIDIA H100 80GB HBM3", "H100", 989.5),
    ("NVIDIA H100 PCIe", "H100 PCIe", 756),
    ("NVIDIA H200", "H200", 989.5),
    ("NVIDIA A100-SXM4-40GB", "A100 40GB", 312),
    ("NVIDIA A100 80GB PCIe", "A100 80GB", 312),
    ("NVIDIA B200", "B200", 2250),
    ("NVIDIA L4", "L4", 121),
    ("Tesla T4", "T4", 65),
  ],
)
def test_a_device_kind_is_found(device_kind, name, peak):
  chip = chip_of(device_kind)
  assert (chip.name, chip.peak_tflops) == (name, peak)


@pytest.mark.parametrize("device_kind", ["cpu", "NVIDIA L40S", "TPU v55"])
def test_no_chip_is_taken_for_another(device_kind):
  assert chip_of(device_kind) is None
