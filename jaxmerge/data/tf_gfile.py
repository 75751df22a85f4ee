"""A stand-in for the part of TensorFlow that TFDS builders use to open files.

Some catalogue builders, and the extractor of archives, call `tf.io.gfile` while
they prepare. With this in the place of their `tf` they need no TensorFlow.
"""

import contextlib
import glob
import os
import sys
import types
from collections.abc import Iterator
from typing import IO, Any

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
