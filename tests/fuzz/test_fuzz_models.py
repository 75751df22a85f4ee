"""Damaged files of a Hugging Face directory: refused, or read as they are."""

import functools
import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmerge.checkpoints.compatibility import check_mergeable
from jaxmerge.checkpoints.inputs import open_inputs
from jaxmerge.formats.lazy_tensors import leaves_of
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.formats.records.provenance import origin
from jaxmerge.formats.safetensors import open_file
from jaxmerge.huggingface.directory import open_model
from jaxmerge.huggingface.families import table
from jaxmerge.huggingface.shards import write_tensors
from jaxmerge.huggingface.torch_bin import open_torch_file
from tests.fuzz.damage import byte_files, json_files
from tests.fuzz.lanes import judged, lane
from tests.huggingface.test_families import CONFIGS, numbered_params
from tests.huggingface.test_torch_bin import SAVED

FAMILIES = sorted({name.split()[0] for name in CONFIGS})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """Makes a directory of a small model, and gives its config.json."""

  @functools.cache
  def make(name):
    path = tmp_path_factory.mktemp("model") / "model"
    config = CONFIGS[name]
    family = table.family_of_config(config)
    leaves = leaves_of(numbered_params(config))
    path.mkdir()
    specs = table.tensor_specs(leaves, config, family)
    tensors = table.to_tensors(leaves, config, family)
    write_tensors(path, specs, (array for _, array in tensors), 20_000)
    more = {"torch_dtype": "float32", "eos_token_id": [1, 2]}
    value = {**family.write_config(config), **more}
    (path / "config.json").write_text(json.dumps(value))
    return path, value

  return make


def read(path):
  """All that a merge and a conversion read of a directory."""
  size = sum(file.stat().st_size for file in path.iterdir())
  with judged(size):
    [opened] = open_inputs([str(path)])
    check_mergeable([opened, opened], allow_unrelated=True)
  with judged(size):
    _, leaves = open_model(path)
    values(leaves)


def values(leaves):
  for leaf in leaves.values():
    assert np.asarray(leaf).shape == leaf.shape


@pytest.mark.parametrize("family", FAMILIES)
@lane
@given(data=st.data())
def test_config_json(model, family, data):
  names = [name for name in CONFIGS if name.split()[0] == family]
  path, value = model(data.draw(st.sampled_from(names)))
  (path / "config.json").write_bytes(data.draw(json_files(value)))
  read(path)


@lane
@given(data=st.data())
def test_the_index(model, data):
  path, config = model("llama")
  (path / "config.json").write_text(json.dumps(config))
  index = path / "model.safetensors.index.json"
  whole = index.read_bytes()
  try:
    index.write_bytes(data.draw(json_files(json.loads(whole))))
    read(path)
  finally:
    index.write_bytes(whole)


@lane
@given(data=st.data())
def test_jaxmerge_json(model, data):
  path, config = model("qwen2")
  (path / "config.json").write_text(json.dumps(config))
  provenance = {
    "method": "uniform",
    "weights": [0.5, 0.5],
    "sources": [{"name": "a", "step": 3, "run_id": "x"}],
  }
  metadata = Metadata("merged", {}, step=8, provenance=provenance)
  value = {**origin(metadata), "code": ["modeling.py"]}
  (path / "jaxmerge.json").write_bytes(data.draw(json_files(value)))
  with judged(1000):
    [opened] = open_inputs([str(path)])
    check_mergeable([opened, opened], allow_unrelated=True)


@lane
@given(data=st.data())
def test_safetensors(tmp_path_factory, model, data):
  whole = next(model("llama tied")[0].glob("*.safetensors")).read_bytes()
  end = 8 + int.from_bytes(whole[:8], "little")
  how = data.draw(st.integers(0, 3))
  if how:
    header = data.draw(json_files(json.loads(whole[8:end])))
    content = len(header).to_bytes(8, "little") + header + whole[end:]
  else:
    content = data.draw(byte_files(whole, end=end))
  path = tmp_path_factory.getbasetemp() / "x.safetensors"
  path.write_bytes(content)
  with judged(len(content)):
    values(open_file(path))


with zipfile.ZipFile(io.BytesIO(SAVED)) as _archive:
  MEMBERS = {name: _archive.read(name) for name in _archive.namelist()}
[PICKLE] = [name for name in MEMBERS if name.endswith("data.pkl")]


@lane
@given(data=st.data())
def test_bin(tmp_path_factory, data):
  path = tmp_path_factory.getbasetemp() / "x.bin"
  content = SAVED
  how = data.draw(st.integers(0, 3))
  if how:  # whose checksums are right
    name = data.draw(st.sampled_from([*MEMBERS] + [PICKLE] * 20))
    damaged = data.draw(byte_files(MEMBERS[name]))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
      for member, whole in MEMBERS.items():
        archive.writestr(member, damaged if member == name else whole)
    content = buffer.getvalue()
  if how < 2:
    content = data.draw(byte_files(content))
  path.write_bytes(content)
  with judged(len(content)):
    values(open_torch_file(path))
