"""TPUs that are not there: what their compiler says of a program for them.

The compiler (libtpu) runs on any machine; nothing is computed, nothing of a
program's arrays exists.
"""

import dataclasses
import importlib.util
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import jax
from jax.experimental import topologies

from jaxmerge.errors import InputError
from jaxmerge.parallel.chips import chip_of

# Sizes of what a program holds and moves are in bytes of one device.
_GIB = 2**30
# As a TPU machine says of itself; elsewhere libtpu waits for one that does.
_ENVIRONMENT: Mapping[str, str] = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process dies of a lock
}
_NAMES = "v5e:2x2, v5e:4x4, v5p:2x2x1 (= v5p-8), v6e:2x4, v5p:4x4x4"
_COLLECTIVE = re.compile(
  r"= (?P<type>.*?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|"
  r"collective-permute|send)(-start)?\(.*?channel_id=(?P<channel>\d+)"
)
_COMPUTATION = re.compile(r"(?:ENTRY )?%(?P<name>[\w.\-]+) \(.*\{$")


def topology_devices(topology: str) -> Sequence[jax.Device]:
  """Devices to compile for, which need not be there.

  Args:
    topology: chips and their shape, such as "v5e:2x2"; "v5e:2x2*2" is two
      slices of it.

  Raises:
    InputError: the compiler is not installed, or knows no such TPU, or
      nobody its memory.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise InputError(
      f"a topology such as {topology!r} needs the TPU compiler, libtpu: pip "
      "install 'jaxmerge[tpu]'"
    )
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  shape, star, slices = topology.partition("*")
  options = {"num_slices": int(slices)} if slices.isdecimal() else {}
  try:
    if star and not options.get("num_slices"):
      raise ValueError(f"{slices!r} is no number of slices")
    devices: Sequence[jax.Device] = topologies.get_topology_desc(
      platform="tpu", topology_name=shape, **options
    ).devices
  except (ValueError, jax.errors.JaxRuntimeError) as error:
    [reason, *_] = str(error).splitlines()
    raise InputError(
      f"the TPU compiler knows no topology {topology!r}: {reason}; it knows "
      f"{_NAMES}, and v5e:4x4*2 for two slices"
    ) from error
  if chip_of(devices[0].device_kind) is None:
    raise InputError(
      f"topology {topology!r}: the memory of a {devices[0].device_kind} is not "
      "known; jaxmerge/parallel/chips.py lists the chips that are"
    )
  return devices


def without_devices() -> None:
  """Before JAX starts: it shall find no accelerator, and wait for none.

  Nor keep programs, which nothing here can load again.
  """
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_enable_compilation_cache", False)


class DoesNotFit(Exception):
  """A program that needs more memory than a device has: `gib`, if known."""

  def __init__(self, message: str):
    super().__init__(message)
    sizes = re.findall(r"([\d.]+)G\)? (?:of|exceeds)", message)
    self.gib = float(sizes[0]) if sizes else None


@dataclasses.dataclass(frozen=True)
class Compiled:
  """Memory of one device that a compiled program takes, in bytes; its text.

  Attributes:
    arguments: with what it gives beyond them, and its code.
    temporaries: of XLA's, at their highest.
    seconds: that the compiler took.
    text: the program in the compiler's language (HLO).
  """

  arguments: int
  temporaries: int
  seconds: float
  text: str = dataclasses.field(repr=False)

  @property
  def gib(self) -> float:
    """Memory of one device that a run of it takes."""
    return (self.arguments + self.temporaries) / _GIB

  def collectives(self) -> list[tuple[str, str]]:
    """Kind and type of each; those of a loop's body once.

    A product that is taken in parts while these go round its devices has a
    collective-permute for each part; a send goes to another slice.
    """
    # A shard_map's have one channel in common; copies are equal in all.
    found: dict[tuple[str, str, str], tuple[str, str]] = {}
    computation = ""
    for line in self.text.splitlines():
      if start := _COMPUTATION.match(line):
        computation = start["name"]
      if match := _COLLECTIVE.search(line):
        # How this compiler writes a reduce-scatter.
        kind = match["kind"]
        if computation.startswith("all-reduce-scatter"):
          kind = "reduce-scatter"
        kept = re.sub(r"\{[^}]*\}|/\*.*?\*/", "", match["type"])
        found[match["channel"], kind, kept] = (kind, kept)
    return list(found.values())

  def kernels(self) -> int:
    """The number of calls of kernels such as Splash."""
    return self.text.count('custom_call_target="tpu_custom_call"')

  def collectives_text(self) -> str:
    kinds = Counter(kind for kind, _ in self.collectives())
    return ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()) or "none"


def compiled(lowered: jax.stages.Lowered) -> Compiled:
  """Compiles a lowered program; DoesNotFit where its devices are too small."""
  start = time.perf_counter()
  try:
    program = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if not str(error).startswith("RESOURCE_EXHAUSTED"):
      raise
    raise DoesNotFit(str(error)) from error
  memory = program.memory_analysis()
  assert memory is not None  # a TPU's compiler always says
  return Compiled(
    arguments=(
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
      + memory.generated_code_size_in_bytes
    ),
    temporaries=memory.temp_size_in_bytes,
    seconds=time.perf_counter() - start,
    text=program.as_text() or "",
  )
