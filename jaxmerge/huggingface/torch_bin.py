"""Tensors in the .bin files of older Hugging Face directories, without torch.

Such a file is a zip archive of a pickle, which names tensors, and of their
storages, raw and uncompressed.
"""

import dataclasses
import io
import struct
import zipfile
import zlib
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from etils import epath

from jaxmerge.errors import InputError, check
from jaxmerge.formats.lazy_tensors import LazyTensor, are_counts, is_shape
from jaxmerge.huggingface.torch_pickle import Built, Machine
from jaxmerge.reading import check_is_file

# Of the directory of an archive, and of its pickle: 100 bytes for each tensor,
# which takes 600 in memory.
_MOST_READ = 2**24
_MOST_TENSORS = 200_000
# Bytes by which strides of 0 may make tensors larger than their storages.
_MOST_REPEATED = 2**26
# How a member begins: a mark and, last, the lengths of two fields that follow.
# https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
_LOCAL = struct.Struct("<4s22xHH")
_LOCAL_MARK = b"PK\3\4"


class _Member(NamedTuple):
  """A storage: where it lies in the file, in bytes, and its checksum."""

  place: int
  size: int
  checksum: int


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TorchTensor(LazyTensor):
  """A tensor in a .bin file, which is read as a whole.

  Attributes:
    path: the file.
    member: its storage, which other tensors may share.
    start: where it begins in its storage, in bytes.
    strides: elements from one index to the next, along each axis.
  """

  path: epath.Path
  member: _Member
  start: int
  strides: tuple[int, ...]

  def rows(self, start: int, stop: int) -> np.ndarray:
    """The rows from start to stop; all are read."""
    with self.path.open("rb") as file:
      file.seek(self.member.place)
      content = file.read(self.member.size)
    if zlib.crc32(content) != self.member.checksum:
      raise InputError(
        f"{self.path} is damaged: numbers in it do not match their checksum"
      )
    size = self.dtype.itemsize
    count = _span(self.shape, self.strides)
    flat = np.frombuffer(content, self.dtype, count, self.start)
    array = np.lib.stride_tricks.as_strided(
      flat, self.shape, [stride * size for stride in self.strides]
    )
    return np.array(array if self.shape else array[None])[start:stop]


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
  """Elements of a storage from the first to the last one used."""
  if 0 in shape:
    return 0
  return 1 + sum((n - 1) * s for n, s in zip(shape, strides))


def open_torch_file(path: epath.PathLike) -> dict[str, TorchTensor]:
  """The tensors of a .bin file by name; their contents are not read yet.

  Raises:
    InputError: the file is damaged, of the format before torch 1.6, or names
      anything else than tensors.
  """
  path = epath.Path(path)
  try:
    check_is_file(path)
    size = path.stat().length
    with path.open("rb") as file, zipfile.ZipFile(_Portions(file)) as archive:
      program, members = _opened(file, archive, size)
    return _tensors(path, Machine(members).run(program))
  except InputError as error:
    raise InputError([f"{path}: {p}" for p in error.problems]) from error
  except zipfile.BadZipFile as error:
    raise InputError(
      f"{path} is truncated, or was written before torch 1.6"
    ) from error
  except Exception as error:  # noqa: BLE001  (a damaged pickle raises anything)
    reason = f"{type(error).__name__}: {error}"[:200]
    raise InputError(f"{path} cannot be read ({reason})") from error


class _Portions(io.BufferedIOBase):
  """A file of which at most _MOST_READ bytes are read at once."""

  def __init__(self, file: BinaryIO):
    self._file = file

  def seek(self, offset: int, whence: int = 0) -> int:
    return self._file.seek(offset, whence)

  def tell(self) -> int:
    return self._file.tell()

  def read(self, size: int | None = -1) -> bytes:
    most = _MOST_READ + 1
    content = self._file.read(min(most, most if size in (None, -1) else size))
    if len(content) == most:
      raise InputError(f"it describes itself in more than {_MOST_READ} bytes")
    return content


def _opened(
  file: BinaryIO, archive: zipfile.ZipFile, size: int
) -> tuple[bytes, dict[str, _Member]]:
  """The pickle, and the storages by name, all of them within the file."""
  infos = {info.filename: info for info in archive.infolist()}
  if any(i.compress_type != zipfile.ZIP_STORED for i in infos.values()):
    raise InputError("its members are compressed, which torch does not do")
  said = sum(max(i.file_size, i.compress_size) for i in infos.values())
  if said > size:
    raise InputError(
      f"it has {size} bytes, its members are said to have {said}"
    )
  pickles = [name for name in infos if name.endswith("/data.pkl")]
  if len(pickles) != 1:
    raise InputError("it holds no data.pkl: it is not a file of torch")
  root = pickles[0].removesuffix("data.pkl")
  order = infos.get(root + "byteorder")
  if order and archive.read(order) != b"little":
    raise InputError("its numbers are big-endian, which is not supported")
  members = {}
  for name, info in infos.items():
    if name.startswith(f"{root}data/"):
      file.seek(info.header_offset)
      mark, *lengths = _LOCAL.unpack(file.read(_LOCAL.size))
      place = info.header_offset + _LOCAL.size + sum(lengths)
      if mark != _LOCAL_MARK or place + info.file_size > size:
        raise InputError(f"its member {name!r} lies outside of it")
      key = name.removeprefix(f"{root}data/")
      members[key] = _Member(place, info.file_size, info.CRC)
  return archive.read(pickles[0]), members


def _tensors(path: epath.Path, found: Any) -> dict[str, TorchTensor]:
  """The tensors that a pickle says; InputError lists what is none."""
  if not isinstance(found, dict):
    raise InputError("it holds no tensors by name")
  if len(found) > _MOST_TENSORS:
    raise InputError(f"it holds more than {_MOST_TENSORS} tensors")
  check(
    f"{name!r} {problem}"
    for name, built in found.items()
    if (problem := _problem(built))
  )
  tensors = {}
  repeated = 0
  for name, ((dtype, member), start, shape, strides) in found.items():
    rows = shape[0] or 1 if shape else 1
    # Of an axis without a next index it may be any number.
    used = tuple(s * (n > 1 and 0 not in shape) for n, s in zip(shape, strides))
    tensors[name] = TorchTensor(
      shape,
      dtype,
      rows,
      path=path,
      member=member,
      start=start * dtype.itemsize,
      strides=used,
    )
    repeated += max(tensors[name].nbytes - member.size, 0)
  if repeated > _MOST_REPEATED:
    raise InputError(
      f"its tensors have {repeated} bytes more than there are in it"
    )
  return tensors


def _problem(built: Any) -> str:
  """Says why a value is no tensor within its storage; "" if it is one."""
  if not isinstance(built, Built):
    return f"is a {type(built).__name__}, not a tensor"
  storage, start, shape, strides = built
  if not is_shape(shape) or not are_counts((start, *strides)):
    return "is a tensor whose places are not counts"
  if len(shape) != len(strides):
    return "is a tensor whose shape and strides differ"
  dtype, member = storage
  if member is None:
    return "is a tensor without a storage"
  if (start + _span(shape, strides)) * dtype.itemsize > member.size:
    return "is a tensor that ends outside its storage"
  return ""
