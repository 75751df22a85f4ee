"""A Llama of 1.3B parameters on 26B tokens of C4, kept for merging.

  python -m jaxmerge.pretrain --config=configs/pretrain/llama_1b.py \
      --workdir=runs/llama_1b

Eight H100: 16 hours if each is as fast as one (docs/results/train_step.md),
$380; a TPU v5e:4x4: 50 hours at 40% MFU, $960. The loss ends near 2.5
nats/token by the law that llama_125m.py names; the run itself has not been
made.
"""

from ml_collections import config_dict

import jaxmerge


def get_config() -> config_dict.ConfigDict:
  config = jaxmerge.load_config("configs/pretrain/llama_350m.py")
  config.num_steps = 25_000
  config.seq_len = 2048
  config.save_every = 500
  config.data.max_documents = 65_000_000
  config.model.hidden_size = 2048
  config.model.intermediate_size = 5632
  config.optimizer.learning_rate = 2e-4
  config.optimizer.warmup_steps = 500
  config.step.accumulate = 8
  return config
