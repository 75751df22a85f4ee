"""Files of many records: JSON lines, tables and ArrayRecord, some at a time.

All are read in pieces: compressed lines as a stream, Parquet by pages, Arrow
through a memory map. So memory is bounded by some records, not by a file.
"""

import codecs
import contextlib
import gzip
import io
import itertools
import json
import os
import tokenize
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module

from jaxmerge.errors import InputError

_COMPRESSED = (".gz", ".zst")
PLAIN_TEXT_SUFFIXES = (".txt", ".md", ".py")
PLAIN_JSON_SUFFIXES = (".jsonl", ".json")


def _each(*kinds: str) -> tuple[str, ...]:
  return tuple(kind + how for kind in kinds for how in ("", *_COMPRESSED))


TEXT_SUFFIXES = _each(*PLAIN_TEXT_SUFFIXES)
JSON_SUFFIXES = _each(*PLAIN_JSON_SUFFIXES)
TABLE_SUFFIXES = (".parquet", ".arrow")
RECORD_SUFFIXES = (".array_record", ".arrayrecord")
# Their records have keys or columns.
KEYED_SUFFIXES = JSON_SUFFIXES + TABLE_SUFFIXES + RECORD_SUFFIXES
# What is told of text and JSON lines.
COMPRESSIBLE = "each also with .gz or .zst"

_HEAD_BYTES = 4096
_ROWS = 128  # decoded at once
_PAGE_BYTES = 1 << 20
_MOST_NAMED = 20
_IPC_FILE = b"ARROW1"
_FORMATS = {
  ".gz": "gzip",
  ".zst": "zstd",
  ".parquet": "Parquet",
  ".arrow": "Arrow",
  ".array_record": "ArrayRecord",
  ".arrayrecord": "ArrayRecord",
  ".npy": "NumPy",
}


@contextlib.contextmanager
def telling_damage(path: str) -> Iterator[None]:
  """Makes one InputError of all that libraries raise for a file."""
  try:
    yield
  except InputError:
    raise
  except (
    OSError,
    EOFError,
    zlib.error,
    pa.ArrowException,
    RuntimeError,  # of ArrayRecord
    IndexError,
    ValueError,
    SyntaxError,  # of NumPy's headers, which are Python
    tokenize.TokenError,
  ) as error:
    if isinstance(error, OSError) and error.errno:
      raise InputError(
        f"cannot read {path}: {os.strerror(error.errno)}"
      ) from error
    form = _FORMATS.get(os.path.splitext(path)[1], "")
    reason = " ".join(str(error).split())[:300]
    what = f"damaged {form} file".replace("  ", " ")
    raise InputError(f"{path}: {what} ({reason})") from error


def opened(path: str) -> IO[bytes]:
  """The content of a file as a stream, decompressed."""
  if path.endswith(".gz"):
    return cast(IO[bytes], gzip.open(path, "rb"))
  if path.endswith(".zst"):
    return io.BufferedReader(pa.input_stream(path, compression="zstd"))
  return open(path, "rb")


def head_of(path: str) -> bytes:
  with opened(path) as content:
    return content.read(_HEAD_BYTES)


@contextlib.contextmanager
def without_mark(path: str) -> Iterator[IO[bytes]]:
  """As opened, behind a byte-order mark of UTF-8."""
  has_mark = head_of(path).startswith(codecs.BOM_UTF8)
  with opened(path) as content:
    content.read(len(codecs.BOM_UTF8) * has_mark)
    yield content


def json_record(where: str, line: str | bytes, key: str) -> dict[str, Any]:
  """The JSON object of a line; InputError lists its keys if this is none."""
  try:
    value = json.loads(line)
  except ValueError as error:
    raise InputError(
      f"{where}: not JSON ({error}); each line is an object of its own"
    ) from error
  except RecursionError as error:
    raise InputError(f"{where}: nested too deeply") from error
  if not isinstance(value, dict):
    raise InputError(f'{where}: no "{key}", as it is not a JSON object')
  if key not in value:
    raise InputError(f'{where}: no "{key}"; it has {_listed(value)}')
  return value


def _listed(names: Sequence[str] | dict[str, Any]) -> str:
  shown = ", ".join(itertools.islice(names, _MOST_NAMED))
  return (shown or "none") + ", ..." * (len(names) > _MOST_NAMED)


def json_lines(path: str) -> Iterator[tuple[int, str, str | None]]:
  """Yields (number, where that is, text) of each line that is not blank.

  The text is None where it is not UTF-8.
  """
  with without_mark(path) as lines:
    for number, line in enumerate(lines, start=1):
      try:
        text = line.decode()
      except UnicodeDecodeError:
        yield number, f"{path}, line {number}", None
        continue
      if text.strip():
        yield number, f"{path}, line {number}", text


def _batches(
  path: str, stack: contextlib.ExitStack
) -> tuple[pa.Schema, Callable[[list[str]], Iterator[pa.RecordBatch]]]:
  """The schema of a table, and a function that reads columns of it."""
  if path.endswith(".parquet"):
    table = stack.enter_context(
      # What is read ahead would be a whole row group.
      pq.ParquetFile(path, buffer_size=_PAGE_BYTES, pre_buffer=False)
    )
    return table.schema_arrow, lambda names: table.iter_batches(
      _ROWS, columns=names
    )
  content = stack.enter_context(pa.memory_map(path))
  is_file = content.read(len(_IPC_FILE)) == _IPC_FILE
  content.seek(0)
  opener = pa.ipc.open_file if is_file else pa.ipc.open_stream
  reader = stack.enter_context(opener(content))

  def read(names: list[str]) -> Iterator[pa.RecordBatch]:
    numbers = range(reader.num_record_batches) if is_file else ()
    found = map(reader.get_batch, numbers) if is_file else reader
    for batch in found:
      batch.validate(full=True)
      for start in range(0, len(batch), _ROWS):
        yield batch.select(names).slice(start, _ROWS)

  return reader.schema, read


def table_columns(
  path: str, key: str, what: str, is_fit: Callable[[pa.DataType], bool]
) -> Iterator[tuple[int, pa.Array, list[Any]]]:
  """Yields (the first row's number, a column's values, ids) of some rows.

  Rows count from 1, and their number is the id of those that have none.

  Args:
    key: the name of the column.
    what: it must hold, for the message.
    is_fit: whether a type does.
  """
  with contextlib.ExitStack() as stack:
    schema, read = _batches(path, stack)
    if (place := schema.get_field_index(key)) < 0:
      times = schema.names.count(key)
      told = f"{times} columns" if times else "no column"
      raise InputError(
        f'{path}: {told} "{key}"; it has {_listed(schema.names)}'
      )
    if not is_fit(kind := schema.field(place).type):
      raise InputError(f'{path}: column "{key}" holds {kind}, not {what}')
    has_ids = key != "id" and schema.get_field_index("id") >= 0
    number = 1
    for batch in read([key, "id"] if has_ids else [key]):
      numbers = range(number, number + len(batch))
      given = batch.column("id").to_pylist() if has_ids else [None] * len(batch)
      ids = [n if i is None else i for n, i in zip(numbers, given, strict=True)]
      yield number, batch.column(key), ids
      number += len(batch)


def array_records(path: str) -> Iterator[tuple[int, bytes]]:
  """Yields (number from 1, content) of each record."""
  # Closing it raises what it has met.
  reader = array_record_module.ArrayRecordReader(path)
  with contextlib.closing(reader):
    count = reader.num_records()
    for start in range(0, count, _ROWS):
      records = reader.read(start, min(start + _ROWS, count))
      yield from enumerate(records, start + 1)
