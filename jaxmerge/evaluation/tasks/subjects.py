"""Directories of exams: a folder for each split, a file for each subject."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from jaxmerge.errors import Problems
from jaxmerge.evaluation.tasks.files import (
  answer_of,
  choices_of,
  csv_rows,
  json_lines,
  reason,
  text_of,
  without_extension,
)
from jaxmerge.evaluation.tasks.task import Question, Source

_LETTERS = ("a", "b", "c", "d")
_COLUMNS = ("question", *_LETTERS, "answer")


class Layout(NamedTuple):
  """An exam as its authors lay it out.

  Attributes:
    scored: the split whose answers are known.
    shots: that of the shots.
    ending: of a file's name behind the subject, with {split}.
    has_header: a CSV file begins with the names of its columns.
    names: of subjects, for people; of others their own, with spaces.
  """

  scored: str
  shots: str
  ending: str
  has_header: bool
  names: Mapping[str, str] = {}

  def read(self, path: epath.Path, shots: int, problems: Problems) -> Source:
    """Reads all subjects of the scored split, and the first of their shots."""
    files = self._files(path / self.scored, self.scored, problems)
    scored: list[Question] = []
    shown: dict[str, list[Question]] = {}
    for subject, file in files.items():
      # A single subject is no cluster: its items are all that there is.
      cluster = subject if len(files) > 1 else ""
      scored += self._questions(file, subject, cluster, problems)
    if shots:
      others = self._files(path / self.shots, self.shots, problems)
      for subject in files:
        shown[subject] = self._shots(path, others, subject, shots, problems)
    return Source(scored, shown)

  def _files(
    self, folder: epath.Path, split: str, problems: Problems
  ) -> dict[str, epath.Path]:
    """The files of a split by subject, in order."""
    ending = self.ending.format(split=split)
    form = f"SUBJECT{ending}.csv or .jsonl"
    files: dict[str, epath.Path] = {}
    try:
      there = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
      problems.add(f"{folder}: no such folder; it has files {form}")
      return {}
    except (OSError, ValueError) as error:
      problems.add(f"cannot read {folder}: {reason(error)}")
      return {}
    for file in there:
      if file.name.startswith(".") or not file.name.endswith(tuple(_READERS)):
        continue
      subject, _ = without_extension(file.name, ending, _READERS)
      if not _is_unicode(file.name):
        problems.add(f"{folder}: the name {file.name!r} is not UTF-8")
      elif not subject:
        problems.add(f"{file}: its name is not {form}")
      elif subject in files:
        problems.add(f"{file}: {files[subject].name} is of that subject too")
      else:
        files[subject] = file
    if not files:
      problems.add(f"{folder}: no file {form}")
    return files

  def _shots(
    self,
    path: epath.Path,
    files: Mapping[str, epath.Path],
    subject: str,
    shots: int,
    problems: Problems,
  ) -> list[Question]:
    if subject not in files:
      if files:
        problems.add(f"{path / self.shots}: no file of {subject!r} for shots")
      return []
    before = len(problems)
    found = list(self._questions(files[subject], subject, "", problems))
    if len(found) < shots and len(problems) == before:
      problems.add(
        f"{files[subject]}: {shots} shots are asked for, and it has "
        f"{len(found)} items"
      )
    return found[:shots]

  def _questions(
    self, file: epath.Path, subject: str, cluster: str, problems: Problems
  ) -> Iterator[Question]:
    rows = _READERS[file.suffix](file, self.has_header, problems)
    title = self.names.get(subject, subject.replace("_", " "))
    for number, (where, row) in enumerate(rows):
      question = text_of(where, row, "question", problems).strip()
      if "choices" not in row:
        texts = [text_of(where, row, key, problems) for key in _LETTERS]
        row = {**row, "choices": texts if all(texts) else None}
      if row["choices"] is None:  # told already
        choices: tuple[str, ...] = ()
      else:
        choices = choices_of(where, row, problems)
      yield Question(
        where,
        f"{subject}/{number}",
        {"question": question, "subject": title},
        tuple(text.strip() for text in choices),
        answer_of(
          where, row.get("answer"), choices, problems, may_be_text=False
        ),
        subject,
        cluster,
      )


def _is_unicode(name: str) -> bool:
  """Says whether bytes of a name were characters."""
  return not any("\ud800" <= character <= "\udfff" for character in name)


def _json_rows(
  file: epath.Path, has_header: bool, problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
  del has_header  # each line has its keys
  for where, row in json_lines(file, problems):
    names = [key.lower() for key in row]
    if not _told_twice(where, names, problems):
      yield where, dict(zip(names, row.values()))


def _csv_rows(
  file: epath.Path, has_header: bool, problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
  columns: list[str] = []
  count = 0
  for where, cells in csv_rows(file, problems):
    names = [cell.strip().lower() for cell in cells]
    if not columns:
      is_header = set(_COLUMNS) <= set(names)
      if has_header and not is_header:
        problems.add(
          f"{where}: the header is {', '.join(cells)!r}, and has to have "
          f"{', '.join(_COLUMNS)}"
        )
        return
      columns = names if is_header else list(_COLUMNS)
      if is_header and _told_twice(where, names, problems):
        return
      if is_header:
        continue
    count += 1
    if len(cells) != len(columns):
      problems.add(f"{where}: {len(cells)} columns, not {len(columns)}")
      continue
    yield where, dict(zip(columns, cells))
  if columns and not count:
    problems.add(f"{file}: no question behind its header")


def _told_twice(where: str, names: list[str], problems: Problems) -> bool:
  """Tells of the keys that are there twice, and says whether there are any."""
  twice = {name for name in names if name in _COLUMNS and names.count(name) > 1}
  problems += [f"{where}: {name!r} is there twice" for name in sorted(twice)]
  return bool(twice)


_READERS = {".csv": _csv_rows, ".jsonl": _json_rows}
