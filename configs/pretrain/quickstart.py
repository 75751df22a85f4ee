"""A small Llama on the interpreter's own source code, at a constant rate.

  python -m jaxmerge.pretrain --config=configs/pretrain/quickstart.py \
      --workdir=runs/quickstart

About four minutes on 2 CPU cores. The validation loss ends near 3.00
nats/token.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  config.num_steps = 900
  config.batch_size = 16
  config.seq_len = 128

  config.data = config_dict.ConfigDict()
  config.data.source = "python_source"
  config.data.vocab_size = 1024

  config.model = config_dict.ConfigDict()
  config.model.hidden_size = 128
  config.model.num_hidden_layers = 4
  config.model.num_attention_heads = 4
  config.model.num_key_value_heads = 2
  config.model.intermediate_size = 384

  config.optimizer = config_dict.ConfigDict()
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 50
  return config
