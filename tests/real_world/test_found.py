"""Directories of other tools that were merged wrongly, or said little of."""

import numpy as np
import pytest

from jaxmerge.errors import InputError
from jaxmerge.huggingface.directory import open_model
from tests.real_world import made
from tests.real_world.made import directory, noise, plain

CONV, LENGTHS = (6, 2, 4), (1, 1, 4)
# Parts of a weight that torch.nn.utils computes of them, by the names of each
# version; the first is that which may differ.
NORMED = {
  "weight_norm of before": {"c.weight_g": LENGTHS, "c.weight_v": CONV},
  "weight_norm": {
    "c.parametrizations.weight.original0": LENGTHS,
    "c.parametrizations.weight.original1": CONV,
  },
  "of a recurrent layer": {"weight_hh_l0_g": (4, 1), "weight_hh_l0_v": (4, 3)},
}
SPECTRAL = {
  "spectral_norm of before": {
    "c.weight_orig": (4, 6),
    "c.weight_u": (4,),
    "c.weight_v": (6,),
  },
  "spectral_norm": {
    "c.parametrizations.weight.original": (4, 6),
    "c.parametrizations.weight.0._u": (4,),
    "c.parametrizations.weight.0._v": (6,),
  },
  "orthogonal": {
    "c.parametrizations.weight.original": (4, 4),
    "c.parametrizations.weight.0.base": (4, 4),
  },
}


def made_of(shapes, seed):
  return {name: noise(*s, seed=seed) for name, s in shapes.items()}


def pair(tmp_path, tensors, configs=({}, {}), files=({}, {})):
  """Directories of `tensors(1)` and `tensors(2)`."""
  return [
    directory(tmp_path / str(i), tensors(i), config, files=beside)
    for i, config, beside in zip((1, 2), configs, files)
  ]


@pytest.mark.parametrize("name", [*NORMED, *SPECTRAL])
def test_parts_of_a_weight_are_not_averaged_apart(tmp_path, capsys, name):
  shapes = (NORMED | SPECTRAL)[name]
  paths = pair(tmp_path, lambda i: plain(i) | made_of(shapes, i))
  lines = made.refused(capsys, paths, tmp_path / "out")
  assert len(lines) == 1
  assert list(shapes)[-1 if name in NORMED else 0] in lines[0]
  assert "part of a weight that is a product" in lines[0]


@pytest.mark.parametrize("name", NORMED)
def test_lengths_of_one_direction_are_averaged(tmp_path, name):
  lengths, direction = NORMED[name]

  def tensors(i):
    fixed = noise(*NORMED[name][direction], seed=9)
    return {lengths: noise(*NORMED[name][lengths], seed=i), direction: fixed}

  out = made.merged(pair(tmp_path, tensors), tmp_path / "out")
  mean = (tensors(1)[lengths] + tensors(2)[lengths]) / 2
  np.testing.assert_allclose(out[lengths], mean, rtol=1e-6)
  np.testing.assert_array_equal(out[direction], tensors(1)[direction])


@pytest.mark.parametrize("name", SPECTRAL)
def test_equal_parts_of_a_weight_are_copied(tmp_path, name):
  parts = made_of(SPECTRAL[name], 5)
  paths = pair(tmp_path, lambda i: plain(i) | parts)
  out = made.merged(paths, tmp_path / "out")
  for part, array in parts.items():
    np.testing.assert_array_equal(out[part], array)


def test_bytes_of_packed_weights_may_lie_flat(tmp_path, capsys):
  paths = pair(
    tmp_path, lambda i: plain(i) | {"q.packed": np.full(64, i, np.uint8)}
  )
  lines = made.refused(capsys, paths, tmp_path / "out")
  assert len(lines) == 1
  assert lines[0].startswith("q.packed: whole numbers of an array")


PLACES = ["q.indices", "q.col_indices", "q.g_idx", "q_invperm", "a.row_offsets"]


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_places_of_weights_must_be_the_same(tmp_path, capsys, name, dtype):
  def tensors(i):
    return plain(i) | {name: np.roll(np.arange(8, dtype=dtype), i)}

  lines = made.refused(capsys, pair(tmp_path, tensors), tmp_path / "out")
  assert len(lines) == 1
  assert lines[0].startswith(f"{name}: whole numbers of an array, which differ")
  again = pair(tmp_path / "same", lambda i: plain(i) | {name: tensors(1)[name]})
  np.testing.assert_array_equal(
    made.merged(again, tmp_path / "out")[name], tensors(1)[name]
  )


@pytest.mark.parametrize("size", [0, 5])
def test_state_beside_weights_is_that_of_the_latest(tmp_path, size):
  name = "layer._extra_state"
  paths = pair(
    tmp_path, lambda i: plain(i) | {name: np.full(size, i, np.uint8)}
  )
  found = made.merged(paths, tmp_path / "out")[name]
  np.testing.assert_array_equal(found, np.full(size, 2, np.uint8))


MASKS = {
  "h.0.attn.causal_mask": np.tril(np.ones((1, 1, 4, 4), bool)),
  "layers.0.blocks.1.attn_mask": np.zeros((2, 4, 4), np.float32),
  "attn.tril": np.tril(np.ones((4, 4), np.float32)),
  "rope_embed.periods": noise(4),
  "freqs_cis": noise(4, 2),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("which", [1, 2])
def test_what_models_compute_may_be_in_one_only(tmp_path, name, which):
  def tensors(i):
    return plain(i) | ({name: MASKS[name]} if i == which else {})

  assert name not in made.merged(pair(tmp_path, tensors), tmp_path / "out")


@pytest.mark.parametrize("name", ["q.mask", "attn_mask_token"])
def test_a_mask_of_weights_must_be_in_all(tmp_path, capsys, name):
  def tensors(i):
    return plain(i) | ({name: noise(4, 4)} if i == 1 else {})

  [line] = made.refused(capsys, pair(tmp_path, tensors), tmp_path / "out")
  assert f"has no parameter {name}" in line


FACTORS = [
  "q.lora.A",
  "q.loraA.weight",
  "q.lora_A0",
  "q.randlora_A",
  "q.lora_left.weight",
  "q.lora_linear_layer.down.weight",
  "q.lora_layer.up.weight",
  "q.down_lora.weight",
  "q.dora_scale",
]


@pytest.mark.parametrize("name", FACTORS)
def test_factors_are_told_however_they_are_spelled(tmp_path, capsys, name):
  paths = pair(tmp_path, lambda i: plain(i) | {name: noise(2, 4, seed=i)})
  lines = made.refused(capsys, paths, tmp_path / "out")
  assert len(lines) == 2
  assert f"tensor {name} is a factor of a weight" in lines[0]


@pytest.mark.parametrize(
  "name", ["explorable.weight", "a_lora.lora.0.weight", "flora.a", "lora_norm"]
)
def test_what_only_sounds_like_a_factor_is_merged(tmp_path, name):
  paths = pair(tmp_path, lambda i: plain(i) | {name: noise(2, 4, seed=i)})
  assert name in made.merged(paths, tmp_path / "out")


@pytest.mark.parametrize("value", [7, "LlamaForCausalLM", {"a": 1}, [1, None]])
def test_architectures_of_any_type_stop_no_merge(tmp_path, value):
  config = {**made.LLAMA, "architectures": value}
  paths = pair(tmp_path, made.llama_tensors, [config, config])
  made.merged(paths, tmp_path / "out")


# Of models that jaxmerge does not know: what equal tensors compute.
OTHER_MEANING = [
  ("n_head", 2, 4),
  ("num_attention_heads", 2, 4),
  ("num_key_value_heads", 1, 2),
  ("encoder_attention_heads", 2, 4),
  ("head_dim", 2, 4),
  ("hidden_act", "gelu", "relu"),
  ("activation_function", "gelu_new", "gelu"),
  ("feed_forward_proj", "relu", "gated-gelu"),
  ("layer_norm_eps", 1e-12, 1e-5),
  ("layer_norm_epsilon", 1e-6, 1e-5),
  ("rope_theta", 1e4, 1e6),
  ("position_embedding_type", "absolute", "relative_key"),
  ("layer_types", ["full", "sliding"], ["sliding", "full"]),
  ("embedding_multiplier", 1.0, 12.0),
  ("final_logit_softcapping", 30.0, 50.0),
  ("scaling_factor", 0.18215, 0.13025),
  ("new_decoder_architecture", False, True),
  ("norm_topk_prob", False, True),
  ("tie_word_embeddings", True, False),
  ("_class_name", "UNet2DModel", "AutoencoderKL"),
]


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "in another"])
@pytest.mark.parametrize(("key", "a", "b"), OTHER_MEANING)
def test_other_settings_of_any_model_are_refused(
  tmp_path, capsys, key, a, b, nested
):
  of_whole = key in ("tie_word_embeddings", "_class_name")
  configs = [{key: value} for value in (a, b)]
  if nested and not of_whole:
    configs = [{"text_config": config} for config in configs]
    key = f"text_config.{key}"
  paths = pair(tmp_path, plain, configs)
  [line] = made.refused(capsys, paths, tmp_path / "out")
  assert line == f"{paths[1]}: model.{key} is {b!r}, of {paths[0]} {a!r}"


def test_settings_that_are_not_supported_are_named(tmp_path, capsys):
  configs = [{**made.LLAMA, "hidden_act": act} for act in ("silu", "gelu")]
  paths = pair(tmp_path, made.llama_tensors, configs)
  [line] = made.refused(capsys, paths, tmp_path / "out")
  assert line == f"{paths[1]}: model.hidden_act is 'gelu', of {paths[0]} 'silu'"


SAME_MEANING = [
  ({"hidden_act": "swish"}, {"hidden_act": "silu"}),
  ({"hidden_act": "gelu_new"}, {"hidden_act": "gelu_pytorch_tanh"}),
  ({"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 10000}}),
  ({"num_attention_heads": 2}, {}),
  ({"head_dim": None}, {"head_dim": 4}),
  ({"layer_norm_eps": float("nan")}, {"layer_norm_eps": float("nan"), "x": 1}),
  ({"num_experts_per_tok": 2}, {"num_experts_per_tok": 1}),
  ({"classifier_dropout": 0.1}, {"classifier_dropout": 0.2}),
  ({"id2label": {"0": "neg"}}, {"id2label": {"0": "NEG", "1": "pos"}}),
  ({"id2label": {"0": "a", "1": "b"}}, {"id2label": {"0": "c", "1": "d"}}),
]


@pytest.mark.parametrize("configs", SAME_MEANING)
def test_settings_that_mean_the_same_are_merged(tmp_path, configs):
  made.merged(pair(tmp_path, plain, configs), tmp_path / "out")


def test_other_heads_were_pruned(tmp_path, capsys):
  paths = pair(tmp_path, plain, [{"pruned_heads": {"0": [k]}} for k in (1, 2)])
  [line] = made.refused(capsys, paths, tmp_path / "out")
  assert "model.pruned_heads.0 is [2], of" in line


@pytest.mark.parametrize("model", ["anything", "llama"])
def test_classes_that_changed_places_are_refused(tmp_path, capsys, model):
  labels = ("neg", "pos"), ("POS", "NEG")
  configs = [{"id2label": {str(k): n for k, n in enumerate(x)}} for x in labels]
  if model == "llama":
    configs = [{**made.LLAMA, **config} for config in configs]
  tensors = made.llama_tensors if model == "llama" else plain
  paths = pair(tmp_path, tensors, configs)
  [line] = made.refused(capsys, paths, tmp_path / "out")
  assert line == f"{paths[1]}: model.label2id.neg is '1', of {paths[0]} '0'"


LINEAR = {"rope_type": "linear", "factor": 2.0}
PLAIN = {"rope_type": "default", "rope_theta": 1e6}
ROPES = [
  ({"rope_parameters": {"full_attention": PLAIN}}, "for all layers"),
  ({"rope_parameters": PLAIN, "rope_scaling": LINEAR}, "differ"),
  ({"rope_scaling": [1]}, "not one description of RoPE"),
]


@pytest.mark.parametrize(("rope", "says"), ROPES)
def test_rope_that_is_said_twice_is_not_guessed(tmp_path, rope, says):
  path = made.llama(tmp_path / "a", 1, **rope)
  with pytest.raises(InputError, match=says):
    open_model(path)


VOCABULARIES = {
  "encoder.json": ('{"a": 0, "b": 1}', '{"a": 1, "b": 0}'),
  "vocab.bpe": ("#version: 0.2\na b\nb c", "#version: 0.2\nb c\na b"),
  "bpe.codes": ("a b 2\nb c 1", "b c 2\na b 1"),
  "dict.txt": ("a 10\nb 9", "b 10\na 9"),
  "vocab-src.json": ('{"a": 0, "b": 1}', '{"a": 1, "b": 0}'),
  "target_vocab.json": ('{"a": 0, "b": 1}', '{"a": 1, "b": 0}'),
  "entity_vocab.json": ('[{"id": 0}]', '[{"id": 1}]'),
  "rwkv_vocab_v20230424.txt": ("1 'a' 1\n2 'b' 1", "1 'b' 1\n2 'a' 1"),
}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_vocabularies_under_other_names_are_compared(tmp_path, capsys, name):
  a, b = VOCABULARIES[name]
  files = [{"tokenizer_config.json": "{}", name: text} for text in (a, b)]
  paths = pair(tmp_path, plain, files=files)
  [line] = made.refused(capsys, paths, tmp_path / "out")
  assert f"is of another tokenizer than {paths[0]} ({name}: " in line
  made.merged(paths, tmp_path / "out", "--allow_other_tokenizer")
  again = pair(tmp_path / "same", plain, files=[files[0]] * 2)
  made.merged(again, tmp_path / "out2")


def test_settings_of_files_beside_are_in_the_card(tmp_path):
  files = [
    {"preprocessor_config.json": {"size": 8, "image_mean": [mean]}}
    for mean in (0.4, 0.5)
  ]
  files[1] |= {"1_Pooling/config.json": {"mode": "cls"}, "bad.json": "{"}
  made.merged(pair(tmp_path, plain, files=files), tmp_path / "out")
  card = (tmp_path / "out/README.md").read_text()
  assert "| preprocessor_config.json image_mean | [0.4] | [0.5] |" in card
  assert '| 1_Pooling/config.json mode |  | "cls" |' in card
  assert "size" not in card


def test_no_more_settings_are_in_the_card_than_can_be_read(tmp_path):
  files = [
    {f"x{n}_config.json": {str(k): i for k in range(9)} for n in range(30)}
    for i in (1, 2)
  ]
  made.merged(pair(tmp_path, plain, files=files), tmp_path / "out")
  card = (tmp_path / "out/README.md").read_text()
  assert card.count("_config.json") == 100


HOLDS = {
  "FSDP": ({"pytorch_model_fsdp_0/__0_0.distcp": b"1"}, "dcp_to_torch_save"),
  "ZeRO": (
    {"global_step7/mp_rank_00_model_states.pt": b"1"},
    "a checkpoint of DeepSpeed",
  ),
  "rank": ({"mp_rank_00_model_states.pt": b"1"}, "a checkpoint of DeepSpeed"),
  "Megatron": ({"iter_0000010/mp_rank_00/model.pt": b"1"}, "of Megatron"),
  "NeMo": ({"model.nemo": b"1"}, "of NeMo"),
}


@pytest.mark.parametrize("name", HOLDS)
@pytest.mark.parametrize("config", [False, {}], ids=["none", "config"])
def test_checkpoints_of_trainers_are_named(tmp_path, capsys, name, config):
  files, says = HOLDS[name]
  path = directory(tmp_path / "a", {}, config, files=files, names="")
  [line] = made.refused(capsys, [path, path], tmp_path / "out")[:1]
  assert says in line
  assert "; and " not in line


def test_an_adapter_is_told_once_what_to_do(tmp_path, capsys):
  path = directory(
    tmp_path / "a",
    {"q.lora_A.weight": noise(2, 2)},
    False,
    files={"adapter_config.json": {"base_model_name_or_path": "org/base"}},
    names="adapter_model.safetensors",
  )
  line = made.refused(capsys, [path, path], tmp_path / "out")[0]
  assert line.count("org/base") == 1
