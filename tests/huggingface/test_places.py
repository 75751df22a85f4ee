"""Where tensors lie in a model, by the names that checkpoints have."""

import pytest

from jaxmerge.huggingface.places import layout_of
from jaxmerge.model.places import ATTENTION, EMBEDDINGS, HEAD, MLP, Place

# A name of each tensor of the second layer, and those of no layer.
NAMED = {
  "gpt2": {
    "transformer.wte.weight": EMBEDDINGS,
    "transformer.wpe.weight": EMBEDDINGS,
    "transformer.h.1.ln_1.weight": ATTENTION,
    "transformer.h.1.attn.c_attn.weight": ATTENTION,
    "transformer.h.1.attn.c_proj.bias": ATTENTION,
    "transformer.h.1.ln_2.bias": MLP,
    "transformer.h.1.mlp.c_fc.weight": MLP,
    "transformer.ln_f.weight": HEAD,
    "lm_head.weight": HEAD,
  },
  "mixtral": {
    "model.embed_tokens.weight": EMBEDDINGS,
    "model.layers.1.input_layernorm.weight": ATTENTION,
    "model.layers.1.self_attn.o_proj.weight": ATTENTION,
    "model.layers.1.post_attention_layernorm.weight": MLP,
    "model.layers.1.block_sparse_moe.gate.weight": MLP,
    "model.layers.1.block_sparse_moe.experts.3.w2.weight": MLP,
    "model.norm.weight": HEAD,
    "lm_head.weight": HEAD,
  },
  "gemma2": {
    "model.embed_tokens.weight": EMBEDDINGS,
    "model.layers.1.input_layernorm.weight": ATTENTION,
    "model.layers.1.self_attn.q_proj.weight": ATTENTION,
    "model.layers.1.post_attention_layernorm.weight": ATTENTION,
    "model.layers.1.pre_feedforward_layernorm.weight": MLP,
    "model.layers.1.mlp.gate_proj.weight": MLP,
    "model.layers.1.post_feedforward_layernorm.weight": MLP,
    "model.norm.weight": HEAD,
  },
  "bert": {
    "bert.embeddings.word_embeddings.weight": EMBEDDINGS,
    "bert.embeddings.LayerNorm.weight": EMBEDDINGS,
    "bert.encoder.layer.1.attention.self.query.weight": ATTENTION,
    "bert.encoder.layer.1.attention.output.LayerNorm.bias": ATTENTION,
    "bert.encoder.layer.1.intermediate.dense.weight": MLP,
    "bert.encoder.layer.1.output.dense.weight": MLP,
    "bert.encoder.layer.1.output.LayerNorm.weight": MLP,
    "bert.pooler.dense.weight": HEAD,
    "cls.predictions.decoder.weight": HEAD,
  },
  "opt": {
    "model.decoder.embed_positions.weight": EMBEDDINGS,
    "model.decoder.layers.1.self_attn_layer_norm.weight": ATTENTION,
    "model.decoder.layers.1.self_attn.k_proj.bias": ATTENTION,
    "model.decoder.layers.1.fc1.weight": MLP,
    "model.decoder.layers.1.fc2.bias": MLP,
    "model.decoder.layers.1.final_layer_norm.weight": MLP,
    "model.decoder.final_layer_norm.weight": HEAD,
  },
  "llama of Meta": {
    "tok_embeddings.weight": EMBEDDINGS,
    "layers.1.attention.wq.weight": ATTENTION,
    "layers.1.attention_norm.weight": ATTENTION,
    "layers.1.feed_forward.w1.weight": MLP,
    "layers.1.ffn_norm.weight": MLP,
    "norm.weight": HEAD,
    "output.weight": HEAD,
  },
  "bloom": {
    "word_embeddings.weight": EMBEDDINGS,
    "word_embeddings_layernorm.bias": EMBEDDINGS,
    "h.1.self_attention.query_key_value.weight": ATTENTION,
    "h.1.mlp.dense_h_to_4h.weight": MLP,
    "ln_f.bias": HEAD,
  },
  "falcon": {
    "transformer.word_embeddings.weight": EMBEDDINGS,
    "transformer.h.1.ln_attn.weight": ATTENTION,
    "transformer.h.1.ln_mlp.weight": MLP,
    "transformer.h.1.self_attention.dense.weight": ATTENTION,
    "transformer.h.1.mlp.dense_4h_to_h.weight": MLP,
  },
  # Not to be told apart: layers of two stacks, and words of no meaning here.
  "t5": {
    "shared.weight": EMBEDDINGS,
    "encoder.block.1.layer.0.SelfAttention.q.weight": ATTENTION,
    "encoder.block.1.layer.1.DenseReluDense.wi.weight": MLP,
    "encoder.block.1.layer.0.layer_norm.weight": "",
    "decoder.block.1.layer.0.SelfAttention.q.weight": None,
    "lm_head.weight": HEAD,
  },
  "rwkv": {
    "emb.weight": EMBEDDINGS,
    "blocks.1.ln1.weight": ATTENTION,
    "blocks.1.att.key.weight": ATTENTION,
    "blocks.1.ffn.key.weight": MLP,
    "blocks.1.gate_of_time": "",
    "blocks_of_time": None,
    "ln_out.weight": HEAD,
  },
}


@pytest.mark.parametrize("name", NAMED)
def test_words_in_names(name):
  known = NAMED[name]
  shapes = {tensor: (index + 2, 5) for index, tensor in enumerate(known)}
  found = layout_of(shapes, {"model_type": "unknown"})
  for tensor, part in known.items():
    expected = Place("" if part is None else part)
    if part is not None and ".1." in tensor:
      expected = Place(part, 1)
    assert found.places[tensor] == expected, tensor
  assert not found.copies


def test_a_tied_head_is_a_copy_where_its_config_says_so():
  shapes = {
    "wte.weight": (9, 4),
    "wpe.weight": (8, 4),
    "lm_head.weight": (9, 4),
    "lm_head.bias": (9,),
  }
  for is_tied in (True, False):
    config = {"model_type": "unknown", "tie_word_embeddings": is_tied}
    copies = layout_of(shapes, config).copies
    assert copies == ({"lm_head.weight": "wte.weight"} if is_tied else {})
