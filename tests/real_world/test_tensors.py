"""Tensors that are not weights, or not of one dtype, in real directories."""

import dataclasses
import json
import pickle
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxmerge import convert, merge
from jaxmerge.checkpoints.compatibility import check_mergeable
from jaxmerge.checkpoints.model_inputs import open_models
from jaxmerge.checkpoints.store import restore_params, save_params
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import (
  abstract_params,
  describe_leaves,
  read_metadata,
)
from jaxmerge.merging.groups import one_group
from jaxmerge.merging.resident import (
  IN_HOST_MEMORY,
  IN_STORAGE,
  ON_DEVICES,
  open_trees,
)
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import named_leaves, shardings
from tests.merging import fixtures
from tests.merging.fixtures import write_torch_file
from tests.real_world import made
from tests.real_world.made import BF16, F8, directory, noise, plain


def words(seed, *shape, dtype=np.int32):
  return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def linear(**parts):
  """One quantized layer in the middle of a model."""
  return {f"model.layers.0.q_proj.{name}": x for name, x in parts.items()}


# As tools write them; no word of it in config.json.
QUANTIZED = {
  "fp8 of DeepSeek": lambda i: linear(
    weight=noise(4, 4, seed=i, dtype=F8), weight_scale_inv=noise(1, 1, seed=i)
  ),
  "fp8 of compressed-tensors": lambda i: linear(
    weight=noise(4, 4, seed=i, dtype=F8),
    weight_scale=noise(4, 1, seed=i, dtype=BF16),
  ),
  "fp8 of another tool": lambda i: linear(
    weight=noise(4, 4, seed=i, dtype=ml_dtypes.float8_e5m2),
    scale=noise(1, seed=i),
  ),
  "a part of a stack": lambda i: {
    "experts.gate_up_proj": noise(2, 4, 4, seed=i, dtype=F8),
    "experts.gate_up_proj_scale": noise(2, 1, 1, seed=i),
  },
  "int4 of GPTQ": lambda i: linear(
    qweight=words(i, 4, 4),
    qzeros=words(i, 1, 4),
    scales=noise(1, 4, seed=i, dtype=np.float16),
    g_idx=words(i, 4),
  ),
  "int4 of compressed-tensors": lambda i: linear(
    weight_packed=words(i, 4, 4),
    weight_scale=noise(4, 1, seed=i),
    weight_shape=np.int64([4, 32]),
  ),
  "int8 of bitsandbytes": lambda i: linear(
    weight=words(i, 4, 4, dtype=np.int8), SCB=noise(4, seed=i)
  ),
  "NF4 of bitsandbytes": lambda i: {
    "layers.0.weight": words(i, 8, 1, dtype=np.uint8),
    "layers.0.weight.absmax": noise(2, seed=i),
    "layers.0.weight.quant_map": noise(16, seed=9),
    "layers.0.weight.quant_state.bitsandbytes__nf4": words(i, 9, dtype="u1"),
  },
  "NVFP4 of ModelOpt": lambda i: linear(
    weight=words(i, 4, 4, dtype=np.uint8),
    weight_scale=noise(4, 1, seed=i, dtype=F8),
    weight_scale_2=np.float32(i),
  ),
  "MXFP4": lambda i: {
    "mlp.experts.down_proj_blocks": words(i, 2, 4, 2, dtype=np.uint8),
    "mlp.experts.down_proj_scales": words(i, 2, 4, dtype=np.uint8),
  },
  "HQQ": lambda i: linear(
    W_q=words(i, 4, 4, dtype=np.uint8),
    scale=noise(4, 1, seed=i),
    zero=noise(4, 1, seed=i),
  ),
  "MLX": lambda i: linear(
    weight=words(i, 4, 4, dtype=np.uint32),
    scales=noise(4, 1, seed=i),
    biases=noise(4, 1, seed=i),
  ),
  "quanto": lambda i: {
    "layer.weight._data": words(i, 4, 4, dtype=np.int8),
    "layer.weight._scale": noise(4, 1, seed=i),
  },
  "experts of whole numbers": lambda i: {
    "experts.w13_weight": words(i, 2, 4, 4, dtype=np.int8)
  },
  "a fake quantizer": lambda i: {
    "layer.weight": noise(4, 4, seed=i),
    "layer.weight_quantizer._amax": np.float32(i),
  },
  "blocks of GGUF": lambda i: {
    "blk.0.attn_q.weight": words(i, 4, 18, dtype=np.uint8)
  },
}


@pytest.mark.parametrize("tool", QUANTIZED)
def test_quantized_tensors_are_told_by_themselves(tmp_path, capsys, tool):
  paths = [
    directory(tmp_path / str(i), {**plain(i), **QUANTIZED[tool](i)})
    for i in (1, 2)
  ]
  lines = made.refused(capsys, paths, tmp_path / "out")
  assert len(lines) == 2
  for path, line in zip(paths, lines):
    assert line.startswith(f"{path} is quantized, as ")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("config", "files"),
  [
    ({"quantization_config": {"quant_method": "fp8"}}, {}),
    ({"compression_config": {"format": "int-quantized"}}, {}),
    ({"quantization": {"group_size": 64, "bits": 4}}, {}),
    ({"text_config": {"quantization_config": {"bits": 4}}}, {}),
    ({"quantization_bit": 4}, {}),
    ({}, {"hf_quant_config.json": {"quantization": {"quant_algo": "FP8"}}}),
    ({}, {"quantize_config.json": {"bits": 4}}),
    ({}, {"quant_config.json": {"w_bit": 4}}),
    ({}, {"quanto_qmap.json": {}}),
  ],
  ids=str,
)
def test_quantization_is_said_in_any_key_or_file(
  tmp_path, capsys, config, files
):
  paths = [
    directory(tmp_path / str(i), plain(i), config, files=files) for i in (1, 2)
  ]
  lines = made.refused(capsys, paths, tmp_path / "out")
  assert len(lines) == 2
  name = next(iter(files or config))
  for path, line in zip(paths, lines):
    assert line.startswith(f"{path} is quantized, says ")
    assert name in line


@pytest.mark.parametrize(
  "config",
  [
    {"quantization_config": None},
    {"quantization": False, "quantization_bit": 0, "quantizer_dropout": 0.5},
    {"num_quantizers": 8, "use_vector_quantization": True},
  ],
  ids=str,
)
def test_what_only_sounds_quantized_is_merged(tmp_path, config):
  def tensors(i):
    return {
      **plain(i),
      "logit_scale": np.float32(i),
      "layer_scale.scale": noise(4, seed=i),
      "quantizer.codebook.embed": noise(4, 3, seed=i),
      "q_a_proj.weight": noise(2, 4, seed=i),
      "attn.scale": np.float32([i]),
      "attn.mask": np.tril(np.ones((3, 3), np.uint8)),
      "attn.W_q": noise(3, 3, seed=i),
      "attn.w_lora.lora.0.weight": noise(2, 4, seed=i),
      "conv.parametrizations.weight.original0": noise(2, 1, seed=i),
    }

  paths = [directory(tmp_path / str(i), tensors(i), config) for i in (1, 2)]
  found = made.merged(paths, tmp_path / "out")
  for name, array in found.items():
    mean = (tensors(1)[name] + np.float32(tensors(2)[name])) / 2
    np.testing.assert_allclose(array, mean, rtol=1e-6)


def test_a_quantized_model_is_not_converted(tmp_path):
  quantized = {"quantization_config": {"quant_method": "fp8"}}
  made.llama(tmp_path / "said", 1, **quantized)
  packed = made.llama_tensors(1)
  name = "model.layers.1.mlp.up_proj.weight"
  packed[name] = packed[name].astype(F8)
  packed["model.layers.1.mlp.up_proj.weight_scale_inv"] = noise(1, 1)
  made.llama(tmp_path / "packed", tensors=packed)
  for path in ("said", "packed"):
    with pytest.raises(InputError, match="is quantized, "):
      convert.convert(str(tmp_path / path), tmp_path / "out", "orbax")
  assert not (tmp_path / "out").exists()


FACTORS = [
  "model.q_proj.lora_A.default.weight",
  "model.q_proj.lora_A.weight",
  "model.q_proj.lora_magnitude_vector.weight",
  "model.q_proj.base_layer.weight",
  "model.q_proj.hada_w1_a",
  "model.q_proj.lokr_w2",
  "model.q_proj.ia3_l",
  "model.q_proj.oft_R",
  "unet.attn1.processor.to_q_lora.down.weight",
  "lora_unet_mid_block_attn1.lora_up.weight",
  "lora_te_text_model.lora_down.weight",
  "attn.lora.up.weight",
  "fc.weight_mask",
]


@pytest.mark.parametrize("name", FACTORS)
def test_factors_of_weights_are_not_averaged(tmp_path, capsys, name):
  paths = [
    directory(tmp_path / str(i), {**plain(i), name: noise(2, 4, seed=i)})
    for i in (1, 2)
  ]
  lines = made.refused(capsys, paths, tmp_path / "out")
  assert len(lines) == 2
  for path, line in zip(paths, lines):
    assert line.startswith(f"{path}: tensor {name} is a factor of a weight")
    assert "merge_and_unload" in line


@pytest.mark.parametrize("config", [False, {}], ids=["alone", "beside a model"])
@pytest.mark.parametrize("kind", ["LORA", "PROMPT_TUNING"])
def test_an_adapter_is_called_one(tmp_path, capsys, config, kind):
  about = {"peft_type": kind, "base_model_name_or_path": "some/base"}
  paths = [
    directory(
      tmp_path / str(i),
      plain(i),
      config,
      files={"adapter_config.json": about},
      names="adapter_model.safetensors",
    )
    for i in (1, 2)
  ]
  lines = made.refused(capsys, paths, tmp_path / "out")
  assert len(lines) == 2
  for path, line in zip(paths, lines):
    assert line.startswith(f"{path} holds an adapter")
    assert "merge it into some/base first" in line


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize(
  ("tensors", "says"),
  [
    ({}, "holds no tensor of floating-point numbers"),
    ({"position_ids": np.arange(4)[None]}, "holds no tensor of floating-point"),
    (
      {n: np.zeros(0, np.float32) for n in plain()},
      "tensor proj.weight has shape [0]: it was saved without its contents "
      "(by one process of several, as ZeRO-3 has them?) (2 of this kind)",
    ),
    ({**plain(), "a.weight": np.zeros((0, 3), np.float32)}, "a.weight has"),
  ],
  ids=["none", "no weights", "ZeRO-3", "one"],
)
def test_empty_content_is_refused(tmp_path, capsys, form, tensors, says):
  paths = []
  for i in (1, 2):
    is_bin = form == "bin"
    names = "" if is_bin else None
    paths.append(directory(tmp_path / str(i), tensors, names=names))
    if is_bin:
      write_torch_file(paths[-1] / "pytorch_model.bin", tensors)
  lines = made.refused(capsys, paths, tmp_path / "out")
  assert len(lines) == 2
  for path, line in zip(paths, lines):
    assert line.startswith(str(path))
    assert says in line


@pytest.mark.parametrize(
  ("config", "says"),
  [
    (
      {"vocab_size": 13},
      "tensor model.embed_tokens.weight has shape [12, 8], its config.json "
      "says [13, 8] (2 of this kind)",
    ),
    (
      {"num_hidden_layers": 10**12},
      "config.json says 1000000000000 layers, of which 21 tensors cannot be",
    ),
    ({"intermediate_size": 7}, "has shape [6, 8], its config.json says [7, 8]"),
    (
      {"num_hidden_layers": 3},
      "no tensor model.layers.2.input_layernorm.weight, which its config.json "
      "asks for (9 of this kind)",
    ),
    (
      {"num_hidden_layers": 1},
      "tensor model.layers.1.input_layernorm.weight is of a layer that its "
      "config.json does not have (9 of this kind)",
    ),
  ],
  ids=str,
)
def test_shapes_that_contradict_the_config_are_refused(
  tmp_path, capsys, config, says
):
  paths = [made.llama(tmp_path / str(i), i, **config) for i in (1, 2)]
  lines = made.refused(capsys, paths, tmp_path / "out")
  assert len(lines) == 2
  for path, line in zip(paths, lines):
    assert line.startswith(f"{path}: ")
    assert says in line


@pytest.mark.parametrize(
  "changes",
  [
    {"architectures": ["LlamaForSequenceClassification"]},
    {"architectures": ["LlamaModel"]},
    {"rope_scaling": {"rope_type": "of tomorrow"}},
  ],
  ids=str,
)
def test_another_architecture_of_a_known_family_is_merged(tmp_path, changes):
  """A head of another kind, no head, or settings that are not known."""

  def tensors(i):
    found = made.llama_tensors(i)
    del found["lm_head.weight"]
    return {**found, "score.weight": noise(2, 8, seed=i)}

  paths = [
    made.llama(tmp_path / str(i), tensors=tensors(i), **changes) for i in (1, 2)
  ]
  found = made.merged(paths, tmp_path / "out")
  mean = (tensors(1)["score.weight"] + tensors(2)["score.weight"]) / 2
  np.testing.assert_allclose(found["score.weight"], mean, rtol=1e-6)


def expanded(path, tensors, shape, strides):
  """A .bin whose last tensor is what torch's `expand` makes of its storage."""
  array = list(tensors.values())[-1]
  write_torch_file(path, tensors)
  with zipfile.ZipFile(path) as archive:
    members = {n: archive.read(n) for n in archive.namelist()}

  def value(x):
    return pickle.dumps(x, protocol=2)[2:-1]

  old = value(array.shape) + value((1,))
  assert members["model/data.pkl"].count(old) == 1
  new = value(shape) + value(strides)
  members["model/data.pkl"] = members["model/data.pkl"].replace(old, new)
  with zipfile.ZipFile(path, "w") as archive:
    for name, content in members.items():
      archive.writestr(name, content)


def test_stride_0_in_a_bin_is_read(tmp_path):
  paths = []
  for i in (1, 2):
    paths.append(directory(tmp_path / str(i), {}, names=""))
    tensors = {**plain(i), "bias": np.float32([i, 2, 3, 4, 5, 6])}
    expanded(paths[-1] / "pytorch_model.bin", tensors, (7, 6), (0, 1))
  found = made.merged(paths, tmp_path / "out")
  np.testing.assert_array_equal(found["bias"], [[1.5, 2, 3, 4, 5, 6]] * 7)


def test_stride_0_does_not_make_much_of_nothing(tmp_path, capsys):
  paths = [directory(tmp_path / str(i), {}, names="") for i in (1, 2)]
  for path in paths:
    tensors = {**plain(), "bias": np.float32([1, 2, 3, 4, 5, 6])}
    expanded(path / "pytorch_model.bin", tensors, (10**10, 6), (0, 1))
  lines = made.refused(capsys, paths, tmp_path / "out")
  assert len(lines) == 2
  assert all("bytes more than there are in it" in line for line in lines)


def both(tmp_path, make, **kwargs):
  """Two directories of what `make` makes of 1 and 2."""
  return [directory(tmp_path / str(i), make(i), **kwargs) for i in (1, 2)]


def told(capsys, output):
  """What a merge says of tensors: on the way, in the card, and kept."""
  said = "".join(capsys.readouterr())
  card = (output / "README.md").read_text()
  kept = json.loads((output / "jaxmerge.json").read_text())
  notes = kept["provenance"].get("tensors", [])
  assert all(note in said for note in notes), said
  assert all(json.dumps(note)[1:-1] in card for note in notes)
  return notes


def test_counters_are_those_of_the_latest_input(tmp_path, capsys):
  def tensors(i):
    batches = {f"bn.{n}.num_batches_tracked": np.int64(i) for n in range(3)}
    more = {
      "queue_ptr": np.int64([i]),
      "loads": words(i, 3, 4, dtype=np.int64),
      "flag": np.bool_([i > 1]),
      "bn.0.running_var": np.float32([i, 4]),
    }
    return {**plain(i), **batches, **more}

  found = made.merged(both(tmp_path, tensors), tmp_path / "out")
  np.testing.assert_array_equal(found["bn.0.running_var"], [1.5, 4])
  for name, array in tensors(2).items():
    if array.dtype != np.float32:
      assert found[name].dtype == array.dtype
      np.testing.assert_array_equal(found[name], array)
  assert told(capsys, tmp_path / "out") == [
    "bn.0.num_batches_tracked, bn.1.num_batches_tracked and 4 more: not "
    "averaged, taken from the latest input"
  ]


def test_the_latest_input_is_that_of_the_latest_step(tmp_path):
  paths = [
    directory(
      tmp_path / "ab"[i - 1],
      {**plain(i), "batches": np.int64(i)},
      files={"jaxmerge.json": fixtures.origin(3 - i)},
    )
    for i in (1, 2)
  ]
  assert made.merged(paths, tmp_path / "out")["batches"] == 1
  # Of those that weigh anything.
  weights = ["--config.method=weights", "--weights=0,1"]
  assert made.merged(paths, tmp_path / "o", *weights)["batches"] == 2


MASKS = ["attn_mask", "h.0.attn.bias", "some.buffer"]


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(
  "words",
  [[], ["--config.method=karcher"], ["--config.dtype=bfloat16"]],
  ids=str,
)
def test_an_equal_mask_of_minus_infinity_is_copied(tmp_path, name, words):
  mask = np.triu(np.full((1, 1, 5, 5), -np.inf, np.float32), 1) + 0.1
  paths = both(tmp_path, lambda i: {**plain(i), name: mask})
  found = made.merged(paths, tmp_path / "out", *words)
  expected = mask
  if name == "some.buffer" and "dtype" in str(words):
    expected = mask.astype(BF16)
  assert found[name].tobytes() == expected.tobytes()


def test_a_mask_that_differs_is_found_before_the_merge(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(merge, "run_streamed", None)

  def tensors(i):
    mask = np.triu(np.full((5, 5), -np.inf, np.float32), i)
    return {**plain(i), "attn_mask": mask}

  lines = made.refused(capsys, both(tmp_path, tensors), tmp_path / "out")
  assert lines == ["attn_mask: NaN or Inf, and not the same in all inputs"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_other_numbers_that_are_not_finite_are_no_mask(tmp_path, capsys, value):
  def tensors(i):
    return {**plain(i), "norm.weight": np.float32([1, value, 3, 4, 5])}

  paths = both(tmp_path, tensors)
  lines = made.refused(capsys, paths, tmp_path / "out")
  assert lines == [f"{path}: norm.weight holds NaN or Inf" for path in paths]


DERIVED = {
  "model.layers.0.self_attn.rotary_emb.inv_freq": np.float32([1, 0.1]),
  "rotary_pos_emb.inv_freq": np.float64([1, 0.1]),
  "embeddings.position_ids": np.arange(4)[None],
  "h.0.attn.bias": np.tril(np.ones((1, 1, 4, 4), np.uint8)),
  "h.0.attn.masked_bias": np.float32(-1e4),
  "bn.num_batches_tracked": np.int64(7),
}


@pytest.mark.parametrize("name", DERIVED)
@pytest.mark.parametrize("which", [1, 2])
def test_what_is_derived_may_be_in_one_only(tmp_path, capsys, name, which):
  def tensors(i):
    return {**plain(i), **({name: DERIVED[name]} if i == which else {})}

  found = made.merged(both(tmp_path, tensors), tmp_path / "out")
  assert found.keys() == plain().keys()
  assert told(capsys, tmp_path / "out") == [
    f"{name}: not in all inputs and not needed, left out"
  ]


@pytest.mark.parametrize("name", DERIVED)
def test_what_is_derived_is_copied_from_the_latest(tmp_path, name):
  """Where it is in all: of other lengths and dtypes in older files too."""

  def tensors(i):
    array = DERIVED[name]
    shaped = array.repeat(3 - i, axis=-1) if array.ndim == 2 else array
    return {**plain(i), name: shaped.astype(array.dtype if i == 2 else "f4")}

  found = made.merged(both(tmp_path, tensors), tmp_path / "out")
  assert found[name].dtype == DERIVED[name].dtype
  np.testing.assert_array_equal(found[name], DERIVED[name])


TIED = [
  ("lm_head.weight", "model.embed_tokens.weight"),
  ("encoder.embed_tokens.weight", "shared.weight"),
  ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
  ("cls.predictions.decoder.bias", "cls.predictions.bias"),
  ("lm_head.weight", "transformer.wte.weight"),
]


@pytest.mark.parametrize(("copy", "name"), TIED)
@pytest.mark.parametrize("which", [1, 2])
def test_a_copy_of_the_tied_embedding_may_be_in_one_only(
  tmp_path, copy, name, which
):
  shape = (4,) if name.endswith("bias") else (6, 3)

  def tensors(i):
    array = noise(*shape, seed=10 + i)
    return {**plain(i), name: array, **({copy: array} if i == which else {})}

  found = made.merged(both(tmp_path, tensors), tmp_path / "out")
  assert found.keys() == {*plain(), name}
  mean = (tensors(1)[name] + tensors(2)[name]) / 2
  np.testing.assert_allclose(found[name], mean, rtol=1e-6)


def test_a_head_of_its_own_must_be_in_all(tmp_path, capsys):
  """Also where one of three has a copy, and another something else."""
  name = "lm_head.weight"
  embed = {i: noise(6, 3, seed=i) for i in range(3)}
  heads = [{name: embed[0]}, {name: embed[0]}, {}]
  paths = [
    directory(
      tmp_path / str(i),
      {**plain(i), "model.embed_tokens.weight": embed[i], **heads[i]},
    )
    for i in range(3)
  ]
  lines = made.refused(capsys, paths, tmp_path / "out")
  assert lines == [f"{paths[1]} has a parameter {name} that {paths[2]} has not"]
  # Layers that begin alike are no copies of each other.
  ones = np.ones((3, 3), np.float32)
  paths = [
    directory(tmp_path / f"ones{i}", {"a.weight": ones, **more})
    for i, more in enumerate(({}, {"b.weight": ones}))
  ]
  lines = made.refused(capsys, paths, tmp_path / "out")
  assert len(lines) == 1


def test_convert_says_differences_of_a_kind_in_one_line(tmp_path):
  tensors = made.llama_tensors(1)
  odd = {n: x for n, x in tensors.items() if "mlp" not in n and "q_" not in n}
  odd |= {n: x[1:] for n, x in tensors.items() if "q_proj" in n}
  made.llama(tmp_path / "in", tensors={**odd, "a": noise(1), "b": noise(1)})
  with pytest.raises(InputError) as error:
    open_models([str(tmp_path / "in")])
  path = tmp_path / "in"
  assert error.value.problems == [
    f"{path}: no tensor model.layers.0.mlp.down_proj.weight (6 of this kind)",
    f"{path}: tensor a is not used (2 of this kind)",
    f"{path}: tensor model.layers.0.self_attn.q_proj.weight has shape [7, 8], "
    "not [8, 8] (2 of this kind)",
  ]


def test_a_search_and_convert_leave_out_the_same(tmp_path):
  angles = {"model.rotary_emb.inv_freq": np.float32([1, 0.1])}
  tensors = {**made.llama_tensors(1), **angles}
  made.llama(tmp_path / "in", tensors=tensors)
  convert.convert(str(tmp_path / "in"), tmp_path / "step", "orbax")
  [model] = open_models([str(tmp_path / "in")])
  assert model.metadata.step == 0


def test_packed_numbers_without_a_scale_must_be_the_same(tmp_path, capsys):
  def tensors(i):
    return {**plain(i), "proj.trellis": words(i, 4, 4)}

  lines = made.refused(capsys, both(tmp_path, tensors), tmp_path / "out")
  assert len(lines) == 1
  assert lines[0].startswith("proj.trellis: whole numbers of an array")


def test_float64_is_merged_as_asked(tmp_path, capsys):
  def tensors(i):
    return {n: x.astype(np.float64) for n, x in plain(i).items()}

  paths = both(tmp_path, tensors)
  lines = made.refused(capsys, paths, tmp_path / "out")
  assert len(lines) == 1
  assert "float64" in lines[0]
  found = made.merged(paths, tmp_path / "out", "--config.dtype=float32")
  for name, array in plain(1).items():
    mean = (array + plain(2)[name]) / 2
    np.testing.assert_allclose(found[name], mean, rtol=1e-6)


def test_float8_without_scales_is_plain_numbers(tmp_path, capsys):
  paths = both(tmp_path, lambda i: plain(i, F8))
  found = made.merged(paths, tmp_path / "out")
  for name, array in plain(1, F8).items():
    mean = (array.astype("f4") + plain(2, F8)[name].astype("f4")) / 2
    assert found[name].tobytes() == mean.astype(F8).tobytes()
  assert "float8 without scales" in told(capsys, tmp_path / "out")[0]


def stated(path):
  return json.loads((path / "config.json").read_text())


@pytest.mark.parametrize(
  ("dtypes", "asked", "expected"),
  [
    ((BF16, np.float32), "", np.float32),
    ((np.float32, BF16), "", np.float32),
    ((np.float16, BF16), "", np.float32),
    ((F8, BF16), "", BF16),
    ((BF16, BF16), "float32", np.float32),
    ((BF16, np.float32), "bfloat16", BF16),
    ((np.float32, np.float32), "float16", np.float16),
    ((BF16, np.float16), "float16", np.float16),
  ],
  ids=str,
)
@pytest.mark.parametrize("method", ["uniform", "karcher"])
def test_mixed_dtypes_are_summed_in_float32(
  tmp_path, dtypes, asked, expected, method
):
  trees = [plain(i, dtype) for i, dtype in enumerate(dtypes)]
  said = {"torch_dtype": "bfloat16", "text_config": {"dtype": "float16"}}
  paths = [
    directory(tmp_path / str(i), tree, said) for i, tree in enumerate(trees)
  ]
  found = made.merged(
    paths,
    tmp_path / "out",
    f"--config.dtype={asked}",
    f"--config.method={method}",
  )
  name = np.dtype(expected).name
  config = stated(tmp_path / "out")
  assert config["torch_dtype"] == config["text_config"]["dtype"] == name
  for name, array in found.items():
    assert array.dtype == expected
    if method == "uniform":
      a, b = (tree[name].astype(np.float32) for tree in trees)
      mean = np.float32(0.5) * a + np.float32(0.5) * b
      assert array.tobytes() == mean.astype(expected).tobytes()


def test_a_config_that_agrees_is_kept_as_it_is(tmp_path):
  text = '{"model_type":  "x", "torch_dtype": "float32", "a": NaN}\r\n'
  paths = [
    directory(tmp_path / str(i), plain(i), files={"config.json": text})
    for i in (1, 2)
  ]
  for path in paths:
    (path / "config.json").write_text(text)
  made.merged(paths, tmp_path / "out")
  assert (tmp_path / "out/config.json").read_bytes() == text.encode()


def test_a_dtype_that_is_too_narrow_is_refused(tmp_path, capsys):
  def tensors(i):
    return {**plain(i), "norm.weight": np.float32([1e6, 2, 3, 4, 5])}

  words = ["--config.dtype=float16"]
  paths = both(tmp_path, tensors)
  lines = made.refused(capsys, paths, tmp_path / "out", *words)
  assert lines == ["the merged norm.weight is too large for its dtype"]


def test_one_alone_is_cast_too(tmp_path):
  paths = both(tmp_path, lambda i: {**plain(i), "batches": np.int64(i)})
  words = ["--config.method=weights", "--weights=1,0", "--config.dtype=float16"]
  found = made.merged(paths, tmp_path / "out", *words)
  for name, array in plain(1, np.float16).items():
    assert found[name].tobytes() == array.tobytes()
  assert found["batches"] == 1


def test_differences_of_one_kind_are_one_line(tmp_path, capsys):
  names = [f"layers.{i}.weight" for i in range(289)]
  first = {n: noise(2, 2) for n in names} | {f"a.{n}": noise(2) for n in "xyz"}
  other = {n: noise(2, 3) for n in names} | {f"b.{n}": noise(2) for n in "xyz"}
  paths = [
    directory(tmp_path / str(i), tree) for i, tree in enumerate((first, other))
  ]
  a, b = paths
  assert made.refused(capsys, paths, tmp_path / "out") == [
    f"{b} has no parameter a.x (3 of this kind)",
    f"{b} has a parameter b.x that {a} has not (3 of this kind)",
    f"{b}: shape of layers.0.weight is [2, 3], of {a} [2, 2] "
    "(289 of this kind)",
  ]


@pytest.mark.parametrize("model_type", ["anything", "llama"])
def test_nan_in_a_config_is_itself(tmp_path, model_type):
  odd = {"rope_theta": float("nan"), "rms_norm_eps": float("nan")}
  config = {**made.LLAMA, **odd, "model_type": model_type}
  tensors = made.llama_tensors
  paths = both(tmp_path, tensors, config=config)
  assert made.merged(paths, tmp_path / "out").keys() == tensors().keys()


@pytest.fixture
def narrow(tiny_run, tmp_path):
  """Step 8 of the tiny run in bfloat16."""
  path = tiny_run / "checkpoints/8"
  params = jax.tree.map(lambda x: x.astype(BF16), restore_params(path))
  leaves = {"params": describe_leaves(params)}
  metadata = dataclasses.replace(read_metadata(path), leaves=leaves)
  save_params(tmp_path / "narrow", params, metadata)
  return tmp_path / "narrow"


@pytest.mark.parametrize("method", ["uniform", "metric", "fisher"])
@pytest.mark.parametrize("dtype", ["", "bfloat16"])
def test_step_directories_of_two_dtypes_are_merged(
  tiny_run, narrow, tmp_path, method, dtype
):
  changes = {"dtype": dtype, "search_sequences": 8, "batch_size": 8}
  inputs = [narrow, f"{tiny_run}@12"]
  fixtures.run(inputs, tmp_path / "out", method, changes=changes)
  merged = named_leaves(restore_params(tmp_path / "out"))
  described = read_metadata(tmp_path / "out").leaves["params"]
  for name, leaf in merged.items():
    assert str(leaf.dtype) == described[name]["dtype"] == (dtype or "float32")
    assert np.all(np.isfinite(leaf.astype(np.float32)))


@pytest.mark.parametrize("place", [ON_DEVICES, IN_HOST_MEMORY, IN_STORAGE])
def test_a_search_takes_two_dtypes(tiny_run, narrow, place):
  checkpoints = open_models([str(narrow), f"{tiny_run}@12"])
  check_mergeable(checkpoints)
  where = shardings(abstract_params(checkpoints[0].metadata), make_mesh())
  trees = open_trees(checkpoints, where, place)
  merged = trees.average([[0.5, 0.5]], one_group(where))
  two = [restore_params(c.path) for c in checkpoints]

  def check(found, a, b):
    assert found.dtype == np.float32
    mean = (a.astype(np.float32) + b) / 2
    np.testing.assert_allclose(found, mean, rtol=1e-6, atol=1e-7)

  jax.tree.map(check, merged, *two)
