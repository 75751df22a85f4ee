"""A decoder as Pythia's of 160M parameters (arXiv 2304.01373) on C4.

  python -m jaxmerge.pretrain --config=configs/pretrain/pythia_160m.py \
      --workdir=runs/pythia_160m

One H100, or a TPU v5e:2x2, about as long as llama_125m.py. It exports as a
GPT-NeoX. The loss ends near 3.3 nats/token by the law named there; the run
itself has not been made.
"""

from ml_collections import config_dict

import jaxmerge


def get_config() -> config_dict.ConfigDict:
  config = jaxmerge.load_config("configs/pretrain/llama_125m.py")
  config.model.intermediate_size = 3072
  config.model.norm = "layer"
  config.model.parallel_residual = True
  config.model.attention_bias = "all"
  config.model.mlp_bias = True
  config.model.gated_mlp = False
  config.model.activation = "gelu"
  config.model.rotary_fraction = 0.25
  config.model.tie_word_embeddings = False
  return config
