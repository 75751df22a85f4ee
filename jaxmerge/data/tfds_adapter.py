"""TFDS without TensorFlow and without a network: all private names in use.

- `read_only_builder.builder_from_files` opens prepared data without the code of
  its builder. `tfds.builder` looks for that code first, and
  `tfds.builder_from_directory` for no version.
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
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import IO, Any

from tensorflow_datasets.core.download import extractor
from tensorflow_datasets.core.read_only_builder import (
  builder_from_files as builder_from_files,
)


def _open(name: str | os.PathLike[str], mode: str = "r") -> IO[Any]:
  encoding = None if "b" in mode else "utf-8"
  return open(os.fspath(name), mode, encoding=encoding)


# For local paths.
_GFILE = SimpleNamespace(
  GFile=_open,
  isdir=os.path.isdir,
  exists=os.path.exists,
  listdir=os.listdir,
  glob=glob.glob,
  walk=os.walk,
)
_STAND_IN = SimpleNamespace(
  io=SimpleNamespace(gfile=_GFILE), compat=SimpleNamespace(as_text=os.fsdecode)
)


@contextlib.contextmanager
def without_tensorflow(builder: Any) -> Iterator[None]:
  """Puts the stand-in for `tf` into a builder's modules and the extractor."""
  names = {base.__module__ for base in type(builder).__mro__}
  modules = [extractor] + [
    sys.modules[name]
    for name in sorted(names)
    if not name.startswith("tensorflow_datasets.core.")
  ]
  changed = [(module, module.tf) for module in modules if hasattr(module, "tf")]
  try:
    for module, _ in changed:
      module.tf = _STAND_IN
    yield
  finally:
    for module, original in changed:
      module.tf = original


def before_each_download(builder: Any, check: Callable[[str], None]) -> None:
  """Has a builder call `check`, which may raise, with each URL to download."""
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
