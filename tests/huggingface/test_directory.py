"""Hugging Face directories: what is carried, kept, checked and refused."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxmerge.checkpoints import models
from jaxmerge.checkpoints.inputs import open_inputs
from jaxmerge.checkpoints.merged import save_merged
from jaxmerge.checkpoints.model_inputs import as_model
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.convert import convert
from jaxmerge.errors import InputError
from jaxmerge.formats.lazy_tensors import leaves_of
from jaxmerge.formats.records.metadata import from_json, read_metadata, to_json
from jaxmerge.formats.records.provenance import Provenance
from jaxmerge.huggingface import directory
from jaxmerge.huggingface.families import table
from jaxmerge.huggingface.families.family import FAMILIES
from jaxmerge.model.decoder import Decoder
from tests.helpers import DECODER, random_params

CARRIED = {
  "generation_config.json": '{"do_sample": true,  "top_p": 0.9}',
  "tokenizer_config.json": '{"chat": "\u4f60\u597d"}\r\n',
  "special_tokens_map.json": "{}",
  "tokenizer.json": '{"version": "1.0"}',
}


def theirs(path, dtype=jnp.float32, **more):
  """A directory with everything that may lie in one."""
  params = random_params()
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  tensors = dict(
    table.to_tensors(leaves_of(params), DECODER, FAMILIES["llama"])
  )
  path.mkdir()
  save_file(tensors, path / "model.safetensors", {"format": "pt"})
  value = {
    **FAMILIES["llama"].write_config(DECODER),
    "torch_dtype": str(jnp.dtype(dtype)),
    "max_position_embeddings": 4096,
    "use_cache": True,
    "a_key_of_another_day": [1, 2],
    **more,
  }
  (path / "config.json").write_text(json.dumps(value, indent=3))
  for name, text in CARRIED.items():
    (path / name).write_bytes(text.encode())
  return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_there_and_back_every_byte_is_kept(tmp_path, dtype):
  first = theirs(tmp_path / "theirs", jnp.dtype(dtype))
  convert(str(first), tmp_path / "orbax", "orbax")
  assert {
    leaf["dtype"]
    for leaf in read_metadata(tmp_path / "orbax").leaves["params"].values()
  } == {dtype}
  convert(str(tmp_path / "orbax"), tmp_path / "back", "hf")
  for name in (*CARRIED, "config.json"):
    assert (tmp_path / "back" / name).read_bytes() == (
      first / name
    ).read_bytes()
  before = load_file(first / "model.safetensors")
  after = load_file(tmp_path / "back/model.safetensors")
  assert before.keys() == after.keys()
  for name, array in before.items():
    assert after[name].dtype == array.dtype == dtype
    assert after[name].tobytes() == array.tobytes()


def test_a_merge_keeps_the_files_and_its_card_names_the_sources(tmp_path):
  for name in ("a", "b"):
    convert(str(theirs(tmp_path / f"their_{name}")), tmp_path / name, "orbax")
  sources = open_inputs([str(tmp_path / "a"), str(tmp_path / "b")])
  params = restore_params(tmp_path / "a")
  save_merged(
    tmp_path / "merged",
    params,
    sources,
    Provenance("explicit weights", [0.25, 0.75]),
    overwrite=False,
  )
  convert(str(tmp_path / "merged"), tmp_path / "hf", "hf")
  text = (tmp_path / "hf/generation_config.json").read_text()
  assert text == CARRIED["generation_config.json"]
  card = (tmp_path / "hf/README.md").read_text()
  front = card.split("---\n")[1]
  assert "library_name: transformers\n" in front
  assert "- merge\n" in front
  assert "Merged by explicit weights." in card
  for source, weight in zip(("a", "b"), ("0.25", "0.75")):
    [row] = [
      line for line in card.splitlines() if line.startswith(f"| {source} |")
    ]
    assert f"| {weight} |" in row
    assert re.search(r"[0-9a-f]{64} \|$", row)
  assert "Written by jaxmerge 0" in card
  assert "from_pretrained" in card


def test_a_card_tells_only_what_is_known(tmp_path):
  """Of directories without a run: no step, no start, no empty column."""
  paths = [str(theirs(tmp_path / name)) for name in ("null", "b")]
  config = tmp_path / "b/config.json"
  said = {**json.loads(config.read_text()), "_name_or_path": "org/other"}
  config.write_text(json.dumps(said))
  weights = Provenance("weights", [0.123456, 0.876544])
  sources = open_inputs(paths)
  out = tmp_path / "out"
  params = models.load(paths[0]).params
  as_models = [as_model(source) for source in sources]
  save_merged(out, params, as_models, weights, format="hf", overwrite=False)
  card = (out / "README.md").read_text()
  front = yaml.safe_load(card.split("---\n")[1])
  assert front["base_model"] == ["null", "org/other"]
  assert front["tags"] == ["jaxmerge", "merge"]
  assert "| source | weight | parameters |\n|-|-|-|\n| null | 0.1235 |" in card
  assert "| b (org/other) | 0.8765 |" in card
  for word in ("step", "tokens:", "random", "run:", str(tmp_path)):
    assert word not in card
  assert models.load(out).metadata.provenance["sources"][1]["hub"] == (
    "org/other"
  )


def test_a_config_that_is_no_longer_true_is_not_carried(tmp_path):
  saved = models.load(theirs(tmp_path / "theirs"))
  other = dataclasses.replace(saved.config, rms_norm_eps=0.5)
  changed = dataclasses.replace(saved, config=other)
  models.save(changed, tmp_path / "out", "hf", overwrite=False)
  value = json.loads((tmp_path / "out/config.json").read_text())
  assert value["rms_norm_eps"] == 0.5
  assert "a_key_of_another_day" not in value


def test_the_dtype_of_a_carried_config_is_that_of_the_tensors(tmp_path):
  saved = models.load(theirs(tmp_path / "theirs", jnp.bfloat16))
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), saved.params)
  changed = dataclasses.replace(saved, params=wide)
  models.save(changed, tmp_path / "out", "hf", overwrite=False)
  value = json.loads((tmp_path / "out/config.json").read_text())
  assert value["torch_dtype"] == "float32"
  assert value["a_key_of_another_day"] == [1, 2]


def model():
  return Decoder(DECODER, nnx.Rngs(0))


def test_shards_out_and_in(tmp_path):
  models.save_model(model(), tmp_path / "m", "hf", max_shard_bytes=5_000)
  assert len(list((tmp_path / "m").glob("model-*-of-*.safetensors"))) > 2
  again = models.load_model(tmp_path / "m")
  tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
  np.testing.assert_array_equal(again(tokens), model()(tokens))
  with pytest.raises(InputError, match="'hf' only"):
    models.save_model(model(), tmp_path / "n", "orbax", max_shard_bytes=5_000)
  with pytest.raises(InputError, match="must be positive"):
    models.save_model(model(), tmp_path / "n", "hf", max_shard_bytes=0)
  assert not (tmp_path / "n").exists()


def wrong_tensors(params, config, family):
  for name, array in table_to_tensors(params, config, family):
    yield name, array * 2 if name == "model.norm.weight" else array


table_to_tensors = table.to_tensors


def test_an_export_with_a_wrong_tensor_is_not_left_behind(
  tmp_path, monkeypatch
):
  calls = []

  def first_wrong(*args):
    calls.append(args)
    return (wrong_tensors if len(calls) == 1 else table_to_tensors)(*args)

  monkeypatch.setattr(table, "to_tensors", first_wrong)
  with pytest.raises(InputError, match=r"model\.norm\.weight of the export"):
    models.save_model(model(), tmp_path / "m", "hf")
  assert list(tmp_path.iterdir()) == []


def test_an_export_with_other_logits_is_not_left_behind(tmp_path, monkeypatch):
  """The names and the bytes are right; what is read is another model."""
  read = table.flax_leaves

  def swapped(tensors, config, family):
    leaves = read(tensors, config, family)
    key, value = "layers/attention/key/kernel", "layers/attention/value/kernel"
    return {**leaves, key: leaves[value], value: leaves[key]}

  monkeypatch.setattr(table, "flax_leaves", swapped)
  monkeypatch.setattr(directory, "_differences", lambda *args: [])
  with pytest.raises(InputError, match="other logits"):
    models.save_model(model(), tmp_path / "m", "hf")
  assert list(tmp_path.iterdir()) == []


def test_a_model_larger_than_memory_is_converted_both_ways(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(directory, "_free_memory", lambda: 10_000)
  first = theirs(tmp_path / "theirs", jnp.bfloat16)
  convert(str(first), tmp_path / "orbax", "orbax")
  assert "logits" not in capsys.readouterr().out
  convert(str(tmp_path / "orbax"), tmp_path / "back", "hf")
  assert "tensors compared, logits not" in capsys.readouterr().out
  before, after = (
    load_file(path / "model.safetensors") for path in (first, tmp_path / "back")
  )
  assert before.keys() == after.keys()
  for name, array in before.items():
    assert after[name].tobytes() == array.tobytes()


def test_a_damaged_step_is_not_converted(tmp_path):
  convert(str(theirs(tmp_path / "theirs")), tmp_path / "orbax", "orbax")
  metadata = read_metadata(tmp_path / "orbax")
  leaves = dict(metadata.leaves["params"])
  leaves["embed/embedding"] = {**leaves["embed/embedding"], "digest": "0" * 16}
  changed = dataclasses.replace(metadata, leaves={"params": leaves})
  (tmp_path / "orbax/metadata/metadata").write_text(
    json.dumps(to_json(changed))
  )
  for format in ("hf", "orbax"):
    with pytest.raises(InputError, match="embed/embedding does not match"):
      convert(str(tmp_path / "orbax"), tmp_path / "out", format)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["orbax", "theirs"]


def test_every_problem_of_a_directory_is_listed(tmp_path):
  path = theirs(tmp_path / "theirs", hidden_act="relu")
  (path / "tokenizer_config.json").write_bytes(b"\xff\xfe")
  (path / "model.safetensors").write_bytes(b"")
  with pytest.raises(InputError) as error:
    models.load(path)
  said = "\n".join(error.value.problems)
  assert "tokenizer_config.json cannot be read" in said
  assert "truncated" in said
  path = theirs(tmp_path / "other", hidden_act="relu")
  (path / "model.safetensors").unlink()
  with pytest.raises(InputError) as error:
    models.load(path)
  assert len(error.value.problems) == 2


def test_every_problem_of_the_tensors_is_listed(tmp_path):
  path = theirs(tmp_path / "theirs")
  file = path / "model.safetensors"
  tensors = load_file(file)
  del tensors["model.layers.1.mlp.up_proj.weight"]
  tensors["model.norm.weight"] = np.ones(16, np.float64)
  tensors["lm_head.weight"] = np.ones((49, 16), np.float32)
  name = "model.layers.0.self_attn.q_proj.weight"
  tensors[name] = tensors[name].astype(np.float16)
  tensors["extra"] = np.ones(2, np.float32)
  save_file(tensors, file)
  with pytest.raises(InputError) as error:
    models.load(path)
  said = "\n".join(error.value.problems)
  assert "no tensor model.layers.1.mlp.up_proj.weight" in said
  assert "model.norm.weight is float64" in said
  assert "lm_head.weight has shape [49, 16], not [50, 16]" in said
  assert "self_attn.q_proj.weight are of several dtypes (float16" in said
  assert "tensor extra is not used" in said
  assert len(error.value.problems) == 5


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_head_may_be_there_twice_if_it_is_the_same(tmp_path, same):
  path = theirs(tmp_path / "theirs", tie_word_embeddings=True)
  file = path / "model.safetensors"
  tensors = load_file(file)
  if same:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, file)
    assert models.load(path).config.tie_word_embeddings
    return
  with pytest.raises(InputError, match="said to be tied"):
    models.load(path)


def test_derived_tensors_are_left_out(tmp_path):
  path = theirs(tmp_path / "theirs")
  file = path / "model.safetensors"
  tensors = load_file(file)
  angles = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2)}
  save_file({**tensors, **angles}, file)
  models.load(path)
  save_file({**tensors, "model.layers.0.self_attn.inv_freq": np.ones(2)}, file)
  with pytest.raises(InputError, match="not used"):
    models.load(path)


def test_carried_files_are_written_beside_the_model_only(tmp_path):
  saved = models.load(theirs(tmp_path / "theirs"))
  bad = dataclasses.replace(saved, files={"../evil.py": "", "x.sh": ""})
  with pytest.raises(InputError) as error:
    models.save(bad, tmp_path / "out", "hf", overwrite=False)
  assert len(error.value.problems) == 2
  assert not (tmp_path / "evil.py").exists()


def test_metadata_without_files_reads_as_before(tmp_path):
  models.save_model(model(), tmp_path / "m")
  metadata = read_metadata(tmp_path / "m")
  assert "files" not in to_json(metadata)
  carried = dataclasses.replace(metadata, files={"config.json": "{}"})
  assert from_json(to_json(carried)) == carried
  assert from_json(to_json(metadata)) == metadata


def test_only_a_checkpoint_is_overwritten(tmp_path):
  saved = models.load(theirs(tmp_path / "theirs"))
  for _ in range(2):
    models.save(saved, tmp_path / "out", "hf", overwrite=True)
  (tmp_path / "out/notes.md").write_text("mine")
  with pytest.raises(InputError, match="not a checkpoint"):
    models.save(saved, tmp_path / "out", "hf", overwrite=True)
  assert (tmp_path / "out/notes.md").exists()


def test_a_run_of_our_own_says_which_token_ends_a_text(tiny_run, tmp_path):
  convert(f"{tiny_run}@8", tmp_path / "hf", "hf")
  value = json.loads((tmp_path / "hf/config.json").read_text())
  assert value["eos_token_id"] == value["bos_token_id"] == 0
  assert value["max_position_embeddings"] == 32
  assert "pad_token_id" not in value
  value = json.loads((tmp_path / "hf/generation_config.json").read_text())
  ends = ("bos_token_id", "eos_token_id", "pad_token_id")
  assert value == dict.fromkeys(ends, 0)
  value = json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
  assert value["tokenizer_class"] == "PreTrainedTokenizerFast"
  ends = ("bos_token", "eos_token", "pad_token")
  assert [value[end] for end in ends] == ["<|endoftext|>"] * 3
  assert value["model_max_length"] == 32
  models.save_model(model(), tmp_path / "m", "hf")
  value = json.loads((tmp_path / "m/config.json").read_text())
  assert value["eos_token_id"] is None
  assert "max_position_embeddings" not in value
  assert not list((tmp_path / "m").glob("*_config.json"))


def test_carried_files_win_over_those_that_are_made(tiny_run, tmp_path):
  convert(f"{tiny_run}@8", tmp_path / "hf", "hf")
  saved = models.load(tmp_path / "hf")
  said = {"tokenizer_config.json": "{}", "config.json": "{}"}
  other = dataclasses.replace(saved, files=said)
  models.save(other, tmp_path / "out", "hf", overwrite=False)
  assert (tmp_path / "out/tokenizer_config.json").read_text() == "{}"
  assert "pad_token_id" in (tmp_path / "out/generation_config.json").read_text()
  config = json.loads((tmp_path / "out/config.json").read_text())
  assert config["max_position_embeddings"] == 32


def test_a_family_of_the_users_own_is_kept(tmp_path, monkeypatch):
  """Its names, in the config.json that is carried, not those of Llama."""
  llama = FAMILIES["llama"]
  own = dataclasses.replace(
    llama,
    name="own",
    tensors=tuple(t._replace(hf=f"x.{t.hf}") for t in llama.tensors),
    rank=99,
  )
  path = theirs(tmp_path / "theirs", model_type="own")
  with pytest.raises(InputError, match="model_type is 'own', only llama"):
    models.load(path)
  monkeypatch.setattr(table, "FAMILIES", {"own": own, **FAMILIES})
  tensors = load_file(path / "model.safetensors")
  save_file(
    {f"x.{n}": a for n, a in tensors.items()}, path / "model.safetensors"
  )
  convert(str(path), tmp_path / "orbax", "orbax")
  convert(str(tmp_path / "orbax"), tmp_path / "back", "hf")
  after = load_file(tmp_path / "back/model.safetensors")
  assert {n.removeprefix("x.") for n in after} == tensors.keys()
  assert all(n.startswith("x.") for n in after)
  assert table.family_of_config(DECODER) is llama
