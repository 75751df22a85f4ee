"""Tensors in the .bin files of older Hugging Face directories, without torch.

Such a file is a zip archive of a pickle, which names tensors, and of their
storages, raw and uncompressed. A pickle may name any function and have it run;
this reader knows the handful that make a tensor and refuses all others by name
(https://docs.python.org/3/library/pickle.html#restricting-globals).
"""

import collections
import dataclasses
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxmerge.errors import InputError
from jaxmerge.formats.lazy_tensors import LazyTensor
from jaxmerge.reading import check_is_file

_STORAGES: Mapping[str, np.dtype] = {
  "DoubleStorage": np.dtype(np.float64),
  "FloatStorage": np.dtype(np.float32),
  "HalfStorage": np.dtype(np.float16),
  "BFloat16Storage": np.dtype(jnp.bfloat16),
  "LongStorage": np.dtype(np.int64),
  "IntStorage": np.dtype(np.int32),
  "ShortStorage": np.dtype(np.int16),
  "CharStorage": np.dtype(np.int8),
  "ByteStorage": np.dtype(np.uint8),
  "BoolStorage": np.dtype(np.bool_),
}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TorchTensor(LazyTensor):
  """A tensor in a .bin file, which is read as a whole.

  Attributes:
    path: the file.
    member: the member of the archive that holds its storage.
    start: the first element, counted in elements of the storage.
    strides: elements from one index to the next, along each axis.
  """

  path: epath.Path
  member: str
  start: int
  strides: tuple[int, ...]

  @property
  def span(self) -> int:
    """Elements of the storage from the first to the last one used."""
    if 0 in self.shape:
      return 0
    return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides))

  def rows(self, start: int, stop: int) -> np.ndarray:
    """The rows from start to stop; all are read."""
    size = self.dtype.itemsize
    try:
      with (
        self.path.open("rb") as file,
        zipfile.ZipFile(file) as archive,
        archive.open(self.member) as storage,
      ):
        storage.seek(self.start * size)
        content = storage.read(self.span * size)
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError) as error:
      raise InputError(f"{self.path} is damaged: {error}") from error
    if len(content) != self.span * size:
      raise InputError(f"{self.path} has become shorter while it was read")
    flat = np.frombuffer(content, self.dtype)
    array = np.lib.stride_tricks.as_strided(
      flat, self.shape, [stride * size for stride in self.strides]
    )
    return np.array(array if self.shape else array[None])[start:stop]


def open_torch_file(path: epath.PathLike) -> dict[str, TorchTensor]:
  """The tensors of a .bin file by name; their contents are not read yet.

  Raises:
    InputError: the file is damaged, of the format before torch 1.6, or names
      anything else than tensors.
  """
  path = epath.Path(path)
  try:
    check_is_file(path)
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
      value, sizes = _unpickle(path, archive)
  except InputError as error:
    raise InputError([f"{path}: {p}" for p in error.problems]) from error
  except zipfile.BadZipFile as error:
    raise InputError(
      f"{path} is truncated, or was written before torch 1.6"
    ) from error
  except Exception as error:  # noqa: BLE001  (a damaged pickle raises anything)
    reason = f"{type(error).__name__}: {error}"[:200]
    raise InputError(f"{path} cannot be read ({reason})") from error
  if not isinstance(value, dict):
    raise InputError(f"{path} holds no tensors by name")
  problems = [
    f"{path}: {name!r} {problem}"
    for name, tensor in value.items()
    if (problem := _problem(tensor, sizes))
  ]
  if problems:
    raise InputError(problems)
  return dict(value)


def _unpickle(
  path: epath.Path, archive: zipfile.ZipFile
) -> tuple[Any, dict[str, int]]:
  """The pickled value, and the bytes of each member of the archive."""
  members = {info.filename: info for info in archive.infolist()}
  pickles = [name for name in members if name.endswith("/data.pkl")]
  if len(pickles) != 1:
    raise InputError("it holds no data.pkl: it is not a file of torch")
  root = pickles[0].removesuffix("data.pkl")
  order = root + "byteorder"
  if order in members and archive.read(order) != b"little":
    raise InputError("its numbers are big-endian, which is not supported")
  if any(i.compress_type != zipfile.ZIP_STORED for i in members.values()):
    raise InputError("its members are compressed, which torch does not do")
  with archive.open(pickles[0]) as file:
    value = _Unpickler(file, path, root).load()
  return value, {name: info.file_size for name, info in members.items()}


class _Unpickler(pickle.Unpickler):
  """Knows tensors, storages and dicts, and nothing else."""

  def __init__(self, file: Any, path: epath.Path, root: str):
    super().__init__(file, encoding="utf-8")
    self._path, self._root = path, root

  def find_class(self, module: str, name: str) -> Any:
    known: dict[str, Callable[..., Any]] = {
      "collections.OrderedDict": collections.OrderedDict,
      "torch._utils._rebuild_tensor_v2": self._tensor,
      "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    }
    if f"{module}.{name}" in known:
      return known[f"{module}.{name}"]
    if module == "torch" and name in _STORAGES:
      return _STORAGES[name]
    raise InputError(
      f"it names {module}.{name}, which makes no tensor; it is not run"
    )

  def persistent_load(self, pid: Any) -> tuple[np.dtype, str]:
    kind, dtype, key, *_ = pid
    if kind != "storage" or not isinstance(dtype, np.dtype):
      raise InputError(f"it holds a {kind!r}, which is not supported")
    return dtype, f"{self._root}data/{key}"

  def _tensor(
    self, storage: Any, start: int, shape: Any, strides: Any, *_: Any
  ) -> TorchTensor:
    dtype, member = storage
    return TorchTensor(
      tuple(shape),
      dtype,
      # Not a count in a damaged file, in which _problem finds it.
      shape[0] or 1 if shape else 1,
      path=self._path,
      member=member,
      start=start,
      strides=tuple(strides),
    )


def _problem(tensor: Any, sizes: Mapping[str, int]) -> str:
  """Says why an entry is no tensor within its storage; "" if it is one."""
  if not isinstance(tensor, TorchTensor):
    return f"is a {type(tensor).__name__}, not a tensor"
  numbers = (tensor.start, *tensor.shape, *tensor.strides)
  if not all(type(n) is int and n >= 0 for n in numbers):
    return "is a tensor whose places are not counts"
  if len(tensor.shape) != len(tensor.strides) or len(tensor.shape) > 32:
    return "is a tensor whose shape and strides differ"
  if tensor.member not in sizes:
    return "is a tensor without a storage"
  end = (tensor.start + tensor.span) * tensor.dtype.itemsize
  if max(end, tensor.nbytes) > sizes[tensor.member]:
    return "is a tensor that ends outside its storage"
  return ""
