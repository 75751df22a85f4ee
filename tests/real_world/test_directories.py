"""Merges of directories that other tools have saved: all but the tensors."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxmerge import convert, search
from jaxmerge.checkpoints.models import load
from jaxmerge.checkpoints.outputs import check_output
from jaxmerge.errors import InputError
from jaxmerge.formats.safetensors import read_metadata
from jaxmerge.huggingface import carried
from tests.helpers import Telling, config_of
from tests.merging import fixtures
from tests.real_world.directories_made import (
  CONFIG,
  MERGES,
  WORDS,
  directory,
  pieces,
  tekken,
  tensors,
  tokenizer_json,
  write,
)


def refused(capsys, *words):
  """The problems that a merge of paths is refused for, as a user sees them."""
  capsys.readouterr()
  assert fixtures.command(*words) == 2
  return capsys.readouterr().err.splitlines()[1:]


def typed(tmp_path, *paths):
  return [f"--inputs={','.join(map(str, paths))}", f"--output={tmp_path / 'o'}"]


ROPE = {"rope_type": "default", "rope_theta": 500000.0}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# Of issue 11, 2.1: what another version of the library writes, and what says
# nothing of the weights.
SAME = [
  ({}, {"head_dim": 4, "attention_bias": False, "mlp_bias": False}),
  ({}, {"rope_theta": None, "rope_parameters": ROPE}),
  ({}, {"rope_theta": 500000, "rope_scaling": None}),
  ({}, {"rope_scaling": {"type": "linear", "factor": 1.0}}),
  ({}, {"eos_token_id": [1, 2], "pad_token_id": 0, "bos_token_id": 1}),
  ({}, {"max_position_embeddings": 4096, "use_cache": False}),
  ({}, {"architectures": ["LlamaModel"], "_name_or_path": "x"}),
  ({"torch_dtype": "bfloat16"}, {"dtype": "float32", "new_key": float("nan")}),
  (
    {"rope_scaling": YARN, "max_position_embeddings": 32},
    {
      "rope_scaling": {**YARN, "type": None, "rope_type": "yarn"},
      "max_position_embeddings": 128,
    },
  ),
  ({"hidden_act": "gelu"}, {"hidden_act": "gelu", "use_cache": True}),
  (
    {"model_type": "unknown", "rope_scaling": {"factor": 2.0}},
    {"model_type": "unknown", "text_config": {"x": float("nan")}},
  ),
]
DYNAMIC = {"type": "dynamic", "factor": 2.0}
OTHER = [
  ({}, {"rope_theta": 10000.0}, "rope_theta"),
  ({}, {"rope_parameters": {**ROPE, "rope_theta": 1e4}}, "rope_theta"),
  ({}, {"rms_norm_eps": 1e-5}, "rms_norm_eps"),
  ({}, {"num_attention_heads": 4, "num_key_value_heads": 4}, "head_dim"),
  ({}, {"tie_word_embeddings": True}, "tie_word_embeddings"),
  ({}, {"hidden_act": "gelu"}, "hidden_act"),
  ({}, {"model_type": "gemma"}, "model_type"),
  (
    {"rope_scaling": DYNAMIC, "max_position_embeddings": 32},
    {"rope_scaling": DYNAMIC, "max_position_embeddings": 64},
    "rope_scaling",
  ),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_2_1_configs_that_mean_the_same_are_merged(tmp_path, a, b):
  paths = [
    directory(tmp_path / str(i), i, config={**CONFIG, **more})
    for i, more in enumerate((a, b))
  ]
  fixtures.run(paths, tmp_path / "o", allow_unrelated=True)


@pytest.mark.parametrize(("a", "b", "says"), OTHER)
def test_2_1_configs_of_other_meaning_are_refused(tmp_path, capsys, a, b, says):
  paths = [
    directory(tmp_path / str(i), i, config={**CONFIG, **more})
    for i, more in enumerate((a, b))
  ]
  lines = refused(capsys, *typed(tmp_path, *paths), "--allow_unrelated")
  assert any(says in line for line in lines)
  assert not (tmp_path / "o").exists()


def vocab_files(words=WORDS, merges=MERGES, header="#version: 0.2\n"):
  lines = "".join(f"{a} {b}\n" for a, b in merges)
  return {
    "vocab.json": {word: i for i, word in enumerate(words)},
    "merges.txt": header + lines,
  }


def as_pairs(value):
  """As newer versions of the library write merges."""
  pairs = [merge.split(" ") for merge in value["model"]["merges"]]
  return {**value, "model": {**value["model"], "merges": pairs}}


def backwards(value):
  """The same keys in another order."""
  return dict(reversed(value.items()))


TOKENIZER = tokenizer_json()
UNIGRAM = {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0]]}
DECODER = {"added_tokens_decoder": {"3": {"content": "<pad>"}}}
SPACED = json.dumps(TOKENIZER, indent=2)
TIKTOKEN = "YQ== 0\nYg== 1"
SAME_VOCABULARY = {
  "indented": ({"tokenizer.json": TOKENIZER}, {"tokenizer.json": SPACED}),
  "pairs": (
    {"tokenizer.json": TOKENIZER},
    {"tokenizer.json": as_pairs(backwards(TOKENIZER))},
  ),
  "truncation": (
    {"tokenizer.json": TOKENIZER},
    {"tokenizer.json": tokenizer_json(truncation={"max_length": 3})},
  ),
  "files of before": ({"tokenizer.json": TOKENIZER}, vocab_files()),
  "no header": (vocab_files(), vocab_files(header="")),
  "one has more files": (
    {"tokenizer.json": TOKENIZER},
    {"tokenizer.json": TOKENIZER, **vocab_files(), "added_tokens.json": {}},
  ),
  "model and json": (
    {"tokenizer.model": pieces("a", "b")},
    {
      "tokenizer.json": {
        "model": UNIGRAM | {"vocab": [["<unk>", 0.0], ["a", 0.0], ["b", -1.0]]}
      }
    },
  ),
  "added tokens": (
    {"tokenizer.model": pieces("a", "b"), "added_tokens.json": {"<pad>": 3}},
    {"tokenizer.model": pieces("a", "b"), "tokenizer_config.json": DECODER},
  ),
  "tekken": (
    {"tekken.json": tekken("ab")},
    {"tekken.json": json.dumps(tekken("ab", version="v11"), indent=1)},
  ),
  "tekken of before": (
    {"tekken.json": tekken("ab")},
    {"tekken.json": tekken("ab", version="v3")},
  ),
  "tiktoken": (
    {"q.tiktoken": "YQ== 0\nYg== 1\n"},
    {"q.tiktoken": "YQ== 0\nYg== 1"},
  ),
  "wordpiece": ({"vocab.txt": "a\nb\n"}, {"vocab.txt": "a\r\nb"}),
}
OTHER_VOCABULARY = {
  "ids": (
    {"tokenizer.json": TOKENIZER},
    {"tokenizer.json": tokenizer_json([*WORDS[:-2], "g", "f"])},
  ),
  "merges": (
    {"tokenizer.json": TOKENIZER},
    {"tokenizer.json": tokenizer_json(merges=MERGES[::-1])},
  ),
  "merges of before": (
    {"tokenizer.json": TOKENIZER},
    vocab_files(merges=MERGES[::-1]),
  ),
  "added": (
    {"tokenizer.json": TOKENIZER},
    {"tokenizer.json": tokenizer_json([*WORDS, "<x>"], added=("<s>", "<x>"))},
  ),
  "model": (
    {"tokenizer.model": pieces("a", "b")},
    {"tokenizer.model": pieces("b", "a")},
  ),
  "model beside the same json": (
    {"tokenizer.json": TOKENIZER, "tokenizer.model": pieces("a", "b")},
    {"tokenizer.json": TOKENIZER, "tokenizer.model": pieces("b", "a")},
  ),
  "added tokens": (
    {"tokenizer.model": pieces("a", "b"), "added_tokens.json": {"<pad>": 3}},
    {"tokenizer.model": pieces("a", "b"), "added_tokens.json": {"<x>": 3}},
  ),
  "vocab.json": (vocab_files(), vocab_files([*WORDS[:-2], "g", "f"])),
  "merges.txt": (vocab_files(), vocab_files(merges=MERGES[::-1])),
  "tekken": ({"tekken.json": tekken("ab")}, {"tekken.json": tekken("ba")}),
  "special of tekken": (
    {"tekken.json": tekken("ab")},
    {"tekken.json": tekken("ab", ["<x>"])},
  ),
  "tiktoken": ({"q.tiktoken": "YQ== 0"}, {"q.tiktoken": "YQ== 1"}),
  "kinds that say nothing of each other": (
    {"tekken.json": tekken("ab")},
    {"tokenizer.json": TOKENIZER},
  ),
  "no vocabulary": ({"tokenizer.json": {}}, {"tokenizer.json": {"model": 1}}),
}


@pytest.mark.parametrize("name", SAME_VOCABULARY)
def test_1_5_one_vocabulary_of_two_versions_is_the_same(tmp_path, name):
  paths = [
    directory(tmp_path / str(i), i, files=files)
    for i, files in enumerate(SAME_VOCABULARY[name])
  ]
  for i, order in enumerate((paths, paths[::-1])):
    fixtures.run(order, tmp_path / f"o{i}", allow_unrelated=True)


@pytest.mark.parametrize("name", OTHER_VOCABULARY)
def test_1_5_another_vocabulary_has_a_permission_of_its_own(
  tmp_path, capsys, name
):
  paths = [
    directory(tmp_path / str(i), i, files=files)
    for i, files in enumerate(OTHER_VOCABULARY[name])
  ]
  words = [*typed(tmp_path, *paths), "--allow_unrelated"]
  [line] = refused(capsys, *words)
  assert "of another tokenizer" in line
  assert line.endswith("--allow_other_tokenizer accepts it")
  assert fixtures.command(*words, "--allow_other_tokenizer") == 0


BESIDE = {
  "video_preprocessor_config.json": "{}",
  "tekken.json": tekken("ab"),
  "qwen.tiktoken": TIKTOKEN,
  "tokenizer.model.v3": pieces("a"),
  "source.spm": pieces("a"),
  "LICENSE": "text \u00e9".encode("latin-1"),
  "modules.json": [{"path": "1_Pooling"}],
  "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
  "additional_chat_templates/tool_use.jinja": "{{ x }}",
  "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["tok.T", None]}},
  "tok.py": "from .tok_parts import P\n",
  "tok_parts.py": "P = 1\n",
  "assets/a/picture.png": bytes(range(256)),
}
LEFT = {
  "optimizer.pt": b"1",
  "rng_state_0.pth": b"1",
  "training_args.bin": b"1",
  "trainer_state.json": "{}",
  "train.log": "x",
  "onnx/model.onnx": b"1",
  "onnx/config.json": "{}",
  "runs/a/events.out.tfevents.1": b"1",
  "checkpoint-5/config.json": "{}",
  "flax_model.msgpack": b"1",
  "model.safetensors.index.fp16.json": "{}",
  ".git/HEAD": "x",
  "install.sh": "x",
  "README.md/x": "x",
  "other.safetensors/x": "x",
}


def names_in(path):
  return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}


def assert_carried(path, names=BESIDE):
  for name, content in names.items():
    write(path.parent / "expected", content)
    found = (path / name).read_bytes()
    assert found == (path.parent / "expected").read_bytes(), name


def test_1_6_all_that_lies_beside_the_weights_goes_along(tmp_path, capsys):
  paths = [
    directory(tmp_path / str(i), i, files={**BESIDE, **LEFT}) for i in (0, 1)
  ]
  words = [*typed(tmp_path, *paths), "--allow_unrelated"]
  for flags in (["--dry_run"], []):
    assert fixtures.command(*words, *flags) == 0
    said = "".join(capsys.readouterr())
    for name, why in (
      ("optimizer.pt", "state of an optimiser"),
      ("onnx/", "it holds weights of its own"),
      ("runs/", "logs"),
      ("checkpoint-5/", "checkpoints of its own"),
      (".git", "hidden"),
    ):
      found = re.search(rf"left behind.*?{re.escape(name)}[^(]*\(([^)]*)", said)
      assert found, name
      assert why in found[1]
    assert "model.safetensors," not in said
  ours = {"config.json", "model.safetensors", "README.md", "jaxmerge.json"}
  assert names_in(tmp_path / "o") == {*BESIDE, *ours}
  assert_carried(tmp_path / "o")
  assert not list((tmp_path / "o").glob(".*"))


def test_1_6_files_go_through_a_step_directory_and_back(tmp_path):
  path = directory(tmp_path / "in", 0, files={**BESIDE, **LEFT})
  convert.convert(str(path), tmp_path / "orbax", "orbax")
  convert.convert(str(tmp_path / "orbax"), tmp_path / "out", "hf")
  assert_carried(tmp_path / "out")
  assert not names_in(tmp_path / "out") & LEFT.keys()


def test_1_6_an_output_with_what_it_carries_may_be_replaced(tmp_path):
  paths = [directory(tmp_path / str(i), i, files=BESIDE) for i in (0, 1)]
  for overwrite in (False, True):
    fixtures.run(
      paths, tmp_path / "o", allow_unrelated=True, overwrite=overwrite
    )
  (tmp_path / "o/LICENSE").write_text("mine")
  with pytest.raises(InputError, match="it holds 'LICENSE'"):
    check_output(tmp_path / "o", overwrite=True)


def test_1_6_what_is_too_large_is_left_behind(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(carried, "MAX_BYTES", 2000)
  monkeypatch.setattr(carried, "MAX_BYTES_TOGETHER", 3000)
  monkeypatch.setattr(carried, "MAX_NEEDED_BYTES", 4000)
  files = {
    "a.dat": bytes(2001),
    "b.dat": bytes(1500),
    "c.dat": bytes(1501),
    "tokenizer.json": {"model": {"vocab": {"x" * 3000: 0}}},
  }
  paths = [directory(tmp_path / str(i), i, files=files) for i in (0, 1)]
  words = [*typed(tmp_path, *paths), "--allow_unrelated"]
  assert fixtures.command(*words) == 0
  said = "".join(capsys.readouterr())
  assert "a.dat (more than 2.0 KiB); c.dat (more than 1.5 KiB)" in said
  found = names_in(tmp_path / "o") & files.keys()
  assert found == {"tokenizer.json", "b.dat"}
  write(paths[1] / "tokenizer.json", {"model": "x" * 4000})
  assert "it is more than 3.9 KiB" in refused(capsys, *words, "--overwrite")[0]


def test_1_6_links_lead_within_the_directory_or_to_its_blobs(tmp_path, capsys):
  secret = tmp_path / "secret"
  secret.write_text("mine")
  paths = []
  for i in (0, 1):
    root = tmp_path / f"models--a--{i}"
    path = directory(
      root / "snapshots/abc", i, files={"real.txt": "x", "in/b.txt": "y"}
    )
    write(root / "blobs/1", "of a blob")
    (path / "blob.txt").symlink_to("../../blobs/1")
    blob = tmp_path / f"hub/models--b--{i}/blobs" / ("0a" * 20)
    write(blob, "of the cache")
    (path / "cached.txt").symlink_to(blob)
    (path / "in/blob.txt").symlink_to("../../../blobs/1")
    (path / "inside.txt").symlink_to("real.txt")
    (path / "outside.txt").symlink_to(secret)
    (path / "folder").symlink_to(tmp_path)
    (path / "nowhere.txt").symlink_to("nowhere")
    paths.append(path)
  words = [*typed(tmp_path, *paths), "--allow_unrelated"]
  assert fixtures.command(*words) == 0
  said = "".join(capsys.readouterr())
  assert f"outside.txt (a link out of the directory, to {secret})" in said
  assert "nowhere.txt (a link that leads nowhere)" in said
  out = tmp_path / "o"
  assert (out / "blob.txt").read_text() == "of a blob"
  assert (out / "in/blob.txt").read_text() == "of a blob"
  assert (out / "cached.txt").read_text() == "of the cache"
  assert (out / "inside.txt").read_text() == "x"
  assert not any(p.is_symlink() for p in out.rglob("*"))
  gone = {"outside.txt", "folder", "nowhere.txt"}
  assert not gone & {p.name for p in out.iterdir()}
  (paths[1] / "tokenizer.json").symlink_to(secret)
  assert "a link out of" in "".join(refused(capsys, *words, "--overwrite"))


POINTER = (
  "version https://git-lfs.github.com/spec/v1\n"
  f"oid sha256:{'4d7a2146' * 8}\n"
  "size 12345\n"
)


@pytest.mark.parametrize(
  "name", ["model.safetensors", "tokenizer.json", "tokenizer.model"]
)
def test_1_6_pointers_of_git_lfs_are_named_as_such(tmp_path, capsys, name):
  paths = [directory(tmp_path / str(i), i) for i in (0, 1)]
  write(paths[1] / name, POINTER)
  words = [*typed(tmp_path, *paths), "--allow_unrelated"]
  [line] = refused(capsys, *words)
  assert name in line
  assert "git-lfs pointer" in line
  assert "git lfs pull" in line


def test_1_6_the_header_of_safetensors_is_kept(tmp_path):
  paths = [directory(tmp_path / str(i), i) for i in (0, 1)]
  header = {"format": "pt", "trained_on": "text"}
  save_file(tensors(1), paths[1] / "model.safetensors", header)
  fixtures.run(paths, tmp_path / "o", allow_unrelated=True)
  assert read_metadata(tmp_path / "o/model.safetensors") == header
  convert.convert(str(paths[1]), tmp_path / "hf", "hf")
  assert read_metadata(tmp_path / "hf/model.safetensors") == header


def test_1_6_a_part_with_weights_of_its_own_is_not_left_behind(
  tmp_path, capsys
):
  files = {
    "modules.json": [{"path": ""}, {"path": "2_Dense"}],
    "2_Dense/model.safetensors": b"1",
  }
  paths = [directory(tmp_path / str(i), i, files=files) for i in (0, 1)]
  lines = refused(capsys, *typed(tmp_path, *paths), "--allow_unrelated")
  assert all("the folder 2_Dense, which holds weights" in n for n in lines)


def test_2_1_what_differs_is_listed_in_the_card(tmp_path):
  more = {"eos_token_id": 7, "nested": {"x": [1]}}
  paths = [
    directory(tmp_path / "0", 0),
    directory(tmp_path / "1", 1, config={**CONFIG, **more}),
  ]
  fixtures.run(paths, tmp_path / "o", allow_unrelated=True)
  card = (tmp_path / "o/README.md").read_text()
  assert "| eos_token_id |  | 7 |" in card
  assert "| nested.x |  | [1] |" in card
  assert "rope_theta" not in card


def converted(path, tmp_path):
  """The tensors of a directory after a conversion to Orbax and back."""
  convert.convert(str(path), tmp_path / "orbax", "orbax")
  convert.convert(str(tmp_path / "orbax"), tmp_path / "back", "hf")
  return load_file(tmp_path / "back/model.safetensors")


@pytest.mark.parametrize(
  "name_of",
  [
    "_orig_mod.{}".format,
    "module.{}".format,
    "module._orig_mod.{}".format,
    "model.{}".format,
    "base_model.model.{}".format,
    lambda name: name.removeprefix("model."),
    lambda name: name.replace("layers.0.", "layers.0._orig_mod."),
    lambda name: name.replace("mlp.", "_checkpoint_wrapped_module.mlp."),
  ],
)
def test_2_4_prefixes_are_recognised_by_convert(tmp_path, name_of):
  path = directory(tmp_path / "in", 0, name_of=name_of)
  found = converted(path, tmp_path)
  assert found.keys() == tensors(0).keys()
  for name, array in tensors(0).items():
    np.testing.assert_array_equal(found[name], array)


def test_2_4_two_tensors_of_one_name_are_refused(tmp_path):
  path = directory(tmp_path / "in", 0)
  both = tensors(0)
  both["module.model.norm.weight"] = both["model.norm.weight"] + 1
  save_file(both, path / "model.safetensors", {"format": "pt"})
  with pytest.raises(InputError, match="are the same parameter"):
    load(path)


ADAPTER = {"base_model_name_or_path": "org/base"}
INDEX = {"weight_map": {"a": "pytorch_model-1-of-2.bin", "b": "x-2-of-2.bin"}}
NOT_TAKEN = {
  "consolidated": ({"consolidated.00.pth": b"1"}, "consolidated.00.pth, in"),
  "gguf": ({"m.Q4_K.gguf": b"1"}, "m.Q4_K.gguf, made for llama.cpp"),
  "adapter": (
    {"adapter_config.json": ADAPTER, "adapter_model.safetensors": b"1"},
    "an adapter.*org/base.*merge_and_unload",
  ),
  "shards": (
    {"model-00001-of-00002.safetensors": b"1"},
    "without the index model.safetensors.index.json",
  ),
  "other name": ({"weights.safetensors": b"1"}, "weights.safetensors"),
  "index alone": (
    {"pytorch_model.bin.index.json": INDEX},
    "an index, but none of its 2 shards",
  ),
  "nested": (
    {"x/model/config.json": "{}", "y/config.json": "{}", "y/m.bin": b"1"},
    "a model in x/model, y: name that folder",
  ),
  "tensorflow": ({"tf_model.h5": b"1"}, "tf_model.h5, of a kind"),
  "torch": ({"model.pt": b"1"}, "model.pt, of a kind"),
  "diffusers": ({"model_index.json": "{}"}, "a pipeline of diffusers"),
}


@pytest.mark.parametrize("config", [CONFIG, None], ids=["config", "none"])
@pytest.mark.parametrize("name", NOT_TAKEN)
def test_2_4_a_directory_that_is_not_taken_is_told_what_it_holds(
  tmp_path, name, config
):
  files, says = NOT_TAKEN[name]
  path = directory(tmp_path / "in", 0, config=config, files=files)
  (path / "model.safetensors").unlink()
  with pytest.raises(InputError) as error:
    convert.convert(str(path), tmp_path / "out", "hf")
  if config is None and name == "index alone":
    says = "pytorch_model.bin.index.json without its shards"
  assert any(re.search(says, p) for p in error.value.problems)


def test_2_4_a_file_and_an_empty_directory(tmp_path):
  path = directory(tmp_path / "in", 0)
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match="name the directory that holds it"):
    load(path / "model.safetensors")
  with pytest.raises(InputError, match="it is empty"):
    load(tmp_path / "empty")
  shutil.copytree(path, tmp_path / "run/checkpoints/epoch-1")
  with pytest.raises(InputError, match="a model in checkpoints/epoch-1"):
    load(tmp_path / "run")
  (path / "config.json").unlink()
  with pytest.raises(InputError, match="but no config.json"):
    load(path)


def test_2_5_a_folder_called_checkpoints_makes_no_workdir(tmp_path):
  files = {"checkpoints/5/x": "x", "checkpoints/epoch": "x"}
  paths = [directory(tmp_path / str(i), i, files=files) for i in (0, 1)]
  fixtures.run(paths, tmp_path / "o", allow_unrelated=True)
  mean = (tensors(0)["lm_head.weight"] + tensors(1)["lm_head.weight"]) / 2
  found = load_file(tmp_path / "o/model.safetensors")["lm_head.weight"]
  np.testing.assert_allclose(found, mean, rtol=1e-6)


def shards(stem, index):
  """Two files of tensors and their index."""

  def make(path):
    names = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    all_of_them = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    places = {n: names[i % 2] for i, n in enumerate(all_of_them)}
    for name in names:
      part = {n: all_of_them[n] for n, f in places.items() if f == name}
      save_file(part, path / name, {"format": "pt"})
    write(path / index, {"weight_map": places})

  return make


def renamed(name):
  return lambda path: (path / "model.safetensors").rename(path / name)


@pytest.mark.parametrize(
  ("make", "output"),
  [
    (renamed("model.fp16.safetensors"), "model"),
    (renamed("diffusion_pytorch_model.safetensors"), "diffusion_pytorch_model"),
    (
      renamed("diffusion_pytorch_model.fp16.safetensors"),
      "diffusion_pytorch_model",
    ),
    (
      shards("model.fp16", "model.safetensors.index.fp16.json"),
      "model",
    ),
    (
      shards(
        "diffusion_pytorch_model",
        "diffusion_pytorch_model.safetensors.index.json",
      ),
      "diffusion_pytorch_model",
    ),
  ],
)
def test_2_5_weights_under_the_names_of_variants_and_diffusers(
  tmp_path, make, output
):
  paths = [directory(tmp_path / str(i), i) for i in (0, 1)]
  for path in paths:
    make(path)
  for overwrite in (False, True):
    fixtures.run(
      paths, tmp_path / "o", allow_unrelated=True, overwrite=overwrite
    )
  found = load_file(tmp_path / f"o/{output}.safetensors")
  for name, array in found.items():
    mean = (tensors(0)[name] + tensors(1)[name]) / 2
    np.testing.assert_allclose(array, mean, rtol=1e-6, atol=1e-7)


def test_2_5_the_plain_name_is_preferred_and_two_variants_are_refused(
  tmp_path,
):
  path = directory(tmp_path / "in", 0)
  shutil.copy(path / "model.safetensors", path / "model.bf16.safetensors")
  save_file(tensors(1), path / "model.fp16.safetensors", {"format": "pt"})
  first = load(path).params["final_norm"]["scale"]
  np.testing.assert_array_equal(first, tensors(0)["model.norm.weight"])
  (path / "model.safetensors").unlink()
  with pytest.raises(InputError, match="which of them holds the model"):
    load(path)


def test_1_5_a_search_has_both_permissions(tmp_path):
  paths = [
    directory(
      tmp_path / str(i), i, files={"tokenizer.json": value, "x.log": "x"}
    )
    for i, value in enumerate((TOKENIZER, tokenizer_json(merges=[])))
  ]

  said = []

  def problems(**allowed):
    with pytest.raises(InputError) as error:
      search.search(
        config_of("search"),
        tmp_path / "run",
        inputs=[str(path) for path in paths],
        progress=Telling(lambda *words: said.append(words[-1])),
        **allowed,
      )
    return "".join(error.value.problems)

  found = problems(allow_unrelated=True)
  assert "--allow_other_tokenizer accepts it" in found
  assert "--allow_unrelated accepts it" not in found
  found = problems(allow_other_tokenizer=True)
  assert "--allow_other_tokenizer accepts it" not in found
  assert "--allow_unrelated accepts it" in found
  assert any("x.log (a log)" in text for text in said)
