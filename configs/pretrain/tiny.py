"""The quickstart's run in miniature, for tests and first looks.

  python -m jaxmerge.pretrain --config=configs/pretrain/tiny.py \
      --workdir=runs/tiny

Half a minute on 2 CPU cores, most of it compiling.
"""

from ml_collections import config_dict

import jaxmerge


def get_config() -> config_dict.ConfigDict:
  config = jaxmerge.load_config("configs/pretrain/quickstart.py")
  config.num_steps = 16
  config.batch_size = 8
  config.seq_len = 32
  config.save_every = 4
  config.log_every = 2
  config.validation_sequences = 16
  config.eval_batch_size = 8
  config.data.vocab_size = 300
  config.data.max_documents = 120
  config.model.hidden_size = 32
  config.model.num_hidden_layers = 2
  config.model.num_attention_heads = 2
  config.model.num_key_value_heads = 1
  config.model.intermediate_size = 64
  config.optimizer.warmup_steps = 2
  return config
