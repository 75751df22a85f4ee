"""safetensors files and shards: what is damaged is refused by name."""

import builtins
import json
import random
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from jaxmerge.errors import InputError
from jaxmerge.formats import safetensors
from jaxmerge.formats.safetensors import open_file, write_file
from jaxmerge.huggingface.shards import INDEX, open_tensors, write_tensors
from tests.merging.fixtures import specs_of

TENSORS = {
  "a": np.arange(6, dtype=np.float32).reshape(2, 3),
  "b": np.arange(4).astype(jnp.bfloat16),
  "scalar": np.array(1.5, np.float16),
  "empty": np.zeros((0, 3), np.float32),
  "mask": np.array([True, False]),
}


def write_one(path, tensors):
  write_file(path, specs_of(tensors), iter(tensors.values()))


def write_shards(path, tensors, **options):
  write_tensors(path, specs_of(tensors), tensors.values(), **options)


def check_equal(found, expected):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    read = np.asarray(found[name])
    assert read.dtype == array.dtype
    assert read.shape == array.shape
    assert read.tobytes() == array.tobytes()


def rewrite(file, change):
  """Changes the header of a file, and leaves the rest as it is."""
  content = file.read_bytes()
  [length] = struct.unpack("<Q", content[:8])
  header = json.loads(content[8 : 8 + length])
  change(header)
  text = json.dumps(header).encode()
  file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "x.safetensors"
  write_one(path, TENSORS)
  return path


def test_their_library_and_ours_read_what_the_other_wrote(file, tmp_path):
  check_equal(load_file(file), TENSORS)
  check_equal(open_file(file), TENSORS)
  save_file(TENSORS, tmp_path / "theirs", {"format": "pt"})
  check_equal(open_file(tmp_path / "theirs"), TENSORS)


def test_a_transposed_array_is_written_row_by_row(tmp_path):
  write_one(tmp_path / "t", {"a": TENSORS["a"].T})
  check_equal(load_file(tmp_path / "t"), {"a": TENSORS["a"].T})


def test_tensors_come_in_portions_and_are_read_in_rows(tmp_path):
  def portions():
    for array in TENSORS.values():
      rows = array if array.ndim else array.reshape(1)
      yield from (rows[i : i + 1] for i in range(len(rows)))

  write_tensors(tmp_path, specs_of(TENSORS), portions(), max_shard_bytes=26)
  tensors = open_tensors(tmp_path)
  check_equal(tensors, TENSORS)
  assert tensors["a"].rows(1, 2).tolist() == [[3, 4, 5]]
  assert tensors["scalar"].rows(0, 1).tolist() == [1.5]
  assert tensors["empty"].rows(0, 0).shape == (0, 3)


def set_in(name, key, value):
  return lambda header: header[name].__setitem__(key, value)


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (set_in("a", "dtype", "F31"), "tensor 'a' has dtype 'F31'"),
    (set_in("a", "dtype", None), "dtype None"),
    (set_in("a", "shape", [3, 3]), "has 36 bytes"),
    (set_in("a", "shape", [-2, -3]), r"shape \[-2, -3\]"),
    (set_in("a", "shape", [2.0, 3]), r"shape \[2.0, 3\]"),
    (set_in("a", "shape", [True, 6]), "shape"),
    (set_in("a", "shape", 6), "shape 6"),
    (set_in("empty", "shape", [0, 2**62]), "shape"),
    (set_in("scalar", "shape", [1] * 70), "shape"),
    (set_in("a", "data_offsets", [0]), r"offsets \[0\]"),
    (set_in("a", "data_offsets", [24, 0]), "to lie at 24 to 0"),
    (set_in("a", "data_offsets", [10**30, 10**30 + 24]), "leaves a gap"),
    (set_in("b", "data_offsets", [0, 8]), "overlaps another"),
    (lambda header: header.pop("a"), "leaves a gap"),
    (lambda header: header.pop("mask"), "2 bytes too many"),
    (lambda header: header.update(a=3), "is not described by"),
  ],
)
def test_a_wrong_header_is_refused_by_name(file, change, says):
  rewrite(file, change)
  with pytest.raises(InputError, match=says) as error:
    open_file(file)
  assert str(file) in str(error.value)


def test_all_problems_of_a_header_are_listed(file):
  def change(header):
    header["a"]["dtype"], header["b"]["shape"] = "F31", None

  rewrite(file, change)
  with pytest.raises(InputError) as error:
    open_file(file)
  assert len(error.value.problems) == 2


@pytest.mark.parametrize(
  ("content", "says"),
  [
    (b"", "truncated"),
    (b"\x01\x00", "truncated"),
    (b"\xff" * 8, "truncated"),
    (struct.pack("<Q", 3) + b"{}", "truncated"),
    (struct.pack("<Q", 2) + b"[]", "not a JSON object"),
    (struct.pack("<Q", 2) + b"\xff\xfe", "not JSON"),
    (struct.pack("<Q", 13) + b'{"a":1,"a":1}', "a key is given twice"),
    (struct.pack("<Q", 9000) + b"[" * 9000, "not JSON"),
    (struct.pack("<Q", 5000) + b"1" * 5000, "not JSON"),
  ],
)
def test_what_is_no_header_is_refused(tmp_path, content, says):
  (tmp_path / "x").write_bytes(content)
  with pytest.raises(InputError, match=says):
    open_file(tmp_path / "x")


def test_a_truncated_file_is_refused(file):
  content = file.read_bytes()
  for length in range(len(content)):
    file.write_bytes(content[:length])
    with pytest.raises(InputError, match="truncated"):
      open_file(file)


def damaged(content, choose):
  """Some bytes of the header changed, or the header's own values."""
  [length] = struct.unpack("<Q", content[:8])
  kind = choose.randrange(4)
  if kind == 0:  # bytes, the length among them
    changed = bytearray(content)
    for _ in range(choose.randrange(1, 5)):
      changed[choose.randrange(8 + length)] = choose.randrange(256)
    return bytes(changed)
  if kind == 1:  # digits, which leave it a JSON object most of the time
    changed = bytearray(content)
    digits = [i for i in range(8, 8 + length) if 48 <= content[i] < 58]
    for _ in range(choose.randrange(1, 4)):
      changed[choose.choice(digits)] = choose.randrange(48, 58)
    return bytes(changed)
  if kind == 2:  # cut or lengthened
    cut = choose.randrange(len(content))
    return content[:cut] + choose.randbytes(choose.randrange(40))
  header = json.loads(content[8 : 8 + length])
  odd = [None, -1, 2**63, 2**64, 10**40, 0.5, "F32", [], {}, [0, 2**62], True]
  entry = header[choose.choice(sorted(TENSORS))]
  entry[choose.choice(sorted(entry))] = choose.choice(odd)
  text = json.dumps(header).encode()
  return struct.pack("<Q", len(text)) + text + content[8 + length :]


class Watched:
  """A file that notes the largest place that was asked for."""

  def __init__(self, file):
    self.file = file
    self.furthest = 0

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.file.close()

  def seek(self, place):
    return self.file.seek(place)

  def read(self, size):
    self.furthest = max(self.furthest, self.file.tell() + size)
    return self.file.read(size)

  def readinto(self, buffer):
    self.furthest = max(self.furthest, self.file.tell() + len(buffer))
    return self.file.readinto(buffer)


def test_a_thousand_damaged_headers(file, monkeypatch):
  """Each is refused with a message, or every tensor lies within the file."""
  content = file.read_bytes()
  choose = random.Random(0)
  watched = []
  path_type = type(epath.Path(file))

  def watched_open(path, mode):
    watched.append(Watched(builtins.open(path, mode)))  # noqa: SIM115
    return watched[-1]

  monkeypatch.setattr(path_type, "open", watched_open)
  refused = 0
  for _ in range(1000):
    bad = damaged(content, choose)
    with builtins.open(file, "wb") as out:
      out.write(bad)
    watched.clear()
    try:
      tensors = open_file(file)
      for tensor in tensors.values():
        assert np.asarray(tensor).nbytes == tensor.nbytes
    except InputError as error:
      refused += 1
      assert str(file) in str(error)  # noqa: PT017
    # The first eight bytes are asked for before the size is known.
    assert watched
    assert all(w.furthest <= max(len(bad), 8) for w in watched)
  assert 700 < refused < 1000


def shards_of(path):
  return sorted(p.name for p in path.glob("*.safetensors"))


def test_shards_and_their_index(tmp_path):
  write_shards(tmp_path, TENSORS, max_shard_bytes=26)
  names = shards_of(tmp_path)
  assert names == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
  index = json.loads((tmp_path / INDEX).read_text())
  assert index["metadata"]["total_size"] == 24 + 8 + 2 + 2
  assert index["weight_map"]["a"] == names[0]
  assert index["weight_map"]["b"] == names[1]
  assert sorted(p.name for p in tmp_path.iterdir()) == [*names, INDEX]
  check_equal(open_tensors(tmp_path), TENSORS)
  theirs = {
    k: v for name in names for k, v in load_file(tmp_path / name).items()
  }
  check_equal(theirs, TENSORS)


def test_a_tensor_larger_than_a_shard_gets_its_own(tmp_path):
  write_shards(tmp_path, TENSORS, max_shard_bytes=1)
  assert len(shards_of(tmp_path)) == len(TENSORS)
  check_equal(open_tensors(tmp_path), TENSORS)
  with pytest.raises(InputError, match="must be positive"):
    write_shards(tmp_path, TENSORS, max_shard_bytes=0)


def test_one_file_has_no_index(tmp_path):
  write_shards(tmp_path, TENSORS)
  assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_index_and_shards_that_differ_are_refused_all_at_once(tmp_path):
  write_shards(tmp_path, TENSORS, max_shard_bytes=8)
  first, second, *_ = shards_of(tmp_path)
  (tmp_path / first).unlink()
  index = json.loads((tmp_path / INDEX).read_text())
  del index["weight_map"]["mask"]
  index["weight_map"]["ghost"] = second
  (tmp_path / INDEX).write_text(json.dumps(index))
  with pytest.raises(InputError) as error:
    open_tensors(tmp_path)
  said = "\n".join(error.value.problems)
  assert f"no shard {first}" in said
  assert f"tensor ghost is not in {second}" in said
  assert "tensor mask of" in said
  assert "is not in the index" in said
  assert len(error.value.problems) == 3


@pytest.mark.parametrize(
  "name", ["../x.safetensors", "/x.safetensors", "x.h5", "", 3, None]
)
def test_an_index_does_not_lead_out_of_its_directory(tmp_path, name):
  write_shards(tmp_path, TENSORS, max_shard_bytes=12)
  index = {"weight_map": {"a": name}}
  (tmp_path / INDEX).write_text(json.dumps(index))
  with pytest.raises(InputError, match="not the name of a file of tensors"):
    open_tensors(tmp_path)


@pytest.mark.parametrize(
  "text", ["", "[]", "{}", '{"weight_map": []}', "[" * 9999]
)
def test_a_damaged_index_is_refused(tmp_path, text):
  (tmp_path / INDEX).write_text(text)
  with pytest.raises(InputError, match=INDEX):
    open_tensors(tmp_path)


def test_two_answers_and_none_are_refused(tmp_path):
  with pytest.raises(InputError, match="has no model.safetensors"):
    open_tensors(tmp_path)
  write_shards(tmp_path, TENSORS)
  (tmp_path / INDEX).write_text("{}")
  with pytest.raises(InputError, match="has both"):
    open_tensors(tmp_path)


def test_a_header_of_too_many_tensors_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(safetensors, "_MOST_TENSORS", 3)
  arrays = {str(i): np.zeros(1, np.float32) for i in range(4)}
  save_file(arrays, tmp_path / "x.safetensors")
  with pytest.raises(InputError, match="said to hold 4 tensors"):
    safetensors.open_file(tmp_path / "x.safetensors")


def test_an_index_of_a_million_faults_names_a_thousand(tmp_path):
  places = {"weight_map": {str(i): "../x" for i in range(100_000)}}
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps(places))
  with pytest.raises(InputError) as error:
    open_tensors(tmp_path)
  assert len(error.value.problems) == 1001
  assert "more problems" in error.value.problems[-1]
