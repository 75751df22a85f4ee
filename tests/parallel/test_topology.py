"""What is read of a compiled program, and TPUs that no compiler knows."""

import importlib.util
from types import SimpleNamespace

import pytest
from jax.experimental import topologies

from jaxmerge import pretrain
from jaxmerge.errors import InputError
from jaxmerge.parallel.topology import Compiled, DoesNotFit, topology_devices
from tests.helpers import Device, config_of, quiet

# Lines as the TPU compiler writes them, with less in each.
TEXT = """
%all-reduce-scatter.1 (input.2: bf16[8,16]) -> bf16[2,16] {
  %all-reduce.5 = bf16[8,16]{1,0} all-reduce(%input.2), channel_id=3
}
%fused.1 (p: bf16[2,8]) -> bf16[8,8] {
  %all-gather.7 = bf16[8,8]{1,0:T(8,128)} all-gather(%p), channel_id=7
}
%fused.2 (p: bf16[2,8]) -> bf16[8,8] {
  %all-gather.8 = bf16[8,8]{1,0:T(8,128)} all-gather(%p), channel_id=7
}
ENTRY %main (a: f32[8]) -> f32[] {
  %all-reduce.6 = (f32[], /*index=1*/bf16[8]{0}) all-reduce(%a), channel_id=4
  %permute.9 = (f32[2], u32[]) collective-permute-start(%c), channel_id=5
  %kernel = f32[8] custom-call(%a), custom_call_target="tpu_custom_call"
}
"""


def test_a_collective_counts_once_though_its_text_is_copied():
  found = Compiled(arguments=2**30, temporaries=2**29, seconds=1.0, text=TEXT)
  assert found.collectives() == [
    ("reduce-scatter", "bf16[8,16]"),
    ("all-gather", "bf16[8,8]"),
    ("all-reduce", "(f32[], bf16[8])"),
    ("collective-permute", "(f32[2], u32[])"),
  ]
  assert found.collectives_text().startswith("1 reduce-scatter, 1 all-gather")
  assert found.kernels() == 1
  assert found.gib == 1.5


@pytest.mark.parametrize(
  ("said", "gib"),
  [
    ("the total memory (45.60G) exceeds available HBM (15.75G).", 45.6),
    ("Ran out of memory. Used 20.1G of 15.75G hbm.", 20.1),
    ("Ran out of memory in memory space vmem.", None),
  ],
)
def test_what_does_not_fit_says_what_it_needs(said, gib):
  assert DoesNotFit(f"RESOURCE_EXHAUSTED: {said}").gib == gib


def test_without_the_compiler_one_line_says_how_to_get_it(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"pip install 'jaxmerge\[tpu\]'"):
    topology_devices("v5e:2x2")


@pytest.fixture
def compiler(monkeypatch):
  """One that knows each name, of chips of a kind."""
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: "libtpu")

  def of_kind(kind):
    monkeypatch.setattr(
      topologies,
      "get_topology_desc",
      lambda **_: SimpleNamespace(devices=[Device(0, device_kind=kind)]),
    )

  return of_kind


@pytest.mark.parametrize("slices", ["", "0", "²", "-1", "two"])
def test_what_is_no_number_of_slices_is_refused(compiler, slices):
  compiler("TPU v5 lite")
  with pytest.raises(InputError, match="is no number of slices"):
    topology_devices(f"v5e:2x2*{slices}")
  assert topology_devices("v5e:2x2*1")


def test_a_chip_whose_memory_is_not_known_is_refused(compiler):
  compiler("TPU v3")
  with pytest.raises(InputError, match="the memory of a TPU v3 is not known"):
    topology_devices("v3:2x2")


def test_a_topology_without_dry_run_is_refused(tmp_path):
  with pytest.raises(InputError, match="--topology goes with --dry_run"):
    pretrain.train(
      config_of("pretrain"),
      tmp_path / "run",
      topology="v5e:2x2",
      progress=quiet,
    )
  assert not (tmp_path / "run").exists()
