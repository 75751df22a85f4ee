"""Each family's table of names is a bijection, and so is its config.json."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from jaxmerge.errors import InputError
from jaxmerge.formats.lazy_tensors import leaves_of, tree_of_leaves
from jaxmerge.huggingface.families import table
from jaxmerge.merging.groups import groups_of
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.model.rope import RopeScaling
from jaxmerge.model.shapes import param_shapes
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import named_leaves, shardings
from tests.helpers import DECODER, NEOX


def replace(config=DECODER, **options):
  return dataclasses.replace(config, **options)


CONFIGS = {
  "llama": DECODER,
  "llama tied": replace(tie_word_embeddings=True),
  "llama biases": replace(attention_bias="all", mlp_bias=True),
  "llama head_dim": replace(head_dim=6),
  "llama linear": replace(rope_scaling=RopeScaling("linear", 2.0)),
  "llama dynamic": replace(rope_scaling=RopeScaling("dynamic", 2.0, 64)),
  "llama llama3": replace(rope_scaling=RopeScaling("llama3", 2.0, 64)),
  "llama yarn": replace(
    rope_scaling=RopeScaling("yarn", 2.0, 64, 1.0, 32.0, 1.1, False)
  ),
  "qwen2": replace(attention_bias="qkv"),
  "qwen2 tied": replace(attention_bias="qkv", tie_word_embeddings=True),
  "qwen3": replace(query_key_norm="head", head_dim=8),
  "qwen3 biases": replace(query_key_norm="head", attention_bias="all"),
  "olmo2": replace(query_key_norm="projection", norm_after=True),
  "olmo2 tied": replace(
    query_key_norm="projection", norm_after=True, tie_word_embeddings=True
  ),
  "gpt_neox": NEOX,
  "gpt_neox tied": replace(NEOX, tie_word_embeddings=True),
  "gpt_neox series": replace(
    NEOX, parallel_residual=False, attention_bias="", activation="gelu_tanh"
  ),
  "baichuan": replace(num_key_value_heads=4, unit_head=True),
}


def numbered_params(config):
  """Parameters in which every number of the whole tree is another one."""
  _, abstract = abstract_decoder(config)
  start = 1

  def numbered(leaf):
    nonlocal start
    size = math.prod(leaf.shape)
    values = np.arange(start, start + size, dtype=np.float32)
    start += size
    return values.reshape(leaf.shape)

  params = jax.tree.map(numbered, abstract)
  params["embed"]["embedding"][config.vocab_size :] = 0
  if not config.tie_word_embeddings:
    params["head"]["kernel"][:, config.vocab_size :] = 0
  return params


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_are_those_of_the_decoder(name):
  _, abstract = abstract_decoder(CONFIGS[name])
  expected = {n: leaf.shape for n, leaf in named_leaves(abstract).items()}
  assert list(param_shapes(CONFIGS[name]).items()) == list(expected.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_has_one_place_and_comes_back(name):
  config = CONFIGS[name]
  family = table.family_of_config(config)
  assert family.name == name.split()[0]
  params = numbered_params(config)
  used = [
    n for tensor in family.table(named_leaves(params)) for n in tensor.flax
  ]
  assert sorted(used) == sorted(named_leaves(params))
  tensors = dict(table.to_tensors(leaves_of(params), config, family))
  listed = list(table.to_tensors(leaves_of(params), config, family))
  assert len(listed) == len(tensors)
  # Every number of ours, without the padding, is in theirs once.
  hf = np.sort(np.concatenate([a.ravel() for a in tensors.values()]))
  flax = np.sort(np.concatenate([a.ravel() for a in jax.tree.leaves(params)]))
  np.testing.assert_array_equal(hf, flax[flax > 0])
  found = table.flax_leaves(tensors, config, family)
  back = tree_of_leaves(
    {name: np.asarray(leaf) for name, leaf in found.items()}
  )
  assert list(named_leaves(back)) == list(named_leaves(params))
  jax.tree.map(np.testing.assert_array_equal, back, params)
  again = dict(table.to_tensors(leaves_of(back), config, family))
  jax.tree.map(np.testing.assert_array_equal, again, tensors)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_comes_back(name):
  config = CONFIGS[name]
  family = table.family_of_config(config)
  value = json.loads(json.dumps(family.write_config(config)))
  assert table.family_of_type(value) is family
  assert table.same_model(family.read_config(value), config)
  assert DecoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == (
    config
  )
  # Whatever is changed is noticed.
  changed = replace(config, rms_norm_eps=0.25)
  assert not table.same_model(family.read_config(value), changed)


@pytest.mark.parametrize("name", CONFIGS)
def test_sharding_rules_and_groups_know_every_parameter(name):
  _, abstract = abstract_decoder(CONFIGS[name])
  mesh = make_mesh(devices=jax.devices()[:1])
  jax.tree.map(
    lambda leaf, s: s.shard_shape(leaf.shape),
    abstract,
    shardings(abstract, mesh),
  )
  groups = groups_of(abstract, "2")
  assert sum(groups.shares_G) == pytest.approx(1)


def test_fused_projections_lie_as_they_should():
  """By hand: 2 heads of size 2, width 4, one row a number."""
  config = replace(
    NEOX,
    hidden_size=4,
    num_attention_heads=2,
    num_key_value_heads=2,
    num_hidden_layers=1,
    rotary_fraction=1.0,
  )
  flax = {
    f"layers/attention/{name}/bias": np.arange(4, dtype=np.float32)[None] + ten
    for name, ten in (("query", 10), ("key", 20), ("value", 30))
  }
  family = table.family_of_config(config)
  params = numbered_params(config)
  for name, value in flax.items():
    params["layers"]["attention"][name.split("/")[2]]["bias"] = value
  tensors = dict(table.to_tensors(leaves_of(params), config, family))
  np.testing.assert_array_equal(
    tensors["gpt_neox.layers.0.attention.query_key_value.bias"],
    [10, 11, 20, 21, 30, 31, 12, 13, 22, 23, 32, 33],
  )
  config = replace(
    config=DECODER,
    hidden_size=4,
    num_attention_heads=2,
    num_key_value_heads=2,
    num_hidden_layers=1,
    unit_head=True,
  )
  params = numbered_params(config)
  tensors = dict(
    table.to_tensors(leaves_of(params), config, table.family_of_config(config))
  )
  kernels = params["layers"]["attention"]
  np.testing.assert_array_equal(
    tensors["model.layers.0.self_attn.W_pack.weight"],
    np.concatenate(
      [kernels[n]["kernel"][0].T for n in ("query", "key", "value")]
    ),
  )


LLAMA = {
  "model_type": "llama",
  "vocab_size": 50,
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "intermediate_size": 24,
}
QWEN = {**LLAMA, "model_type": "qwen2"}
BAICHUAN = {**LLAMA, "model_type": "baichuan", "max_position_embeddings": 64}


def rope(**keys):
  return {**LLAMA, "max_position_embeddings": 64, "rope_scaling": keys}


@pytest.mark.parametrize(
  ("value", "says"),
  [
    ({**LLAMA, "model_type": "gpt2"}, "'gpt2', only llama, qwen2"),
    ([], "not a JSON object"),
    ({**LLAMA, "hidden_act": "relu"}, "hidden_act is 'relu'"),
    ({**LLAMA, "hidden_size": "16"}, "hidden_size is '16', not a count"),
    ({**LLAMA, "num_hidden_layers": None}, "has no num_hidden_layers"),
    ({**LLAMA, "vocab_size": 10**200}, "not a count"),
    ({**LLAMA, "num_key_value_heads": 3}, "not a multiple of"),
    ({**LLAMA, "rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ({**LLAMA, "attention_bias": 1}, "attention_bias is 1, not a boolean"),
    ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    (rope(rope_type="longrope", factor=2.0), "'longrope' is not supported"),
    (rope(rope_type="linear"), "factor is None"),
    (rope(rope_type="yarn", factor=2.0, swing=1), "swing of RoPE scaling yarn"),
    (rope(rope_type="yarn", factor=2.0, mscale="x"), "mscale is 'x'"),
    ({**LLAMA, "rope_scaling": 3}, "rope_scaling is 3"),
    ({**QWEN, "use_sliding_window": True}, "use_sliding_window is True"),
    ({**QWEN, "layer_types": ["sliding_attention"]}, "layer_types"),
    ({**BAICHUAN, "max_position_embeddings": None}, "13B; its ALiBi"),
    ({**BAICHUAN, "vocab_size": 64_000}, "the first Baichuan"),
    ({**BAICHUAN, "rope_theta": 5.0}, "rope_theta is 5.0"),
  ],
)
def test_what_is_not_supported_is_refused_by_name(value, says):
  with pytest.raises(InputError, match=says):
    table.family_of_type(value).read_config(value)


def test_the_heads_of_qwen3_are_of_128_where_it_says_nothing():
  value = {**LLAMA, "model_type": "qwen3"}
  read = table.family_of_type(value).read_config
  assert read(value).head_size == 128
  assert read({**value, "head_dim": 4}).head_size == 4
  assert table.family_of_type(QWEN).read_config(QWEN).head_size == 4


def test_all_problems_of_a_config_are_listed_at_once():
  value = {**QWEN, "hidden_act": "relu", "hidden_size": 0, "vocab_size": None}
  with pytest.raises(InputError) as error:
    table.family_of_type(value).read_config(value)
  assert {p.split()[1] for p in error.value.problems} >= {
    "hidden_act",
    "hidden_size",
    "has",
  }


def test_a_model_that_no_family_has_is_refused():
  config = replace(query_key_norm="head", parallel_residual=True)
  with pytest.raises(InputError, match="'parallel_residual': True"):
    table.family_of_config(config)


def test_an_old_llama_config_is_said_in_the_same_words():
  """Metadata of what was trained before there were options must not change."""
  beyond = {
    f.name for f in dataclasses.fields(DECODER)
  } - DECODER.to_dict().keys()
  assert beyond == set(DecoderConfig.__dataclass_fields__) - {
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "rope_theta",
    "rms_norm_eps",
    "tie_word_embeddings",
    "dtype",
    "vocab_multiple",
  }


@pytest.mark.parametrize(
  ("options", "says"),
  [
    ({"norm": "batch"}, "norm must be one of"),
    ({"rotary_fraction": 1.5}, r"rotary_fraction must be in \(0, 1\]"),
    ({"rotary_fraction": 0.25}, "even for RoPE, got 1"),
    ({"head_dim": 5}, "head_dim must be even"),
    ({"unit_head": True, "tie_word_embeddings": True}, "unit_head needs"),
    ({"norm_after": True, "parallel_residual": True}, "exclude each other"),
    ({"rope_scaling": RopeScaling("ntk", 2.0)}, "kind must be one of"),
    ({"rope_scaling": RopeScaling("linear", -2.0)}, "factor must be positive"),
    ({"rope_scaling": RopeScaling("dynamic", 2.0)}, "original_length"),
    ({"rope_scaling": {"kind": "linear"}}, "must be a jaxmerge.model.rope"),
    ({"rope_scaling": RopeScaling("yarn", 2.0, 8, 4.0, 4.0)}, "more than low"),
  ],
)
def test_options_that_make_no_decoder_are_refused(options, says):
  with pytest.raises(InputError, match=says):
    replace(**options)


def test_pythia_in_full_is_read():
  """The config.json of a Pythia, with keys that mean nothing here."""
  value = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.24.0",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50304,
  }
  config = table.family_of_type(value).read_config(value)
  _, abstract = abstract_decoder(config)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract))
  assert count == 162_322_944  # as its model card says
  assert config.head_size * config.rotary_fraction == 16
