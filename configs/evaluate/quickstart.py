"""Scores checkpoints on the report split, which no search ever sees.

  python -m jaxmerge.evaluate --config=configs/evaluate/quickstart.py \
      --inputs=runs/quickstart@700,runs/quickstart/search/pair/merged/700

Ten seconds on 2 CPU cores. Every loss is compared, sequence by sequence, with
that of the first input: about -0.09 nats/token for the merged checkpoint.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  config.split = "report"
  config.sequences = 128
  # Targets in a sequence; 0 is as in training.
  config.seq_len = 0
  config.batch_size = 16

  # "" scores on the corpus that the first input was trained on.
  config.data = config_dict.ConfigDict()
  config.data.source = ""
  config.data.globs = ()
  config.data.data_dir = ""
  config.data.split = ""
  config.data.text_feature = "text"
  config.data.max_documents = 0
  config.data.cache_dir = ""

  config.mesh = config_dict.ConfigDict()
  config.mesh.data = -1
  config.mesh.fsdp = 1
  config.mesh.tensor = 1
  return config
