"""A decoder as Pythia's of 1.4B parameters (arXiv 2304.01373) on C4.

  python -m jaxmerge.pretrain --config=configs/pretrain/pythia_1b.py \
      --workdir=runs/pythia_1b

Eight H100, or a TPU v5e:4x4, about as long as llama_1b.py. The loss ends near
2.5 nats/token by the law that llama_125m.py names; the run itself has not been
made.
"""

from ml_collections import config_dict

import jaxmerge


def get_config() -> config_dict.ConfigDict:
  config = jaxmerge.load_config("configs/pretrain/llama_1b.py")
  config.model.update(
    jaxmerge.load_config("configs/pretrain/pythia_160m.py").model
  )
  config.model.hidden_size = 2048
  config.model.num_hidden_layers = 24
  config.model.num_attention_heads = 16
  config.model.num_key_value_heads = 16
  config.model.intermediate_size = 8192
  return config
