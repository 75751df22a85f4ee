"""Hugging Face directories of any model: all that is not a tensor."""

import functools
import json
import os
import re

import numpy as np
import pytest
from flax import nnx

import jaxmerge
from jaxmerge.checkpoints import merged
from jaxmerge.checkpoints.inputs import open_inputs
from jaxmerge.errors import InputError
from jaxmerge.huggingface.shards import open_tensors, write_tensors
from jaxmerge.model.decoder import Decoder
from tests.helpers import DECODER
from tests.merging import fixtures
from tests.merging.fixtures import command, hugging_face, loaded


def tensors(seed):
  rng = np.random.default_rng(seed)
  return {
    "a.weight": rng.normal(size=(50, 8)).astype(np.float32),
    "b.weight": rng.normal(size=(300,)).astype(np.float32),
    "c": rng.normal(size=(7, 3)).astype(np.float16),
  }


def files(seed):
  """What may lie beside the tensors, in odd forms that are to be kept."""
  config = {"model_type": "odd", "auto_map": {"AutoModel": "modeling_odd.M"}}
  return {
    "config.json": json.dumps({**config, "_name_or_path": f"n{seed}"}) + "\r\n",
    "generation_config.json": f'{{"seed":  {seed}, "chat": "你好"}}',
    "tokenizer_config.json": f'{{"of": {seed}}}\n\n',
    "special_tokens_map.json": "{}",
    "chat_template.jinja": f"{{{{ {seed} }}}}",
    "modeling_odd.py": f"SEED = {seed}\n",
    "configuration_odd.py": "X = 1\n",
  }


@pytest.mark.parametrize("steps", [(None, None), (1, 2), (2, 1)])
def test_files_are_those_of_the_latest_input(tmp_path, steps):
  paths = [
    hugging_face(tmp_path / "ab"[i], tensors(i), files=files(i), step=step)
    for i, step in enumerate(steps)
  ]
  for i, path in enumerate(paths):
    (path / f"LICENSE.{i}").write_text("of one input")
  fixtures.run(paths, tmp_path / "out", allow_unrelated=True)
  latest = 0 if steps == (2, 1) else 1
  expected = {**files(latest), "tokenizer.json": '{"version": "1.0"}'}
  expected[f"LICENSE.{latest}"] = "of one input"
  for name, text in expected.items():
    assert (tmp_path / "out" / name).read_bytes() == text.encode(), name
  ours = {"README.md", "jaxmerge.json", "model.safetensors"}
  assert set(os.listdir(tmp_path / "out")) == {*expected, *ours}


def test_code_that_config_does_not_name_is_not_carried(tmp_path):
  paths = [
    hugging_face(tmp_path / f"in{i}", tensors(i), files={"setup.py": "1"})
    for i in (1, 2)
  ]
  fixtures.run(paths, tmp_path / "out", allow_unrelated=True)
  assert not (tmp_path / "out/setup.py").exists()


def test_a_binary_tokenizer_is_kept_byte_for_byte(tmp_path):
  content = bytes(range(256))
  paths = [hugging_face(tmp_path / f"in{i}", tensors(i)) for i in (1, 2)]
  for path in paths:
    (path / "tokenizer.model").write_bytes(content)
  fixtures.run(paths, tmp_path / "out", allow_unrelated=True)
  assert (tmp_path / "out/tokenizer.model").read_bytes() == content


def test_the_card_names_the_sources(tmp_path):
  paths = [
    hugging_face(tmp_path / f"in{i}", tensors(i), files=files(i), step=i)
    for i in (1, 2)
  ]
  fixtures.run(paths, tmp_path / "out", "weights", weights=[1, 3])
  card = (tmp_path / "out/README.md").read_text()
  assert card.startswith("---\n")
  front = card.split("---\n")[1]
  assert "library_name: transformers\n" in front
  assert "- merge\n" in front
  assert "# A odd model" in card
  assert "Merged by weights." in card
  assert "- kind: merged" in card
  assert "- step: 2" in card
  for path, step, weight in zip(paths, "12", ("0.25", "0.75")):
    assert re.search(
      rf"^\| {path.name} \| a run \| {step} \| {weight} \| [0-9a-f]{{64}} \|$",
      card,
      re.MULTILINE,
    )
  # Its code lies beside the tensors, and transformers runs it when told to.
  assert "trust_remote_code=True" in card


def test_one_weight_of_slerp_is_how_far_to_go(tmp_path):
  paths = [hugging_face(tmp_path / f"in{i}", tensors(i)) for i in (1, 2)]
  for name, weights in (("t", [0.25]), ("both", [0.75, 0.25])):
    fixtures.run(paths, tmp_path / name, "slerp", weights=weights)
  found, both = (loaded(tmp_path / name) for name in ("t", "both"))
  for name, array in both.items():
    np.testing.assert_array_equal(found[name], array)
  with pytest.raises(InputError, match="2 inputs but 1 --weights"):
    fixtures.run(paths, tmp_path / "no", "karcher", weights=[0.25])


def test_a_recipe_is_one_file(tmp_path, capsys):
  paths = [
    str(hugging_face(tmp_path / n, tensors(i))) for i, n in enumerate("abc")
  ]
  recipe = tmp_path / "recipe.py"
  recipe.write_text(
    "from ml_collections import config_dict\n"
    "def get_config():\n"
    "  config = config_dict.ConfigDict()\n"
    f"  config.method, config.base = 'ties', {paths[0]!r}\n"
    f"  config.inputs = {paths[1:]!r}\n"
    "  config.weights, config.density = (1, 0.5), (0.5, 0.3)\n"
    "  config.dtype = 'bfloat16'\n"
    "  return config\n"
  )
  words = [f"--config={recipe}"]
  assert command(*words, f"--output={tmp_path / 'file'}") == 0
  changes = {"base": paths[0], "density": (0.5, 0.3), "dtype": "bfloat16"}
  fixtures.run(
    paths[1:], tmp_path / "typed", "ties", changes=changes, weights=[1, 0.5]
  )

  def same(name, other):
    a, b = (loaded(tmp_path / folder) for folder in (name, other))
    return all(np.array_equal(a[key], b[key]) for key in a)

  assert same("file", "typed")
  (again,) = open_inputs([str(tmp_path / "file")])
  assert again.metadata.provenance["recipe"]["density"] == [0.5, 0.3]
  # Who weighs nothing is not read, nor is its density taken for another's.
  alone = [f"--inputs={paths[2]}", "--weights=1", "--config.density=.3"]
  for name, more in (("zero", ["--weights=0,1"]), ("alone", alone)):
    assert command(*words, *more, f"--output={tmp_path / name}") == 0
  assert same("zero", "alone")
  words += [f"--inputs={paths[2]},{paths[1]}", "--weights=.5,1"]
  words += ["--config.density=(.3,.5)"]
  assert command(*words, f"--output={tmp_path / 'turned'}") == 0
  assert same("turned", "file")
  words += ["--config.density=.3"]
  assert command(*words, f"--output={tmp_path / 'one'}") == 0
  assert not same("one", "file")
  capsys.readouterr()
  words = ["--config.density=x", f"--config.base={paths[0]}"]
  words += ["--config.method=ties", f"--output={tmp_path / 'no'}"]
  assert command(*words) == 2
  told = capsys.readouterr().err
  assert "config.density must be a number, or one for each input" in told
  assert command("--config.weights=1,1e999", words[-1]) == 2
  assert "config.weights must be finite numbers" in capsys.readouterr().err
  assert command(words[-1]) == 2
  assert "by --inputs=A,B,... or config.inputs" in capsys.readouterr().err


def test_the_origin_is_read_again(tmp_path):
  paths = [
    hugging_face(tmp_path / f"in{i}", tensors(i), step=i) for i in (5, 7)
  ]
  fixtures.run(
    paths,
    tmp_path / "out",
    "ties",
    changes={"base": str(paths[0]), "density": 0.5},
  )
  (again,) = open_inputs([str(tmp_path / "out")])
  about = again.metadata
  assert (about.kind, about.step, about.run_id) == ("merged", 7, "a run")
  assert about.tokens == 70
  provenance = about.provenance
  assert provenance["method"] == "ties"
  assert [s["step"] for s in provenance["sources"]] == [5, 7]
  assert [s["name"] for s in provenance["sources"]] == list(map(str, paths))
  assert [s["weight"] for s in provenance["sources"]] == [1.0, 1.0]
  card = (tmp_path / "out/README.md").read_text()
  whole = provenance["sources"][0]["params"]
  assert f"Base: in5, parameters {whole}." in card
  assert str(tmp_path) not in card
  recipe = provenance["recipe"]
  assert (recipe["density"], recipe["scale"]) == (0.5, 1.0)
  assert recipe["base"] == provenance["sources"][0]["params"]
  # It is an input like any other, of the same run.
  config = tmp_path / "out/config.json"
  said = {**json.loads(config.read_text()), "_name_or_path": "org/input"}
  config.write_text(json.dumps(said))
  fixtures.run([paths[1], tmp_path / "out"], tmp_path / "twice")
  # What it carries is the name of one of its inputs, not its own.
  card = (tmp_path / "twice/README.md").read_text()
  assert '- "out"\n' in card
  assert "(org/input)" not in card


def test_hashes_tell_sources_apart_and_say_nothing_of_what_was_not_read(
  tmp_path,
):
  paths = [
    hugging_face(tmp_path / name, tensors(seed), step=1, form=form)
    for name, seed, form in (
      ("a", 1, "one file"),
      ("same", 1, "shards"),
      ("b", 2, "one file"),
      ("unread", 3, "one file"),
    )
  ]
  weights = [1, 1, 1, 0]
  fixtures.run(paths, tmp_path / "out", "weights", weights=weights)
  value = json.loads((tmp_path / "out/jaxmerge.json").read_text())
  a, same, b, unread = (s["params"] for s in value["provenance"]["sources"])
  assert a == same != b
  assert unread == ""


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', None], ids=str)
def test_a_damaged_origin_is_refused(tmp_path, capsys, text):
  path = hugging_face(tmp_path / "a", tensors(1), step=1)
  if text is None:
    text = json.dumps({**fixtures.origin(1), "step": "1"})
  (path / "jaxmerge.json").write_text(text)
  words = [f"--inputs={path},{path}", f"--output={tmp_path / 'out'}"]
  assert command(*words) == 2
  assert "jaxmerge.json is damaged" in capsys.readouterr().err


def test_shards_of_the_output(tmp_path, monkeypatch):
  monkeypatch.setattr(
    merged,
    "write_tensors",
    functools.partial(write_tensors, max_shard_bytes=1500),
  )
  paths = [
    hugging_face(tmp_path / f"in{i}", tensors(i), step=i) for i in (1, 2)
  ]
  fixtures.run(paths, tmp_path / "out")
  assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2
  found = open_tensors(tmp_path / "out")
  assert list(found) == list(tensors(1))
  for name, array in found.items():
    mean = (tensors(1)[name] + tensors(2)[name]) / 2
    np.testing.assert_allclose(np.asarray(array), mean, atol=2e-3)
  fixtures.run(paths, tmp_path / "out", overwrite=True)


def test_links_as_in_a_download_cache(tmp_path):
  """Where every file of a snapshot is a link to a blob."""
  paths = []
  for i in (1, 2):
    blobs = hugging_face(tmp_path / f"models--a--{i}/blobs", tensors(i), step=i)
    paths.append(tmp_path / f"models--a--{i}/snapshots/0a1b")
    paths[-1].mkdir(parents=True)
    for file in blobs.iterdir():
      (paths[-1] / file.name).symlink_to(f"../../blobs/{file.name}")
  fixtures.run(paths, tmp_path / "out")
  assert (tmp_path / "out/tokenizer.json").read_text() == '{"version": "1.0"}'
  mean = (tensors(1)["a.weight"] + tensors(2)["a.weight"]) / 2
  np.testing.assert_allclose(loaded(tmp_path / "out")["a.weight"], mean)
  assert not (tmp_path / "out/model.safetensors").is_symlink()


def test_a_known_model_is_loaded_again(tmp_path):
  models = [Decoder(DECODER, nnx.Rngs(seed)) for seed in (0, 1)]
  for i, model in enumerate(models):
    jaxmerge.save_model(model, tmp_path / f"in{i}", format="hf")
  fixtures.run(
    [tmp_path / "in0", tmp_path / "in1"],
    tmp_path / "out",
    "weights",
    weights=[0.3, 0.7],
    allow_unrelated=True,
  )
  again = [jaxmerge.load_model(tmp_path / f"in{i}") for i in (0, 1)]
  graph, _ = nnx.split(again[0])
  tree = jaxmerge.weighted_average(
    [nnx.to_pure_dict(nnx.state(model, nnx.Param)) for model in again],
    [0.3, 0.7],
  )
  tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
  expected = nnx.merge(graph, tree)(tokens)
  found = jaxmerge.load_model(tmp_path / "out")(tokens)
  np.testing.assert_allclose(found, expected, atol=1e-5)
