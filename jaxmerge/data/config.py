"""The `data` section of a config."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from jaxmerge.config_fields import build, key, sections
from jaxmerge.files import cache_root

CONCATENATE, DOCUMENTS = "concatenate", "documents"

TOKENIZED_FILES = "tokenized_files"
# "", () and 0 mean: not given. Paths are no part of what a run is: its text
# and its tokenizer are known by their hashes.


def _default(name: str) -> Any:
  return getattr(CorpusConfig(), name)


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
  """A corpus for models that have their own tokenizer."""

  source: str = key(
    "",
    "python_source, text_files, tokenized_files, sotu or name/config:version "
    "of the TFDS catalogue; empty: the corpus that the checkpoint was trained "
    "on",
  )
  globs: tuple[str, ...] = key(
    (),
    "the files of text_files or tokenized_files, as ('text/**/*.txt',), or "
    "folders of them",
    changes_numbers=False,
  )
  data_dir: str = key(
    "", "where prepared copies lie and are written", changes_numbers=False
  )
  split: str = key("", "a TFDS split such as train[:1%]; empty: train")
  text_feature: str = key(
    "text",
    "the feature, key or column to read; of tokenized_files text means "
    "input_ids",
  )
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
      for name in (*unused, "text_feature")
      if getattr(self, name) != _default(name) and not self.source
    ]

  @property
  def cache_home(self) -> epath.PathLike:
    """The directory of token caches and prepared copies of local sources."""
    return self.cache_dir or cache_root() / "data"

  @property
  def title(self) -> str:
    """Names the corpus for people."""
    return self.source

  @property
  def corpora(self) -> Mapping[str, "CorpusConfig"]:
    """The corpora that are read, by name: itself, which needs none."""
    return {"": self}

  @property
  def has_tokens(self) -> bool:
    """Says whether some of it is there as tokens alone."""
    return any(c.source == TOKENIZED_FILES for c in self.corpora.values())

  def with_tokenizer(self, path: str) -> "DataConfig":
    """The corpus in the tokens of a tokenizer that is there."""
    known = {field.name for field in dataclasses.fields(DataConfig)}
    values = {name: v for name, v in vars(self).items() if name in known}
    return DataConfig(**values | {"tokenizer_path": path, "vocab_size": 0})


@dataclasses.dataclass(frozen=True)
class PartConfig(CorpusConfig):
  """A corpus of a mixture."""

  source: str = key(help="as data.source")
  weight: float = key(
    1.0, "its share of the sequences, by the sum of all parts'", above=0
  )
  tokenizer_path: str = key(
    "",
    "refused where it is another tokenizer than that of data.tokenizer_path",
    changes_numbers=False,
  )

  def problems(self, prefix: str) -> list[str]:
    found = super().problems(prefix)
    return found if self.source else [f"{prefix}source is empty", *found]


@dataclasses.dataclass(frozen=True)
class DataConfig(CorpusConfig):
  """A corpus and its tokenizer."""

  source: str = key(
    "",
    "python_source, text_files, tokenized_files, sotu or name/config:version "
    "of the TFDS catalogue; empty beside a mixture",
    unless="mixture",
  )
  mixture: Mapping[str, PartConfig] = sections(PartConfig)
  vocab_size: int = key(
    0,
    "tokens of the BPE to train on the train split, at least 257; 0: what the "
    "tokenizer of tokenizer_path has",
  )
  tokenizer_path: str = key(
    "",
    "a tokenizer.json or tokenizer.model to use instead of training one; that "
    "which made tokenized_files",
    changes_numbers=False,
  )
  packing: str = key(
    CONCATENATE,
    "how documents become sequences: one stream that is cut, or whole ones "
    "side by side that attend only to themselves, with the padding that it "
    "takes",
    choices=(CONCATENATE, DOCUMENTS),
  )

  def problems(self, prefix: str) -> list[str]:
    problems = []
    if self.has_tokens and not self.tokenizer_path:
      problems.append(
        f"source {TOKENIZED_FILES!r} needs the tokenizer that made its tokens, "
        f"as {prefix}tokenizer_path"
      )
    if not self.mixture:
      return problems + super().problems(prefix)
    if self.source:
      problems.append(
        f"{prefix}source {self.source!r} and {prefix}mixture are both given; "
        "leave one of them empty"
      )
    problems += [
      f"{prefix}{name} means nothing beside {prefix}mixture, whose parts have "
      "their own"
      for name in ("globs", "split", "max_documents", "text_feature")
      if getattr(self, name) != _default(name)
    ]
    return problems + [
      f"{prefix}mixture.{name}: a part's name is a letter, and then letters, "
      "digits, _ and -"
      for name in self.mixture
      if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name)
    ]

  @property
  def packs_documents(self) -> bool:
    return self.packing == DOCUMENTS

  @property
  def title(self) -> str:
    return self.source or " + ".join(self.mixture)

  @property
  def corpora(self) -> Mapping[str, CorpusConfig]:
    """The parts of a mixture, which may leave two directories to it."""
    return {
      name: dataclasses.replace(
        part,
        cache_dir=part.cache_dir or self.cache_dir,
        data_dir=part.data_dir or self.data_dir,
      )
      for name, part in self.mixture.items()
    } or {"": self}

  @property
  def weights(self) -> dict[str, float]:
    """By the names of `corpora`."""
    return {name: part.weight for name, part in self.mixture.items()} or {
      "": 1.0
    }


def from_metadata(values: Mapping[str, Any]) -> DataConfig:
  """The corpus of a checkpoint's run, from what its metadata says of it."""
  return build(DataConfig, values)
