"""Documents of files that hold tokens instead of text.

A stream of tokens (.npy, .bin) or a list of them (a JSON line, a row of a
table) is cut at each end-of-text token, which belongs to no document.

T: tokens of a file or of a row. V: size of the vocabulary.
"""

import itertools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from jaxmerge.data.documents import BLANK, LocalFile, check_unchanged
from jaxmerge.data.record_files import (
  JSON_SUFFIXES,
  TABLE_SUFFIXES,
  json_lines,
  json_record,
  table_columns,
  telling_damage,
)
from jaxmerge.errors import InputError

STREAM_SUFFIXES = (".npy", ".bin")
ROW_SUFFIXES = JSON_SUFFIXES + TABLE_SUFFIXES
TOKEN_TYPE = np.dtype("<u4")  # of what is kept
# Parts of a stream without an end of text, and of a document that is too long
# to be held; in tokens.
PART = 2**14
LONGEST = 2**20
# Files of llm.c: 256 numbers, of which the first says the type of the tokens
# and the third their number; https://github.com/karpathy/llm.c, dev/data.
_HEADER = np.dtype(("<i4", 256))
_MAGIC = {20240520: "<u2", 20240801: "<u4"}
_LARGEST_SHORT = 2**16
_HEAD = 4096


class TokenRules(NamedTuple):
  """A tokenizer's size and end of text, by which tokens are read."""

  size: int
  end_of_text: int


def open_stream(path: str, size: int) -> np.ndarray:
  """The tokens of a .npy or .bin file, integers[T], as a memory map.

  A .bin has llm.c's header or none. Without one it is of uint32 where a
  vocabulary of `size` needs that, or where every second uint16 of its head is
  zero, else of uint16; little-endian.

  Raises:
    InputError: it is damaged or holds something else.
  """
  with telling_damage(path):
    if path.endswith(".npy"):
      tokens_T = np.load(path, mmap_mode="r", allow_pickle=False)
      if tokens_T.ndim != 1 or tokens_T.dtype.kind not in "ui":
        shape = list(tokens_T.shape)
        raise InputError(
          f"{path} holds {tokens_T.dtype}{shape}, not one row of integers"
        )
    else:
      tokens_T = _open_bin(path, size)
  if not len(tokens_T):
    raise InputError(f"{path} holds no tokens")
  return tokens_T


def _open_bin(path: str, size: int) -> np.ndarray:
  length = os.path.getsize(path)
  if not length:
    raise InputError(f"{path} is empty")
  with open(path, "rb") as content:
    head = content.read(max(_HEADER.itemsize, 2 * _HEAD))
  start = 0
  numbers = np.frombuffer(head[: len(head) // 4 * 4], "<i4")
  kind = _MAGIC.get(int(numbers[0]), "") if len(numbers) >= 256 else ""
  if kind:
    start, count = _HEADER.itemsize, int(numbers[2])
    found = (length - start) / np.dtype(kind).itemsize
    if found != count:
      raise InputError(
        f"{path}: damaged: its header says {count} tokens, it has {found:g}"
      )
    if not count:
      raise InputError(f"{path} holds no tokens")
  else:
    short = np.frombuffer(head[: len(head) // 2 * 2], "<u2")
    is_wide = len(short) > 1 and not short[1::2].any() and short.any()
    kind = "<u4" if size > _LARGEST_SHORT or is_wide else "<u2"
    if length % np.dtype(kind).itemsize:
      raise InputError(
        f"{path}: damaged: {length} bytes are no whole number of "
        f"{np.dtype(kind).name}"
      )
  return np.memmap(path, kind, mode="r", offset=start)


def _ends(tokens_T: np.ndarray, end_of_text: int) -> Iterator[int]:
  """Places of the end-of-text tokens, found some tokens at a time."""
  for start in range(0, len(tokens_T), LONGEST):
    is_end_T = tokens_T[start : start + LONGEST] == end_of_text
    yield from (start + np.flatnonzero(is_end_T)).tolist()


def _pieces(
  tokens_T: np.ndarray, end_of_text: int
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (start, tokens) of what lies between the ends of text."""
  has_end = next(_ends(tokens_T, end_of_text), None) is not None
  limit = LONGEST if has_end else PART
  begin = 0
  for end in itertools.chain(_ends(tokens_T, end_of_text), [len(tokens_T)]):
    for start in range(begin, end, limit):
      yield start, tokens_T[start : min(start + limit, end)]
    begin = end + 1


def _is_list(kind: pa.DataType) -> bool:
  types = pa.types
  is_list = (
    types.is_list(kind)
    or types.is_large_list(kind)
    or types.is_fixed_size_list(kind)
    or types.is_list_view(kind)
    or types.is_large_list_view(kind)
  )
  return is_list and types.is_integer(kind.value_type)


def rows(file: LocalFile, key: str) -> Iterator[tuple[str, str, np.ndarray]]:
  """Yields (name, where it is, integers[T]) of each list of tokens."""
  path = file.path
  if path.endswith(TABLE_SUFFIXES):
    what = "lists of integers"
    for number, lists, ids in table_columns(path, key, what, _is_list):
      for row, (found, name) in enumerate(zip(lists, ids), number):
        where = f"{path}, row {row}"
        values = pa.array([]) if found.values is None else found.values
        if values.null_count:
          raise InputError(f'{where}: a token of "{key}" is missing')
        yield f"{file.id}:{name}", where, values.to_numpy(zero_copy_only=False)
    return
  for number, where, line in json_lines(path):
    if line is None:
      raise InputError(f"{where}: not UTF-8")
    record = json_record(where, line, key)
    yield (
      f"{file.id}:{record.get('id', number)}",
      where,
      _integers(where, key, record[key]),
    )


def _integers(where: str, key: str, value: Any) -> np.ndarray:
  is_list = isinstance(value, list) and all(type(v) is int for v in value)
  if not is_list:
    raise InputError(f'{where}: "{key}" is not a list of integers')
  try:
    return np.array(value, np.int64)
  except OverflowError as error:
    raise InputError(f'{where}: "{key}" holds {max(value, key=abs)}') from error


def check_opens(file: LocalFile, key: str) -> None:
  """Raises InputError for a file that cannot be read at its beginning."""
  if file.path.endswith(STREAM_SUFFIXES):
    open_stream(file.path, size=1)
  else:
    with telling_damage(file.path):
      next(rows(file, key), None)


def read_tokens(
  file: LocalFile, key: str, rules: TokenRules
) -> Iterator[tuple[str, bytes, str]]:
  """Yields (name, tokens, reason to skip it or "") of each document of a file.

  Tokens are the bytes of TOKEN_TYPE. Names are as the file gives them, so that
  two may be equal; the parts of a row share its name.

  Args:
    key: of the list of tokens, where a file has keys or columns.

  Raises:
    InputError: as documents.read_documents; and after all of the file, how many
      ids are outside of the vocabulary, and which was the first.
  """
  outside, first = 0, ""
  for name, where, start, tokens_T in _documents(file, key, rules):
    is_outside_T = (tokens_T < 0) | (tokens_T >= rules.size)
    if is_outside_T.any():
      if not outside:
        place = int(np.argmax(is_outside_T))
        first = f"{tokens_T[place]}, {where}{start + place}"
      outside += int(is_outside_T.sum())
    elif not outside:
      reason = "" if len(tokens_T) else BLANK
      yield name, tokens_T.astype(TOKEN_TYPE).tobytes(), reason
  if outside:
    raise InputError(
      f"{file.path}: {outside} ids are outside of the tokenizer's vocabulary "
      f"of {rules.size} (the first: {first})"
    )
  check_unchanged(file)


def _documents(
  file: LocalFile, key: str, rules: TokenRules
) -> Iterator[tuple[str, str, int, np.ndarray]]:
  """Yields (name, where they are, start, integers[T]) of each document."""
  if file.path.endswith(STREAM_SUFFIXES):
    stream_T = open_stream(file.path, rules.size)
    pieces = _pieces(stream_T, rules.end_of_text)
    for number, (start, tokens_T) in enumerate(pieces, start=1):
      yield f"{file.id}:{number}", "at ", start, tokens_T
    return
  with telling_damage(file.path):
    for name, where, row_T in rows(file, key):
      place = where.removeprefix(f"{file.path}, ") + " at "
      if not len(row_T):
        yield name, place, 0, row_T
      ends = np.flatnonzero(row_T == rules.end_of_text).tolist()
      for start, end in zip([0, *(e + 1 for e in ends)], [*ends, len(row_T)]):
        if end > start:
          yield name, place, start, row_T[start:end]
