"""A Llama of 360M parameters on 7.3B tokens of C4, kept for merging.

  python -m jaxmerge.pretrain --config=configs/pretrain/llama_350m.py \
      --workdir=runs/llama_350m

One H100: 13 hours at the speed of docs/results/train_step.md, $40; a TPU
v5e:2x2: 15 hours at 40% MFU, $72. The loss ends near 2.9 nats/token by the law
that llama_125m.py names; the run itself has not been made.
"""

from ml_collections import config_dict

import jaxmerge


def get_config() -> config_dict.ConfigDict:
  config = jaxmerge.load_config("configs/pretrain/llama_125m.py")
  config.num_steps = 14_000
  config.save_every = 250
  config.data.max_documents = 18_000_000
  config.model.hidden_size = 1024
  config.model.num_hidden_layers = 24
  config.model.num_attention_heads = 16
  config.model.num_key_value_heads = 16
  config.model.intermediate_size = 2816
  config.optimizer.learning_rate = 4e-4
  return config
