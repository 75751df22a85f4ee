"""What tests of several rooms share."""

import dataclasses
import os
import pathlib

from jaxmerge import merge, runner
from jaxmerge.model.config import DecoderConfig

ROOT = pathlib.Path(__file__).parent.parent
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


def config_file(verb: str, name: str = "tiny") -> str:
  return str(ROOT / f"configs/{verb}/{name}.py")


def config_of(verb: str, name: str = "tiny", /, **changes):
  config = runner.load_config(config_file(verb, name))
  config.update(changes)
  return config


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
