"""TFDS without TensorFlow and without a network: all private names in use.

- `read_only_builder.builder_from_files`. `tfds.builder` looks for the code of
  a data set first, and `tfds.builder_from_directory` for no version.
- `tf` of the extractor's module and of the builders' own: some of them, and
  the extractor of archives, call `tf.io.gfile` while they prepare. With a
  stand-in for it they need no TensorFlow; TFDS has no setting for that.
- `DatasetBuilder._make_download_manager` and `DownloadManager._download`. A
  host without an answer costs three minutes of attempts; neither
  `download_and_prepare` nor `tfds.download.DownloadConfig` limits them.
"""

import contextlib
import glob
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import IO, Any

from tensorflow_datasets.core import read_only_builder
from tensorflow_datasets.core.download import extractor


def _open(name: str | os.PathLike[str], mode: str = "r") -> IO[Any]:
  encoding = None if "b" in mode else "utf-8"
  return open(os.fspath(name), mode, encoding=encoding)


def _as_text(value: str | bytes) -> str:
  return value.decode() if isinstance(value, bytes) else value


def gfile_only_tensorflow() -> types.SimpleNamespace:
  """An object with `io.gfile` and `compat.as_text` for local paths."""
  gfile = types.SimpleNamespace(
    GFile=_open,
    isdir=os.path.isdir,
    exists=os.path.exists,
    listdir=os.listdir,
    glob=glob.glob,
    walk=os.walk,
  )
  return types.SimpleNamespace(
    io=types.SimpleNamespace(gfile=gfile),
    compat=types.SimpleNamespace(as_text=_as_text),
  )


@contextlib.contextmanager
def without_tensorflow(builder: Any) -> Iterator[None]:
  """While the block runs, `tf` is the stand-in in the modules of a builder.

  Args:
    builder: a tfds.core.DatasetBuilder; its own modules and the extractor are
      changed, nothing else of TFDS.
  """
  names = {base.__module__ for base in type(builder).__mro__}
  names = {
    name for name in names if not name.startswith("tensorflow_datasets.core.")
  }
  modules = [extractor, *(sys.modules[name] for name in sorted(names))]
  changed = [(module, module.tf) for module in modules if hasattr(module, "tf")]
  stand_in = gfile_only_tensorflow()
  try:
    for module, _ in changed:
      module.tf = stand_in
    yield
  finally:
    for module, original in changed:
      module.tf = original


def before_each_download(builder: Any, check: Callable[[str], None]) -> None:
  """Has a builder call `check` with each URL that it is to download from.

  Args:
    builder: a tfds.core.DatasetBuilder.
    check: what it raises ends the preparation.
  """
  make_manager = builder._make_download_manager

  def make_checked_manager(**kwargs: Any) -> Any:
    manager = make_manager(**kwargs)
    download = manager._download

    def checked_download(resource: Any) -> Any:
      check(resource.url)
      return download(resource)

    manager._download = checked_download
    return manager

  builder._make_download_manager = make_checked_manager


def builder_from_files(name: str, data_dir: str | None) -> Any:
  """A builder of prepared data, whose own code is not looked for.

  Args:
    name: `name`, `name/config` or `name/config:version`.
    data_dir: None is TFDS's default.

  Raises:
    tfds.core.DatasetNotFoundError: none is prepared there.
  """
  return read_only_builder.builder_from_files(name, data_dir=data_dir)
