"""Files of questions: JSON lines and CSV, with every problem and its line."""

import codecs
import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from jaxmerge.errors import InputError, Problems
from jaxmerge.evaluation.tasks.prompts import letter
from jaxmerge.reading import read_file, read_json

_MOST_CHOICES = 26  # letters


def content_of(path: epath.Path) -> bytes:
  """A file's bytes behind a byte-order mark.

  Raises:
    InputError: it cannot be read, or has nothing but white space.
  """
  try:
    content = read_file(path).removeprefix(codecs.BOM_UTF8)
  except (OSError, ValueError) as error:  # of a null character in its name
    raise InputError(f"cannot read {path}: {reason(error)}") from error
  if not content.strip():
    raise InputError(f"{path}: it is empty")
  return content


def json_lines(
  path: epath.Path, problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (where that is, object) of each line that is one and not blank."""
  content = problems(lambda: content_of(path)) or b""
  for number, line in enumerate(content.split(b"\n"), start=1):
    where = f"{path}, line {number}"
    if not line.strip():
      continue
    try:
      value = read_json(line)
    except UnicodeDecodeError:
      problems.add(f"{where}: not UTF-8")
      continue
    except ValueError as error:
      problems.add(f"{where}: not JSON ({error})")
      continue
    if isinstance(value, dict):
      yield where, value
    else:
      problems.add(f"{where}: a JSON {_kind(value)}, where an object belongs")


def csv_rows(
  path: epath.Path, problems: Problems
) -> Iterator[tuple[str, list[str]]]:
  """Yields (where that is, cells) of each row that is not empty."""
  content = problems(lambda: content_of(path)) or b""
  try:
    text = content.decode()
  except UnicodeDecodeError as error:
    line = content.count(b"\n", 0, error.start) + 1
    problems.add(f"{path}, line {line}: not UTF-8")
    return
  rows = csv.reader(io.StringIO(text, newline=""), strict=True)
  try:
    while True:
      where = f"{path}, line {rows.line_num + 1}"
      if row := next(rows):
        yield where, row
  except StopIteration:
    return
  except csv.Error as error:
    problems.add(f"{where}: not CSV ({error})")


def reason(error: OSError | ValueError) -> str:
  """Says why something cannot be read, without its path."""
  return getattr(error, "strerror", None) or str(error)


def text_of(
  where: str, row: Mapping[str, Any], key: str, problems: Problems
) -> str:
  """A row's text under a key; "" where there is none, which is a problem."""
  value = row.get(key)
  if value is None:
    listed = ", ".join(map(repr, row)) or "none"
    problems.add(f"{where}: no {key!r}; it has {listed}")
  elif not isinstance(value, str):
    problems.add(f"{where}: {key!r} is a {_kind(value)}, not a text")
  elif not value.strip():
    problems.add(f"{where}: {key!r} is empty")
  else:
    return value
  return ""


def choices_of(
  where: str, row: Mapping[str, Any], problems: Problems
) -> tuple[str, ...]:
  """A row's `choices`, two or more texts; () where they are none."""
  choices = row.get("choices")
  if not isinstance(choices, list):
    problems.add(
      f"{where}: "
      + ("no 'choices'" if choices is None else "'choices' is not a list")
    )
    return ()
  found = [
    f"choice {letter(number)} is "
    + ("empty" if isinstance(text, str) else f"a {_kind(text)}, not a text")
    for number, text in enumerate(choices[:_MOST_CHOICES])
    if not (isinstance(text, str) and text.strip())
  ]
  if not 2 <= len(choices) <= _MOST_CHOICES:
    found.append(f"{len(choices)} choices, not 2 to {_MOST_CHOICES}")
  problems += [f"{where}: {problem}" for problem in found]
  return () if found else tuple(choices)


def answer_of(
  where: str,
  value: Any,
  choices: Sequence[str],
  problems: Problems,
  *,
  may_be_text: bool,
) -> int:
  """The index of the answer: from that, a letter or a choice's own text.

  0 where it is none, which is a problem, or without choices, which has been
  one.
  """
  if not choices:
    return 0
  last = letter(len(choices) - 1)
  ways = f"an index 0 to {len(choices) - 1}, a letter A to {last}"
  ways += " or the text of a choice" * may_be_text
  if value is None:
    problems.add(f"{where}: no 'answer': {ways}")
    return 0
  found = set()
  if isinstance(value, int) and not isinstance(value, bool):
    found |= {value} & set(range(len(choices)))
  elif isinstance(value, str):
    text = value if may_be_text else value.strip()
    found |= {i for i in range(len(choices)) if letter(i) == text}
    found |= {i for i, c in enumerate(choices) if may_be_text and c == text}
  if len(found) == 1:
    return found.pop()
  wrong = "may mean two choices" if found else f"is not {ways}"
  problems.add(f"{where}: the answer {value!r} {wrong}")
  return 0


def _kind(value: Any) -> str:
  kinds: dict[type, str] = {
    dict: "object",
    list: "list",
    str: "text",
    bool: "true or false",
    type(None): "null",
  }
  return kinds.get(type(value), "number")


def without_extension(
  name: str, ending: str, readers: Mapping[str, Callable[..., Any]]
) -> tuple[str, str]:
  """The start of a name before an ending and one of the extensions, and that.

  ("", "") where the name is none such.
  """
  for extension in readers:
    start = name.removesuffix(ending + extension)
    if start and start != name:
      return start, extension
  return "", ""
