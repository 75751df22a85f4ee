"""Documents of local files, and those that are not used, by reason.

UTF-8, with or without a byte-order mark, is read. Anything else is no document;
the reason is given in its place.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxmerge.data.file_hashes import sha256_of_file
from jaxmerge.errors import InputError

NOT_UTF8 = "not UTF-8"
BLANK = "blank"
HALF_PAIR = "with half of a surrogate pair"
REPEATED = "of a text that is there before"
# Of corpora that were prepared when only the sum was kept.
_EITHER = "not UTF-8 or blank"
TEXT_SUFFIXES = (".txt", ".md", ".py")
JSON_SUFFIXES = (".jsonl", ".jsonl.gz")
_HEAD_BYTES = 4096
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
  if not path.endswith(TEXT_SUFFIXES):
    return ""
  with open(path, "rb") as file:
    head = file.read(_HEAD_BYTES)
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


def _json_document(file: LocalFile, number: int, line: str) -> tuple[str, str]:
  where = f"{file.path}, line {number}"
  try:
    value = json.loads(line)
  except ValueError as error:
    raise InputError(f"{where}: not JSON ({error})") from error
  except RecursionError as error:
    raise InputError(f"{where}: nested too deeply") from error
  if not isinstance(value, dict) or not isinstance(value.get("text"), str):
    raise InputError(f'{where}: no "text" that is a string')
  return f"{file.id}:{value.get('id', number)}", value["text"]


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


def _texts(file: LocalFile, content: Any) -> Iterator[tuple[str, str | None]]:
  if not file.path.endswith(JSON_SUFFIXES):
    yield file.id, decoded(content.read())
    return
  for number, line in enumerate(content, start=1):
    text = decoded(line)
    if text is None:
      yield f"{file.id}:{number}", None
    elif text.strip():
      yield _json_document(file, number, text)


def read_documents(file: LocalFile) -> Iterator[tuple[str, str, str]]:
  """Yields (name, text, reason to skip it or "") of each document of a file.

  Names are as the file gives them, so that two may be equal. InputError if the
  file changed since it was hashed, or is damaged.
  """
  opener: Any = gzip.open if file.path.endswith(".gz") else open
  try:
    with opener(file.path, "rb") as content:
      head = content.read(_HEAD_BYTES)
      mark = codecs.BOM_UTF8
      content.seek(len(mark) if head.startswith(mark) else 0)
      if encoding := _other_encoding(head):
        yield file.id, "", f"{encoding}, to be converted to UTF-8"
      else:
        for name, text in _texts(file, content):
          yield name, text or "", reason_to_skip(text)
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise InputError(f"{file.path}: damaged gzip file ({error})") from error
  if sha256_of_file(file.path) != file.sha256:
    raise InputError(f"{file.path} changed while it was being read")
