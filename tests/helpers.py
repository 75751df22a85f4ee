"""What tests of several rooms share."""

import contextlib
import dataclasses
import os
import pathlib
import resource
import socket

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge import merge, runner
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.parallel.rules import leaf_name

ROOT = pathlib.Path(__file__).parent.parent
# In a workdir, of the study that most configs name.
REPORT = "search/pair/report"
DECODER = DecoderConfig(
  vocab_size=50,
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  intermediate_size=24,
  tie_word_embeddings=False,
  vocab_multiple=32,
)


def decoder(**changes):
  """The config of a tiny decoder."""
  return dataclasses.replace(DECODER, **changes)


def random_params(config=DECODER, seed=0):
  """Of a decoder, spread as its own are; no program is compiled for them."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = leaf_name(path)
    if name.endswith(("scale", "bias")):
      value = float(name.endswith("scale"))
      return jnp.asarray(np.full(leaf.shape, value, leaf.dtype))
    inputs = leaf.shape[-1 if name.endswith("embedding") else -2]
    return jnp.asarray(rng.normal(size=leaf.shape) / inputs**0.5, leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, abstract_decoder(config)[1])


NEOX = decoder(
  num_key_value_heads=4,
  norm="layer",
  parallel_residual=True,
  attention_bias="all",
  mlp_bias=True,
  gated_mlp=False,
  activation="gelu",
  rotary_fraction=0.5,
)


class Telling:
  """Progress that passes on each call: name, done, of (0 for a note), text."""

  def __init__(self, tell=lambda name, done, of, text: None):
    self._tell = tell

  def stage(self, name, done, of, note=""):
    self._tell(name, done, of, note)

  def note(self, name, text):
    self._tell(name, 0, 0, text)


quiet = Telling()


@dataclasses.dataclass(frozen=True)
class Device:
  """As much of a device as a mesh looks at; all lie on a line."""

  id: int
  slice_index: int = 0
  per_process: int = 2
  platform: str = "cpu"
  device_kind: str = "none"

  @property
  def process_index(self) -> int:
    return self.id // self.per_process

  @property
  def coords(self) -> tuple[int, int, int]:
    return (self.id, 0, 0)

  @property
  def core_on_chip(self) -> int:
    return 0


def config_file(verb: str, name: str = "tiny") -> str:
  return str(ROOT / f"configs/{verb}/{name}.py")


def config_of(verb: str, name: str = "tiny", /, **changes):
  config = runner.load_config(config_file(verb, name))
  if verb == "evaluate":  # each test scores for itself
    config.use_cache = False
  config.update(changes)
  return config


def with_devices(count: int) -> dict[str, str]:
  """The environment of a process that has so many devices."""
  flag = f"--xla_force_host_platform_device_count={count}"
  return {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flag}"}


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def merge_into(output, run, **kwargs):
  """The uniform mean of two steps of the tiny run."""
  inputs = [f"{run}@4", f"{run}@8"]
  config = config_of("merge", "uniform")
  merge.merge(config, inputs, output, progress=quiet, **kwargs)


def contents(folder: pathlib.Path) -> dict:
  """All below a folder: bytes of files, None for folders, ends of links."""
  found = {}
  for path in sorted(folder.rglob("*")):
    inside = path.read_bytes() if path.is_file() else None
    value = (os.readlink(path), inside) if path.is_symlink() else inside
    found[str(path.relative_to(folder))] = value
  return found


def no_corpus(*args, **kwargs):
  raise AssertionError("a corpus is prepared before the cheap checks")


@contextlib.contextmanager
def bounded_memory(size: int):
  """Fails a block that takes 200 MB more than four times a file's size."""
  # Linux alone forgets a peak, and others only fail to see a lower one.
  with contextlib.suppress(OSError):
    pathlib.Path("/proc/self/clear_refs").write_text("5")
  before = _peak_memory()
  yield
  taken = _peak_memory() - before
  assert taken < 200_000_000 + 4 * size, f"it took {taken} bytes of memory"


def _peak_memory() -> int:
  with contextlib.suppress(OSError):
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
