"""A small Llama on the interpreter's own source code, at a constant rate.

  python -m jaxmerge.pretrain --config=configs/pretrain/quickstart.py \
      --workdir=runs/quickstart

About four minutes on 2 CPU cores. The validation loss ends near 3.00
nats/token.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  config.seed = 0
  config.num_steps = 900
  config.batch_size = 16
  config.seq_len = 128
  config.log_every = 10
  config.save_every = 100
  config.validation_sequences = 64
  config.eval_batch_size = 16

  config.data = config_dict.ConfigDict()
  config.data.source = "python_source"
  config.data.globs = ()
  config.data.data_dir = ""
  config.data.split = ""
  config.data.text_feature = "text"
  config.data.max_documents = 0
  config.data.vocab_size = 1024
  config.data.tokenizer_path = ""
  config.data.cache_dir = ""

  config.model = config_dict.ConfigDict()
  config.model.width = 128
  config.model.depth = 4
  config.model.num_heads = 4
  config.model.num_kv_heads = 2
  config.model.mlp_width = 384
  config.model.rope_theta = 10_000.0
  config.model.norm_eps = 1e-5
  config.model.tied = True
  config.model.dtype = "float32"
  config.model.vocab_multiple = 128
  config.model.remat = False

  config.optimizer = config_dict.ConfigDict()
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 50
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.95
  config.optimizer.weight_decay = 0.1
  config.optimizer.clip_norm = 1.0

  config.mesh = config_dict.ConfigDict()
  config.mesh.data = -1
  config.mesh.fsdp = 1
  config.mesh.tensor = 1
  return config
