"""Files and JSON that are read whole: what would take too much is refused."""

import os
import socket

import pytest

from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.formats.safetensors import open_file
from jaxmerge.huggingface.shards import open_tensors
from jaxmerge.huggingface.torch_bin import open_torch_file
from jaxmerge.reading import LARGEST, read_file, read_json
from tests.helpers import bounded_memory

BAD_JSON = {
  "deep": ("[" * 300 + "]" * 300, "nested too deeply"),
  "deeper": ("[" * 100_000, "nested too deeply"),
  "a key twice": ('{"a": 1, "a": 1}', "given twice"),
  "many lists": (f"[{'[],' * 5_000_000}0]", "3000000 values"),
  "many objects": (f"[{'{},' * 5_000_000}0]", "3000000 values"),
  "many digits": (f"[{'9' * 301}]", "301 digits"),
  "a lone surrogate": (r'["a\ud800"]', "not UTF-8"),
  "a surrogate in a name": (r'{"\uDFFF": 1}', "not UTF-8"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_json_that_would_do_harm_is_refused(name):
  text, says = BAD_JSON[name]
  with (
    bounded_memory(len(text)),
    pytest.raises(ValueError, match=says) as error,
  ):
    read_json(text)
  assert not isinstance(error.value, UnicodeError)


def test_json_that_is_read_as_it_is():
  text = (
    r'["\ud83d\ude00 \\ud800", 1000000000000000019884624838656, NaN, "\u0000"]'
  )
  face, large, nan, zero = read_json(text.encode("utf-8-sig"))
  assert (face, large, zero) == (
    "\U0001f600 \\ud800",
    10**30 + 19884624838656,
    "\0",
  )
  assert nan != nan


def test_a_file_that_is_too_large_is_not_read(tmp_path):
  with (tmp_path / "x").open("wb") as file:
    file.truncate(10 * LARGEST)
  with (
    bounded_memory(0),
    pytest.raises(OSError, match="more than such a file needs"),
  ):
    read_file(tmp_path / "x")
  (tmp_path / "x").write_bytes(b"abc")
  assert read_file(tmp_path / "x", 3) == b"abc"


def _socket(path):
  with socket.socket(socket.AF_UNIX) as end:
    end.bind(os.path.relpath(path))


SPECIAL = {
  "pipe": os.mkfifo,
  "socket": _socket,
  "device": lambda path: path.symlink_to("/dev/zero"),
  "link to nowhere": lambda path: path.symlink_to("nowhere"),
  "link to itself": lambda path: path.symlink_to(path),
  "directory": lambda path: path.mkdir(),
}
READERS = {
  "model.safetensors": open_file,
  "pytorch_model.bin": open_torch_file,
  "model.safetensors.index.json": lambda path: open_tensors(path.parent),
  "tokenizer.json": load_tokenizer,
  "tokenizer.model": load_tokenizer,
  "metadata/metadata": lambda path: read_metadata(path.parent.parent),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_not_opened(tmp_path, monkeypatch, kind, name):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  SPECIAL[kind](path)
  with pytest.raises(InputError):
    READERS[name](path)
