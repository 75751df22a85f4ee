"""A Llama of 124M parameters on 2.5B tokens of C4, kept for merging.

  python -m jaxmerge.pretrain --config=configs/pretrain/llama_125m.py \
      --workdir=runs/llama_125m

One H100: 1.5 hours at the speed of docs/results/train_step.md, $5 at $3 an
hour. A TPU v5e:2x2: 1.8 hours at 40% MFU, $9 at $1.2 a chip-hour. The loss
ends near 3.4 nats/token by the law of arXiv 2203.15556, 1.69 + 406.4 / N^.34 +
410.7 / D^.28; the run itself has not been made. Text of your own:
--config.data.source=text_files --config.data.globs=FOLDER
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  config.num_steps = 4800
  config.batch_size = 512
  config.seq_len = 1024
  config.save_every = 100
  config.validation_sequences = 512
  config.eval_batch_size = 64

  config.data = config_dict.ConfigDict()
  config.data.source = "c4/en"
  config.data.max_documents = 6_500_000
  config.data.vocab_size = 50304

  config.model = config_dict.ConfigDict()
  config.model.hidden_size = 768
  config.model.num_hidden_layers = 12
  config.model.num_attention_heads = 12
  config.model.num_key_value_heads = 12
  config.model.intermediate_size = 2048
  config.model.dtype = "bfloat16"

  config.optimizer = config_dict.ConfigDict()
  config.optimizer.learning_rate = 6e-4
  config.optimizer.warmup_steps = 300

  config.mesh = config_dict.ConfigDict()
  config.mesh.data = 1
  config.mesh.fsdp = -1

  config.step = config_dict.ConfigDict()
  config.step.accumulate = 16
  config.step.remat = "dots"
  config.step.max_skipped = 10
  config.step.spike = 5.0
  return config
