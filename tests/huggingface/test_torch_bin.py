"""Files of torch are read without torch, and nothing in them is run."""

import base64
import json
import os
import pickle
import random
import zipfile
import zlib

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge.errors import InputError
from jaxmerge.huggingface import torch_bin, torch_pickle
from jaxmerge.huggingface.shards import open_tensors
from jaxmerge.huggingface.torch_bin import open_torch_file
from tests.helpers import bounded_memory

# torch.save of torch 2.13: "a", its transpose, a bfloat16, a Parameter, a
# boolean and the second row of "a".
SAVED = zlib.decompress(
  base64.b64decode(
    "eNqlls1P02Acx5+1o4yqvPnCi4Iv+DIUxtqxjSkINqaXHoQak4XLUrbKGrp1v+4Bol5IyFBv"
    "mHg2/gVePHjz4MUzJhoP3DwYTp5MPPo8LYy2ZEzhyUqz7fl8v9/n2e/3lFmFDSMUiaADoxN1"
    "I83OF40VfaygYS1WWTJlqR3N+8Yak89bpqnnsWGVq/wDu6DbeuG+kcc8oGEVQtFsiIhpwOSx"
    "RdRiuWVsmFU+Z+sLy4ZZyGG9XLXs3IrIAxuNZlvJ5CqZqS3qEHYRXjYtDT90P+ShxRGMA5dl"
    "yT1fWYZWhcMQmVOQwijsBrQprBLaAP5lkQY4geGkCqccCEN7kZgUw8WWIld0sA6KsQqzAZ1K"
    "iNJdLtaN4bQKZxxsAc662G4eyQkkpOqRzjnTBOghmmEMvVQzXIM+JVSDflfvPIYLKgw4Eysw"
    "2GAzKpqtlXSs2zxc3EvqICJcItoMhsvOMmtwhWoPudpXMVxT4foL582N5xBVYThLflVU0qpL"
    "cNOf3bLMeu5bjnYCRlzt0V3tGNUec7XjGAQVRGevbWsVEsENHJ8j28fWIEmhlAulMUyokFmO"
    "zSqtkdcm93mQQYhesw2rrQcN1Kst9tiySxrOreh2lVSVLPUFis4zBGrx4df2Ol0JvRpb9KP0"
    "vsVujeU001gsl/QylqVEY5fGIzVOA0yvwg5ZHmIODdCFpusBFp5g3aLNIkt3juK7N0wDY1On"
    "GWpTP/o44sIdmqEd3fV19Vhclm4fI4CrujZN/syQF7nWyPV2hibq2fz5qpd80dsk0Yg/kSBL"
    "UfTv/sR7Zsbxe7+4/Y4aRJr4Tfr9RFmaQEdfP1372jT135zjvh7BP3Ec/xCizh+HPmWb118H"
    "uld3rvfW1HGqb34+wVP/rTeLj5r7DyJxvwGdpVd12yAd+FSjT4+cUZCl2H/GEeLp9ERKTIuZ"
    "dCYzkRwXUmJSSItiMiEKmVRqPBWPJ5JJIUNT7kR/T0ZJjqiTMkTD1nN6T6nOA8mDz8Eg7T2A"
    "enxkmUGNzrWgiPcQ6feJbHlFDpxcQR3vQdDl01FZdPAACuLerm334d9YFDg7gqy3A/1sMRxg"
    "hSDr7R4/+z3IikHWW/9+NtsSYBNB1lu7HT72i4dt8Jt5S2rQv9ccalLsswrHjey1BjtaJ/nA"
    "fZ1x73849044+l8Setbmvnefei2cy/DOfHfuX4qwL+s="
  )
)
A = np.arange(6, dtype=np.float32).reshape(2, 3)
EXPECTED = {
  "a": A,
  "t": A.T,
  "b": np.arange(4).astype(jnp.bfloat16),
  "p": np.ones(2, np.float32),
  "mask": np.array([True, False]),
  "row": A[1],
}


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "pytorch_model.bin"
  path.write_bytes(SAVED)
  return path


def test_tensors_are_those_that_torch_saved(file):
  found = open_torch_file(file)
  assert found.keys() == EXPECTED.keys()
  for name, array in EXPECTED.items():
    assert np.asarray(found[name]).dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)


def test_a_directory_of_shards(file, tmp_path):
  shard = "pytorch_model-00001-of-00001.bin"
  file.rename(tmp_path / shard)
  index = {"weight_map": dict.fromkeys(EXPECTED, shard)}
  (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
  assert open_tensors(tmp_path).keys() == EXPECTED.keys()
  (tmp_path / shard).unlink()
  with pytest.raises(InputError, match=f"no shard {shard}"):
    open_tensors(tmp_path)


def pack(path, content, members=()):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("x/data.pkl", content)
    for name, data in members:
      archive.writestr(name, data)


class Runs:
  def __init__(self, function, *args):
    self.made_of = function, args

  def __reduce__(self):
    return self.made_of


@pytest.mark.parametrize(
  "function", [os.system, eval, getattr, pickle.loads, np.load]
)
def test_no_function_is_run(tmp_path, function):
  marker = tmp_path / "ran"
  value = {"a": Runs(function, f"touch {marker}")}
  pack(tmp_path / "x.bin", pickle.dumps(value))
  with pytest.raises(InputError, match="it is not run"):
    open_torch_file(tmp_path / "x.bin")
  assert not marker.exists()


@pytest.mark.parametrize(
  ("content", "says"),
  [
    (pickle.dumps([1]), "holds no tensors by name"),
    (pickle.dumps({"a": 3}), "'a' is a int, not a tensor"),
    (pickle.dumps({"a": None, "b": "x"}), "'b' is a str"),
    (b"", "exhausted"),
    (b"\x80\x02}q", "cannot be read"),
  ],
)
def test_what_is_no_tensors_is_refused(tmp_path, content, says):
  pack(tmp_path / "x.bin", content)
  with pytest.raises(InputError, match=says):
    open_torch_file(tmp_path / "x.bin")


def pickled_tensor(start, shape, strides, key="0"):
  """A dict of one float32 tensor, opcode by opcode, as torch pickles it."""

  def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()

  def numbers(values):
    return b"(" + b"".join(b"I%d\n" % n for n in values) + b"t"

  storage = text("storage") + b"ctorch\nFloatStorage\n" + text(key)
  storage = b"(" + storage + text("cpu") + b"I6\ntQ"
  arguments = storage + b"I%d\n" % start + numbers(shape) + numbers(strides)
  call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"I00\nNtR"
  return b"\x80\x02}" + text("a") + call + b"s."


@pytest.mark.parametrize(
  ("place", "says"),
  [
    ((0, [2, 3], [3, 1]), ""),
    ((1, [2, 3], [3, 1]), "ends outside its storage"),
    ((0, [2, 3], [4, 1]), "ends outside its storage"),
    ((0, [10**9], [0]), "bytes more than there are"),
    ((-1, [2], [1]), "not counts"),
    ((0, [2], [-1]), "not counts"),
    ((0, [2, 3], [1]), "shape and strides differ"),
    ((0, [2], [1], "7"), "without a storage"),
  ],
)
def test_a_tensor_lies_within_its_storage(tmp_path, place, says):
  members = [("x/data/0", A.tobytes())]
  pack(tmp_path / "x.bin", pickled_tensor(*place), members)
  if not says:
    tensor = open_torch_file(tmp_path / "x.bin")["a"]
    np.testing.assert_array_equal(tensor, A)
    return
  with pytest.raises(InputError, match=says):
    open_torch_file(tmp_path / "x.bin")


def test_strides_of_zero_repeat_a_storage(tmp_path):
  members = [("x/data/0", A.tobytes())]
  pack(tmp_path / "x.bin", pickled_tensor(1, [4, 2], [0, 3]), members)
  tensor = open_torch_file(tmp_path / "x.bin")["a"]
  np.testing.assert_array_equal(tensor, [A.T[1]] * 4)


# Opcodes that are small in a file and large, or deadly, in memory.
BOMBS = {
  "a memo of 2e8 entries": (b"}r" + (2 * 10**8).to_bytes(4, "little"), ""),
  "bytes of a terabyte": (b"}\x8e" + (2**40).to_bytes(8, "little"), "bytes"),
  "an array of a terabyte": (b"\x96" + (2**40).to_bytes(8, "little"), "bytes"),
  "a hash without an end": (b"})" + b"\x85" * 10**6 + b"Ns", "a tuple is"),
  "attributes of a function": (b"ctorch\nFloatStorage\n}b", "a str is"),
  "an integer of a megabyte": (b"}L" + b"1" * 10**6 + b"\n", "cannot be read"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_pickle_takes_little_memory(tmp_path, name):
  content, says = BOMBS[name]
  path = tmp_path / "x.bin"
  pack(path, b"\x80\x02" + content + b".")
  with bounded_memory(path.stat().st_size):
    if not says:
      assert open_torch_file(path) == {}
      return
    with pytest.raises(InputError, match=says):
      open_torch_file(path)


def test_a_pickle_of_too_many_steps_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(torch_pickle, "_MOST_STEPS", 100)
  pack(tmp_path / "x.bin", b"]" * 101 + b".")
  with pytest.raises(InputError, match="more than 100 steps"):
    open_torch_file(tmp_path / "x.bin")


@pytest.mark.parametrize("name", ["data.pkl", "byteorder"])
def test_what_is_compressed_is_not_inflated(tmp_path, name):
  path = tmp_path / "x.bin"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr(f"x/{name}", bytes(300_000_000))
    if name == "byteorder":
      archive.writestr("x/data.pkl", pickle.dumps({}))
  with (
    bounded_memory(path.stat().st_size),
    pytest.raises(InputError, match="compressed"),
  ):
    open_torch_file(path)


@pytest.mark.parametrize("large", ["pickle", "directory"])
def test_what_describes_the_tensors_is_not_too_large(
  tmp_path, monkeypatch, large
):
  monkeypatch.setattr(torch_bin, "_MOST_READ", 10_000)
  path = tmp_path / "x.bin"
  names = range(200 if large == "directory" else 0)
  text = "a" * (20_000 if large == "pickle" else 1)
  pack(path, pickle.dumps({text: 1}), [(f"x/data/{n}", b"") for n in names])
  with pytest.raises(InputError, match="in more than 10000 bytes"):
    open_torch_file(path)


def test_members_are_no_larger_than_their_file(tmp_path):
  path = tmp_path / "x.bin"
  pack(path, pickled_tensor(0, [2**30], [1]), [("x/data/0", bytes(8))])
  content = path.read_bytes()
  start = content.rindex(b"PK\1\2")  # of the directory's last entry
  sizes = (2**32 - 2).to_bytes(4, "little") * 2
  path.write_bytes(content[: start + 20] + sizes + content[start + 28 :])
  with pytest.raises(InputError, match="its members are said to have"):
    open_torch_file(path)


def test_other_archives_are_refused(tmp_path):
  path = tmp_path / "x.bin"
  path.write_bytes(b"not a zip")
  with pytest.raises(InputError, match=r"before torch 1\.6"):
    open_torch_file(path)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("readme", "x")
  with pytest.raises(InputError, match=r"holds no data\.pkl"):
    open_torch_file(path)
  pack(path, pickle.dumps({}), [("x/byteorder", "big")])
  with pytest.raises(InputError, match="big-endian"):
    open_torch_file(path)
  with pytest.raises(InputError, match="No such file"):
    open_torch_file(tmp_path / "missing")


def test_a_thousand_damaged_files(file):
  """Each is refused with a message, or every tensor lies in its storage."""
  choose = random.Random(0)
  start, end = SAVED.index(b"data.pkl"), SAVED.index(b"byteorder")
  refused = 0
  for i in range(1000):
    bad = bytearray(SAVED)
    places = (start, end) if i % 2 else (0, len(bad))
    for _ in range(choose.randrange(1, 4)):
      bad[choose.randrange(*places)] = choose.randrange(256)
    file.write_bytes(bad[: choose.choice([len(bad)] * 4 + [len(bad) // 2])])
    try:
      for tensor in open_torch_file(file).values():
        assert np.asarray(tensor).shape == tensor.shape
    except InputError as error:
      refused += 1
      assert str(file) in str(error)  # noqa: PT017
  assert 400 < refused < 1000
