"""Documents of local files: .txt, .md, .py, .jsonl and .jsonl.gz.

UTF-8, with or without a byte-order mark, is read. What is not is no document;
the reason is given in its place.
"""

import codecs
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxmerge.data.skipped import BLANK, HALF_PAIR, NOT_UTF8
from jaxmerge.errors import InputError

TEXT_SUFFIXES = (".txt", ".md", ".py")
JSON_SUFFIXES = (".jsonl", ".jsonl.gz")
_HEAD_BYTES = 4096
_OTHER_MARKS = (
  (codecs.BOM_UTF32_LE, "UTF-32"),  # begins as the mark of UTF-16 does
  (codecs.BOM_UTF32_BE, "UTF-32"),
  (codecs.BOM_UTF16_LE, "UTF-16"),
  (codecs.BOM_UTF16_BE, "UTF-16"),
)


class LocalFile(NamedTuple):
  """A file to read.

  Attributes:
    id: its name, which never holds a directory of this machine.
    path: where it lies.
    sha256: of its content.
    form: of a file that is read otherwise than it once was: it has a byte-order
      mark, or is UTF-16 without one. Part of a corpus's identity.
  """

  id: str
  path: str
  sha256: str
  form: str = ""


def sha256_of_file(path: str | os.PathLike[str]) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def form_of(path: str) -> str:
  """LocalFile.form of a file."""
  if not path.endswith(TEXT_SUFFIXES):
    return ""
  with open(path, "rb") as file:
    head = file.read(_HEAD_BYTES)
  if head.startswith(codecs.BOM_UTF8):
    return "byte-order mark"
  other = _other_encoding(head) if b"\0" in head else ""
  # What is not UTF-8 has always been skipped.
  return other if other and _is_utf8(Path(path).read_bytes()) else ""


def _is_utf8(content: bytes) -> bool:
  try:
    content.decode()
  except UnicodeDecodeError:
    return False
  return True


def _other_encoding(head: bytes) -> str:
  """ "UTF-16" or "UTF-32" where the head of a file is that, else ""."""
  for mark, name in _OTHER_MARKS:
    if head.startswith(mark):
      return name
  halves = head[::2], head[1::2]
  zeros = [half.count(0) for half in halves]
  # Of most texts in UTF-16 every other byte is zero; of none in UTF-8.
  is_text = len(head) >= 4 and min(zeros) == 0
  return "UTF-16" if is_text and 2 * max(zeros) > len(halves[1]) else ""


def _convert(encoding: str) -> str:
  return f"{encoding}, to be converted to UTF-8"


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


def _reason_to_skip(text: str) -> str:
  if not text.strip():
    return BLANK
  try:
    text.encode()
  except UnicodeEncodeError:  # from a JSON escape
    return HALF_PAIR
  return ""


class _Read(NamedTuple):
  """A document, or the reason why there is none."""

  name: str
  text: str
  reason: str


def _read_lines(file: LocalFile, lines: Any) -> Iterator[_Read]:
  encoding = _other_encoding(lines.peek(_HEAD_BYTES)[:_HEAD_BYTES])
  if encoding:
    yield _Read(file.id, "", _convert(encoding))
    return
  for number, content in enumerate(lines, start=1):
    try:
      line = content.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
      yield _Read(f"{file.id}:{number}", "", NOT_UTF8)
      continue
    if line.strip():
      name, text = _json_document(file, number, line)
      yield _Read(name, text, _reason_to_skip(text))


def _read_whole(file: LocalFile) -> _Read:
  content = Path(file.path).read_bytes()
  encoding = _other_encoding(content[:_HEAD_BYTES])
  if encoding:
    return _Read(file.id, "", _convert(encoding))
  try:
    text = content.decode("utf-8-sig")
  except UnicodeDecodeError:
    return _Read(file.id, "", NOT_UTF8)
  return _Read(file.id, text, _reason_to_skip(text))


def read_documents(file: LocalFile) -> Iterator[_Read]:
  """Yields the documents of a file, and what of it is none and why.

  Names are as the file gives them, so that two may be equal.

  Raises:
    InputError: the file changed since it was hashed, or is damaged JSON lines.
  """
  if file.path.endswith(JSON_SUFFIXES):
    opener: Any = gzip.open if file.path.endswith(".gz") else open
    try:
      with opener(file.path, "rb") as lines:
        yield from _read_lines(file, lines)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise InputError(f"{file.path}: damaged gzip file ({error})") from error
  else:
    yield _read_whole(file)
  if sha256_of_file(file.path) != file.sha256:
    raise InputError(f"{file.path} changed while it was being read")
