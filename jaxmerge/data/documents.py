"""Documents of local files, and those that are not used, by reason.

UTF-8, with or without a byte-order mark, is read. Anything else is no document;
the reason is given in its place.
"""

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from jaxmerge.data.file_hashes import sha256_of_file
from jaxmerge.data.record_files import (
  JSON_SUFFIXES,
  PLAIN_TEXT_SUFFIXES,
  RECORD_SUFFIXES,
  TABLE_SUFFIXES,
  TEXT_SUFFIXES,
  array_records,
  head_of,
  json_lines,
  json_record,
  table_columns,
  telling_damage,
  without_mark,
)
from jaxmerge.errors import InputError

NOT_UTF8 = "not UTF-8"
BLANK = "blank"
HALF_PAIR = "with half of a surrogate pair"
REPEATED = "of a text that is there before"
# Of corpora that were prepared when only the sum was kept.
_EITHER = "not UTF-8 or blank"
# A map from names to features: three lengths, a name, and a feature's tag.
_EXAMPLE = re.compile(rb"\n.{1,4}?\n.{1,4}?\n.[ -~]+\x12", re.DOTALL)
_OTHER_MARKS = (
  (codecs.BOM_UTF32_LE, "UTF-32"),  # begins as the mark of UTF-16 does
  (codecs.BOM_UTF32_BE, "UTF-32"),
  (codecs.BOM_UTF16_LE, "UTF-16"),
  (codecs.BOM_UTF16_BE, "UTF-16"),
)


class Skip(NamedTuple):
  """Documents that were left out for one reason, and which was the first."""

  number: int
  first: str


class Skipped(dict[str, Skip]):
  """Skips by their reason."""

  def add(self, reason: str, name: str) -> None:
    number, first = self.get(reason, (0, name))
    self[reason] = Skip(number + 1, first)

  @property
  def total(self) -> int:
    return sum(self.numbers.values())

  @property
  def numbers(self) -> dict[str, int]:
    """The number of each reason; for the metadata of checkpoints."""
    return {reason: skip.number for reason, skip in self.items()}

  def summary(self) -> str:
    """For example "101 skipped: 100 not UTF-8 (first: b.txt), 1 blank ..."."""
    reasons = ", ".join(
      f"{skip.number} {reason}" + (f" (first: {skip.first})" * bool(skip.first))
      for reason, skip in self.items()
    )
    return f"{self.total} skipped: {reasons}" if self else "none skipped"


def from_json(value: Any) -> Skipped:
  """Reads a mapping of Skips, or the number that stood in its place once.

  Raises:
    ValueError: it is neither.
  """
  if type(value) is int and value >= 0:
    return Skipped({_EITHER: Skip(value, "")} if value else {})
  found = Skipped()
  entries = value.items() if isinstance(value, Mapping) else [("", value)]
  for reason, entry in entries:
    match entry:
      case [int(number), str(first)]:
        found[reason] = Skip(number, first)
      case _:
        raise ValueError(f"what was skipped is said to be {entry!r}")
  return found


class LocalFile(NamedTuple):
  """A file to read.

  Attributes:
    id: its name, which never holds a directory of this machine.
    sha256: of its content.
    form: of a file that is read otherwise than it once was: it has a byte-order
      mark, or is UTF-16 without one. Part of a corpus's identity.
  """

  id: str
  path: str
  sha256: str
  form: str = ""


def form_of(path: str) -> str:
  if not path.endswith(PLAIN_TEXT_SUFFIXES):
    return ""
  head = head_of(path)
  if head.startswith(codecs.BOM_UTF8):
    return "byte-order mark"
  other = _other_encoding(head)
  # Files that are not UTF-8 have always been skipped.
  is_utf8 = other and decoded(Path(path).read_bytes()) is not None
  return other if is_utf8 else ""


def decoded(content: bytes) -> str | None:
  """The text of UTF-8; None where it is none."""
  try:
    return content.decode()
  except UnicodeDecodeError:
    return None


def _other_encoding(head: bytes) -> str:
  """ "UTF-16" or "UTF-32" where the head of a file is that, else ""."""
  for mark, name in _OTHER_MARKS:
    if head.startswith(mark):
      return name
  zeros = [head[start::2].count(0) for start in (0, 1)]
  # Of most texts in UTF-16 every other byte is zero; of none in UTF-8.
  is_text = len(head) >= 4 and min(zeros) == 0
  return "UTF-16" if is_text and 2 * max(zeros) > len(head) // 2 else ""


def reason_to_skip(text: str | None) -> str:
  """Says why a text (None: not UTF-8) is no document; "" if it is one."""
  if text is None:
    return NOT_UTF8
  if not text.strip():
    return BLANK
  try:
    text.encode()
  except UnicodeEncodeError:  # from a JSON escape
    return HALF_PAIR
  return ""


def _is_text(kind: pa.DataType) -> bool:
  """Also of bytes: some writers do not say that they are UTF-8."""
  types = pa.types
  if types.is_dictionary(kind):
    kind = kind.value_type
  return (
    types.is_string(kind)
    or types.is_large_string(kind)
    or types.is_string_view(kind)
    or types.is_binary(kind)
    or types.is_large_binary(kind)
    or types.is_binary_view(kind)
  )


def _of_json(
  file: LocalFile, number: int, where: str, line: str, key: str
) -> tuple[str, str]:
  record = json_record(where, line, key)
  text = record[key]
  if not isinstance(text, str | None):
    raise InputError(f'{where}: "{key}" is not a string')
  return f"{file.id}:{record.get('id', number)}", text or ""


def _of_array_records(
  file: LocalFile, key: str
) -> Iterator[tuple[str, str | None]]:
  """Texts, or JSON objects where the first record is one."""
  is_json = False
  for number, content in array_records(file.path):
    where, text = f"{file.path}, record {number}", decoded(content)
    if number == 1:
      is_json = content.lstrip().startswith(b"{") and _is_object(content)
    if is_json and text is not None:
      yield _of_json(file, number, where, text, key)
      continue
    if _EXAMPLE.match(content):
      raise InputError(
        f"{where}: a tf.train.Example; data that TFDS has prepared is read as "
        "a source by its name, with its data_dir"
      )
    yield f"{file.id}:{number}", text


def _is_object(content: bytes) -> bool:
  try:
    return isinstance(json.loads(content), dict)
  except (ValueError, RecursionError):
    return False


def _texts(file: LocalFile, key: str) -> Iterator[tuple[str, str | None]]:
  """Yields (name, text, None where it is not UTF-8) of each document."""
  path = file.path
  if path.endswith(TABLE_SUFFIXES):
    for _, texts, ids in table_columns(path, key, "text", _is_text):
      contents = texts.cast(pa.large_binary()).to_pylist()
      for content, name in zip(contents, ids, strict=True):
        yield f"{file.id}:{name}", decoded(content or b"")
  elif path.endswith(RECORD_SUFFIXES):
    yield from _of_array_records(file, key)
  elif path.endswith(JSON_SUFFIXES):
    for number, where, line in json_lines(path):
      if line is None:
        yield f"{file.id}:{number}", None
      else:
        yield _of_json(file, number, where, line, key)
  else:
    with without_mark(path) as content:
      yield file.id, decoded(content.read())


def read_documents(
  file: LocalFile, key: str = "text"
) -> Iterator[tuple[str, str, str]]:
  """Yields (name, text, reason to skip it or "") of each document of a file.

  Names are as the file gives them, so that two may be equal.

  Args:
    key: of the text, where a file has records with keys or columns.

  Raises:
    InputError: the file changed since it was hashed, is damaged, or a record
      has no such text.
  """
  with telling_damage(file.path):
    is_text = file.path.endswith(TEXT_SUFFIXES + JSON_SUFFIXES)
    if encoding := _other_encoding(head_of(file.path)) if is_text else "":
      yield file.id, "", f"{encoding}, to be converted to UTF-8"
    else:
      for name, text in _texts(file, key):
        yield name, text or "", reason_to_skip(text)
  check_unchanged(file)


def check_unchanged(file: LocalFile) -> None:
  if sha256_of_file(file.path) != file.sha256:
    raise InputError(f"{file.path} changed while it was being read")
