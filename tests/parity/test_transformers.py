"""Logits of tiny random models against transformers, both ways."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


import jax  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

import jaxmerge  # noqa: E402
from jaxmerge.checkpoints import models  # noqa: E402
from jaxmerge.convert import convert  # noqa: E402
from tests.parity import their_models  # noqa: E402


def tensors_of(path):
  return {
    name: array
    for file in sorted(path.glob("*.safetensors"))
    for name, array in load_file(file).items()
  }


def check_close(ours, theirs, name):
  """The largest error is shown with -rP."""
  error = np.abs(np.asarray(ours) - theirs).max()
  print(f"{name}: max |dlogit| {error:.2e}")
  assert np.abs(theirs).max() > 1
  assert error <= 1e-5


@pytest.mark.parametrize("name", their_models.MODELS)
def test_logits_are_theirs_both_ways(name, tmp_path):
  expected = their_models.logits(their_models.make(name, tmp_path / "theirs"))
  ours = jaxmerge.load_model(tmp_path / "theirs")
  check_close(ours(their_models.TOKENS), expected, name)

  jaxmerge.save_model(ours, tmp_path / "again", format="hf")
  load = transformers.AutoModelForCausalLM.from_pretrained
  again, report = load(tmp_path / "again", output_loading_info=True)
  assert not any(report.values())
  # They have two names for one activation, which they compute in two ways.
  np.testing.assert_allclose(
    their_models.logits(again.eval()), expected, atol=5e-6
  )


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "qwen3_tied", "olmo2"])
def test_the_way_through_orbax_keeps_every_byte(name, tmp_path):
  theirs = their_models.make(name, tmp_path / "one_file")
  theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
  assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
  convert(str(tmp_path / "theirs"), tmp_path / "orbax", "orbax")
  saved = models.load(tmp_path / "orbax")
  path = tmp_path / "again"
  models.save(saved, path, "hf", overwrite=False, max_shard_bytes=20_000)
  assert len(list(path.glob("*.safetensors"))) > 2
  before, after = tensors_of(tmp_path / "theirs"), tensors_of(path)
  assert before.keys() == after.keys()
  for key in before:
    assert before[key].dtype == after[key].dtype
    assert before[key].tobytes() == after[key].tobytes()
  for file in ("config.json", "generation_config.json"):
    text = (tmp_path / "theirs" / file).read_bytes()
    assert (path / file).read_bytes() == text
  again = their_models.load(path)
  np.testing.assert_array_equal(
    their_models.logits(again), their_models.logits(theirs)
  )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_are_kept_and_computed_in_float32(dtype, tmp_path):
  their_models.make("llama", tmp_path / "wide")
  theirs = their_models.load(tmp_path / "wide", dtype=dtype)
  theirs.save_pretrained(tmp_path / "theirs")
  ours = jaxmerge.load_model(tmp_path / "theirs")
  saved = models.load(tmp_path / "theirs")
  assert {str(x.dtype) for x in jax.tree.leaves(saved.params)} == {dtype}
  # Computed in float32 by both: theirs must be loaded so.
  theirs = their_models.load(tmp_path / "theirs", dtype="float32")
  expected = their_models.logits(theirs)
  check_close(ours(their_models.TOKENS), expected, dtype)
  models.save(saved, tmp_path / "again", "hf", overwrite=False)
  assert str(their_models.load(tmp_path / "again").dtype) == f"torch.{dtype}"
  again = their_models.load(tmp_path / "again", dtype="float32")
  np.testing.assert_array_equal(their_models.logits(again), expected)


@pytest.mark.parametrize("name", ["llama_tied", "gpt_neox"])
def test_files_of_torch_are_read_as_safetensors_are(name, tmp_path):
  import torch

  path = tmp_path / "theirs"
  expected = their_models.logits(their_models.make(name, path))
  tensors = load_file(path / "model.safetensors")
  (path / "model.safetensors").unlink()
  halves = {"1": sorted(tensors)[::2], "2": sorted(tensors)[1::2]}
  places = {}
  for half, names in halves.items():
    file = f"pytorch_model-{half}.bin"
    torch.save({n: torch.from_numpy(tensors[n]) for n in names}, path / file)
    places |= dict.fromkeys(names, file)
  index = path / "pytorch_model.bin.index.json"
  index.write_text(json.dumps({"weight_map": places}))
  ours = jaxmerge.load_model(path)
  check_close(ours(their_models.TOKENS), expected, f"{name} (.bin)")


@pytest.mark.parametrize("name", their_models.MODELS)
def test_the_golden_logits_are_theirs(name):
  saved = json.loads(their_models.GOLDEN.read_text())
  assert saved["tokens"] == their_models.TOKENS.tolist()
  assert saved["models"].keys() == their_models.MODELS.keys()
  now, then = their_models.golden(name), saved["models"][name]
  np.testing.assert_allclose(now["last_logits"], then["last_logits"], atol=5e-6)
  assert now["shapes"] == then["shapes"]
